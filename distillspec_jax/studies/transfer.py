"""Transfer: drafts of one task and target, measured with others.

Each draft (fine-tuned, fine-tuned longer, distilled) is measured where it was
made, on other tasks, and with other targets of the same task. The average of a
draft is the geometric mean over the other places of what was measured there:
the ratio of two drafts' averages is then the average of their ratios, and of
speed-ups of 4 and 1/4 nothing remains.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any, ClassVar

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.core import study_file
from distillspec_jax.data import tasks as tasks_lib
from distillspec_jax.studies import builder as builder_lib
from distillspec_jax.studies import setup as setup_lib
from distillspec_jax.training import settings

_AVERAGED = {'acceptance': 'block_efficiency', 'latency': 'measured_speedup'}
_DEFINITION = (
    'geometric mean over the places where the draft was not made; its error'
    ' is over examples and seeds'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
  """Where drafts are measured that were made for something else.

  Attributes:
    setup: the models, the task that they are made for, and how they are
      measured.
    tasks: name -> another task, measured with the same target.
    targets: models of other targets, fine-tuned as the first: names of
      `models.config.published`, or name -> configuration, or name -> Training.
    own_targets: trains the target further on each of `tasks`, which is then
      measured with the target of its own; None: with the target as it is.
  """

  setup: setup_lib.Setup
  tasks: Mapping[str, tasks_lib.Task] = dataclasses.field(default_factory=dict)
  targets: Mapping[str, Any] | Sequence[str] = ()
  own_targets: settings.Training | None = None

  kind: ClassVar[str] = 'transfer'
  axes: ClassVar[tuple[str, ...]] = ('draft', 'measured_on')

  def __post_init__(self):
    places = [self.setup.task.name, *self.tasks, *self.targets]
    check.distinct(places=places)
    if len(places) == 1:
      raise errors.UserError(
          'There is nothing to transfer to: give `tasks` or `targets`.'
      )
    if self.targets and isinstance(self.setup.target, str):
      raise errors.UserError(
          f'targets are {list(self.targets)}, but the target is given,'
          f' {self.setup.target}; give each of `targets` a Training, and the'
          ' target likewise.'
      )
    if self.own_targets is not None and not self.tasks:
      raise errors.UserError(
          'own_targets would not be used: there are no other tasks.'
      )

  def build(self, builder: builder_lib.Builder) -> None:
    for seed in self.setup.seeds:
      self._build(builder, seed)

  def _build(self, builder: builder_lib.Builder, seed: int) -> None:
    """Adds the rows of one seed."""
    setup = self.setup
    target, fine_tuned = builder.target(seed), builder.fine_tuned(seed)
    control, drafts = fine_tuned.name, [fine_tuned]
    if setup.control is not None:
      control = builder_lib.LONGER
      drafts.append(
          builder.from_draft(
              setup.control, seed, name=control, start=fine_tuned, target=None
          )
      )
    drafts.append(
        builder.from_draft(
            setup.distil, seed, name='distilled', start=fine_tuned,
            target=target,
        )
    )  # fmt: skip
    places: dict[str, tuple[builder_lib.Model, Any]] = {
        setup.task.name: (target, None)
    }
    for name, task in self.tasks.items():
      of_task = target
      if self.own_targets is not None:
        of_task = builder.own_target(seed, self.own_targets, name, target, task)
      places[name] = of_task, task
    targets = self.targets
    if not isinstance(targets, Mapping):
      targets = {name: name for name in targets}
    for name, model in targets.items():
      places[name] = builder.target(seed, model, name), None
    for place, (of_place, task) in places.items():
      for draft in drafts:
        measured = builder.measure_pair(
            of_place, draft, seed, task=task,
            suffix=f'_{builder_lib.slug(place)}',
        )  # fmt: skip
        is_distilled = draft is drafts[-1]
        builder.row(
            draft, seed, {'draft': draft.name, 'measured_on': place}, measured,
            name=f'{draft.name} on {place}',
            control=f'{control} on {place}' if is_distilled else None,
        )  # fmt: skip

  def averages(
      self, root: pathlib.Path, rows: Sequence[study_file.Row]
  ) -> list[dict[str, Any]]:
    """The average of each draft, decoding and metric over the other places.

    Where a place is not measured for a seed, that seed is left out.
    """
    # (draft, metric, decoding) -> seed -> place -> (log of value, its error)
    logs: dict[Any, Any] = collections.defaultdict(
        lambda: collections.defaultdict(dict)
    )
    counts: dict[Any, int] = {}
    for row in rows:
      place = row.labels['measured_on']
      if place == self.setup.task.name:
        continue
      for folder in row.results:
        for line in results.read(root / folder / results.FILE):
          metric = line['metrics'].get(_AVERAGED.get(line['kind'], ''))
          if metric is None or not metric['value'] > 0:
            continue
          names = 'temperature', 'block_length', 'verifier', 'batch_size'
          decoding = tuple((name, line['decoding'][name]) for name in names)
          key = row.labels['draft'], _AVERAGED[line['kind']], decoding
          error = metric['standard_error']
          logs[key][row.seed][place] = (
              math.log(metric['value']),
              None if error is None else error / metric['value'],
          )
          counts[key] = min(counts.get(key, metric['count']), metric['count'])
    number = len(self.tasks) + len(self.targets)
    averages = []
    for (draft, name, decoding), seeds in logs.items():
      of_seeds = [
          self._mean(places)
          for places in seeds.values()
          if len(places) == number
      ]
      if not of_seeds:
        continue
      count = counts[draft, name, decoding]
      log = statistics.over_seeds(of_seeds, count)
      value, error = math.exp(log.value), log.standard_error
      averages.append(
          {
              'name': draft,
              'metric': name,
              'decoding': dict(decoding),
              'value': value,
              'standard_error': None if error is None else value * error,
              'seeds': len(of_seeds),
              'definition': _DEFINITION,
          }
      )
    return averages

  def _mean(
      self, logs: Mapping[str, tuple[float, float | None]]
  ) -> statistics.Estimate:
    """The mean over places; other targets are measured on the same examples."""
    value = float(np.mean([log for log, _ in logs.values()]))
    if any(error is None for _, error in logs.values()):
      return statistics.Estimate(value, None)
    shared = sum(logs[place][1] for place in logs if place in self.targets)
    own = [logs[place][1] for place in logs if place not in self.targets]
    error = math.sqrt(shared**2 + sum(each**2 for each in own)) / len(logs)
    return statistics.Estimate(value, error)
