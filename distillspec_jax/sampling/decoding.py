"""How to decode, as one value that a program is compiled for.

Whatever can decode takes a `Decoding` and passes it on: generation, evaluation,
benchmarks, plans, certificates, gin files. Equal values share a program.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools
import numbers
from typing import Any

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import verification

EOS = 1
_OUTPUT_LENGTH = 128
_MAX_PATHS = 1024
MAX_OUTPUT_LENGTH = check.MAX_TOKENS
# Float32 does not resolve logits divided by less: sampling is then greedy.
MIN_TEMPERATURE = 1e-6
TEMPERATURES = '[0, 1e6]'


def _set_plain(group: Any, **kinds: type) -> None:
  """Makes numbers, perhaps NumPy's, Python's own, which JSON can hold."""
  for name, kind in kinds.items():
    object.__setattr__(group, name, kind(getattr(group, name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """The distribution that tokens are sampled from, the same for both models.

  Attributes:
    temperature: 0 is greedy, 1 the model's own distribution; below 1e-6 it is
      taken for its limit, 0.
    top_k: only the k most likely tokens; 0 allows all.
    top_p: only the most likely tokens that together reach this probability; 1
      allows all.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    check.in_interval(
        TEMPERATURES, hint='0 is greedy', temperature=self.temperature
    )
    check.at_least(0, hint='0 allows all tokens', top_k=self.top_k)
    check.in_interval('(0, 1]', hint='1 allows all tokens', top_p=self.top_p)
    if self.temperature < MIN_TEMPERATURE:
      object.__setattr__(self, 'temperature', 0.0)
    _set_plain(self, temperature=float, top_k=int, top_p=float)

  @property
  def is_greedy(self) -> bool:
    return self.temperature == 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drafting:
  """How the draft proposes a block of tokens.

  Attributes:
    length: tokens drafted before each call of the target, gamma.
    paths: independent drafts of each block, K; the target reads all of them at
      once and follows the one that is accepted farthest.
    adaptive: ends a block where the draft is unsure, as `Confidence(0.4)` or
      `Entropy(2)`, in text 'confidence(0.4)' or 'entropy(2)'; default: blocks
      of full length.
    parallel: one call of the draft proposes the whole block, each token without
      having seen those before it in the block; for drafts that were trained for
      it, whose configuration has a mask_token.
  """

  length: int = 5
  paths: int = 1
  adaptive: adaptive_length.AdaptiveLength | None = None
  parallel: bool = False

  def __post_init__(self):
    check.at_least(1, max_value=MAX_OUTPUT_LENGTH, block_length=self.length)
    check.at_least(1, max_value=_MAX_PATHS, paths=self.paths)
    check.one_of((True, False), parallel=self.parallel)
    _set_plain(self, length=int, paths=int, parallel=bool)
    if self.parallel and self.paths > 1:
      raise errors.UserError(
          f'parallel is True and paths is {self.paths}; a parallel draft'
          ' proposes a single path. Use paths = 1, or leave parallel out.'
      )
    if not isinstance(self.adaptive, adaptive_length.AdaptiveLength | None):
      raise errors.UserError(
          f'adaptive is {self.adaptive!r}; give Confidence(c), Entropy(h) or'
          ' None.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """Settings of a generation that all its sequences share.

  Attributes:
    sampling: temperature, top-k and top-p.
    drafting: how blocks are drafted; without a draft it has no effect.
    verifier: which drafted tokens are accepted, as `Block()` or the lossy
      `Lenient('linear', 0.5)`, in text 'block' or 'lenient(linear, 0.5)'; one
      of your own is 'my_module:MyVerifier(3)'.
    max_new_tokens: maximum length of the output, EOS included; None: the label
      length of the task, where there is one, else 128.
    eos_ids: tokens that end a sequence, any of them; () lets none end early.
    log_probs: whether the target's log-probabilities are returned.
  """

  sampling: Sampling = Sampling()
  drafting: Drafting = Drafting()
  verifier: verification.Verifier = verification.Token()
  max_new_tokens: int | None = None
  eos_ids: tuple[int, ...] = (EOS,)
  log_probs: bool = False

  def __post_init__(self):
    if self.max_new_tokens is not None:
      check.at_least(
          1, max_value=MAX_OUTPUT_LENGTH, max_new_tokens=self.max_new_tokens
      )
      _set_plain(self, max_new_tokens=int)
    for name, kind in (('sampling', Sampling), ('drafting', Drafting)):
      value = getattr(self, name)
      if not isinstance(value, kind):
        raise errors.UserError(
            f'Decoding.{name} is {check.shown(value)}; give a {kind.__name__}.'
        )
    check.one_of((True, False), log_probs=self.log_probs)
    if not isinstance(self.verifier, verification.Verifier):
      raise errors.UserError(
          f'verifier is {self.verifier!r}; give an instance of a verifier, such'
          " as Token(), Block() or Lenient('linear', 0.5)."
      )
    if self.drafting.paths > 1 and not self.verifier.supports_paths:
      raise errors.UserError(
          f'paths is {self.drafting.paths}, but the verifier'
          f' {self.verifier.describe()} judges single drafts; use Token(), or'
          ' paths = 1.'
      )
    if not isinstance(self.eos_ids, (tuple, list)):
      raise errors.UserError(
          f'eos_ids is {self.eos_ids!r}; give tokens, as in (1,), or () for'
          ' sequences that never end early.'
      )
    for eos_id in self.eos_ids:
      is_token = isinstance(eos_id, numbers.Integral)
      if not is_token or not 0 <= eos_id < 2**31:
        raise errors.UserError(
            f'eos_ids has {check.shown(eos_id)}; token ids are whole numbers'
            ' from 0 on.'
        )
    object.__setattr__(self, 'eos_ids', tuple(map(int, self.eos_ids)))

  @property
  def is_greedy(self) -> bool:
    return self.sampling.is_greedy

  @property
  def output_length(self) -> int:
    """Maximum length of the output, L."""
    return self.max_new_tokens or _OUTPUT_LENGTH

  def with_default_length(self, length: int) -> Decoding:
    """With `length` for max_new_tokens, unless that is set."""
    return self.replace(max_new_tokens=self.max_new_tokens or length)

  def replace(self, **changes: Any) -> Decoding:
    """With fields of this class, or of its groups, set otherwise.

    Example: `decoding.replace(temperature=1.0, length=3, max_new_tokens=8)`.
    """
    for name in ('sampling', 'drafting'):
      group = changes.pop(name, getattr(self, name))
      fields = {field.name for field in dataclasses.fields(group)}
      inside = {k: changes.pop(k) for k in list(changes) if k in fields}
      changes[name] = dataclasses.replace(group, **inside)
    return dataclasses.replace(self, **changes)

  def without_draft(self) -> Decoding:
    """With default drafting.

    Decodings that differ in drafting alone then share an autoregressive
    program.
    """
    return dataclasses.replace(
        self, drafting=Drafting(), verifier=verification.Token()
    )

  def check_speculative(
      self, draft: config_lib.T5Config | None = None, name: str = 'the draft'
  ) -> None:
    """Raises UserError for a block longer than the output, or a wrong draft.

    Args:
      draft: its configuration; None: any draft.
      name: of the draft.
    """
    if self.drafting.parallel and draft:
      draft.require_mask_token(name)
    if self.drafting.length > self.output_length:
      raise errors.UserError(
          f'block_length is {self.drafting.length}; it must lie in [1,'
          f' max_new_tokens = {self.output_length}]. To decode without'
          ' speculation leave the draft out.'
      )

  def describe(self, *, speculative: bool, batch_size: int) -> dict[str, Any]:
    """The `decoding` entry of a line of results."""
    drafting = self.drafting
    adaptive = drafting.adaptive and drafting.adaptive.describe()
    return {
        **dataclasses.asdict(self.sampling),
        'block_length': drafting.length if speculative else None,
        'paths': drafting.paths if speculative else None,
        'adaptive': adaptive if speculative else None,
        'parallel': (speculative and drafting.parallel) or None,
        'verifier': self.verifier.describe() if speculative else None,
        'lossless': self.verifier.is_lossless if speculative else None,
        'batch_size': batch_size,
        'max_new_tokens': self.output_length,
    }

  def label(self) -> str:
    """A short name for progress and tables: what differs from the defaults."""
    parts = [
        'greedy' if self.is_greedy else f'T = {self.sampling.temperature:g}'
    ]
    if self.sampling.top_k:
      parts.append(f'top-k {self.sampling.top_k}')
    if self.sampling.top_p < 1.0:
      parts.append(f'top-p {self.sampling.top_p:g}')
    parts.append(f'block length {self.drafting.length}')
    if self.drafting.paths > 1:
      parts.append(f'{self.drafting.paths} paths')
    if self.drafting.adaptive is not None:
      parts.append(self.drafting.adaptive.describe())
    if self.drafting.parallel:
      parts.append('parallel')
    if self.verifier != verification.Token():
      parts.append(self.verifier.describe())
    return ', '.join(parts)


def for_task(decodings: Sequence[Decoding], task: Any) -> list[Decoding]:
  """The decodings with the label length of a task for max_new_tokens.

  Raises:
    UserError: there are none, or something else, or blocks are longer.
  """
  length = getattr(task, 'label_length', None)
  if length is None:
    raise errors.UserError(
        f'task is {check.shown(task)}; give one of data.tasks, or an object'
        ' like them.'
    )
  if not isinstance(decodings, Sequence) or not decodings:
    raise errors.UserError(
        f'decodings is {check.shown(decodings)}; give a list of at least one'
        ' Decoding.'
    )
  for decoding in decodings:
    if not isinstance(decoding, Decoding):
      raise errors.UserError(
          f'decodings has {check.shown(decoding)}; give Decoding objects.'
      )
  resolved = [x.with_default_length(length) for x in decodings]
  for decoding in resolved:
    decoding.check_speculative()
  return resolved


def grid(
    *,
    temperatures: Sequence[float] = (0.0, 1.0),
    top_k: int = 0,
    top_p: float = 1.0,
    block_lengths: Sequence[int] = (5,),
    paths: Sequence[int] = (1,),
    adaptive: Sequence[adaptive_length.AdaptiveLength | str | None] = (None,),
    parallel: Sequence[bool] = (False,),
    verifiers: Sequence[verification.Verifier | str] = ('token',),
    max_new_tokens: int | None = None,
) -> tuple[Decoding, ...]:
  """Every combination of the values that makes sense.

  Left out are multi-path drafts that are parallel or whose verifier judges
  single ones, and greedy repetitions of lossless verifiers, which are all the
  same rule.

  Args:
    temperatures: 0 is greedy.
    top_k: 0 allows all tokens.
    top_p: 1 allows all tokens.
    block_lengths: drafted tokens per block.
    paths: independent drafts of each block.
    adaptive: rules of adaptive draft length, as objects or texts such as
      'confidence(0.4)'; None drafts blocks of full length.
    parallel: whether one call of the draft proposes the whole block.
    verifiers: objects, or texts such as 'block' or 'lenient(linear, 0.5)'.
    max_new_tokens: maximum length of an output; None: the task's label length,
      where there is a task, else 128.

  Raises:
    UserError: a value is out of range, or nothing is left.
  """
  rules = [
      verification.parse(x) if isinstance(x, str) else x for x in verifiers
  ]
  stops = [
      adaptive_length.parse(x) if isinstance(x, str) else x for x in adaptive
  ]
  decodings: dict[Decoding, None] = {}  # in order, each once
  for temperature, length, k, stop, at_once, verifier in itertools.product(
      temperatures, block_lengths, paths, stops, parallel, rules
  ):
    if k > 1 and (at_once or not verifier.supports_paths):
      continue
    if temperature == 0.0 and verifier.is_lossless and k == 1:
      verifier = next((r for r in rules if r.is_lossless), verifier)
    decoding = Decoding(
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        drafting=Drafting(
            length=length, paths=k, adaptive=stop, parallel=at_once
        ),
        verifier=verifier,
        max_new_tokens=max_new_tokens,
    )
    decodings[decoding] = None
  if not decodings:
    raise errors.UserError(
        'A grid of decodings is empty; give at least one value each for'
        ' temperatures, block_lengths, paths, adaptive, parallel and verifiers,'
        ' and one path, or a verifier that supports more.'
    )
  return tuple(decodings)
