"""How to decode: the settings that the sampler is compiled for."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import numbers
from typing import Any

from distillspec_jax.core import errors
from distillspec_jax.sampling import lossy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """Settings of one generation; equal settings share a compiled program.

  Attributes:
    temperature: 0 is greedy, 1 the model's own distribution.
    top_k: only the k most likely tokens; 0 allows all.
    top_p: only the most likely tokens that together reach this probability.
    block_length: tokens drafted before each call of the target, gamma. Without
      a draft it has no effect.
    num_drafts: blocks drafted side by side, K, which the target reads at once
      and of which the one that is accepted farthest goes on; see `multi_draft`.
      Lossless.
    draft_stop: None always drafts whole blocks. ('confidence', c) ends a row's
      block after a token to whose place the draft gave no token more than c,
      ('entropy', h) after one where its entropy was above h nats. Lossless; it
      saves draft steps where all rows stop.
    verification: 'token' (Leviathan et al. 2023), or 'block' (Sun et al. 2024),
      which accepts no fewer tokens; both are lossless, and greedy the same.
    lenience: None is lossless; otherwise a lossy rule, see `lossy`:
      (function, epsilon), ('typical', epsilon, delta), ('simulated', rate).
    max_new_tokens: length of the output at most, EOS included.
    eos_ids: tokens that end a row, any of them; () lets none end early.
    log_probs: whether the target's log-probabilities are returned.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  block_length: int = 5
  num_drafts: int = 1
  draft_stop: tuple | None = None
  verification: str = 'token'
  lenience: tuple | None = None
  max_new_tokens: int = 128
  eos_ids: tuple[int, ...] = (1,)
  log_probs: bool = False

  def __post_init__(self):
    if not self.temperature >= 0.0:
      raise errors.UserError(
          f'temperature is {self.temperature}; it must be at least 0 (greedy).'
      )
    if self.top_k < 0:
      raise errors.UserError(
          f'top_k is {self.top_k}; it must be at least 0 (0 allows all tokens).'
      )
    if not 0.0 < self.top_p <= 1.0:
      raise errors.UserError(
          f'top_p is {self.top_p}; it must lie in (0, 1] (1 allows all tokens).'
      )
    if self.max_new_tokens < 1:
      raise errors.UserError(
          f'max_new_tokens is {self.max_new_tokens}; it must be at least 1.'
      )
    if not 1 <= self.block_length <= self.max_new_tokens:
      raise errors.UserError(
          f'block_length is {self.block_length}; it must lie in [1,'
          f' max_new_tokens = {self.max_new_tokens}]. To decode without'
          ' speculation leave the draft out.'
      )
    if self.num_drafts < 1:
      raise errors.UserError(
          f'num_drafts is {self.num_drafts}; it must be at least 1.'
      )
    if self.verification not in ('token', 'block'):
      raise errors.UserError(
          f"verification is {self.verification!r}; it must be 'token' or"
          " 'block'."
      )
    if self.draft_stop is not None:
      object.__setattr__(self, 'draft_stop', _draft_stop(self.draft_stop))
    if not isinstance(self.eos_ids, (tuple, list)):
      raise errors.UserError(
          f'eos_ids is {self.eos_ids!r}; give tokens, as in (1,), or () for'
          ' rows that never end early.'
      )
    for eos_id in self.eos_ids:
      if not isinstance(eos_id, numbers.Integral) or eos_id < 0:
        raise errors.UserError(
            f'eos_ids has {eos_id!r}; tokens are numbers from 0 on.'
        )
    object.__setattr__(self, 'eos_ids', tuple(map(int, self.eos_ids)))
    if self.lenience is not None:
      object.__setattr__(self, 'lenience', lossy.parse(self.lenience))
      if self.verification != 'token':
        raise errors.UserError(
            f'lenience is {self.lenience}, but verification is'
            f" {self.verification!r}; lenience is of 'token' alone."
        )

    if self.num_drafts > 1:
      self._check_rule_of_several_drafts()

  def _check_rule_of_several_drafts(self) -> None:
    if self.verification != 'token':
      raise errors.UserError(
          f'num_drafts is {self.num_drafts}, but verification is'
          f" {self.verification!r}; several drafts are verified by 'token'."
      )
    if self.lenience is not None:
      raise errors.UserError(
          f'num_drafts is {self.num_drafts}, but lenience is'
          f' {lossy.describe(self.lenience)}; several drafts are verified'
          ' without: set lenience to None, or num_drafts to 1.'
      )

  @property
  def greedy(self) -> bool:
    return self.temperature == 0.0

  def describe(self, *, speculative: bool, batch_size: int) -> dict[str, Any]:
    """The `decoding` entry of a line of results."""
    lenience = None
    if speculative and self.lenience is not None:
      lenience = lossy.describe(self.lenience)
    described = {
        'temperature': self.temperature,
        'top_k': self.top_k,
        'top_p': self.top_p,
        'block_length': self.block_length if speculative else None,
        'verification': self.verification if speculative else None,
        'lenience': lenience,
        'batch_size': batch_size,
        'max_new_tokens': self.max_new_tokens,
    }
    if speculative and self.num_drafts > 1:
      described['num_drafts'] = self.num_drafts
    if speculative and self.draft_stop is not None:
      described['draft_stop'] = list(self.draft_stop)
    return described


def _draft_stop(value: Sequence) -> tuple[str, float]:
  known = ('confidence', 'entropy')
  is_pair = isinstance(value, (tuple, list)) and len(value) == 2
  if not is_pair or value[0] not in known:
    raise errors.UserError(
        f"draft_stop is {value!r}; give ('confidence', c), ('entropy', h), or"
        ' None.'
    )
  name, threshold = value
  most = 1.0 if name == 'confidence' else float('inf')
  if not lossy.is_number(threshold) or not 0.0 <= threshold <= most:
    raise errors.UserError(
        f"draft_stop's {name} is {threshold!r}; it must lie in [0, {most:g}]."
    )
  return name, float(threshold)
