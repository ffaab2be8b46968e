"""Garden: quality against latency, for targets of several sizes.

Smaller targets are distilled from the largest, for quality; then drafts are
distilled for each. Four curves, a point for each size:

  standard                    the fine-tuned target, token by token
  speculative                 the same, with the fine-tuned draft
  distilled target            the target distilled from the largest
  distilled target and draft  the same, with a draft that is distilled from it

and, as the control of the last, `distilled target, draft fine-tuned longer`.
The largest target has no larger one to learn from: where it is asked for, the
distilled target is itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.studies import builder as builder_lib
from distillspec_jax.studies import setup as setup_lib
from distillspec_jax.training import settings

_QUALITY = {'kind': 'task_quality', 'model': 'target', 'temperature': 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Garden:
  """Targets of several sizes, each with its drafts.

  Attributes:
    setup: the models and how they are measured; `setup.target` is how each
      target is fine-tuned.
    targets: models of targets, the largest first: names of
      `models.config.published`, or name -> configuration, or name -> Training.
    distil_targets: how the smaller ones are distilled from the largest.
  """

  setup: setup_lib.Setup
  targets: Mapping[str, Any] | Sequence[str]
  distil_targets: settings.Training

  kind: ClassVar[str] = 'garden'
  axes: ClassVar[tuple[str, ...]] = ('curve', 'target')

  def __post_init__(self):
    check.distinct(targets=list(self.targets))
    if len(self.targets) < 2:
      raise errors.UserError(
          f'targets are {list(self.targets)}; give at least two, the largest'
          ' first.'
      )
    seeds = len(self.setup.seeds)
    if self.setup.benchmark is None or self.setup.timed_seeds < seeds:
      raise errors.UserError(
          'A garden compares latencies, but not all is timed: set'
          f' Setup.benchmark, and Setup.timed_seeds to {seeds}, the number of'
          ' seeds.'
      )
    if isinstance(self.setup.target, str):
      raise errors.UserError(
          f'The target is given, {self.setup.target}; a garden trains its own.'
          ' Give each of `targets` a Training that starts from a folder.'
      )

  def build(self, builder: builder_lib.Builder) -> None:
    sizes = self.targets
    if not isinstance(sizes, Mapping):
      sizes = {name: name for name in sizes}
    for seed in self.setup.seeds:
      largest = None
      for size, model in sizes.items():
        plain = builder.target(seed, model, size)
        distilled = plain
        if largest is None:
          largest = plain
        else:
          distilled = builder.distilled_target(
              seed, self.distil_targets, size, plain, largest
          )
        self._build(builder, seed, size, plain, distilled)

  def _build(
      self,
      builder: builder_lib.Builder,
      seed: int,
      size: str,
      plain: builder_lib.Model,
      distilled: builder_lib.Model,
  ) -> None:
    """Adds the rows of one size and seed."""
    setup = self.setup
    fine_tuned = builder.fine_tuned(seed)

    def add(curve, model, draft, measured, control=None):
      latency = {'kind': 'latency', 'block_length': None}
      if draft is not None:
        latency = {'kind': 'latency', 'draft': draft.name}
      builder.row(
          model, seed, {'curve': curve, 'target': size}, measured,
          name=f'{curve}, {size}',
          control=control and f'{control}, {size}',
          lines={'latency': latency, 'quality': _QUALITY},
      )  # fmt: skip

    measured = builder.measure_pair(plain, fine_tuned, seed, suffix=f'_{size}')
    add('standard', plain, None, measured)
    add('speculative', fine_tuned, fine_tuned, measured, 'standard')
    control = 'speculative'
    if setup.control is not None:
      longer = builder.from_draft(
          setup.control, seed, name=builder_lib.LONGER, start=fine_tuned,
          target=None,
      )  # fmt: skip
      control = f'distilled target, draft {builder_lib.LONGER}'
      of_longer = builder.measure_pair(
          distilled, longer, seed, suffix=f'_{size}'
      )
    draft = builder.from_draft(
        setup.distil, seed, name=f'distilled for {size}', start=fine_tuned,
        target=distilled,
    )  # fmt: skip
    measured = builder.measure_pair(distilled, draft, seed)
    add('distilled target', distilled, None, measured, 'standard')
    add('distilled target and draft', draft, draft, measured, control)
    if setup.control is not None:
      add(control, longer, longer, of_longer)
