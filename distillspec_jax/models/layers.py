"""The layers of T5: norm, attention, feed-forward, embedding.

Parameter names and shapes are t5x's, so that its checkpoints need no rename:
kernels are two-dimensional, heads joined. Each parameter carries its logical
axes (`nn.with_logical_partitioning`), from which shardings are made.

Attention has no 1/sqrt(K): T5 puts that into the initial query kernel.
"""

from __future__ import annotations

import functools
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh
from distillspec_jax.models import attention_kernel
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import int8

_TPU_ROWS = 8  # of a register; fewer queries are few
_FUSED = 128  # queries and keys from which on the kernel is faster
_ACTIVATION: dict[str, Any] = {
    'gelu': nn.gelu,
    'gelu_exact': functools.partial(nn.gelu, approximate=False),
    'linear': lambda x: x,
    'relu': nn.relu,
    'silu': nn.silu,
}


def constrain(x: jax.Array, *names: str) -> jax.Array:
  """x with its logical axes laid out by the current rules, if any."""
  return layouts.constrain(x, names, tuple(nn.get_logical_axis_rules()))


def constrain_rows(*arrays: jax.Array) -> list[jax.Array]:
  """Arrays [B, ...] with their rows laid out by the current rules.

  A model's inputs are laid out so; otherwise all that is computed from them,
  masks above all, would stay where another model has its rows.
  """
  return [constrain(array, 'batch') for array in arrays]


def compute_dtype(config: config_lib.T5Config) -> Any:
  return jnp.dtype(config.dtype)


class Dense(nn.Module):
  """x @ kernel, no bias; kernel float32[in, features] under the name kernel.

  With int8 weights: as `models.int8` says.
  """

  features: int
  axes: tuple[str, str]
  stddev: float
  config: config_lib.T5Config
  output_dtype: Any = None  # default: what is computed in

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype, weights = compute_dtype(self.config), self.config.weights
    if weights != 'float':
      shape = (x.shape[-1], self.features)
      values, scale = _int8(self, 'kernel', self.axes, shape, 0)
      product = int8.dot(x.astype(dtype), values, scale, 0, weights)
      return product.astype(self.output_dtype or dtype)
    shape = (x.shape[-1], self.features)
    normal = nn.initializers.normal(self.stddev)
    kernel = _param(self, 'kernel', normal, self.axes, shape)
    return jnp.matmul(
        x.astype(dtype),
        kernel.astype(dtype),
        preferred_element_type=self.output_dtype,
    )


def _int8(
    module: nn.Module,
    name: str,
    axes: tuple[str, str],
    shape: tuple[int, int],
    summed: int,
) -> tuple[jax.Array, jax.Array]:
  """A module's parameter as int8 values and float32 scales."""
  zeros = nn.initializers.zeros  # only shapes and axes count, see `init`
  scale_axes = tuple(None if i == summed else a for i, a in enumerate(axes))
  scale_shape = tuple(1 if i == summed else n for i, n in enumerate(shape))
  values = _param(module, name, zeros, axes, shape, jnp.int8)
  scale = _param(module, name + int8.SCALE, zeros, scale_axes, scale_shape)
  return values, scale


def _param(
    module: nn.Module,
    name: str,
    initializer: Any,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
) -> jax.Array:
  """A module's parameter with its logical axes."""
  boxed = nn.with_logical_partitioning(initializer, axes)
  return cast(jax.Array, module.param(name, boxed, shape, dtype))


class RMSNorm(nn.Module):
  """x / rms(x) * scale, computed in float32, without mean or bias."""

  config: config_lib.T5Config

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones = nn.initializers.ones
    scale = _param(self, 'scale', ones, ('embed',), (x.shape[-1],))
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(mean_square + self.config.norm_epsilon)
    scale = jnp.expand_dims(scale, range(x.ndim - 1))
    return (wide * scale).astype(compute_dtype(self.config))


class Attention(nn.Module):
  """Multi-head attention whose keys and values may come from elsewhere.

  `project` gives keys and values of new tokens, `__call__` attends to any
  keys and values, so that caches live outside the module.
  """

  config: config_lib.T5Config

  def setup(self):
    config = self.config
    joined = config.num_heads * config.head_dim
    fan_in = config.emb_dim**-0.5
    axes = ('embed', 'joined_kv')
    self.query = Dense(joined, axes, fan_in * config.head_dim**-0.5, config)
    self.key = Dense(joined, axes, fan_in, config)
    self.value = Dense(joined, axes, fan_in, config)
    self.out = Dense(config.emb_dim, axes[::-1], joined**-0.5, config)

  def project(
      self, x: jax.Array, is_cached: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Keys and values float[B, H, N, K] of x float[B, N, D].

    Args:
      x: float[B, N, D].
      is_cached: they are a few that a cache is to hold.
    """
    products = self.key(x), self.value(x)
    if is_cached:
      # A TPU would give them the layout of its caches, whose lanes are slots:
      # a product that fills as many of the 128 lanes as there are tokens.
      products = jax.lax.platform_dependent(
          products, tpu=jax.lax.optimization_barrier, default=lambda x: x
      )
    keys, values = map(self._heads, products)
    return keys, values

  def __call__(
      self,
      x: jax.Array,
      keys: jax.Array,
      values: jax.Array,
      visible: jax.Array,
      bias: jax.Array | None,
      dropout: Dropout,
  ) -> jax.Array:
    """float[B, N, D] of queries x float[B, N, D].

    Args:
      x: float[B, N, D].
      keys: float[B, H, L, K].
      values: float[B, H, L, K].
      visible: bool[B, N, L].
      bias: float[B or 1, H, N, L] added to the scores, or None.
      dropout: applied to the weights.
    """
    read = (self._heads(self.query(x)), keys, values, visible, bias)
    plain: Any = functools.partial(mix, dropout=dropout)
    if x.shape[1] < _TPU_ROWS and dropout.key is None:
      mixed = jax.lax.platform_dependent(
          *read, cpu=mix_by_query, tpu=mix_padded, default=plain
      )
    elif _is_fused(self.config, x.shape[1], keys.shape[2], dropout):
      layout = tuple(nn.get_logical_axis_rules())
      mixed = attention_kernel.attend(*read, formula=plain, layout=layout)
    else:
      if self.config.remat == 'attention':
        prevent_cse = not self.config.scan_layers
        plain = jax.checkpoint(plain, prevent_cse=prevent_cse)
      mixed = plain(*read)
    mixed = jnp.swapaxes(mixed, 1, 2)  # [B, H, N, K] -> [B, N, H, K]
    return self.out(mixed.reshape(*mixed.shape[:2], -1))

  def _heads(self, x: jax.Array) -> jax.Array:
    x = x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)
    x = jnp.swapaxes(x, 1, 2)  # [B, N, H, K] -> [B, H, N, K]
    return constrain(x, 'batch', 'heads', 'length', 'kv')


def mix(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None,
    dropout: Dropout,
) -> jax.Array:
  """The values float[B, H, N, K] that queries float[B, H, N, K] attend to.

  Other arguments as in `Attention.__call__`.
  """
  scores = jnp.einsum(
      'bhnk,bhlk->bhnl', queries, keys, preferred_element_type=jnp.float32
  )
  return _mix(scores, values, visible, bias, dropout)


def _mix(
    scores: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None,
    dropout: Dropout,
) -> jax.Array:
  """`mix` from the products of queries and keys, float32[B, H, N, L]."""
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  scores = jnp.where(visible[:, None], scores, attention_kernel.MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
  weights = dropout(weights, 'weights', broadcast_axis=-2)
  return jnp.einsum('bhnl,bhlk->bhnk', weights, values)


def mix_by_query(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
  """`mix` without dropout, for so few queries that a CPU loses by packing keys.

  Each query goes through the keys as they lie in the cache.
  """
  by_query = [
      jnp.einsum(
          'bhk,bhlk->bhl',
          queries[:, :, i],
          keys,
          preferred_element_type=jnp.float32,
      )
      for i in range(queries.shape[2])
  ]
  scores = jnp.stack(by_query, axis=2)
  return _mix(scores, values, visible, bias, Dropout(0.0, None))


def mix_padded(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
  """`mix` without dropout, for so few queries that a TPU would not multiply.

  Fewer than a register has rows, it goes through keys and values element by
  element instead.
  """
  few = queries.shape[2]

  def pad(array, axis):
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, _TPU_ROWS - few)
    return jnp.pad(array, widths)

  bias = None if bias is None else pad(bias, 2)
  read = (pad(queries, 2), keys, values, pad(visible, 1), bias)
  return mix(*read, Dropout(0.0, None))[:, :, :few]


def _is_fused(
    config: config_lib.T5Config, queries: int, keys: int, dropout: Dropout
) -> bool:
  """Whether the kernel takes the place of `mix`.

  Raises:
    UserError: it was asked for, and cannot.
  """
  is_dropped = dropout.key is not None and dropout.rate > 0.0
  fits = keys <= attention_kernel.MAX_KEYS
  if config.attention == 'fused':
    if is_dropped or not fits:
      found = f'dropout_rate is {dropout.rate}' if fits else f'{keys} tokens'
      raise errors.UserError(
          f"T5Config.attention is 'fused', but {found}: the kernel drops no"
          f' weights, and takes at most {attention_kernel.MAX_KEYS} tokens. Set'
          ' attention = None, which uses it where it can.'
      )
    return True
  is_long = min(queries, keys) >= _FUSED
  is_possible = is_long and fits and not is_dropped
  return config.attention is None and is_possible and mesh.platform() == 'tpu'


class FeedForward(nn.Module):
  """Plain (one activation) or gated (two, multiplied) feed-forward layer."""

  config: config_lib.T5Config

  @nn.compact
  def __call__(self, x: jax.Array, dropout: Dropout) -> jax.Array:
    config = self.config
    branches = []
    for i, activation in enumerate(config.mlp_activations):
      name = 'wi' if len(config.mlp_activations) == 1 else f'wi_{i}'
      dense = Dense(
          config.mlp_dim, ('embed', 'mlp'), config.emb_dim**-0.5, config,
          name=name,
      )  # fmt: skip
      branches.append(_ACTIVATION[activation](dense(x)))
    hidden = branches[0]
    for branch in branches[1:]:
      hidden = hidden * branch
    hidden = dropout(hidden, 'hidden', broadcast_axis=-2)
    hidden = constrain(hidden, 'batch', 'length', 'mlp')
    return Dense(
        config.emb_dim,
        ('mlp', 'embed'),
        config.mlp_dim**-0.5,
        config,
        name='wo',
    )(hidden)


class Embedding(nn.Module):
  """Tokens int32[B, N] -> float[B, N, D]; table float32[V, D].

  With int8 weights: as `models.int8` says.
  """

  config: config_lib.T5Config

  def setup(self):
    if self.config.weights != 'float':
      shape = self.config.vocab_size, self.config.emb_dim
      self.held = _int8(self, 'embedding', ('vocab', 'embed'), shape, 1)
      return
    shape = (self.config.vocab_size, self.config.emb_dim)
    normal = nn.initializers.normal(1.0)
    self.embedding = _param(
        self, 'embedding', normal, ('vocab', 'embed'), shape
    )

  def __call__(self, tokens: jax.Array, is_gathered: bool = False) -> jax.Array:
    """float[B, N, D] of the table, which may be gathered over rows' axes."""
    take = functools.partial(jnp.take, axis=0, mode='clip')
    layout = tuple(nn.get_logical_axis_rules())
    if self.config.weights == 'float' and is_gathered:
      rows = take(
          constrain(self.embedding, 'vocab', 'embed_activation'), tokens
      )
    elif self.config.weights == 'float':
      table = self.embedding
      spec = layouts.over_rows(table.shape, ('vocab', 'embed'), layout)
      rows = mesh.shard_over_batch(take, table, tokens, layout=spec)
    else:
      values, scale = (take(held, tokens) for held in self.held)
      rows = values * scale
    rows = rows.astype(compute_dtype(self.config))
    return constrain(rows, 'batch', 'length', 'embed_activation')

  def attend(self, x: jax.Array) -> jax.Array:
    """Logits float32[B, N, V] by the transposed table."""
    if self.config.weights != 'float':
      values, scale = self.held
      return int8.dot(x, values, scale, 1, self.config.weights)
    table = self.embedding.astype(x.dtype)
    return jnp.matmul(x, table.T, preferred_element_type=jnp.float32)


class RelativeBias(nn.Module):
  """rel_embedding float32[H, buckets], of a stack or of one layer."""

  config: config_lib.T5Config

  @nn.compact
  def __call__(self) -> jax.Array:
    config = self.config
    shape = (config.num_heads, config.relative_buckets)
    normal = nn.initializers.normal(config.num_heads**-0.5)
    axes = ('heads', 'relpos_buckets')
    return _param(self, 'rel_embedding', normal, axes, shape)


class Dropout:
  """Dropout with an explicit key; without a key it passes values through.

  The key is derived from the place's name, so that two places never share
  one. `broadcast_axis` shares the mask along an axis, as T5 does over length.
  """

  def __init__(self, rate: float, key: jax.Array | None):
    self.rate = rate
    self.key = key

  def at(self, number: int | jax.Array) -> Dropout:
    """The same dropout for another layer."""
    if self.key is None:
      return self
    return Dropout(self.rate, jax.random.fold_in(self.key, number))

  def __call__(
      self, x: jax.Array, place: str, broadcast_axis: int | None = None
  ) -> jax.Array:
    if self.key is None or self.rate == 0.0:
      return x
    shape = list(x.shape)
    if broadcast_axis is not None:
      shape[broadcast_axis] = 1
    key = randomness.stream(self.key, place)
    keep = jax.random.bernoulli(key, 1.0 - self.rate, tuple(shape))
    return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))
