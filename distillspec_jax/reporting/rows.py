"""study.json and results -> the rows of a study, each over its seeds.

A row is one way of making a draft (or a target): a cell of a grid, a size of a
garden. study.json has an entry for each row and seed, as `studies` writes it:

  kind      one of `KINDS`
  title, command
  axes      names of labels; of a garden, the first is the size
  rows      name, labels {axis: value}, seed, target_seed, folder of its model,
            results (folders with results.jsonl), control (the name of the row
            that it is compared with, or null), seconds of training, failed
            (null, or one line); folders are relative to the study's
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import runs

FILE = 'study.json'
KINDS = ('experiment', 'grid', 'garden', 'transfer', 'lossy')
_ENTRIES: dict[str, type | tuple[type, ...]] = {
    'name': str,
    'labels': dict,
    'seed': int,
    'target_seed': (int, type(None)),
    'folder': (str, type(None)),
    'results': list,
    'control': (str, type(None)),
    'seconds': (int, float, type(None)),
    'failed': (str, type(None)),
}
_SEED = re.compile(r'(target[ _-])?[ /_,-]*seed[ =_-]?\d+', re.IGNORECASE)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One way of making a model, over its seeds.

  Attributes:
    name: unique in the study.
    labels: axis -> value, in words.
    control: name of the row it is compared with, or None.
    failed: seed -> why it failed, in one line.
    seconds: seed -> time of training.
    lines: of measurements, whose drafts are named after the row.
    training: lines of its training.
    units: seed of a line -> what is averaged over: seeds, or targets' seeds.
  """

  name: str
  labels: dict[str, str]
  control: str | None
  failed: dict[int, str]
  seconds: dict[int, float]
  lines: list[measurements.Line]
  training: list[measurements.Line]
  units: dict[int, int]

  def measurements(self, kind: str) -> list[measurements.Measurement]:
    """One per setting of decoding, of this row alone."""
    measured = measurements.measurements(self.lines, kind)
    if len(set(self.units.values())) == len(self.units):
      return measured
    return [_over_units(one, self.units) for one in measured]

  @property
  def made(self) -> runs.Run | None:
    """How its model was trained, where that was recorded."""
    return next(iter(runs.runs(self.training)), None)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """What a study compares.

  Attributes:
    kind: one of `KINDS`.
    title: of the page.
    command: that ran the study.
    axes: names of labels.
    rows: in the order of study.json.
    targets: number of targets' seeds; each measurement has one.
  """

  kind: str
  title: str
  command: str
  axes: list[str]
  rows: list[Row]
  targets: int

  def row(self, name: str | None) -> Row | None:
    return next((row for row in self.rows if row.name == name), None)

  @property
  def lines(self) -> list[measurements.Line]:
    return [line for row in self.rows for line in row.lines + row.training]


def read(folder: pathlib.Path) -> Comparison | None:
  """The study in a folder; None if there is no study.json.

  Raises:
    UserError: study.json is not as described above, a control is no row, or
      results are absent or damaged.
  """
  path = folder / FILE
  if not path.is_file():
    return None
  study = _parsed(path)
  entries = study['rows']
  groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for entry in entries:
    entry['labels'] = {
        axis: _text(value)
        for axis, value in entry['labels'].items()
        if axis not in ('seed', 'target_seed')
    }
    name = _SEED.sub('', entry['name']).strip(' /_,-') or entry['name']
    key = name, json.dumps(entry['labels'])
    groups.setdefault(key, []).append(entry)
  counts = collections.Counter(name for name, _ in groups)
  names = {
      key: ', '.join([key[0], *json.loads(key[1]).values()])
      if counts[key[0]] > 1
      else key[0]
      for key in groups
  }
  names_of_entries = {
      entry['name']: names[key] for key, group in groups.items()
      for entry in group
  }  # fmt: skip
  targets = {entry['target_seed'] for entry in entries} - {None}
  reader = _Reader(folder)
  rows = []
  for key, group in groups.items():
    controls = {entry['control'] for entry in group} - {None}
    unknown = controls - names_of_entries.keys()
    if unknown:
      raise errors.UserError(
          f'{path}: the row {key[0]!r} is compared with {min(unknown)!r}, which'
          ' is no row of the study.'
      )
    controls = {names_of_entries[name] for name in controls}
    if len(controls) > 1:
      raise errors.UserError(
          f'{path}: the row {key[0]!r} is compared with several:'
          f' {", ".join(sorted(controls))}. Give all its seeds one control.'
      )
    control = next(iter(controls), None)
    rows.append(_row(names[key], control, group, len(targets) > 1, reader))
  axes = [axis for axis in study['axes'] if axis not in ('seed', 'target_seed')]
  return Comparison(
      study['kind'], study['title'], study['command'], axes, rows,
      len(targets) or 1,
  )  # fmt: skip


def _parsed(path):
  """study.json, whose entries have the right types."""
  try:
    study = json.loads(path.read_bytes())
    for name, kind in (
        ('kind', str), ('title', str), ('command', str), ('rows', list),
        ('axes', list),
    ):  # fmt: skip
      if not isinstance(study[name], kind):
        raise TypeError(f'{name!r} is {check.shown(study[name])}')
    for number, entry in enumerate(study['rows']):
      for name, kinds in _ENTRIES.items():
        if not isinstance(entry[name], kinds):
          value = check.shown(entry[name])
          raise TypeError(f'{name!r} of row {number} is {value}')
    if not study['rows']:
      raise ValueError('it has no rows')
  except KeyError as error:
    raise errors.UserError(f'{path} has no entry {error}.') from error
  # JSON's errors are ValueErrors.
  except (ValueError, TypeError) as error:
    raise errors.UserError(f'{path} is not a study: {error}.') from error
  check.one_of(KINDS, owner=str(path), kind=study['kind'])
  return study


class _Reader:
  """Reads each results file once."""

  def __init__(self, folder):
    self._folder = folder
    self._lines = {}

  def lines(self, relative):
    """Lines of a results file; [] without one."""
    path = pathlib.Path(os.path.normpath(self._folder / relative))
    path /= results.FILE
    if path not in self._lines:
      self._lines[path] = results.read(path) if path.is_file() else []
    return self._lines[path]


def _row(name, control, entries, by_target, reader):
  """The row of entries that differ in their seeds."""
  failed, seconds, units = {}, {}, {}
  lines, training = [], []
  # The seeds of a draft and of its target may be combined in any way.
  for number, entry in enumerate(entries):
    target_seed = entry['target_seed']
    unit = target_seed if by_target and target_seed is not None else None
    unit = entry['seed'] if unit is None else unit
    several = sum(
        (other['target_seed'] if by_target else other['seed']) == unit
        for other in entries
    )
    seed = unit if several < 2 else 10**6 + number
    units[seed] = unit
    if entry['seconds']:
      seconds[seed] = float(entry['seconds'])
    if entry['failed']:
      failed[seed] = entry['failed']
      continue
    for folder in entry['results']:
      lines += [
          _renamed(line, name, seed)
          for line in reader.lines(folder)
          if line['kind'] not in ('training', 'run')
      ]
    if entry['folder'] is not None:
      training += [
          {**_renamed(line, name, seed), 'row': name, 'folder': name}
          for line in reader.lines(entry['folder'])
          if line['kind'] in ('training', 'run')
      ]
  return Row(
      name, entries[0]['labels'], control, failed, seconds, lines, training,
      units,
  )  # fmt: skip


def _renamed(line, name, seed):
  """The line, whose draft has the row's name."""
  decoding, draft = line['decoding'], line['draft']
  if draft is not None and (decoding or {}).get('model') == draft:
    decoding = {**decoding, 'model': name}
  return {
      **line,
      'draft': draft and name,
      'draft_folder': None,
      'decoding': decoding,
      'provenance': {**line['provenance'], 'seed': seed},
  }


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


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:g}'
  return str(value).replace('_', ' ')


def in_words(names: Iterable[str]) -> str:
  """'a', 'a and b', 'a, b and c'."""
  *first, last = names
  return f'{", ".join(first)} and {last}' if first else last


def numbers(values: Sequence[str]) -> list[float] | None:
  """The values as numbers, or None where one is none."""
  try:
    return [float(value) for value in values]
  except ValueError:
    return None
