"""The shape of a T5: its sizes, its options, and the published models.

`T5Config` is plain data; the modules in this folder read it. `published` gives
the sizes that were released as T5 v1.0 and v1.1 and small ones that a CPU can
train.
"""

from __future__ import annotations

import dataclasses
import numbers
import operator
from typing import Any

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.models import int8

EOS = 1  # seqio's, in every vocabulary
# Far beyond any T5: what a damaged file says is refused before time is lost.
_MAX_SIZE, _MAX_LAYERS, _MAX_BRANCHES = 2**24, 2**12, 16
_ACTIVATIONS = ('gelu', 'gelu_exact', 'linear', 'relu', 'silu')
REMAT = ('none', 'attention', 'dots', 'full')
_ATTENTION = (None, 'fused', 'xla')
_KINDS: dict[str, Any] = {  # annotation -> what is accepted for it
    'bool': bool,
    'float': numbers.Real,
    'int': numbers.Integral,
    'str': str,
    'tuple[str, ...]': (list, tuple),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """Sizes and options of one model.

  Attributes:
    vocab_size: rows of the embedding, V; may exceed the vocabulary's tokens.
    emb_dim: width of the residual stream, D.
    num_heads: attention heads, H.
    head_dim: size of a head, K; H * K need not be D.
    mlp_dim: width of the feed-forward layer.
    num_encoder_layers: 0 makes a decoder-only language model, or, with
      `encoded_dim`, a draft that reads its target's encoder output.
    num_decoder_layers: may differ from the encoder's.
    mlp_activations: one entry a branch; two entries are multiplied (gated).
      'gelu' is the tanh form, 'gelu_exact' the one with erf.
    logits_via_embedding: the output layer is the embedding, transposed (T5
      v1.0); otherwise a layer of its own (v1.1).
    scale_logits: logits are divided by sqrt(D); None: where they are made by
      the embedding, as in T5.
    norm_epsilon: added to the mean square under the root.
    dropout_rate: in [0, 1); used only where a dropout key is given.
    dtype: what activations are computed in, 'float32' or 'bfloat16'. Norms,
      softmax and losses are float32 whatever it is.
    remat: what the backward pass recomputes: 'none', 'attention' (scores and
      weights, which grow with the square of the length), 'dots' (all but
      matrix products, scores being such) or 'full' (whole layers).
    attention: 'fused', a TPU kernel that keeps no weights for the backward
      pass (see `models.attention_kernel`), or 'xla'; None: the kernel on TPUs
      where it is faster. Steps of decoding never use it.
    scan_layers: layers are stacked and scanned: compiles in constant time.
      Loops over tokens unroll those of the decoder all the same.
    relative_buckets: buckets of relative distance.
    relative_max_distance: distances from here on share the last bucket.
    relative_bias_per_layer: every layer has a bias of its own (umT5, t5x's
      scanned networks); otherwise a stack shares one.
    encoded_dim: width of another model's encoder output, which this one's
      decoder attends to through a linear projection, having no encoder of its
      own; 0: of its own encoder, or of none.
    trimmed_vocabulary: the tokens that the output layer has logits for,
      ascending; None: all. A draft that proposes from the most frequent tokens
      alone reads less in every step (Zhao et al. 2025,
      https://arxiv.org/abs/2502.14856). The output layer is then never the
      embedding.
    mask_token: the token whose embedding marks the place of each token yet to
      be predicted when the model drafts a whole block in one call, which it was
      trained for; None: it drafts token by token.
    weights: what kernels and the embedding are held in: 'float', 'int8' or
      'int8_weight_only', see `models.int8`. Such a model decodes and scores; it
      can be neither trained nor saved.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  logits_via_embedding: bool = False
  scale_logits: bool | None = None
  norm_epsilon: float = 1e-6
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  remat: str = 'none'
  attention: str | None = None
  scan_layers: bool = False
  relative_buckets: int = 32
  relative_max_distance: int = 128
  relative_bias_per_layer: bool = False
  encoded_dim: int = 0
  trimmed_vocabulary: tuple[int, ...] | None = None
  mask_token: int | None = None
  weights: str = 'float'

  def __post_init__(self):
    self._check_types()
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    if self.scale_logits is None:
      object.__setattr__(self, 'scale_logits', self.logits_via_embedding)
    _check_sizes(
        1, _MAX_SIZE, self, 'vocab_size', 'emb_dim', 'num_heads', 'head_dim',
        'mlp_dim', 'relative_max_distance',
    )  # fmt: skip
    _check_sizes(0, _MAX_SIZE, self, 'encoded_dim')
    _check_sizes(1, _MAX_LAYERS, self, 'num_decoder_layers')
    _check_sizes(0, _MAX_LAYERS, self, 'num_encoder_layers')
    # Two directions, near and far.
    _check_sizes(4, _MAX_SIZE, self, 'relative_buckets')
    if self.encoded_dim and self.num_encoder_layers:
      raise errors.UserError(
          f'T5Config.encoded_dim is {self.encoded_dim}, but num_encoder_layers'
          f' is {self.num_encoder_layers}: a model reads its own encoder or'
          " another model's. Set one of them to 0."
      )
    # The last of the near ones, see `relative_position.bucket`.
    if self.relative_max_distance <= self.relative_buckets // 2:
      raise errors.UserError(
          'T5Config.relative_max_distance is'
          f' {self.relative_max_distance}; it must be more than half of'
          f' relative_buckets, which is {self.relative_buckets}.'
      )
    check.in_interval(
        '[0, inf)', owner='T5Config', norm_epsilon=self.norm_epsilon
    )
    check.in_interval(
        '[0, 1)', owner='T5Config', dropout_rate=self.dropout_rate
    )
    check.one_of(('float32', 'bfloat16'), owner='T5Config', dtype=self.dtype)
    check.one_of(REMAT, owner='T5Config', remat=self.remat)
    check.one_of(_ATTENTION, owner='T5Config', attention=self.attention)
    check.one_of(int8.KINDS, owner='T5Config', weights=self.weights)
    if not 1 <= len(self.mlp_activations) <= _MAX_BRANCHES:
      raise errors.UserError(
          f'T5Config.mlp_activations has {len(self.mlp_activations)} entries;'
          f' give one for each branch, of 1 to {_MAX_BRANCHES}.'
      )
    for activation in self.mlp_activations:
      check.one_of(_ACTIVATIONS, owner='T5Config', mlp_activations=activation)
    self._check_trimmed_vocabulary()
    if self.mask_token is not None:
      check.at_least(
          0, owner='T5Config', max_value=self.vocab_size - 1,
          mask_token=self.mask_token,
      )  # fmt: skip

  def _check_types(self) -> None:
    for field in dataclasses.fields(self):
      value, kind = getattr(self, field.name), _KINDS.get(str(field.type))
      is_bool = isinstance(value, bool)
      if kind and (not isinstance(value, kind) or is_bool != (kind is bool)):
        raise errors.UserError(
            f'T5Config.{field.name} is {value!r}; it must be of type'
            f' {field.type}.'
        )

  def _check_trimmed_vocabulary(self) -> None:
    if self.trimmed_vocabulary is None:
      return
    name = 'T5Config.trimmed_vocabulary'
    try:
      kept = [operator.index(x) for x in self.trimmed_vocabulary]
    except TypeError as error:
      raise errors.UserError(
          f'{name} is {_shorten(self.trimmed_vocabulary)}; it must be a tuple'
          ' of token ids, or None for all.'
      ) from error
    tokens = np.array(kept, int)
    object.__setattr__(self, 'trimmed_vocabulary', tuple(tokens.tolist()))
    if not (np.diff(tokens) > 0).all():
      at = int(np.argmax(np.diff(tokens) <= 0))
      raise errors.UserError(
          f'{name} has {tokens[at + 1]} after {tokens[at]}; token ids must'
          ' ascend, each once.'
      )
    if len(tokens) and not 0 <= tokens[0] <= tokens[-1] < self.vocab_size:
      raise errors.UserError(
          f'{name} has tokens from {tokens[0]} to {tokens[-1]}; they must lie'
          f' in [0, vocab_size = {self.vocab_size}).'
      )
    if EOS not in tokens:
      raise errors.UserError(
          f'{name} lacks {EOS}, the end-of-sequence token; no output of the'
          ' model would end. Add it.'
      )
    if self.logits_via_embedding:
      raise errors.UserError(
          f'{name} is given, but logits_via_embedding is True; a trimmed output'
          ' layer has parameters of its own. Set logits_via_embedding = False,'
          ' and scale_logits = True if the full model scales its logits.'
      )

  @property
  def num_logits(self) -> int:
    """Logits of the output layer, V'."""
    if self.trimmed_vocabulary is None:
      return self.vocab_size
    return len(self.trimmed_vocabulary)

  @property
  def is_decoder_only(self) -> bool:
    return self.num_encoder_layers == 0 and not self.shares_encoder

  @property
  def shares_encoder(self) -> bool:
    """Whether it reads the encoder output of another model, its target."""
    return self.encoded_dim > 0

  def __repr__(self) -> str:
    values = dataclasses.asdict(self)
    if self.trimmed_vocabulary is not None:  # usually thousands
      values['trimmed_vocabulary'] = _shorten(self.trimmed_vocabulary)
    listed = ', '.join(f'{name}={value!r}' for name, value in values.items())
    return f'T5Config({listed})'

  def to_dict(self) -> dict[str, Any]:
    """Plain data, for a model folder; `from_dict` is its inverse.

    Raises:
      UserError: the weights are not float ones.
    """
    self.require_float('saved')
    values = dataclasses.asdict(self)
    del values['weights']
    return values

  def require_float(self, action: str) -> None:
    """Raises UserError if int8 weights rule out the action ('saved', ...)."""
    if self.weights != 'float':
      raise errors.UserError(
          f'A model with weights={self.weights!r} cannot be {action}; load it'
          ' without `weights`.'
      )

  def require_mask_token(self, name: str = 'the model') -> int:
    """The mask token; raises UserError if the model has none."""
    if self.mask_token is None:
      raise errors.UserError(
          f'Parallel drafting needs a mask token, but {name} has none'
          ' (T5Config.mask_token is None): it has not been trained to draft a'
          ' block in one call. Train it with Method.parallel, or leave parallel'
          ' out.'
      )
    return self.mask_token

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> T5Config:
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
      raise errors.UserError(
          f'The model configuration has unknown entries {unknown}; this'
          f' version knows {sorted(known)}.'
      )
    absent = sorted(
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.name not in values
    )
    if absent:
      raise errors.UserError(f'The model configuration lacks {absent}.')
    return cls(**values)


def _shorten(values: Any) -> str:
  """The value as text, cut short."""
  text = repr(values)
  return text if len(text) <= 60 else text[:60] + '...'


def _check_sizes(
    min_value: int, max_value: int, config: T5Config, *names: str
) -> None:
  values = {name: getattr(config, name) for name in names}
  check.at_least(min_value, max_value=max_value, owner='T5Config', **values)


# Name -> emb_dim, num_heads, head_dim, mlp_dim, layers of encoder and decoder.
_V1_1 = {
    'small': (512, 6, 64, 1024, 8, 8),
    'base': (768, 12, 64, 2048, 12, 12),
    'large': (1024, 16, 64, 2816, 24, 24),
    'xl': (2048, 32, 64, 5120, 24, 24),
    'xxl': (4096, 64, 64, 10240, 24, 24),
}
_V1_0 = {
    'small': (512, 8, 64, 2048, 6, 6),
    'base': (768, 12, 64, 3072, 12, 12),
    'large': (1024, 16, 64, 4096, 24, 24),
    'xl': (1024, 32, 128, 16384, 24, 24),
    'xxl': (1024, 128, 128, 65536, 24, 24),
}
# Made for this project: pairs that a laptop trains in minutes.
_SMALL_SCALE = {
    'test': (16, 2, 8, 32, 2, 2),
    'nano': (64, 2, 32, 128, 1, 1),
    'micro': (128, 4, 32, 256, 2, 2),
    'tiny': (192, 4, 48, 512, 4, 4),
    'mini': (256, 4, 64, 768, 4, 4),
    'midi': (384, 6, 64, 1024, 1, 6),
}


def published(name: str, vocab_size: int = 32128, **changes: Any) -> T5Config:
  """The configuration called `name`, with `changes` to any field.

  Raffel et al. 2019, https://arxiv.org/abs/1910.10683, and the notes on v1.1
  released with it.

  Args:
    name: 't5_1_1_SIZE' or 't5_1_0_SIZE' with SIZE small, base, large, xl or
      xxl, or one of the sizes for a laptop: test, nano, micro, tiny, mini,
      midi.
    vocab_size: rows of the embedding; 32,128 in the published checkpoints.
    **changes: fields of `T5Config` to set otherwise; with `encoded_dim` there
      is no encoder.

  Raises:
    UserError: unknown name.
  """
  sizes, options = None, {}
  if name.startswith('t5_1_1_'):
    sizes = _V1_1.get(name.removeprefix('t5_1_1_'))
  elif name.startswith('t5_1_0_'):
    sizes = _V1_0.get(name.removeprefix('t5_1_0_'))
    options = {'mlp_activations': ('relu',), 'logits_via_embedding': True}
  else:
    sizes = _SMALL_SCALE.get(name)
  if sizes is None:
    known = [f't5_1_1_{size}' for size in _V1_1]
    known += [f't5_1_0_{size}' for size in _V1_0]
    raise errors.UserError(
        f'There is no model called {name!r}; known are'
        f' {", ".join(known + list(_SMALL_SCALE))}.'
    )
  emb_dim, num_heads, head_dim, mlp_dim, encoder, decoder = sizes
  values = {
      'vocab_size': vocab_size,
      'emb_dim': emb_dim,
      'num_heads': num_heads,
      'head_dim': head_dim,
      'mlp_dim': mlp_dim,
      'num_encoder_layers': 0 if changes.get('encoded_dim') else encoder,
      'num_decoder_layers': decoder,
      **options,
      **changes,
  }
  return T5Config.from_dict(values)
