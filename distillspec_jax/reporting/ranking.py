"""The rows of a study, ranked for each decoding and compared with controls.

Only what was measured with the same seeds is ranked: a row that lacks some, as
a run failed, is listed below the others. Differences with the control are
paired by seed, and by example where single examples were recorded.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import rows as rows_lib

# What rows are ranked by where the user does not say.
MEASURES = {'garden': 'tokens_per_second'}
MEASURE = 'block_efficiency'
# Measures on a ratio scale, whose gains are in percent.
_RATIOS = (
    'block_efficiency', 'uncut_block_efficiency', 'expected_acceptance',
    'tokens_per_second', 'measured_speedup',
)  # fmt: skip
_TIMES = ('tokens_per_second', 'measured_speedup')
_LOWER_IS_BETTER = ('perplexity',)
# Studies whose rows are decoded differently: points of a frontier.
FRONTIERS = ('garden', 'lossy')
_KINDS = ('acceptance', 'latency', 'task_quality')


class Entry(NamedTuple):
  """A row in a ranking.

  Attributes:
    row: the row.
    measurement: of the ranking's seeds; of those it has, if it lacks some.
    rank: from 1; None where seeds are missing.
    missing: the ranking's seeds that it lacks.
    change: against its control, over the seeds that both have; None without.
    quality: of the text, where the study is about it, with seeds of its own.
    quality_changes: metric -> change against the control.
  """

  row: rows_lib.Row
  measurement: measurements.Measurement
  rank: int | None
  missing: tuple[int, ...]
  change: headlines.Gain | None
  quality: measurements.Measurement | None = None
  quality_changes: dict[str, headlines.Gain] = {}


class Ranking(NamedTuple):
  """The rows under one way of decoding.

  Attributes:
    task: name of the task.
    split: of the task.
    decoding: its settings, as far as all rows share them.
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
    settings = dict(self.decoding)
    if self.measure not in _TIMES:
      settings['batch_size'] = None
    return measurements.describe(settings)

  @property
  def ranked(self) -> list[Entry]:
    return [entry for entry in self.entries if entry.rank is not None]

  @property
  def qualities(self) -> list[str]:
    """Names of the task's metrics that entries have."""
    names = [list(one.quality.metrics) for one in self.entries if one.quality]
    return list(dict.fromkeys(name for each in names for name in each))

  def entry(self, row: rows_lib.Row | None) -> Entry | None:
    return next((one for one in self.entries if one.row is row), None)

  def value(self, entry: Entry) -> measurements.Value:
    return entry.measurement.metrics[self.measure]

  def ties(self) -> list[Entry]:
    """Those that are not clearly below the best, which comes first.

    Clear is a 95 % interval of the paired difference that excludes 0.
    """
    best, *others = self.ranked or [None]
    return [one for one in (best,) if one] + [
        one
        for one in others
        if (change := compare(best.measurement, one.measurement, self.measure))
        is None
        or not change.is_clear
    ]


def measure_of(study: rows_lib.Comparison) -> str:
  """The measure that a study is ranked by."""
  measure = MEASURES.get(study.kind, MEASURE)
  known = {name for row in study.rows for name in _metrics(row)}
  return measure if measure in known else MEASURE


def rankings(
    study: rows_lib.Comparison, measure: str | None = None
) -> list[Ranking]:
  """A ranking for each task and decoding, in the order of appearance.

  Lossy decodings are compared in a study of them alone.

  Args:
    study: the study.
    measure: name of a metric; default: `measure_of`.

  Raises:
    UserError: no row has the measure.
  """
  if measure is None:
    measure = measure_of(study)
  else:
    known = {name for row in study.rows for name in _metrics(row)}
    if known and measure not in known:
      raise errors.UserError(
          f'No row of the study has the measure {measure!r}; choose one of'
          f' {", ".join(sorted(known))}.'
      )
  groups: dict[tuple[Any, ...], list[tuple[rows_lib.Row, Any]]] = {}
  for row in study.rows:
    ours: dict[tuple[Any, ...], measurements.Measurement] = {}
    for task, split, one in _measured(row, study.kind):
      if one.value(measure) is not None:
        key = task, split, *_setting(one.decoding, measure, study.kind)
        # A point of a frontier has one block length.
        ours[key] = min(ours.get(key, one), one, key=_length)
    for key, one in ours.items():
      groups.setdefault(key, []).append((row, one))
  return [
      _ranking(study, key[0], key[1], measure, measured)
      for key, measured in groups.items()
  ]


def headline(
    rankings: Sequence[Ranking],
) -> list[Ranking]:
  """One ranking for each task and temperature, the others being in tables.

  That of block length 5 or else of the largest, with settings that depart from
  the defaults as little as possible.
  """

  def preference(ranking):
    departures = sum(
        ranking.decoding.get(name) not in (default, None)
        for name, default in measurements.DEFAULTS.items()
    )
    return departures, _length(ranking)

  groups: dict[tuple, list[Ranking]] = {}
  for one in rankings:
    key = one.task, one.split, one.decoding.get('temperature')
    groups.setdefault(key, []).append(one)
  return [min(group, key=preference) for group in groups.values()]


def _metrics(row):
  return {name for line in row.lines for name in line['metrics']}


def _measured(row, kind):
  """(task, split, measurement) of what may be ranked."""
  for place in row.places:
    for what in _KINDS:
      for one in row.measurements(what, place):
        is_lossless = not measurements.is_lossy(one.decoding)
        is_pair = one.decoding.get('block_length') is not None
        is_draft = one.decoding.get('model') == row.name
        if kind in FRONTIERS or is_lossless and (is_pair or is_draft):
          yield *place, one


def _length(one):
  """Orders block lengths: 5, then the largest."""
  length = one.decoding.get('block_length') or 0
  return length != 5, -length


def _setting(decoding, measure, kind):
  """What rows must share to be comparable."""
  if kind == 'lossy':  # a temperature may be what truncates
    return ('greedy' if decoding.get('temperature') == 0 else 'sampled',)
  if kind == 'garden':
    return decoding.get('temperature'), decoding.get('batch_size')
  aside = {'lossless', 'model'}
  if measure not in _TIMES:
    aside.add('batch_size')  # has no influence
  return tuple(
      sorted((k, repr(v)) for k, v in decoding.items() if k not in aside)
  )


def _ranking(study, task, split, measure, measured):
  sets = collections.Counter(frozenset(one.by_seed) for _, one in measured)
  seeds = max(sets, key=lambda each: (sets[each], len(each), -min(each)))
  by_row = {id(row): one for row, one in measured}
  shared = {
      name: value
      for name, value in measured[0][1].decoding.items()
      if all(one.decoding.get(name) == value for _, one in measured)
  }
  entries = []
  for row, one in measured:
    control = study.control(row)
    missing = tuple(sorted(seeds - one.by_seed.keys()))
    quality, changes = None, {}
    if study.kind in FRONTIERS:
      place = task, split
      quality = quality_of(row, place, one)
      before = control and quality_of(control, place, by_row.get(id(control)))
      for name in quality.metrics if quality and before else ():
        if name in before.metrics:
          changes[name] = compare(before, quality, name)
    entries.append(
        Entry(
            row,
            one if missing else one.of_seeds(sorted(seeds)),
            None,
            missing,
            compare(by_row.get(id(control)), one, measure),
            quality,
            {name: change for name, change in changes.items() if change},
        )
    )
  entries.sort(
      key=lambda entry: (
          bool(entry.missing),
          -_sign(measure) * entry.measurement.metrics[measure].value,
      )
  )
  entries = [
      entry if entry.missing else entry._replace(rank=rank)
      for rank, entry in enumerate(entries, start=1)
  ]
  return Ranking(task, split, shared, measure, tuple(sorted(seeds)), entries)


def _sign(metric):
  return -1 if metric in _LOWER_IS_BETTER else 1


def may_be_loss(change: headlines.Gain, metric: str) -> bool:
  """Whether a metric is clearly worse, or that is not known."""
  is_worse = _sign(metric) * change.value < 0
  return change.interval is None or (change.is_clear and is_worse)


def quality_of(
    row: rows_lib.Row,
    place: tuple[str, str],
    one: measurements.Measurement | None,
) -> measurements.Measurement | None:
  """The quality of the text of a measured decoding; of a garden, any text's."""
  measured = row.measurements('task_quality', place)
  temperature = one and one.decoding.get('temperature')
  same = measurements.select(measured, temperature=temperature)
  return next(iter(same or measured), None)


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


def average(
    pairs: Sequence[tuple[measurements.Measurement, measurements.Measurement]],
    measure: str,
    share_examples: bool,
) -> headlines.Gain | None:
  """The mean of the changes of several pairs, each with the same weight.

  Of changes in percent it is the geometric mean of the ratios, so that of twice
  and half as much nothing remains.

  Args:
    pairs: (before, after), which have a seed in common with all others.
    measure: whose change.
    share_examples: whether all answer the same inputs, so that their errors
      over examples do not average out; False: those are independent.
  """
  seeds = [
      before.by_seed.keys() & after.by_seed.keys() for before, after in pairs
  ]
  shared = set.intersection(*map(set, seeds)) if seeds else set()
  values, is_ratio = [], measure in _RATIOS
  for seed in sorted(shared):
    changes = [
        compare(before.of_seeds([seed]), after.of_seeds([seed]), measure)
        for before, after in pairs
    ]
    if None in changes:
      continue
    means = np.array([change.value for change in changes])
    errors = np.array([change.error for change in changes], float)
    if is_ratio:
      errors = errors / (100 + means)
      means = np.log1p(means / 100)
    error = np.mean(errors)
    if not share_examples:
      error = np.sqrt(np.sum(errors**2)) / len(errors)
    count = min(one.metrics[measure].count for pair in pairs for one in pair)
    error = None if np.isnan(error) else float(error)
    values.append(measurements.Value(float(np.mean(means)), error, 1, count))
  if not values:
    return None
  inference = measurements.infer(values, [None])
  value, error = inference.value, inference.standard_error
  interval = inference.interval()
  if is_ratio:
    error = None if error is None else 100 * np.exp(value) * error
    value = 100 * np.expm1(value)
    interval = interval and tuple(100 * np.expm1(end) for end in interval)
  return headlines.Gain(
      value, error, interval, len(values), '%' if is_ratio else ''
  )
