"""Result lines -> studies -> rows: one row a setting, averaged over seeds.

A study is what may be compared: one task, one split, one target. Inside it a
row is one draft in one setting. Pure functions; tables, figures and headlines
are made of what they return.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

Line = dict[str, Any]


class Value(NamedTuple):
  """A number as it is shown.

  Attributes:
    value: the mean over seeds.
    error: standard error, over seeds if there are several, else as measured;
      None where there is none.
    seeds: how many.
    count: examples, or runs, a seed.
  """

  value: float
  error: float | None
  seeds: int
  count: int

  def text(self, digits: int = 3) -> str:
    if self.error is None:
      return f'{self.value:,.{digits}f}'
    return f'{self.value:,.{digits}f} ± {self.error:,.{digits}f}'


@dataclasses.dataclass(frozen=True)
class Row:
  """What was measured in one setting.

  Attributes:
    draft: its name; None for the target alone.
    decoding: settings of decoding.
    metrics: by name.
    by_seed: the same for each seed alone.
  """

  draft: str | None
  decoding: dict[str, Any]
  metrics: dict[str, Value]
  by_seed: dict[int, dict[str, Value]]

  def value(self, name: str) -> Value | None:
    """The metric, or None where it is not a finite number."""
    found = self.metrics.get(name)
    return found if found and math.isfinite(found.value) else None


@dataclasses.dataclass(frozen=True)
class Study:
  """Results that may be compared with each other.

  Attributes:
    task: its name.
    split: of the task; '' if nothing but training was recorded.
    target: name of the target, or None.
    lines: what was measured.
    training: lines of the runs that made the models.
  """

  task: str
  split: str
  target: str | None
  lines: list[Line]
  training: list[Line]

  def rows(self, kind: str) -> list[Row]:
    return rows(self.lines, kind)


def studies(lines: Sequence[Line]) -> list[Study]:
  """The studies among the lines, in the order of first appearance.

  The training of a target or of a fine-tuned draft does not say for which
  study it was. It is shown where its task has one target, and left out
  otherwise.
  """
  groups: dict[tuple[str, str, str], list[Line]] = {}
  for line in lines:
    if line['kind'] != 'training':
      key = (line['task'], line['split'], _without_seed(line['target']))
      groups.setdefault(key, []).append(line)
  targets = collections.defaultdict(set)
  for task, _, target in groups:
    targets[task].add(target)
  training: dict[str, list[Line]] = {}
  for line in lines:
    if line['kind'] == 'training':
      training.setdefault(line['task'], []).append(line)
  for task in training:
    if task not in targets:
      groups[task, '', ''] = []
  found = []
  for (task, split, target), measured in groups.items():
    ours = [
        line
        for line in training.get(task, [])
        if len(targets[task]) < 2
        or (line['target'] and _without_seed(line['target']) == target)
    ]
    found.append(Study(task, split, target or None, measured, ours))
  return found


def rows(lines: Iterable[Line], kind: str) -> list[Row]:
  """One row a setting, in the order of first appearance.

  Lines that differ in seed alone are one row. Of repeated lines of one seed
  the newest counts; times, which vary, are averaged instead.
  """
  groups: dict[tuple[Any, ...], list[Line]] = collections.defaultdict(list)
  for line in lines:
    if line['kind'] == kind:
      groups[_setting(line)].append(line)
  found = []
  for group in groups.values():
    seeds: dict[int, list[Line]] = collections.defaultdict(list)
    for line in group:
      seeds[line['provenance']['seed']].append(line)
    by_seed = {
        seed: _one_seed(repeated, average=kind == 'latency')
        for seed, repeated in sorted(seeds.items())
    }
    names = dict.fromkeys(name for one in by_seed.values() for name in one)
    first = group[0]
    found.append(
        Row(
            first['draft'],
            first['decoding'] or {},
            {
                name: over_seeds(
                    [one[name] for one in by_seed.values() if name in one]
                )
                for name in names
            },
            by_seed,
        )
    )
  return found


def over_seeds(values: Sequence[Value]) -> Value:
  """The mean of one number of several seeds, and its standard error."""
  if len(values) == 1:
    return values[0]
  mean, error = mean_and_error([one.value for one in values])
  return Value(mean, error, len(values), values[0].count)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
  """The mean of two or more numbers, and its standard error."""
  number = len(values)
  mean = sum(values) / number
  variance = sum((value - mean) ** 2 for value in values) / (number - 1)
  return mean, math.sqrt(variance / number)


def select(found: Iterable[Row], **wanted: Any) -> list[Row]:
  """Rows whose draft or decoding has the wanted values."""

  def fits(row):
    for name, value in wanted.items():
      have = row.draft if name == 'draft' else row.decoding.get(name)
      if have != value:
        return False
    return True

  return [row for row in found if fits(row)]


def usual(found: Sequence[Row], varied: Sequence[str]) -> list[Row]:
  """The rows with the most common settings, apart from the `varied` ones.

  Figures show these, so that a point never mixes two settings; tables show
  all rows.
  """

  def others(row):
    return tuple(
        sorted((k, repr(v)) for k, v in row.decoding.items() if k not in varied)
    )

  counts = collections.Counter(map(others, found))
  if not counts:
    return []
  best = counts.most_common(1)[0][0]
  return [row for row in found if others(row) == best]


def values_of(found: Iterable[Row], name: str) -> list[Any]:
  """The different values of a decoding setting, sorted."""
  return sorted(
      {
          row.decoding[name]
          for row in found
          if row.decoding.get(name) is not None
      }
  )


def drafts(found: Iterable[Row]) -> list[str]:
  """The drafts' names; those of the usual comparison first, in its order."""
  names = dict.fromkeys(row.draft for row in found if row.draft is not None)
  first = ('fine-tuned', 'fine-tuned longer', 'distilled')
  usual_names = [name for name in first if name in names]
  return usual_names + [name for name in names if name not in first]


def predicted_block_efficiency(acceptance: float, block_length: int) -> float:
  """(1 - a^(G+1)) / (1 - a): tokens a block if acceptances are independent."""
  return sum(acceptance**i for i in range(block_length + 1))


def temperature_name(temperature: float) -> str:
  return 'greedy' if temperature == 0 else f'sampled, T = {temperature:g}'


def short_name(path: str) -> str:
  """The last part of a model's folder."""
  return path.rstrip('/').rsplit('/', 1)[-1]


def _setting(line: Line) -> tuple[Any, ...]:
  """What makes lines one row."""
  decoding = line['decoding'] or {}
  settings = tuple(sorted((name, repr(v)) for name, v in decoding.items()))
  # The quality of the target does not depend on the draft it is paired with.
  draft = None if decoding.get('model') == 'target' else line['draft']
  return (draft, *settings)


def _one_seed(lines: Sequence[Line], average: bool) -> dict[str, Value]:
  """The metrics of lines that repeat one measurement with one seed."""
  newest = max(lines, key=lambda line: line['provenance']['time_utc'])
  found = {}
  for name, metric in newest['metrics'].items():
    have = [line['metrics'][name] for line in lines if name in line['metrics']]
    if name == 'compile_s':  # what comes second is found compiled
      metric = max(have, key=lambda one: one['value'])
    value = Value(metric['value'], metric['standard_error'], 1, metric['count'])
    if average and len(have) > 1 and name != 'compile_s':
      mean, error = mean_and_error([one['value'] for one in have])
      value = Value(mean, error, 1, sum(one['count'] for one in have))
    found[name] = value
  return found


def _without_seed(target: str | None) -> str:
  """A target's name without the folder that names the seed of its run."""
  parts = (target or '').split('/')
  return '/'.join(p for p in parts if not re.fullmatch(r'seed[_-]?\d+', p))
