"""A T5 as pure functions of its parameters: what every other stage calls.

No Flax object leaves this folder. A cache is a pytree that is passed in and
out; every row of a batch has its own length in it. Appending a block of tokens
is one call (`extend`), taking tokens back is setting a length (`rollback`).
Several continuations can stand side by side until one of them is kept.

  teacher forcing    hidden -> unembed -> logits
  generation         prefill -> (extend -> unembed -> rollback)*
  several paths      prefill -> (extend -> unembed -> keep -> rollback)*

A draft without an encoder reads its target's: `shared_encoding` is what both
are then given as `encoded`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import shapes
from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.distributed import layouts
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import layers
from distillspec_jax.models import path_slots
from distillspec_jax.models import t5


@flax.struct.dataclass
class DecodeState:
  """What incremental decoding remembers of each row.

  Attributes:
    cache: self-attention keys and values of all layers, L slots a row.
    length: int32[B] slots in use; what stands after them does not count.
    cross: keys and values of the encoder's output, or None.
    input_mask: bool[B, S] which encoder positions are real.
  """

  cache: Any
  length: jax.Array
  cross: Any
  input_mask: jax.Array


class Prefix(NamedTuple):
  """The tokens a row's output starts after: the start token and a prompt."""

  tokens: jax.Array  # int32[B, P]
  length: jax.Array  # int32[B] in [1, P]


class Transformer:
  """The functions of one configuration; holds no parameters.

  Two instances of equal configurations and rules are equal, so that jitted
  functions that take one as a static argument are compiled once.
  """

  def __init__(
      self, config: config_lib.T5Config, layout: layouts.Rules = layouts.SPLIT
  ):
    """Arguments: the sizes, and the rules by which all lies on a mesh."""
    self.config = config
    self.layout = layout
    self._module = t5.T5(config)

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, Transformer) and self._key() == other._key()

  def __hash__(self) -> int:
    return hash(self._key())

  def _key(self) -> tuple[config_lib.T5Config, layouts.Rules]:
    return self.config, self.layout

  def init(self, key: jax.Array, on: jax.sharding.Mesh | None = None) -> Any:
    """Fresh parameters, float32, named as in t5x.

    Args:
      key: PRNG key.
      on: lays them out on that mesh as they are made.

    Raises:
      UserError: the weights are not float ones.
    """
    self.config.require_float('trained or made new')
    layout = None if on is None else self.shardings(on)
    make = jax.jit(
        lambda key: nn.meta.unbox(self._boxed(key)), out_shardings=layout
    )
    return make(key)

  @functools.cached_property
  def _abstract(self) -> Any:
    return jax.eval_shape(self._boxed, jax.random.key(0))

  def abstract(self) -> Any:
    """The parameters' shapes and dtypes, without making them."""
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    return jax.tree.map(lambda box: box.value, self._abstract, is_leaf=is_box)

  def logical_axes(self) -> Any:
    """The parameters' logical axes, `PartitionSpec` leaves."""
    return nn.get_partition_spec(self._abstract)

  def shardings(self, on: jax.sharding.Mesh) -> Any:
    """The parameters' layout on a mesh, `NamedSharding` leaves."""
    return layouts.shardings(
        on, self.abstract(), self.logical_axes(), self._rules(on)
    )

  @property
  def is_tensor_parallel(self) -> bool:
    """Whether it is split over the axis `tensor` of the mesh that is set."""
    return layouts.lies_on(self.layout, 'tensor')

  def _rules(self, on: Any) -> layouts.Rules:
    """The rules on a mesh; a head is not split over devices."""
    if not self.config.num_heads % on.shape.get('tensor', 1):
      return self.layout
    return tuple(
        (name, None if name in ('heads', 'joined_kv') else axes)
        for name, axes in self.layout
    )

  def _boxed(self, key: jax.Array) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return self._module.init(key, tokens, tokens, method='init_all')['params']

  def _apply(self, params: Any, *args: Any, method: str) -> Any:
    on = jax.sharding.get_abstract_mesh()
    with nn.logical_axis_rules(() if on.empty else self._rules(on)):
      return self._module.apply({'params': params}, *args, method=method)

  def for_decoding(self, params: Any) -> Any:
    """The parameters as a loop over tokens should hold them, for its length.

    Nothing is split over the axis fsdp, whose parts would be gathered anew for
    every token, and kernels have the dtype that is computed in.
    """
    dtype = layers.compute_dtype(self.config)

    def cast(path, array):
      is_cast = path[-1].key in ('kernel', 'embedding')
      if is_cast and jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(dtype)
      return array

    params = jax.tree_util.tree_map_with_path(cast, params)
    on = jax.sharding.get_abstract_mesh()
    if on.empty:
      return params
    layout = layouts.gathered(self._rules(on))
    return jax.tree.map(
        lambda array, names: layouts.constrain(array, tuple(names), layout),
        params,
        self.logical_axes(),
    )

  def encode(
      self,
      params: Any,
      inputs: jax.Array,
      input_segments: jax.Array,
      dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """The encoder's output float[B, S, D]; arguments as in `hidden`.

    Raises:
      UserError: the model has no encoder.
    """
    if not self.config.num_encoder_layers:
      raise errors.UserError(
          'A model without an encoder (num_encoder_layers is 0) was asked for'
          " its encoder's output; a draft can share the encoder of an"
          ' encoder-decoder model only.'
      )
    return self._apply(
        params, inputs, input_segments, dropout_key, method='encode'
    )

  def _attended(
      self,
      params: Any,
      inputs: jax.Array,
      input_segments: jax.Array,
      encoded: jax.Array | None,
      dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """What the decoder's cross-attention reads, float[B, S, D]."""
    width = self.config.encoded_dim or self.config.emb_dim
    if encoded is not None:
      shapes.bind_shapes(inputs=(inputs, 'B S'), encoded=(encoded, 'B S E'))
      if encoded.shape[-1] != width:
        raise errors.UserError(
            f'The encoder output is {encoded.shape[-1]} wide, but this model'
            f' reads one of width {width}. Give it the output of the encoder'
            ' that it was trained with.'
        )
    if not self.config.shares_encoder:
      if encoded is not None:
        return encoded
      return self.encode(params, inputs, input_segments, dropout_key)
    if encoded is None:
      raise errors.UserError(
          'This model has no encoder: it reads the encoder output, of width'
          f' {width}, of the target that it drafts for. Use it as the draft of'
          ' that target; it cannot be used alone.'
      )
    return self._apply(params, encoded, dropout_key, method='project_encoded')

  def hidden(
      self,
      params: Any,
      inputs: jax.Array,
      input_segments: jax.Array,
      decoder_inputs: jax.Array,
      segments: jax.Array,
      dropout_key: jax.Array | None = None,
      encoded: jax.Array | None = None,
  ) -> jax.Array:
    """Hidden states float[B, T, D], from which `unembed` makes logits.

    Args:
      params: see `init`.
      inputs: int32[B, S] for the encoder; decoder-only: the prompt, S may be 0.
      input_segments: int32[B, S], 0 is padding.
      decoder_inputs: int32[B, T], labels shifted right (see `shift_right`).
      segments: int32[B, T] of the labels, 0 is padding.
      dropout_key: switches dropout on.
      encoded: float[B, S, E] output of the encoder, its own or the one that it
        shares, see `shared_encoding`; default: of its own, made here.

    Raises:
      UserError: the model shares an encoder, whose output is missing or of
        another width.
    """
    shapes.bind_shapes(
        inputs=(inputs, 'B S'),
        input_segments=(input_segments, 'B S'),
        decoder_inputs=(decoder_inputs, 'B T'),
        segments=(segments, 'B T'),
    )
    if not self.config.is_decoder_only:
      attended = self._attended(
          params, inputs, input_segments, encoded, dropout_key
      )
      return self._apply(
          params,
          decoder_inputs,
          segments,
          attended,
          input_segments,
          dropout_key,
          method='decode',
      )
    length = inputs.shape[1]
    if length:
      # The prompt is pushed against the output, so that distances are true.
      prompt = jnp.pad(inputs, ((0, 0), (1, 0)))  # the start token leads
      used = jnp.sum(input_segments > 0, axis=1) + 1
      prompt = jax.vmap(jnp.roll)(prompt, length + 1 - used)
      real = jnp.arange(length + 1)[None] >= (length + 1 - used)[:, None]
      decoder_inputs = jnp.concatenate([prompt, decoder_inputs[:, 1:]], axis=1)
      segments = jnp.concatenate(
          [real.astype(segments.dtype), segments[:, 1:]], axis=1
      )
    nothing = jnp.zeros((inputs.shape[0], 0), jnp.int32)
    hidden = self._apply(
        params,
        decoder_inputs,
        segments,
        None,
        nothing,
        dropout_key,
        method='decode',
    )
    return hidden[:, length:]

  def unembed(self, params: Any, hidden: jax.Array) -> jax.Array:
    """Logits float32[B, N, V'] of hidden states float[B, N, D].

    V' is V unless the output layer has columns for some tokens only; `columns`
    says which.
    """
    return self._apply(params, hidden, method='unembed')

  def head(self, params: Any) -> Any:
    """Those of the parameters that `unembed` reads."""
    if self.config.logits_via_embedding:
      return {'token_embedder': params['token_embedder']}
    return {'decoder': {'logits_dense': params['decoder']['logits_dense']}}

  def columns(
      self, vocabulary: int | None = None
  ) -> trimmed_vocabulary.Columns:
    """What the columns of `unembed` are; of tokens below `vocabulary` only."""
    return trimmed_vocabulary.Columns(
        self.config.output_tokens,
        self.config.vocab_size if vocabulary is None else vocabulary,
    )

  def all_logits(
      self, params: Any, hidden: jax.Array, vocabulary: int | None = None
  ) -> jax.Array:
    """Logits float32[B, N, V] of all tokens (below `vocabulary`).

    Tokens without a column have -inf.
    """
    columns = self.columns(vocabulary)
    return columns.spread(columns.cut(self.unembed(params, hidden)))

  def logits(self, params: Any, *args: Any, **kwargs: Any) -> jax.Array:
    """Teacher-forced logits float32[B, T, V]; arguments as in `hidden`."""
    return self.all_logits(params, self.hidden(params, *args, **kwargs))

  def prefill(
      self,
      params: Any,
      inputs: jax.Array,
      input_segments: jax.Array,
      max_new_tokens: int,
      prefix: jax.Array | None = None,
      prefix_segments: jax.Array | None = None,
      encoded: jax.Array | None = None,
  ) -> tuple[DecodeState, Prefix]:
    """The state before the first new token.

    The cache holds all of the prefix but its last token, which is to be fed
    first. Inputs are one example a row (not packed), padded at the end.

    Args:
      params: see `init`.
      inputs: int32[B, S].
      input_segments: int32[B, S], 0 is padding.
      max_new_tokens: slots to keep for tokens after the prefix.
      prefix: int32[B, P] tokens that every output begins with, or None.
      prefix_segments: int32[B, P], 0 is padding, at the end of a row.
      encoded: as in `hidden`.
    """
    shapes.bind_shapes(
        inputs=(inputs, 'B S'), input_segments=(input_segments, 'B S')
    )
    if prefix is None:
      prefix = prefix_segments = jnp.zeros((inputs.shape[0], 0), jnp.int32)
    shapes.bind_shapes(
        inputs=(inputs, 'B S'),
        prefix=(prefix, 'B P'),
        prefix_segments=(prefix_segments, 'B P'),
    )
    rows = inputs.shape[0]
    mask, forced = input_segments > 0, prefix_segments > 0
    if self.config.is_decoder_only:
      cross, input_mask = None, jnp.zeros((rows, 0), bool)
      tokens, length = _join(inputs, mask, prefix, forced)
    else:
      attended = self._attended(params, inputs, input_segments, encoded)
      cross, input_mask = self._cross(params, attended), mask
      tokens, length = _join(prefix, forced)
    # The start token leads.
    tokens, length = jnp.pad(tokens, ((0, 0), (1, 0))), length + 1
    state = DecodeState(
        cache=self._empty_cache(rows, tokens.shape[1] + max_new_tokens),
        length=jnp.zeros(rows, jnp.int32),
        cross=cross,
        input_mask=input_mask,
    )
    if tokens.shape[1] > 1:
      _, state = self.extend(params, state, tokens[:, :-1])
    return self.rollback(state, length - 1), Prefix(tokens, length)

  def extend(
      self,
      params: Any,
      state: DecodeState,
      tokens: jax.Array,
      fork: path_slots.Fork | None = None,
  ) -> tuple[jax.Array, DecodeState]:
    """Hidden states float[B, N, D] of tokens int32[B, N], and the new state.

    Args:
      params: see `init`.
      state: holds what was before.
      tokens: appended; from slot `fork.start` on the paths take turns.
      fork: None: each token follows the one before it.

    Raises:
      ValueError: the cache has no room for the tokens. While a program is
        compiled only their number is known, not what is in use.
    """
    shapes.bind_shapes(tokens=(tokens, 'B N'), length=(state.length, 'B'))
    _check_room(state, tokens.shape[1])
    hidden, cache = self._apply(
        params,
        tokens,
        state.length,
        state.cache,
        state.cross,
        state.input_mask,
        fork,
        method='extend',
    )
    length = state.length + tokens.shape[1]
    return hidden, state.replace(cache=cache, length=length)

  def row_places(self) -> DecodeState:
    """Which axis of each array of a state is that of the rows."""
    place = int(self.config.scan_layers)
    return DecodeState(cache=place, length=0, cross=place, input_mask=0)

  def rollback(self, state: DecodeState, length: jax.Array) -> DecodeState:
    """The state with only the first `length` int32[B] tokens of each row."""
    return state.replace(length=length)

  def keep(
      self,
      state: DecodeState,
      fork: path_slots.Fork,
      path: jax.Array,
      size: int,
  ) -> DecodeState:
    """The state as if path int32[B] alone had followed, of `size` tokens."""
    slots = fork.slots(path, size)

    def move(cache):
      kept = jnp.take_along_axis(cache, slots[:, None, :, None], axis=2)
      return t5.append(cache, kept, fork.start)

    if self.config.scan_layers:
      move = jax.vmap(move)
    cache = jax.tree.map(move, state.cache)
    return state.replace(cache=cache, length=fork.start + size)

  def _empty_cache(self, rows: int, slots: int) -> Any:
    config = self.config
    shape = (rows, config.num_heads, slots, config.head_dim)
    names = ('batch', 'heads', 'length', 'kv')
    if config.scan_layers:
      shape, names = (config.num_decoder_layers, *shape), ('layers', *names)
      return self._zeros(shape, names), self._zeros(shape, names)
    return [
        (self._zeros(shape, names), self._zeros(shape, names))
        for _ in range(config.num_decoder_layers)
    ]

  def _zeros(self, shape: tuple[int, ...], names: tuple[str, ...]) -> jax.Array:
    zeros = jnp.zeros(shape, layers.compute_dtype(self.config))
    on = jax.sharding.get_abstract_mesh()
    return layouts.constrain(zeros, names, () if on.empty else self._rules(on))

  def _cross(self, params: Any, encoded: jax.Array) -> Any:
    """Keys and values of float[B, S, D] for every decoder layer."""
    layer = t5.DecoderLayer(self.config)
    project = functools.partial(layer.apply, method='project_cross')
    decoder = params['decoder']
    if self.config.scan_layers:
      return jax.vmap(lambda layer: project({'params': layer}, encoded))(
          decoder['layers']
      )
    return [
        project({'params': decoder[f'layers_{i}']}, encoded)
        for i in range(self.config.num_decoder_layers)
    ]


def _check_room(state: DecodeState, number: int) -> None:
  """Else a late block would be written over what stands before it."""
  slots = jax.tree.leaves(state.cache)[0].shape[-2]
  is_known = not isinstance(state.length, jax.core.Tracer)
  used = int(np.asarray(state.length).max(initial=0)) if is_known else 0
  if used + number > slots:
    raise ValueError(
        f'A block of {number} tokens does not fit: the cache has {slots} slots'
        f' a row, of which {used} are in use. Give `prefill` a larger'
        ' max_new_tokens.'
    )


def _join(*parts: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Ragged rows one after the other: tokens int32[B, N], lengths int32[B].

  Args:
    *parts: tokens int32[B, N_i] and which are real bool[B, N_i], in turn; what
      is not real stands at the end of a row.
  """
  tokens, mask = jnp.where(parts[1], parts[0], 0), parts[1]
  for more, real in zip(parts[2::2], parts[3::2]):
    length = jnp.sum(mask, axis=1, dtype=jnp.int32)
    size = tokens.shape[1] + more.shape[1]
    tokens = jnp.pad(tokens, ((0, 0), (0, more.shape[1])))
    place = jnp.arange(more.shape[1])[None] + length[:, None]
    place = jnp.where(real, place, size)  # out of bounds: dropped
    tokens = jax.vmap(lambda row, at, new: row.at[at].set(new, mode='drop'))(
        tokens, place, more
    )
    mask = jnp.concatenate([mask, real], axis=1)
  return tokens, jnp.sum(mask, axis=1, dtype=jnp.int32)


def shared_vocabulary(target: Transformer, draft: Transformer) -> int:
  """Tokens that both know; the larger model's logits beyond are padding."""
  return min(target.config.vocab_size, draft.config.vocab_size)


@functools.partial(jax.jit, static_argnames=('draft', 'target'))
def shared_encoding(
    draft: Transformer,
    target: Transformer,
    target_params: Any,
    inputs: jax.Array,
    input_segments: jax.Array,
) -> jax.Array | None:
  """The target's encoder output, if the draft reads it; no gradient reaches it.

  Args:
    draft: asks for it, or has an encoder of its own, or needs none.
    target: whose encoder it is.
    target_params: its parameters.
    inputs: int32[B, S].
    input_segments: int32[B, S], 0 is padding.

  Returns:
    float[B, S, E], to be given as `encoded` to both; or None, with which each
    model reads the inputs itself.
  """
  if not draft.config.shares_encoder:
    return None
  encoded = target.encode(target_params, inputs, input_segments)
  return jax.lax.stop_gradient(encoded)


def shift_right(labels: jax.Array, segments: jax.Array) -> jax.Array:
  """What the decoder reads to say `labels`; 0 starts every segment.

  Args:
    labels: int32[B, T].
    segments: int32[B, T].

  Returns:
    int32[B, T].
  """
  earlier = jnp.pad(labels, ((0, 0), (1, 0)))[:, :-1]
  before = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
  return jnp.where(segments == before, earlier, 0)
