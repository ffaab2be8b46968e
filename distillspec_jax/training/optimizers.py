"""Optimizers and their schedule: warm-up, constant, cosine cool-down.

Adafactor makes t5x's steps, up to rounding, and its state can be imported from
t5x and exported: `with_adafactor_moments` and `adafactor_moments`.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.training import schedules

_OF_OUR_SCHEDULE = ('warmup_steps', 'cooldown_from', 'final_fraction')
# What t5x stores for a statistic that is not used.
_UNUSED = np.zeros((1,), np.float32)


class Moments(NamedTuple):
  """Adafactor's state as t5x keeps it.

  Attributes:
    step: updates done.
    by_path: path of a parameter -> 'v' of its shape, or 'v_row' and 'v_col'
      (averages of v over its largest and second largest axis), and 'm', the
      momentum; what is not used is [0.0].
  """

  step: int
  by_path: dict[str, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """An optimizer, to be built for a number of steps.

  The learning rate rises linearly from 0 over `warmup_steps`, stays, and from
  step `cooldown_from` falls along a cosine to `final_fraction` of itself.

  Attributes:
    name: 'adafactor' (Shazeer and Stern 2018, as T5 is trained) or 'adamw'.
    learning_rate: at its highest; or a schedule in the words of t5x, which
      then replaces the one above.
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
  learning_rate: float | schedules.Factors = 3e-4
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
    check.one_of(('adafactor', 'adamw'), owner='Optimizer', name=self.name)
    if isinstance(self.learning_rate, schedules.Factors):
      for field in dataclasses.fields(self):
        value = getattr(self, field.name)
        if field.name in _OF_OUR_SCHEDULE and value != field.default:
          raise errors.UserError(
              f'Optimizer.{field.name} is {value}, which means nothing where'
              ' learning_rate is a schedule of t5x. Leave it out, and set'
              ' Factors.factors and Factors.warmup_steps.'
          )
    else:
      check.in_interval(
          '(0, inf)', owner='Optimizer', learning_rate=self.learning_rate
      )
    check.at_least(0, owner='Optimizer', warmup_steps=self.warmup_steps)
    check.at_least(
        1, owner='Optimizer', min_dim_size_to_factor=self.min_dim_size_to_factor
    )
    check.in_interval(
        '[0, 1]', owner='Optimizer',
        cooldown_from=self.cooldown_from, final_fraction=self.final_fraction,
    )  # fmt: skip
    check.in_interval('[0, 1)', owner='Optimizer', b1=self.b1, b2=self.b2)
    check.in_interval(
        '[0, inf)', owner='Optimizer', weight_decay=self.weight_decay
    )
    if self.max_gradient_norm is not None:
      check.in_interval(
          '(0, inf)',
          owner='Optimizer',
          hint='None does not limit it',
          max_gradient_norm=self.max_gradient_norm,
      )

  def schedule(self, num_steps: int) -> optax.Schedule:
    """Step (from 0) -> learning rate.

    Raises:
      UserError: the warm-up is longer than the run.
    """
    if isinstance(self.learning_rate, schedules.Factors):
      return self.learning_rate
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


def with_adafactor_moments(state: Any, moments: Moments) -> Any:
  """The optimizer state with Adafactor's statistics from a t5x checkpoint.

  The next update is the one that t5x would make: the decay of the statistics
  and the learning rate are those of `moments.step`. Layers must not be
  scanned; t5x's gradients are of the sum over tokens, so ours must be, too.

  Args:
    state: what `Optimizer.build(...).init` gives, of Adafactor; arrays, or
      `ShapeDtypeStruct` that say where to put them.
    moments: for exactly the same parameters.

  Raises:
    UserError: it is the state of another optimizer, or of other parameters, or
      has momentum, which our Adafactor has not.
  """
  factored = _factored_state(state)
  kept = {
      name: _flat(getattr(factored, name)) for name in ('v_row', 'v_col', 'v')
  }
  _check_moments(kept, moments)

  def put(value: np.ndarray, like: Any) -> jax.Array:
    value = jnp.asarray(value, like.dtype)
    sharding = getattr(like, 'sharding', None)
    return value if sharding is None else jax.device_put(value, sharding)

  def replace(node: Any) -> Any:
    if isinstance(node, optax.ScaleByScheduleState):
      return node._replace(count=put(moments.step, node.count))
    if not isinstance(node, optax.FactoredState):
      return node
    filled = {
        name: jax.tree.unflatten(
            jax.tree.structure(getattr(node, name)),
            [put(moments.by_path[p][name], x) for p, x in leaves.items()],
        )
        for name, leaves in kept.items()
    }
    return node._replace(count=put(moments.step, node.count), **filled)

  return jax.tree.map(replace, state, is_leaf=_has_count)


def adafactor_moments(state: Any) -> Moments:
  """Adafactor's state as t5x keeps it; the inverse of `with_adafactor_moments`.

  Raises:
    UserError: it is the state of another optimizer.
  """
  factored = _factored_state(state)
  by_path: dict[str, dict[str, np.ndarray]] = {}
  for name in ('v_row', 'v_col', 'v'):
    for path, array in _flat(getattr(factored, name)).items():
      by_path.setdefault(path, {'m': _UNUSED})[name] = np.asarray(array)
  return Moments(int(factored.count), by_path)


def _has_count(node: Any) -> bool:
  return isinstance(node, (optax.FactoredState, optax.ScaleByScheduleState))


def _factored_state(state: Any) -> optax.FactoredState:
  for node in jax.tree.leaves(state, is_leaf=_has_count):
    if isinstance(node, optax.FactoredState):
      return node
  raise errors.UserError(
      'The optimizer is not Adafactor, the only one whose state is exchanged'
      " with t5x. Set Optimizer.name = 'adafactor', or start it anew."
  )


def _flat(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in leaves
  }


def _check_moments(
    kept: Mapping[str, Mapping[str, Any]], moments: Moments
) -> None:
  paths = set(kept['v'])
  wrong = [f'{path} has none' for path in sorted(paths - set(moments.by_path))]
  wrong += [
      f'{path} is not in the model'
      for path in sorted(set(moments.by_path) - paths)
  ]
  for path in sorted(paths & set(moments.by_path)):
    statistics = moments.by_path[path]
    if np.shape(statistics['m']) != _UNUSED.shape:
      wrong.append(f'{path} has momentum (beta1), which is not supported')
    for name, leaves in kept.items():
      if np.shape(statistics[name]) != tuple(leaves[path].shape):
        wrong.append(
            f'{name} of {path} is {np.shape(statistics[name])} but should be'
            f' {tuple(leaves[path].shape)}'
        )
  if wrong:
    more = f'; and {len(wrong) - 10} more' if len(wrong) > 10 else ''
    raise errors.UserError(
        'The state of Adafactor does not fit the model:'
        f' {"; ".join(wrong[:10])}{more}. Set Optimizer.min_dim_size_to_factor'
        ' as the run had it and Start.scan_layers = False, or start the'
        ' optimizer anew.'
    )
