"""Optimizers and their schedule: warm-up, constant, cosine cool-down."""

from __future__ import annotations

import dataclasses

import optax

from distillspec_jax.core import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """An optimizer, to be built for a number of steps.

  The learning rate rises linearly from 0 over `warmup_steps`, stays, and from
  step `cooldown_from` falls along a cosine to `final_fraction` of itself.

  Attributes:
    name: 'adafactor' (Shazeer and Stern 2018, as T5 is trained) or 'adamw'.
    learning_rate: at its highest.
    warmup_steps: until it is reached.
    cooldown_from: share of the steps after which it falls, in [0, 1].
    final_fraction: of the learning rate, at the last step.
    multiply_by_parameter_scale: adafactor: steps are relative to the size of
      the parameters.
    min_dim_size_to_factor: adafactor: smaller matrices keep full moments.
    weight_decay: adamw.
    b1: adamw, decay of the first moment.
    b2: adamw, decay of the second moment.
    max_gradient_norm: gradients are scaled down to it; None does not.
  """

  name: str = 'adafactor'
  learning_rate: float = 3e-4
  warmup_steps: int = 0
  cooldown_from: float = 0.5
  final_fraction: float = 0.1
  multiply_by_parameter_scale: bool = True
  min_dim_size_to_factor: int = 128
  weight_decay: float = 0.0
  b1: float = 0.9
  b2: float = 0.98
  max_gradient_norm: float | None = None

  def __post_init__(self):
    if self.name not in ('adafactor', 'adamw'):
      raise errors.UserError(
          f"Optimizer.name is {self.name!r}; it must be 'adafactor' or"
          " 'adamw'."
      )
    if not self.learning_rate > 0.0:
      raise errors.UserError(
          f'Optimizer.learning_rate is {self.learning_rate}; it must be'
          ' greater than 0.'
      )
    if self.warmup_steps < 0:
      raise errors.UserError(
          f'Optimizer.warmup_steps is {self.warmup_steps}; it must be at least'
          ' 0.'
      )
    for field in ('cooldown_from', 'final_fraction'):
      if not 0.0 <= getattr(self, field) <= 1.0:
        raise errors.UserError(
            f'Optimizer.{field} is {getattr(self, field)}; it must lie in'
            ' [0, 1].'
        )

  def schedule(self, num_steps: int) -> optax.Schedule:
    """Step (from 0) -> learning rate.

    Raises:
      UserError: the warm-up is longer than the run.
    """
    if self.warmup_steps > num_steps:
      raise errors.UserError(
          f'Optimizer.warmup_steps is {self.warmup_steps}, more than the'
          f' {num_steps} steps of the run.'
      )
    start = max(int(num_steps * self.cooldown_from), self.warmup_steps)
    warmup = optax.linear_schedule(
        self.learning_rate / max(self.warmup_steps, 1),
        self.learning_rate,
        max(self.warmup_steps - 1, 1),
    )
    cooldown = optax.cosine_decay_schedule(
        self.learning_rate, max(num_steps - start, 1), self.final_fraction
    )
    constant = optax.constant_schedule(self.learning_rate)
    return optax.join_schedules(
        [warmup, constant, cooldown], [self.warmup_steps, start]
    )

  def build(self, num_steps: int) -> optax.GradientTransformation:
    """The transformation of gradients into updates."""
    schedule = self.schedule(num_steps)
    if self.name == 'adamw':
      transform = optax.adamw(
          schedule, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay
      )
    else:
      transform = optax.adafactor(
          schedule,
          min_dim_size_to_factor=self.min_dim_size_to_factor,
          multiply_by_parameter_scale=self.multiply_by_parameter_scale,
      )
    if self.max_gradient_norm is None:
      return transform
    return optax.chain(
        optax.clip_by_global_norm(self.max_gradient_norm), transform
    )
