"""study.json and results -> the rows of a study, each over its seeds.

A row is one way of making or of using a model: a cell of a grid, a point of a
frontier. `core.study_file` describes the file.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
import pathlib
import re
from typing import Any

import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import example_records
from distillspec_jax.core import results
from distillspec_jax.core import study_file
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import runs

# Kind of a line of results -> the role that study.json calls it by.
_ROLES = {
    'acceptance': 'efficiency',
    'latency': 'latency',
    'task_quality': 'quality',
}
_MANY = 10**6  # seeds from here on are replicates with one target


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One way of making a model, over its seeds.

  Attributes:
    name: unique in the study.
    title: its name in study.json, which rows may share.
    labels: axis -> value, in words.
    control: title of the row it is compared with, or None.
    failed: seed -> why it failed, in one line.
    seconds: seed -> time of training.
    lines: of measurements, whose drafts are named after the row.
    training: lines of its training.
    units: seed of a line -> what is averaged over: seeds, or targets' seeds.
    records: of single examples, for which the draft wrote a text, too.
  """

  name: str
  title: str
  labels: dict[str, str]
  control: str | None
  failed: dict[int, str]
  seconds: dict[int, float]
  lines: list[measurements.Line]
  training: list[measurements.Line]
  units: dict[int, int]
  records: list[dict[str, Any]]
  _known: dict[Any, Any] = dataclasses.field(default_factory=dict)

  def measurements(
      self, kind: str, place: tuple[str, str] | None = None
  ) -> list[measurements.Measurement]:
    """One per setting of decoding, of this row alone.

    Args:
      kind: of lines of results.
      place: (task, split); None: the row has one.
    """
    if (kind, place) not in self._known:
      lines = [
          line
          for line in self.lines
          if place is None or (line['task'], line['split']) == place
      ]
      measured = measurements.measurements(lines, kind)
      if len(set(self.units.values())) < len(self.units):
        measured = [_over_units(one, self.units) for one in measured]
      self._known[kind, place] = measured
    return self._known[kind, place]

  @property
  def places(self) -> list[tuple[str, str]]:
    """(task, split) of its measurements."""
    return list(
        dict.fromkeys((line['task'], line['split']) for line in self.lines)
    )

  @property
  def made(self) -> runs.Run | None:
    """How its model was trained, where that was recorded."""
    return next(iter(runs.runs(self.training)), None)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """What a study compares.

  Attributes:
    kind: one of `study_file.KINDS`.
    title: of the page.
    command: that ran the study.
    axes: names of labels, those of a heat map first.
    rows: in the order of study.json.
    averages: as in study.json.
    targets: the targets' seeds; [] where the target was given.
    folders: of the rows' models, relative to the study's.
  """

  kind: str
  title: str
  command: str
  axes: list[str]
  rows: list[Row]
  averages: list[dict[str, Any]]
  targets: list[int]
  folders: set[str]

  def control(self, row: Row) -> Row | None:
    """The row that a row is compared with."""
    named = [one for one in self.rows if one.title == row.control]

    def fit(one):  # of several with this title, the one with the row's labels
      shared = [
          row.labels.get(axis) == value for axis, value in one.labels.items()
      ]
      return all(shared), sum(shared)

    return max(named, key=fit, default=None)

  def target(self, line: measurements.Line) -> str | None:
    """The name of a line's target, without its seed."""
    return _without_seed(line['target'], self.targets)

  @property
  def lines(self) -> list[measurements.Line]:
    return [line for row in self.rows for line in row.lines + row.training]


def read(folder: pathlib.Path) -> Comparison | None:
  """The study in a folder; None if there is no study.json.

  Raises:
    UserError: study.json is none, a control is no row, or results are damaged.
  """
  study = study_file.read(folder)
  if study is None:
    return None
  groups: dict[str, list[study_file.Row]] = {}
  for one in study['rows']:
    groups.setdefault(f'{one.name} {one.labels}', []).append(one)
  names = collections.Counter(group[0].name for group in groups.values())
  targets = {one.target_seed for one in study['rows']} - {None}
  lines: dict[pathlib.Path, list[measurements.Line]] = {}
  rows = []
  for group in groups.values():
    first = group[0]
    controls = {one.control for one in group}
    where = f'{folder / study_file.FILE}: the row {first.name!r}'
    unknown = controls - names.keys() - {None}
    if unknown:
      raise errors.UserError(
          f'{where} is compared with {min(unknown)!r}, which is no row of the'
          ' study.'
      )
    if len(controls) > 1:
      raise errors.UserError(
          f'{where} has another control for each seed; give all the same.'
      )
    labels = {
        in_words(axis): in_words(value) for axis, value in first.labels.items()
    }
    name = in_words(first.name)
    if names[first.name] > 1:
      name = ', '.join(dict.fromkeys([name, *labels.values()]))
    rows.append(_row(folder, name, labels, group, len(targets) > 1, lines))
  return Comparison(
      study['kind'], study['title'], study['command'],
      [in_words(axis) for axis in study['axes']], rows, study['averages'],
      sorted(targets), {one.folder for one in study['rows']},
  )  # fmt: skip


def _row(folder, name, labels, group, by_target, known):
  """The row of entries of study.json that differ in their seeds."""

  def read(relative, name=results.FILE, reader=results.read):
    path = pathlib.Path(os.path.normpath(folder / relative)) / name
    if path not in known:  # rows of a frontier share their files
      known[path] = reader(path) if path.is_file() else []
    return known[path]

  def unit(one):
    is_targets = by_target and one.target_seed is not None
    return one.target_seed if is_targets else one.seed

  failed, seconds, units = {}, {}, {}
  lines, training, records = [], [], []
  counts = collections.Counter(map(unit, group))
  for number, one in enumerate(group):
    seed = unit(one) if counts[unit(one)] == 1 else _MANY + number
    units[seed] = unit(one)
    if one.seconds:
      seconds[seed] = one.seconds
    if one.failed:
      failed[seed] = one.failed
    lines += [
        _renamed(line, name, seed, one.target_seed)
        for path in one.results
        for line in read(path)
        if _is_of(one, line)
    ]
    records += [
        record
        for path in one.results
        for record in read(path, example_records.FILE, _records)
        if _is_of(one, {**record, 'kind': 'acceptance'})
    ]
    named = {'row': name, 'folder': name, 'run': name}
    training += [
        {**_renamed(line, name, seed, one.target_seed), **named}
        for line in read(one.folder)
        if line['kind'] in ('training', 'run')
    ]
  title, control = group[0].name, group[0].control
  return Row(
      name, title, labels, control, failed, seconds, lines, training, units,
      records,
  )  # fmt: skip


def _records(path):
  """Records of single examples for which the draft wrote a text, too."""
  needed = 'draft_variation', 'draft_emitted', 'expected', 'emitted'
  return [
      one
      for one in example_records.read(path)
      if all(one.get(name) is not None for name in needed)
      and one['emitted'] > 0
      and one['draft_emitted'] > 0
      and not measurements.is_lossy(one['decoding'])
  ]


def _is_of(row, line):
  """Whether a line of the row's results is about the row itself."""
  role = _ROLES.get(line['kind'])
  if role is None:
    return False
  if not row.lines:
    return True
  if role not in row.lines:
    return False
  have = {
      **(line['decoding'] or {}),
      'kind': line['kind'],
      'draft': line['draft'],
  }
  return all(have.get(name) == value for name, value in row.lines[role].items())


def _renamed(line, name, seed, target_seed):
  """The line, whose draft has the row's name, and whose target has no seed."""
  decoding, draft = line['decoding'], line['draft']
  target = _without_seed(line['target'], [target_seed])
  if draft is not None and (decoding or {}).get('model') == draft:
    decoding = {**decoding, 'model': name}
  return {
      **line,
      'target': target,
      'draft': draft and name,
      'draft_folder': None,
      'decoding': decoding,
      'provenance': {**line['provenance'], 'seed': seed},
  }


def _without_seed(target, seeds):
  for seed in seeds:
    if target is not None and target.endswith(f'_{seed}'):
      return target.removesuffix(f'_{seed}')
  return target


def _over_units(
    one: measurements.Measurement, units: Mapping[int, int]
) -> measurements.Measurement:
  """The measurement whose seeds are units, each the mean of its seeds."""
  groups = collections.defaultdict(list)
  for seed in one.by_seed:
    groups[units[seed]].append(seed)
  by_seed, examples, inputs = {}, {}, {}
  for unit, seeds in groups.items():
    metrics = set.intersection(*(set(one.by_seed[seed]) for seed in seeds))
    by_seed[unit] = {
        metric: measurements.over_seeds(
            [one.by_seed[seed][metric] for seed in seeds],
            [one.examples.get(seed, {}).get(metric) for seed in seeds],
        )._replace(seeds=1)
        for metric in one.metrics
        if metric in metrics
    }
    if len({one.inputs.get(seed) for seed in seeds}) == 1:
      inputs[unit] = one.inputs.get(seeds[0])
      examples[unit] = {
          metric: np.mean([one.examples[seed][metric] for seed in seeds], 0)
          for metric in metrics
          if all(metric in one.examples.get(seed, {}) for seed in seeds)
      }
  merged = dataclasses.replace(
      one, by_seed=by_seed, examples=examples, inputs=inputs
  )
  return merged.of_seeds(sorted(by_seed))


def in_words(value: Any) -> str:
  """A name or a label as people write it."""
  text = f'{value:g}' if isinstance(value, float) else str(value)
  text = re.sub(r'\bjsd\b', 'JSD', text.replace('_', ' '))
  return re.sub(r'\bkl\b', 'KL', text)


def listed(names: Iterable[str]) -> str:
  """'a', 'a and b', 'a, b and c'."""
  *first, last = names
  return f'{", ".join(first)} and {last}' if first else last


def numbers(values: Sequence[str]) -> list[float] | None:
  """The values as numbers, or None where one is none."""
  try:
    return [float(value) for value in values]
  except ValueError:
    return None
