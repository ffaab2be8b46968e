"""The rows of a study, ranked for each decoding and compared with controls.

Only what was measured with the same seeds is ranked: a row that lacks some, as
a run failed, is listed below the others. Differences with the control are
paired by seed, and by example where single examples were recorded.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

from distillspec_jax.core import errors
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import rows as rows_lib

MEASURE = 'block_efficiency'
# Measures on a ratio scale, whose gains are in percent.
_RATIOS = (
    'block_efficiency', 'uncut_block_efficiency', 'expected_acceptance',
    'tokens_per_second', 'measured_speedup',
)  # fmt: skip
_KINDS = ('acceptance', 'latency', 'task_quality')


class Entry(NamedTuple):
  """A row in a ranking.

  Attributes:
    row: the row.
    measurement: of the ranking's seeds; of those it has, if it lacks some.
    rank: from 1; None where seeds are missing.
    missing: the ranking's seeds that it lacks.
    change: against its control, over the seeds that both have; None without.
  """

  row: rows_lib.Row
  measurement: measurements.Measurement
  rank: int | None
  missing: tuple[int, ...]
  change: headlines.Gain | None


class Ranking(NamedTuple):
  """The rows under one way of decoding.

  Attributes:
    task: name of the task.
    split: of the task.
    decoding: its settings.
    measure: the metric by which rows are ranked.
    seeds: that ranked rows have.
    entries: the best first, then those that lack seeds.
  """

  task: str
  split: str
  decoding: dict[str, Any]
  measure: str
  seeds: tuple[int, ...]
  entries: list[Entry]

  @property
  def name(self) -> str:
    """The decoding in words."""
    settings = self.decoding
    if self.measure not in ('tokens_per_second', 'measured_speedup'):
      settings = {**settings, 'batch_size': None}
    return measurements.describe(settings)

  @property
  def ranked(self) -> list[Entry]:
    return [entry for entry in self.entries if entry.rank is not None]

  def entry(self, row: rows_lib.Row | None) -> Entry | None:
    return next((one for one in self.entries if one.row is row), None)

  def value(self, entry: Entry) -> measurements.Value:
    return entry.measurement.metrics[self.measure]

  def is_clearly_below(self, entry: Entry, other: Entry) -> bool:
    """Whether the 95 % interval of their paired difference is below 0."""
    change = compare(other.measurement, entry.measurement, self.measure)
    return change is not None and change.is_clear and change.value < 0


def rankings(
    study: rows_lib.Comparison, measure: str = MEASURE
) -> list[Ranking]:
  """A ranking for each task and lossless decoding, in order of appearance.

  Raises:
    UserError: no row has the measure.
  """
  groups: dict[tuple[Any, ...], list[tuple[rows_lib.Row, Any]]] = {}
  known = set()
  for row in study.rows:
    for task, split, one in _measured(row):
      known |= one.metrics.keys()
      if one.value(measure) is None or measurements.is_lossy(one.decoding):
        continue
      key = (task, split, *_setting(one.decoding, measure))
      groups.setdefault(key, []).append((row, one))
  if known and measure not in known:
    raise errors.UserError(
        f'No row of the study has the measure {measure!r}; choose one of'
        f' {", ".join(sorted(known))}.'
    )
  return [
      _ranking(study, key[0], key[1], measure, measured)
      for key, measured in groups.items()
  ]


def _measured(row):
  """(task, split, measurement) of the row's speculative decoding."""
  lines = collections.defaultdict(list)
  for line in row.lines:
    lines[line['task'], line['split']].append(line)
  for (task, split), ours in lines.items():
    for kind in _KINDS:
      for one in row.of(ours).measurements(kind):
        is_pair = one.decoding.get('block_length') is not None
        if is_pair or one.decoding.get('model') == row.name:
          yield task, split, one


def _setting(decoding, measure):
  """What rows must share to be comparable."""
  aside = {'lossless', 'model'}
  if measure not in ('tokens_per_second', 'measured_speedup'):
    aside.add('batch_size')  # has no influence
  return tuple(
      sorted((k, repr(v)) for k, v in decoding.items() if k not in aside)
  )


def _ranking(study, task, split, measure, measured):
  sets = collections.Counter(frozenset(one.by_seed) for _, one in measured)
  seeds = max(sets, key=lambda each: (sets[each], len(each), -min(each)))
  by_row = {id(row): one for row, one in measured}
  entries = []
  for row, one in measured:
    control = by_row.get(id(study.row(row.control)))
    missing = tuple(sorted(seeds - one.by_seed.keys()))
    entries.append(
        Entry(
            row,
            one if missing else one.of_seeds(sorted(seeds)),
            None,
            missing,
            compare(control, one, measure),
        )
    )
  entries.sort(
      key=lambda entry: (
          bool(entry.missing),
          -entry.measurement.metrics[measure].value,
      )
  )
  entries = [
      entry if entry.missing else entry._replace(rank=rank)
      for rank, entry in enumerate(entries, start=1)
  ]
  return Ranking(
      task, split, measured[0][1].decoding, measure, tuple(sorted(seeds)),
      entries,
  )  # fmt: skip


def compare(
    before: measurements.Measurement | None,
    after: measurements.Measurement,
    measure: str,
) -> headlines.Gain | None:
  """The change over seeds that both have; None where they share none."""
  if before is None or not before.by_seed.keys() & after.by_seed.keys():
    return None
  if measure in _RATIOS:
    return headlines.gain(before, after, measure)
  return headlines.difference(before, after, measure)


def average(changes: Iterable[headlines.Gain | None]) -> headlines.Gain | None:
  """The mean of changes that are of different inputs, each with one weight."""
  raise NotImplementedError
