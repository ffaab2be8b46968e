"""How to decode: the settings that the sampler is compiled for."""

from __future__ import annotations

import dataclasses
from typing import Any

from distillspec_jax.core import errors
from distillspec_jax.sampling import lenient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """Settings of one generation; equal settings share a compiled program.

  Attributes:
    temperature: 0 is greedy, 1 the model's own distribution.
    top_k: only the k most likely tokens; 0 allows all.
    top_p: only the most likely tokens that together reach this probability.
    block_length: tokens drafted before each call of the target, gamma. Without
      a draft it has no effect.
    verification: 'token' (Leviathan et al. 2023), or 'block' (Sun et al. 2024),
      which accepts no fewer tokens; both are lossless, and greedy the same.
    lenience: None is lossless; (function, epsilon) accepts more than the target
      would say, see `lenient`.
    max_new_tokens: length of the output at most, EOS included.
    eos_id: the token that ends a row.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  block_length: int = 5
  verification: str = 'token'
  lenience: tuple | None = None
  max_new_tokens: int = 128
  eos_id: int = 1

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
    if self.verification not in ('token', 'block'):
      raise errors.UserError(
          f"verification is {self.verification!r}; it must be 'token' or"
          " 'block'."
      )
    if self.lenience is not None:
      object.__setattr__(self, 'lenience', lenient.check(self.lenience))
      if self.verification != 'token':
        raise errors.UserError(
            f'lenience is {tuple(self.lenience)}, but verification is'
            f" {self.verification!r}; lenience is of 'token' alone."
        )

  @property
  def greedy(self) -> bool:
    return self.temperature == 0.0

  def describe(self, *, speculative: bool, batch_size: int) -> dict[str, Any]:
    """The `decoding` entry of a line of results."""
    lenience = None
    if speculative and self.lenience is not None:
      lenience = list(self.lenience)
    return {
        'temperature': self.temperature,
        'top_k': self.top_k,
        'top_p': self.top_p,
        'block_length': self.block_length if speculative else None,
        'verification': self.verification if speculative else None,
        'lenience': lenience,
        'batch_size': batch_size,
        'max_new_tokens': self.max_new_tokens,
    }
