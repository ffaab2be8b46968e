"""What all runs of a study have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.data import tasks
from distillspec_jax.training import settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """What all runs of a study have in common.

  Attributes:
    task: what the models are trained and measured on.
    target: the training run of the target, or the folder of one that is given.
    draft: that of the fine-tuned draft, or the folder of one that is given;
      with `Start.shared_encoder` all drafts read the target's encoder output.
    distil: that of the distilled drafts, which start from the fine-tuned one.
    control: fine-tunes the draft for as many more steps instead, which shows
      what the additional steps alone gain; None: no control.
    evaluate: `evaluation.acceptance.evaluate`, with its settings.
    benchmark: `evaluation.speed.latency.benchmark`, likewise; None: none.
    seeds: of the drafts: initialisation, order of the data, sampling.
    target_seeds: of the targets, one for each seed of the drafts; None: one
      target, trained with the first seed and shared by all.
    timed_seeds: of how many seeds, the first, the drafts are timed.
  """

  task: tasks.Task
  target: settings.Training | str
  draft: settings.Training | str
  distil: settings.Training
  evaluate: Callable[..., Any]
  control: settings.Training | None = None
  benchmark: Callable[..., Any] | None = None
  seeds: Sequence[int] = (0,)
  target_seeds: Sequence[int] | None = None
  timed_seeds: int = 1

  def __post_init__(self):
    if not self.seeds:
      raise errors.UserError('seeds is empty; give at least one, e.g. (0,).')
    check.at_least(0, timed_seeds=self.timed_seeds)
    check.distinct(seeds=self.seeds)
    for seed in self.seeds:
      check.seed(seed=seed)
    if self.target_seeds is None:
      return
    for seed in self.target_seeds:
      check.seed(target_seed=seed)
    if len(self.target_seeds) != len(self.seeds):
      raise errors.UserError(
          f'target_seeds is {tuple(self.target_seeds)} and seeds'
          f' {tuple(self.seeds)}; give one seed of a target for each of a'
          ' draft, or leave target_seeds out.'
      )
    if isinstance(self.target, str):
      raise errors.UserError(
          f'target_seeds is {tuple(self.target_seeds)}, but the target is'
          f' given, {self.target}; leave target_seeds out.'
      )

  def target_seed(self, seed: int) -> int | None:
    """The seed of the target of a draft's seed; None where it is given."""
    if isinstance(self.target, str):
      return None
    if self.target_seeds is None:
      return self.seeds[0]
    return self.target_seeds[list(self.seeds).index(seed)]

  def is_timed(self, seed: int) -> bool:
    return seed in list(self.seeds)[: self.timed_seeds]
