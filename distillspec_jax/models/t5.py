"""The T5 network as Flax modules; everyone else uses `transformer.py`.

Encoder and decoder are stacks of pre-norm residual layers. The decoder's layer
serves all callers with one code path: teacher forcing (keys and values are
those of the very tokens), and incremental decoding (they are appended to a
cache that is passed in and out), with or without an encoder.

Raffel et al. 2019, https://arxiv.org/abs/1910.10683. Module names, and by them
the parameters', are those of t5x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import layers
from distillspec_jax.models import mask_chains
from distillspec_jax.models import path_slots
from distillspec_jax.models import relative_position

_RESIDUAL = ('batch', 'length', 'embed_activation')

# (keys, values), each float[B, H, L, K].
KeysValues = tuple[jax.Array, jax.Array]


class LayerInputs(NamedTuple):
  """What differs between layers; stacked along axis 0 where scanned."""

  number: Any  # int32[], the layer's place in the stack
  cache: KeysValues | None = None  # incremental decoding: earlier tokens
  cross: KeysValues | None = None  # keys and values of the encoder's output


class StackInputs(NamedTuple):
  """What all layers of a stack have in common."""

  visible: jax.Array  # bool[B, N, L] which keys a token sees
  buckets: Any  # int32[B or 1, N, L] of relative position
  bias: jax.Array | None = None  # float[B or 1, H, N, L], unless a layer's own
  dropout_key: jax.Array | None = None
  start: jax.Array | None = None  # int32[B] or [], slot of the first token
  encoded: jax.Array | None = None  # float[B, S, D]
  cross_visible: jax.Array | None = None  # bool[B, N, S]


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each with a residual."""

  config: config_lib.T5Config

  @nn.compact
  def __call__(self, x: jax.Array, inputs: LayerInputs, common: StackInputs):
    config = self.config
    dropout = layers.Dropout(config.dropout_rate, common.dropout_key)
    dropout = dropout.at(inputs.number)
    y = layers.RMSNorm(config, name='pre_attention_layer_norm')(x)
    attention = layers.Attention(config, name='attention')
    bias = common.bias
    if config.relative_bias_per_layer:
      table = layers.RelativeBias(config, name='relpos_bias')()
      bias = relative_position.bias(table, common.buckets)
    y = attention(y, *attention.project(y), common.visible, bias, dropout)
    x = x + dropout(y, 'attention', broadcast_axis=-2)
    y = layers.RMSNorm(config, name='pre_mlp_layer_norm')(x)
    y = layers.FeedForward(config, name='mlp')(y, dropout)
    x = x + dropout(y, 'mlp', broadcast_axis=-2)
    return layers.constrain(x, *_RESIDUAL), None


class DecoderLayer(nn.Module):
  """Self-attention, attention to the encoder if there is one, feed-forward.

  Returns x and the cache with the new tokens' keys and values.
  """

  config: config_lib.T5Config

  def setup(self):
    self.pre_self_attention_layer_norm = layers.RMSNorm(self.config)
    self.self_attention = layers.Attention(self.config)
    if self.config.relative_bias_per_layer:
      self.relpos_bias = layers.RelativeBias(self.config)
    if not self.config.is_decoder_only:
      self.pre_cross_attention_layer_norm = layers.RMSNorm(self.config)
      self.encoder_decoder_attention = layers.Attention(self.config)
    self.pre_mlp_layer_norm = layers.RMSNorm(self.config)
    self.mlp = layers.FeedForward(self.config)

  def __call__(self, x: jax.Array, inputs: LayerInputs, common: StackInputs):
    config = self.config
    dropout = layers.Dropout(config.dropout_rate, common.dropout_key)
    dropout = dropout.at(inputs.number)
    y = self.pre_self_attention_layer_norm(x)
    is_cached = inputs.cache is not None
    keys_values = self.self_attention.project(y, is_cached)
    cache = None
    if is_cached:
      cache = keys_values = jax.tree.map(
          lambda old, new: append(old, new, common.start),
          inputs.cache,
          keys_values,
      )
    bias = common.bias
    if config.relative_bias_per_layer:
      bias = relative_position.bias(self.relpos_bias(), common.buckets)
    y = self.self_attention(y, *keys_values, common.visible, bias, dropout)
    x = x + dropout(y, 'self_attention', broadcast_axis=-2)
    if not config.is_decoder_only:
      y = self.pre_cross_attention_layer_norm(x)
      cross = inputs.cross
      if cross is None:
        cross = self.project_cross(common.encoded)
      y = self.encoder_decoder_attention(
          y, *cross, common.cross_visible, None, dropout.at(1 << 16)
      )
      x = x + dropout(y, 'cross_attention', broadcast_axis=-2)
    y = self.mlp(self.pre_mlp_layer_norm(x), dropout)
    x = x + dropout(y, 'mlp', broadcast_axis=-2)
    return layers.constrain(x, *_RESIDUAL), cache

  def project_cross(self, encoded: jax.Array) -> KeysValues:
    """Keys and values of the encoder's output, which no token changes."""
    return self.encoder_decoder_attention.project(encoded)


def append(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
  """The cache with `new` written from slot `start` of each row on.

  Args:
    cache: float[B, H, L, K].
    new: float[B, H, N, K].
    start: int32[B], or int32[] if it is that of all rows; start + N <= L, the
      caller sizes the cache so.
  """
  new = new.astype(cache.dtype)
  if not start.ndim and len(cache) > 1:
    return jax.lax.dynamic_update_slice(cache, new, (0, 0, start, 0))
  start = jnp.atleast_1d(start)
  return jax.lax.platform_dependent(
      cache, new, start, tpu=append_one_by_one, default=append_slices
  )


def append_slices(
    cache: jax.Array, new: jax.Array, start: jax.Array
) -> jax.Array:
  """`append` as one batched update: reads and writes the new slots alone."""

  def row(cache, new, start):
    return jax.lax.dynamic_update_slice(cache, new, (0, start, 0))

  if cache.shape[0] == 1:
    return row(cache[0], new[0], start[0])[None]
  return jax.vmap(row)(cache, new, start)


def append_one_by_one(
    cache: jax.Array, new: jax.Array, start: jax.Array
) -> jax.Array:
  """`append` as an update for each row, of which TPUs do many at a time.

  They make a loop of a batched one. A selection among old and new slots would
  write the whole cache.
  """

  def rows(_, batched):
    cache, new, start = batched
    for row in range(cache.shape[0]):
      place = row, 0, start[row], 0
      cache = jax.lax.dynamic_update_slice(cache, new[row : row + 1], place)
    return cache

  # Each device updates its own rows.
  return mesh_lib.shard_over_batch(rows, None, (cache, new, start))


class Stack(nn.Module):
  """The layers of one side: unrolled as layers_0, layers_1, ... or scanned."""

  config: config_lib.T5Config
  is_decoder: bool
  is_scanned: bool

  def setup(self):
    config = self.config
    layer = DecoderLayer if self.is_decoder else EncoderLayer
    if config.remat in ('dots', 'full'):  # 'attention': in `layers`
      policy = None
      if config.remat == 'dots':
        policy = jax.checkpoint_policies.checkpoint_dots
      layer = nn.remat(layer, policy=policy, prevent_cse=not self.is_scanned)
    if self.is_scanned:
      self.layers = nn.scan(
          layer,
          variable_axes={'params': 0},
          split_rngs={'params': True},
          in_axes=(0, nn.broadcast),
          out_axes=0,
          length=self.depth,
          metadata_params={nn.PARTITION_NAME: 'layers'},
      )(config)
    else:
      self.layers = [layer(config) for _ in range(self.depth)]
    name = 'decoder_norm' if self.is_decoder else 'encoder_norm'
    setattr(self, name, layers.RMSNorm(config))
    if not config.relative_bias_per_layer:
      self.relpos_bias = layers.RelativeBias(config)
    if self.is_decoder and not config.logits_via_embedding:
      self.logits_dense = layers.Dense(
          config.num_logits,
          ('embed', 'vocab'),
          config.emb_dim**-0.5,
          config,
          jnp.float32,  # ties of rounded logits would decide greedy tokens
      )

  @property
  def depth(self) -> int:
    if self.is_decoder:
      return self.config.num_decoder_layers
    return self.config.num_encoder_layers

  def run(
      self,
      x: jax.Array,
      common: StackInputs,
      cache: Any = None,
      cross: Any = None,
  ) -> tuple[jax.Array, Any]:
    """The normalised output and the caches of all layers.

    `cache` and `cross` hold one `KeysValues` a layer: a list, or, where the
    layers are scanned, one `KeysValues` with a leading axis of layers.
    """
    if not self.config.relative_bias_per_layer:
      bias = relative_position.bias(self.relpos_bias(), common.buckets)
      common = common._replace(bias=bias)
    if self.is_scanned:
      layer_inputs = LayerInputs(jnp.arange(self.depth), cache, cross)
      x, new_cache = self.layers(x, layer_inputs, common)
    else:
      new_cache = []
      for i, layer in enumerate(self.layers):
        layer_inputs = LayerInputs(
            jnp.int32(i),
            None if cache is None else cache[i],
            None if cross is None else cross[i],
        )
        x, layer_cache = layer(x, layer_inputs, common)
        new_cache.append(layer_cache)
    norm = self.decoder_norm if self.is_decoder else self.encoder_norm
    return norm(x), new_cache


class T5(nn.Module):
  """Embedding, encoder (or what reads another model's) and decoder.

  The decoder's layers are scanned only where both say so.
  """

  config: config_lib.T5Config
  scans_decoder: bool = True

  def setup(self):
    self.token_embedder = layers.Embedding(self.config)
    config = self.config
    if config.num_encoder_layers:
      self.encoder = Stack(config, False, config.scan_layers)
    if config.shares_encoder:
      self.encoder_projection = layers.Dense(
          config.emb_dim,
          ('encoded', 'embed'),
          config.encoded_dim**-0.5,
          config,
      )
    is_scanned = config.scan_layers and self.scans_decoder
    self.decoder = Stack(config, True, is_scanned)

  def encode(
      self,
      inputs: jax.Array,
      segments: jax.Array,
      dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """float[B, S, D] of inputs int32[B, S]."""
    config = self.config
    inputs, segments = layers.constrain_rows(inputs, segments)
    dropout = layers.Dropout(config.dropout_rate, dropout_key)
    x = dropout(self.token_embedder(inputs), 'encoder_in', broadcast_axis=-2)
    buckets = relative_position.square(
        inputs.shape[1],
        inputs.shape[1],
        True,
        config.relative_buckets,
        config.relative_max_distance,
    )
    visible = _same_segment(segments, segments)
    key = dropout.at(1).key
    x, _ = self.encoder.run(x, StackInputs(visible, buckets, dropout_key=key))
    return dropout(x, 'encoder_out', broadcast_axis=-2)

  def project_encoded(
      self, encoded: jax.Array, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    """float[B, S, D] of another model's encoder output float[B, S, E]."""
    dropout = layers.Dropout(self.config.dropout_rate, dropout_key)
    x = self.encoder_projection(encoded)
    return dropout(x, 'encoder_out', broadcast_axis=-2)

  def decode(
      self,
      tokens: jax.Array,
      segments: jax.Array,
      encoded: jax.Array | None,
      input_segments: jax.Array,
      dropout_key: jax.Array | None = None,
      chains: mask_chains.MaskChains | None = None,
  ) -> jax.Array:
    """Hidden states float[B, T, D] after tokens int32[B, T], all at once.

    With chains: float[B, T + M, D], those at the masks last.
    """
    config = self.config
    length, depths = tokens.shape[1], None
    tokens, segments, input_segments = layers.constrain_rows(
        tokens, segments, input_segments
    )
    buckets: Any = relative_position.square(
        length,
        length,
        False,
        config.relative_buckets,
        config.relative_max_distance,
    )
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    if chains is not None:
      positions = chains.positions()
      tokens, segments = (
          jnp.concatenate([array, chains.at_anchors(array)], axis=1)
          for array in (tokens, segments)
      )
      depths = np.pad(chains.depths, (length, 0))[None]
      text = jnp.broadcast_to(jnp.arange(length), (len(tokens), length))
      positions = jnp.concatenate([text, positions], axis=1)
      buckets = relative_position.from_positions(
          positions,
          positions,
          config.relative_buckets,
          config.relative_max_distance,
      )
      causal = jnp.pad(causal, ((0, 0), (0, 0), (0, depths.shape[1] - length)))
      causal = jnp.broadcast_to(causal, (len(tokens), *causal.shape[1:]))
      causal = jnp.concatenate([causal, chains.visible(length)], axis=1)
    dropout = layers.Dropout(config.dropout_rate, dropout_key)
    x = dropout(self._embed(tokens, depths), 'decoder_in', broadcast_axis=-2)
    common = StackInputs(
        visible=_same_segment(segments, segments) & causal,
        buckets=buckets,
        dropout_key=dropout.at(2).key,
        encoded=encoded,
        cross_visible=_same_segment(segments, input_segments),
    )
    x, _ = self.decoder.run(x, common)
    return dropout(x, 'decoder_out', broadcast_axis=-2)

  def extend(
      self,
      tokens: jax.Array,
      start: jax.Array,
      cache: Any,
      cross: Any,
      input_mask: jax.Array,
      paths: path_slots.PathSlots | None = None,
      slot: jax.Array | None = None,
      depths: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Hidden states float[B, N, D] of a block appended at `start` int32[B].

    Args:
      tokens: int32[B, N].
      start: int32[B] tokens already in the cache, row by row.
      cache: keys and values of earlier tokens, as in `Stack.run`.
      cross: keys and values of the encoder's output, likewise, or None.
      input_mask: bool[B, S].
      paths: where slots hold several paths; None: each row is one path.
      slot: int32[] `start` of all rows, if it is the same.
      depths: int32[B, N], where masks are read; see `_embed`.
    """
    rows, length = tokens.shape
    tokens, start, input_mask = layers.constrain_rows(tokens, start, input_mask)
    first = jax.tree.leaves(cache)[0]
    keys = jnp.arange(first.shape[-2])[None]  # [1, L]
    queries = start[:, None] + jnp.arange(length)[None]  # [B, N]
    if paths is None:
      visible = keys[:, None] <= queries[:, :, None]
    else:
      visible = paths.visible(queries, keys)
      queries, keys = paths.positions(queries), paths.positions(keys)
    buckets = relative_position.from_positions(
        queries,
        keys,
        self.config.relative_buckets,
        self.config.relative_max_distance,
    )
    common = StackInputs(
        visible=visible,
        buckets=buckets,
        start=start if slot is None else slot,
        cross_visible=jnp.broadcast_to(
            input_mask[:, None], (rows, length, input_mask.shape[1])
        ),
    )
    x = self._embed(tokens, depths, is_gathered=True)
    return self.decoder.run(x, common, cache, cross)

  def _embed(
      self, tokens: jax.Array, depths: Any, is_gathered: bool = False
  ) -> jax.Array:
    """Embeddings float[B, N, D] of tokens int32[B, N], masks among them.

    A mask carries the last token of the text before it, and how far it is from
    there: where `depths` int32[1 or B, N] is d > 0, the input is the token's
    embedding plus that of the mask token, rolled by d. Rolled, one vector gives
    as many that are nearly orthogonal, and no parameters are added.
    """
    x = self.token_embedder(tokens, is_gathered)
    if depths is None:
      return x
    mask = jnp.full((1, 1), self.config.mask_token)
    mask = self.token_embedder(mask, is_gathered)[0, 0]
    size, depths = self.config.emb_dim, jnp.asarray(depths)[..., None]
    rolled = mask[(jnp.arange(size)[None, None] - depths) % size]
    return x + jnp.where(depths > 0, rolled, 0)

  def unembed(self, hidden: jax.Array) -> jax.Array:
    """Logits float32[B, N, V'] of hidden states float[B, N, D]."""
    if self.config.logits_via_embedding:
      logits = self.token_embedder.attend(hidden)
    else:
      logits = self.decoder.logits_dense(hidden)
    if self.config.scale_logits:
      logits = logits * self.config.emb_dim**-0.5
    # Not in this model's own layout: also a replicated model computes each
    # device's share of the vocabulary, which moves nothing, so that another
    # model's sharded logits need not be gathered to be compared with these.
    return layouts.constrain(
        logits, ('batch', 'length', 'vocab'), layouts.SHARDED
    )

  def init_all(self, inputs: jax.Array, tokens: jax.Array) -> jax.Array:
    """Touches every parameter; for initialisation."""
    ones = jnp.ones_like
    encoded = None
    if self.config.num_encoder_layers:
      encoded = self.encode(inputs, ones(inputs))
    if self.config.shares_encoder:
      shape = (*inputs.shape, self.config.encoded_dim)
      encoded = self.project_encoded(jnp.zeros(shape))
    hidden = self.decode(tokens, ones(tokens), encoded, ones(inputs))
    return self.unembed(hidden)


def _same_segment(queries: jax.Array, keys: jax.Array) -> jax.Array:
  """bool[B, Q, K]: both slots belong to one example; padding to none."""
  same = queries[:, :, None] == keys[:, None, :]
  return same & (keys > 0)[:, None, :]
