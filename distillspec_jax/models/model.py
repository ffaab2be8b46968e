"""A model as one value: parameters and the network that they belong to.

`Model` is a pytree whose leaves are the parameters, so it goes through jit,
grad and shard_map as it is. What it does are pure functions. The cache of
incremental decoding is a pytree that is passed in and out; every row of a batch
has its own length in it. Appending a block of tokens is one call (`extend`),
taking tokens back is setting a length (`rollback`).

  teacher forcing   hidden -> unembed -> logits
  generation        prefill -> (extend -> unembed -> rollback)*
  several paths     prefill -> (extend -> unembed -> keep_path -> rollback)*
"""

from __future__ import annotations

import functools
import operator
from typing import Any, cast, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import shapes
from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.core import types
from distillspec_jax.distributed import layouts
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import mask_chains
from distillspec_jax.models import path_slots
from distillspec_jax.models import t5
from distillspec_jax.models import transformer


class DecodeState(flax.struct.PyTreeNode):
  """What incremental decoding remembers of each row.

  Attributes:
    cache: self-attention keys and values of all layers, L slots for each row.
    length: int32[B] slots in use; whatever is in the slots after them is
      ignored, and overwritten by the next `extend`.
    cross: keys and values of the encoder's output, or None.
    input_mask: bool[B, S] which encoder positions are real.
  """

  cache: Any
  length: jax.Array
  cross: Any
  input_mask: jax.Array

  def carried(self) -> DecodeState:
    """The state as a loop over single tokens should carry it.

    A cache of one row loses the axis of rows: with it, XLA would copy the whole
    cache for every token on a CPU. `restored` brings it back.
    """
    return self.replace(
        cache=jax.tree.map(
            lambda x: x[0] if x.ndim == 4 and len(x) == 1 else x, self.cache
        )
    )

  def restored(self) -> DecodeState:
    """The state of which this is the `carried` one."""
    return self.replace(
        cache=jax.tree.map(lambda x: x[None] if x.ndim == 3 else x, self.cache)
    )


class Context(NamedTuple):
  """The tokens that an output continues: start token, prompt and prefix."""

  tokens: jax.Array  # int32[B, P], padded at the end
  length: jax.Array  # int32[B] in [1, P]


class Model(flax.struct.PyTreeNode):
  """A network with its parameters.

  Attributes:
    params: named as in t5x; the leaves of the pytree.
    network: configuration and layout; static.
  """

  params: types.Params
  network: transformer.Transformer = flax.struct.field(pytree_node=False)

  @property
  def config(self) -> config_lib.T5Config:
    return self.network.config

  def __repr__(self) -> str:
    number = sum(x.size for x in jax.tree.leaves(self.params))
    return f'Model({number:,} parameters, {self.config!r})'

  def trimmed_vocabulary(
      self, size: int | None = None
  ) -> trimmed_vocabulary.TrimmedVocabulary:
    """Which tokens `unembed` has logits for; only those below `size`."""
    return self.network.trimmed_vocabulary(size)

  def for_decoding(self) -> Model:
    """The model as a loop over tokens should hold it, for the loop's length.

    Nothing stays sharded over the axis fsdp, whose shards would be gathered
    again for every token, and kernels have the dtype of the computation. The
    decoder's layers are not scanned: every token would copy each one's weights
    and cache out of the stacks.
    """
    dtype = self.network.compute_dtype()

    def cast(path, array):
      is_cast = path[-1].key in ('kernel', 'embedding')
      if is_cast and jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(dtype)
      return array

    params = jax.tree_util.tree_map_with_path(cast, self.params)
    if not jax.sharding.get_abstract_mesh().empty:
      params = jax.tree.map(
          lambda array, names: self.network.constrain(
              array, tuple(names), gather_fsdp=True
          ),
          params,
          self.network.logical_axes(),
      )
    if not self.network.scans_decoder:
      return self.replace(params=params)
    decoder = dict(params['decoder'])
    stacked = decoder.pop('layers')
    for i in range(self.config.num_decoder_layers):
      decoder[f'layers_{i}'] = jax.tree.map(operator.itemgetter(i), stacked)
    return Model(
        {**params, 'decoder': decoder},
        transformer.Transformer(self.config, self.network.layout, False),
    )

  # Teacher forcing.

  def encode(
      self, prompt: types.Prompt, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    """The encoder's output float[B, S, D].

    Raises:
      UserError: the model has no encoder.
    """
    if not self.config.num_encoder_layers:
      raise errors.UserError(
          'The encoder output of a model without an encoder'
          ' (num_encoder_layers = 0) was requested; a draft can share the'
          ' encoder of an encoder-decoder model only.'
      )
    return self.network.apply(
        self.params, prompt.tokens, prompt.segments, dropout_key,
        method='encode',
    )  # fmt: skip

  def _cross_input(
      self, prompt: types.Prompt, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    """What the decoder's cross-attention reads, float[B, S, D]."""
    width = self.config.encoded_dim or self.config.emb_dim
    encoded = prompt.encoded
    if encoded is not None:
      shapes.bind_shapes(
          tokens=(prompt.tokens, 'B S'), encoded=(encoded, 'B S E')
      )
      if encoded.shape[-1] != width:
        raise errors.UserError(
            f'The encoder output is {encoded.shape[-1]} wide, but this model'
            f' reads one of width {width}. Use the output of the encoder that'
            ' it was trained with.'
        )
    if not self.config.shares_encoder:
      return self.encode(prompt, dropout_key) if encoded is None else encoded
    if encoded is None:
      raise errors.UserError(
          "This model has no encoder: it reads its target's encoder output, of"
          f' width {width}. Use it as the draft of that target; it cannot be'
          ' used alone.'
      )
    return self.network.apply(
        self.params, encoded, dropout_key, method='project_encoded'
    )

  def hidden(
      self,
      prompt: types.Prompt,
      decoder_inputs: jax.Array,
      segments: jax.Array,
      dropout_key: jax.Array | None = None,
      chains: mask_chains.MaskChains | None = None,
  ) -> jax.Array:
    """Hidden states float[B, T, D], from which `unembed` computes logits.

    Args:
      prompt: encoder input; decoder-only: the text before, S may be 0.
      decoder_inputs: int32[B, T], labels shifted right (see `shift_right`).
      segments: int32[B, T] of the labels, 0 is padding.
      dropout_key: switches dropout on.
      chains: masks to read as well, whose hidden states come after the others,
        float[B, T + M, D]; anchors are places in `decoder_inputs`.

    Raises:
      UserError: the model shares an encoder, and `prompt.encoded` is missing or
        has another width; or there are chains, and it has no mask token.
    """
    if chains is not None:
      self.config.require_mask_token()
    shapes.bind_shapes(
        tokens=(prompt.tokens, 'B S'),
        prompt_segments=(prompt.segments, 'B S'),
        decoder_inputs=(decoder_inputs, 'B T'),
        segments=(segments, 'B T'),
    )
    decode = functools.partial(self.network.apply, method='decode')
    if not self.config.is_decoder_only:
      cross_input = self._cross_input(prompt, dropout_key)
      return decode(
          self.params, decoder_inputs, segments, cross_input, prompt.segments,
          dropout_key, chains,
      )  # fmt: skip
    length = prompt.tokens.shape[1]
    if length:
      # A decoder-only model reads prompt and output as one text. The padding of
      # the prompt goes to its front, so that the prompt's last token is next to
      # the first of the output and relative distances are right:
      #   [start a b _ _] [x y z]  ->  [_ _ start a b x y z]
      tokens = jnp.pad(prompt.tokens, ((0, 0), (1, 0)))  # the start token
      used = jnp.sum(prompt.segments > 0, axis=1) + 1
      tokens = jax.vmap(jnp.roll)(tokens, length + 1 - used)
      is_real = jnp.arange(length + 1)[None] >= (length + 1 - used)[:, None]
      # decoder_inputs[:, 0] is the start token, which is now in front.
      decoder_inputs = jnp.concatenate([tokens, decoder_inputs[:, 1:]], axis=1)
      segments = jnp.concatenate(
          [is_real.astype(segments.dtype), segments[:, 1:]], axis=1
      )
      if chains is not None:
        chains = chains._replace(anchors=chains.anchors + length)
    no_inputs = jnp.zeros((decoder_inputs.shape[0], 0), jnp.int32)
    hidden = decode(
        self.params, decoder_inputs, segments, None, no_inputs, dropout_key,
        chains,
    )  # fmt: skip
    return hidden[:, length:]

  def unembed(self, hidden: jax.Array) -> jax.Array:
    """Logits float32[B, N, V'] of hidden states float[B, N, D].

    V' is V unless the vocabulary is trimmed, see `trimmed_vocabulary`.
    """
    return self.network.apply(self.params, hidden, method='unembed')

  def head(self) -> Model:
    """The model with only those parameters that `unembed` reads."""
    if self.config.logits_via_embedding:
      return self.replace(
          params={'token_embedder': self.params['token_embedder']}
      )
    logits_dense = self.params['decoder']['logits_dense']
    return self.replace(params={'decoder': {'logits_dense': logits_dense}})

  def over_rows(self) -> Model:
    """With specs for parameters: how rows' mesh axes shard them, if any do."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
      return jax.tree.map(lambda _: jax.sharding.PartitionSpec(), self)
    rules, names = self.network.rules(mesh), self.network.logical_axes()

    def spec(path, array):
      axes = functools.reduce(lambda tree, key: tree[key.key], path, names)
      return layouts.over_rows(array.shape, tuple(axes), rules)

    return self.replace(
        params=jax.tree_util.tree_map_with_path(spec, self.params)
    )

  def trimmed_logits(
      self, hidden: jax.Array, size: int | None = None
  ) -> jax.Array:
    """Logits float32[B, N, V'] of the kept tokens below `size`."""
    return self.trimmed_vocabulary(size).trim(self.unembed(hidden))

  def all_logits(self, hidden: jax.Array, size: int | None = None) -> jax.Array:
    """Logits float32[B, N, V] of all tokens below `size`.

    Tokens that the model's vocabulary is trimmed of have -inf.
    """
    vocabulary = self.trimmed_vocabulary(size)
    return vocabulary.expand(vocabulary.trim(self.unembed(hidden)))

  def logits(self, *args: Any, **kwargs: Any) -> jax.Array:
    """Teacher-forced logits float32[B, T, V]; arguments as in `hidden`."""
    return self.all_logits(self.hidden(*args, **kwargs))

  # Incremental decoding.

  def prefill(
      self,
      prompt: types.Prompt,
      max_new_tokens: int,
      prefix: types.Prompt | None = None,
  ) -> tuple[DecodeState, Context]:
    """The state before the first new token, and the tokens before it.

    The cache holds all of the context but its last token, which is the first
    that `extend` should get; the last new token it need not hold.

    Args:
      prompt: not packed.
      max_new_tokens: how many tokens `extend` may get.
      prefix: tokens int32[B, P] that each output begins with.
    """
    if prefix is None:
      nothing = jnp.zeros((prompt.tokens.shape[0], 0), jnp.int32)
      prefix = types.Prompt(nothing, nothing)
    shapes.bind_shapes(
        tokens=(prompt.tokens, 'B S'),
        segments=(prompt.segments, 'B S'),
        prefix=(prefix.tokens, 'B P'),
        prefix_segments=(prefix.segments, 'B P'),
    )
    rows = prompt.tokens.shape[0]
    if self.config.is_decoder_only:
      cross, input_mask = None, jnp.zeros((rows, 0), bool)
      tokens, length = _concatenate(prompt, prefix)
    else:
      cross = self._cross(self._cross_input(prompt))
      input_mask = prompt.segments > 0
      tokens, length = _concatenate(prefix)
    # The start token comes first.
    tokens, length = jnp.pad(tokens, ((0, 0), (1, 0))), length + 1
    state = DecodeState(
        cache=self._empty_cache(rows, tokens.shape[1] - 1 + max_new_tokens),
        length=jnp.zeros(rows, jnp.int32),
        cross=cross,
        input_mask=input_mask,
    )
    if tokens.shape[1] > 1:
      # All rows feed the whole width; what they feed beyond their own length is
      # forgotten by the roll-back.
      _, state = self.extend(state, tokens[:, :-1], slot=jnp.int32(0))
    return self.rollback(state, length - 1), Context(tokens, length)

  def extend(
      self,
      state: DecodeState,
      tokens: jax.Array,
      paths: path_slots.PathSlots | None = None,
      slot: jax.Array | None = None,
      depths: jax.Array | None = None,
  ) -> tuple[jax.Array, DecodeState]:
    """Hidden states float[B, N, D] of tokens int32[B, N], and the new state.

    Args:
      state: holds the tokens before.
      tokens: appended to each row at its own length.
      paths: from slot `paths.start` on the paths take turns; None: each token
        follows the one before it.
      slot: int32[] the length of all rows, if it is known to be the same: the
        cache is then updated at once.
      depths: int32[B, N]: 0 where a token is read, d where the d-th mask after
        the text is; tokens then holds the text's last token. None: no masks.

    Raises:
      UserError: masks are read, and the model has no mask token.
      ValueError: the cache has no room for the tokens. While a program is
        traced only their number is known, not how many slots are in use.
    """
    shapes.bind_shapes(tokens=(tokens, 'B N'), length=(state.length, 'B'))
    _check_room(state, tokens.shape[1])
    if depths is not None:
      self.config.require_mask_token()
    hidden, cache = self.network.apply(
        self.params, tokens, state.length, state.cache, state.cross,
        state.input_mask, paths, slot, depths, method='extend',
    )  # fmt: skip
    length = state.length + tokens.shape[1]
    return hidden, state.replace(cache=cache, length=length)

  def rollback(self, state: DecodeState, length: jax.Array) -> DecodeState:
    """The state with only the first `length` int32[B] tokens of each row."""
    # Nothing is erased: attention is masked by length, and later tokens
    # overwrite the slots.
    return state.replace(length=length)

  def keep_path(
      self,
      state: DecodeState,
      paths: path_slots.PathSlots,
      path: jax.Array,
      size: int,
  ) -> DecodeState:
    """The state as if path int32[B] alone had followed, with `size` tokens."""
    slots = paths.slots(path, size)

    def move(cache):
      # From every K-th slot to consecutive ones.
      kept = jnp.take_along_axis(cache, slots[:, None, :, None], axis=2)
      return t5.append(cache, kept, paths.start)

    if self.network.scans_decoder:
      move = jax.vmap(move)
    cache = jax.tree.map(move, state.cache)
    return state.replace(cache=cache, length=paths.start + size)

  def batch_axes(self) -> DecodeState:
    """Which axis of each array of a state is that of the rows."""
    # Scanned layers are stacked along axis 0.
    axis: Any = int(self.network.scans_decoder)
    return DecodeState(axis, cast(Any, 0), axis, cast(Any, 0))

  def _empty_cache(self, rows: int, slots: int) -> Any:
    config = self.config
    shape: tuple[int, ...] = (rows, config.num_heads, slots, config.head_dim)
    names: tuple[str, ...] = ('batch', 'heads', 'length', 'kv')
    if self.network.scans_decoder:
      shape, names = (config.num_decoder_layers, *shape), ('layers', *names)
      return self._zeros(shape, names), self._zeros(shape, names)
    return [
        (self._zeros(shape, names), self._zeros(shape, names))
        for _ in range(config.num_decoder_layers)
    ]

  def _zeros(self, shape: tuple[int, ...], names: tuple[str, ...]) -> jax.Array:
    zeros = jnp.zeros(shape, self.network.compute_dtype())
    return self.network.constrain(zeros, names)

  def _cross(self, encoded: jax.Array) -> Any:
    """Keys and values of float[B, S, D] for every decoder layer."""
    layer = t5.DecoderLayer(self.config)
    project = functools.partial(layer.apply, method='project_cross')
    decoder = self.params['decoder']
    if self.network.scans_decoder:
      return jax.vmap(lambda layer: project({'params': layer}, encoded))(
          decoder['layers']
      )
    return [
        project({'params': decoder[f'layers_{i}']}, encoded)
        for i in range(self.config.num_decoder_layers)
    ]


def _check_room(state: DecodeState, number: int) -> None:
  """Raises where a block would overwrite what is before it.

  XLA clamps an update that runs over the end, which would move it to the left.
  """
  slots = jax.tree.leaves(state.cache)[0].shape[-2]
  is_known = not isinstance(state.length, jax.core.Tracer)
  used = int(np.asarray(state.length).max(initial=0)) if is_known else 0
  if used + number > slots:
    raise ValueError(
        f'A block of {number} tokens does not fit: the cache has {slots} slots'
        f' for each row, of which {used} are in use. Call `prefill` with a'
        ' larger max_new_tokens.'
    )


def _concatenate(*parts: types.Prompt) -> tuple[jax.Array, jax.Array]:
  """Ragged parts, one after the other: tokens int32[B, N], lengths int32[B].

  Args:
    *parts: of the same rows, each padded at the end.
  """
  tokens, is_real = parts[0].tokens, parts[0].segments > 0
  tokens = jnp.where(is_real, tokens, 0)
  length = jnp.sum(is_real, axis=1, dtype=jnp.int32)
  for part in parts[1:]:
    size = tokens.shape[1] + part.tokens.shape[1]
    tokens = jnp.pad(tokens, ((0, 0), (0, part.tokens.shape[1])))
    is_real = part.segments > 0
    slot = jnp.arange(part.tokens.shape[1])[None] + length[:, None]
    slot = jnp.where(is_real, slot, size)  # out of bounds: dropped
    tokens = jax.vmap(lambda row, at, new: row.at[at].set(new, mode='drop'))(
        tokens, slot, part.tokens
    )
    length += jnp.sum(is_real, axis=1, dtype=jnp.int32)
  return tokens, length


def common_vocabulary(target: Model, draft: Model) -> int:
  """Tokens that both know; the larger model's logits beyond are padding."""
  return min(target.config.vocab_size, draft.config.vocab_size)


@jax.jit
def with_shared_encoding(
    prompt: types.Prompt, target: Model, draft: Model
) -> types.Prompt:
  """The prompt with the target's encoder output, if the draft reads it.

  No gradient reaches the target. Where the draft has an encoder of its own, or
  needs none, the prompt comes back unchanged and each model reads it itself.
  """
  return (
      with_encoding(prompt, target) if draft.config.shares_encoder else prompt
  )


def with_encoding(prompt: types.Prompt, target: Model) -> types.Prompt:
  """The prompt with the target's encoder output, if the target has an encoder.

  For the target itself, where it reads the prompt several times; a draft reads
  it through `own_prompt`.
  """
  if prompt.encoded is not None or not target.config.num_encoder_layers:
    return prompt
  encoded = jax.lax.stop_gradient(target.encode(prompt))
  return prompt._replace(encoded=encoded)


def own_prompt(prompt: types.Prompt, draft: Model) -> types.Prompt:
  """The prompt as a draft reads it: whose encoder is not shared, its own."""
  is_shared = draft.config.shares_encoder
  return prompt if is_shared else prompt._replace(encoded=None)


def shift_right(labels: jax.Array, segments: jax.Array) -> jax.Array:
  """What the decoder reads to predict `labels`; 0 starts every segment.

  Example: [a b c | d e] -> [0 a b | 0 d].

  Args:
    labels: int32[B, T].
    segments: int32[B, T].

  Returns:
    int32[B, T].
  """
  earlier = jnp.pad(labels, ((0, 0), (1, 0)))[:, :-1]
  before = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
  return jnp.where(segments == before, earlier, 0)
