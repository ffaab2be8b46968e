"""Learning rates in the words of t5x.

`Factors` is t5x's `utils.create_learning_rate_scheduler`: the same names and
defaults, so that the lines of a gin file can be kept.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from distillspec_jax.core import check
from distillspec_jax.core import errors

_FACTORS = (
    'constant',
    'linear_warmup',
    'linear_decay',
    'rsqrt_decay',
    'rsqrt_normalized_decay',
    'decay_every',
    'cosine_decay',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
  """Step (from 0) -> learning rate, a product of factors.

  T5 is pretrained with 'constant * rsqrt_decay', base 1.0 and 10,000 steps of
  warm-up: 0.01 up to there, then 1 / sqrt(step); and fine-tuned with
  'constant', base 0.001.

  Attributes:
    factors: names joined by `*`, s for the step, w for `warmup_steps`:
      constant                base_learning_rate
      linear_warmup           min(1, s / w)
      linear_decay            base_learning_rate
                              * min(s / w, 1 + decay_factor * (w - s))
      rsqrt_decay             1 / sqrt(max(s, w))
      rsqrt_normalized_decay  sqrt(w / max(s, w))
      decay_every             decay_factor ** (s // steps_per_decay)
      cosine_decay            half a cosine every steps_per_cycle after w
    base_learning_rate: see above.
    warmup_steps: see above.
    decay_factor: see above.
    steps_per_decay: see above.
    steps_per_cycle: see above.
    step_offset: steps are counted from here; before it, the step is 0.
    min_learning_rate: the rate is never less.
  """

  factors: str = 'constant * linear_warmup * rsqrt_decay'
  base_learning_rate: float = 0.5
  warmup_steps: int = 1000
  decay_factor: float = 0.5
  steps_per_decay: int = 20000
  steps_per_cycle: int = 100000
  step_offset: int = 0
  min_learning_rate: float = 1e-8

  def __post_init__(self):
    unknown = [name for name in self.names if name not in _FACTORS]
    if unknown:
      raise errors.UserError(
          f'Factors.factors has {", ".join(map(repr, unknown))}; known are'
          f' {", ".join(_FACTORS)}, joined by *.'
      )
    check.in_interval(
        '(0, inf)', owner='Factors', base_learning_rate=self.base_learning_rate
    )
    check.in_interval(
        '[0, inf)',
        owner='Factors',
        decay_factor=self.decay_factor,
        min_learning_rate=self.min_learning_rate,
    )
    check.at_least(
        1, owner='Factors', warmup_steps=self.warmup_steps,
        steps_per_decay=self.steps_per_decay,
        steps_per_cycle=self.steps_per_cycle,
    )  # fmt: skip

  @property
  def names(self) -> list[str]:
    return [name.strip() for name in self.factors.split('*')]

  def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
    """float32[] learning rate of the update after `step` updates."""
    step = jnp.maximum(0, jnp.asarray(step) - self.step_offset)
    rate = jnp.float32(1.0)
    for name in self.names:
      rate *= self._factor(name, step)
    return jnp.maximum(rate, self.min_learning_rate).astype(jnp.float32)

  def _factor(self, name: str, step: jax.Array) -> jax.typing.ArrayLike:
    warmup = self.warmup_steps
    if name == 'constant':
      return self.base_learning_rate
    if name == 'linear_warmup':
      return jnp.minimum(1.0, step / warmup)
    if name == 'linear_decay':
      decay = 1.0 + self.decay_factor * (warmup - step)
      return self.base_learning_rate * jnp.minimum(step / warmup, decay)
    if name == 'rsqrt_decay':
      return 1.0 / jnp.sqrt(jnp.maximum(step, warmup))
    if name == 'rsqrt_normalized_decay':
      return jnp.sqrt(warmup / jnp.maximum(step, warmup))
    if name == 'decay_every':
      return self.decay_factor ** (step // self.steps_per_decay)
    cycle = jnp.maximum(0.0, (step - warmup) / self.steps_per_cycle)
    return 0.5 * (1.0 + jnp.cos(jnp.pi * (cycle % 1.0)))
