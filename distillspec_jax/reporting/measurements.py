"""Lines of results -> studies -> measurements, averaged over seeds.

A study holds what is comparable: results on one task, one split and one target.
A measurement is one draft under one setting of decoding. Tables, figures and
headlines are made from these; everything here is a pure function.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.core import statistics
from distillspec_jax.reporting import naming

Line = dict[str, Any]

# Settings that go without saying where they have these values.
DEFAULTS = {
    'top_k': 0,
    'top_p': 1.0,
    'verifier': 'token',
    'paths': 1,
    'adaptive': None,
    'parallel': None,
}


_TOO_LARGE = 1e15  # for any rate, time, loss or number of bytes


class Value(NamedTuple):
  """A number with its error.

  Attributes:
    value: the mean over seeds.
    error: standard error; of several seeds, over seeds and examples.
    seeds: number of seeds.
    count: examples, or repetitions of a time, per seed.
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
class Measurement:
  """What was measured under one setting.

  Attributes:
    draft: name of the draft; None for the target alone.
    decoding: settings, see `core.results`.
    metrics: by name, over all seeds.
    by_seed: the same for each seed.
    examples: seed -> metric -> what each example contributes; the mean is the
      metric. Only of metrics whose examples were recorded.
    inputs: seed -> what identifies these examples.
    pairs: of a speed-up: that of each pair of runs.
  """

  draft: str | None
  decoding: dict[str, Any]
  metrics: dict[str, Value]
  by_seed: dict[int, dict[str, Value]]
  examples: dict[int, dict[str, np.ndarray]] = dataclasses.field(
      default_factory=dict, compare=False
  )
  inputs: dict[int, str] = dataclasses.field(default_factory=dict)
  pairs: tuple[float, ...] = ()

  def value(self, name: str) -> Value | None:
    """The metric, or None where it is absent or not finite."""
    metric = self.metrics.get(name)
    return metric if metric and math.isfinite(metric.value) else None

  def of_seeds(self, seeds: Iterable[int]) -> Measurement:
    """The measurement, of these of its seeds alone."""
    by_seed = {
        seed: self.by_seed[seed] for seed in seeds if seed in self.by_seed
    }
    metrics = _over_seeds(by_seed, self.examples, self.inputs)
    return dataclasses.replace(self, metrics=metrics, by_seed=by_seed)


@dataclasses.dataclass(frozen=True)
class Study:
  """Results that are comparable with each other.

  Attributes:
    task: name of the task.
    split: of the task; '' if only training was recorded.
    target: name of the target, or None.
    lines: of measurements.
    training: lines of the runs that trained the models, and how.
  """

  task: str
  split: str
  target: str | None
  lines: list[Line]
  training: list[Line]

  @property
  def heading(self) -> str:
    target = ''
    if self.target:
      name = short_name(self.target)
      owner = short_name(self.target.rstrip('/').rpartition('/')[0])
      target = f'target {name}' if name != 'target' else f'target of {owner}'
      target = target.removesuffix(' of ')
    parts = (self.task.replace('_', ' '), self.split, target)
    return ', '.join(part for part in parts if part)

  def measurements(self, kind: str) -> list[Measurement]:
    return measurements(self.lines, kind)


def studies(lines: Sequence[Line]) -> list[Study]:
  """The studies among the lines, in the order of first appearance.

  Lines that record the training of a target or of a fine-tuned draft do not
  name the target they were meant for. They are shown if their task has a single
  target, and left out otherwise.
  """
  lines = _with_different_names(lines)
  groups: dict[tuple[str, str, str], list[Line]] = {}
  certificates: dict[tuple[str, str, str], list[Line]] = {}
  training: dict[str, list[Line]] = {}
  for line in lines:
    if line['kind'] in ('training', 'run'):
      training.setdefault(line['task'], []).append(line)
    else:
      key = (line['task'], line['split'], _without_seed(line['target']))
      made = certificates if line['kind'] == 'certificate' else groups
      made.setdefault(key, []).append(line)
  for key, checks in certificates.items():
    # They hold for a pair, whatever the task.
    owners = [lines for other, lines in groups.items() if other[2] == key[2]]
    for lines in owners or [groups.setdefault(key, [])]:
      lines += checks
  targets = collections.defaultdict(set)
  for task, _, target in groups:
    targets[task].add(target)
  for task in training:
    if task not in targets:
      groups[task, '', ''] = []
  separate = []
  for (task, split, target), measured in groups.items():
    ours = [
        line
        for line in training.get(task, [])
        if len(targets[task]) < 2
        or (line['target'] and _without_seed(line['target']) == target)
    ]
    separate.append(Study(task, split, target or None, measured, ours))
  return separate


def measurements(lines: Iterable[Line], kind: str) -> list[Measurement]:
  """One measurement per setting, in the order of first appearance.

  Lines that differ only in the seed are one measurement. If a seed was measured
  repeatedly, the newest line counts; times, which vary, are averaged instead.
  """
  groups: dict[tuple[Any, ...], list[Line]] = collections.defaultdict(list)
  for line in lines:
    if line['kind'] == kind:
      groups[_setting(line)].append(line)
  return [_measurement(group, kind == 'latency') for group in groups.values()]


def over_seeds(
    values: Sequence[Value], examples: Sequence[np.ndarray | None] = (None,)
) -> Value:
  """The mean over seeds and its standard error, over seeds and examples.

  Args:
    values: one per seed.
    examples: of each, what the same examples contribute; None: not known.
  """
  if len(values) == 1:
    return values[0]
  inference = infer(values, examples)
  return Value(*inference[:2], len(values), values[0].count)


def infer(
    values: Sequence[Value], examples: Sequence[np.ndarray | None]
) -> statistics.Inference:
  """As `over_seeds`, with degrees of freedom; also of one seed."""
  with np.errstate(all='ignore'):  # of ratios to numbers next to 0
    if all(one is not None for one in examples):
      if len({len(one) for one in examples}) == 1:
        return statistics.over_seeds_and_examples(np.stack(examples))
    return statistics.over_seeds(
        [statistics.Estimate(*one[:2]) for one in values], values[0].count
    )


def select(measured: Iterable[Measurement], **wanted: Any) -> list[Measurement]:
  """The measurements whose draft or decoding has the wanted values."""

  def get(one, name):
    return one.draft if name == 'draft' else one.decoding.get(name)

  return [
      one
      for one in measured
      if all(get(one, name) == value for name, value in wanted.items())
  ]


def comparable(
    measured: Sequence[Measurement], varied: Sequence[str]
) -> list[Measurement]:
  """The measurements under the most common setting, `varied` ones aside.

  Figures show these, so that one figure never mixes two settings; tables show
  all. Of equally common settings, the one nearest to the defaults is taken.
  """

  def others(one):
    return tuple(
        sorted((k, repr(v)) for k, v in one.decoding.items() if k not in varied)
    )

  def preference(setting):
    departures = sum(
        (name, repr(value)) not in setting for name, value in DEFAULTS.items()
    )
    return counts[setting], -departures

  counts = collections.Counter(map(others, measured))
  best = max(counts, key=preference, default=None)
  return [one for one in measured if others(one) == best]


def trade_off(study: Study) -> list[Measurement]:
  """Lossy decodings with block efficiency and task quality, to be compared.

  They come with the lossless ones that differ in the verifier alone. Acceptance
  and quality are separate lines of the same decoding; here they are merged.
  """

  def key(one, *aside):
    aside = ('model', 'batch_size', *aside)
    items = {k: repr(v) for k, v in one.decoding.items() if k not in aside}
    return one.draft, *sorted(items.items())

  quality = study.measurements('task_quality')
  pairs = {key(one): one.metrics for one in select(quality, model='pair')}
  greedy = select(quality, model='target', temperature=0.0)
  merged = []
  for one in study.measurements('acceptance'):
    metrics = pairs.get(key(one), {})
    if greedy and one.decoding.get('temperature') == 0:
      if not is_lossy(one.decoding):  # It emits the target's own text.
        metrics = greedy[0].metrics
    efficiency = one.value('block_efficiency')
    if metrics and efficiency:
      metrics = {'block_efficiency': efficiency, **metrics}
      merged.append(dataclasses.replace(one, metrics=metrics))
  rule = ('verifier', 'lossless')
  families = {key(one, *rule) for one in merged if is_lossy(one.decoding)}
  return [one for one in merged if key(one, *rule) in families]


def qualities(measured: Iterable[Measurement]) -> list[str]:
  """Names of the task's metrics."""
  names = dict.fromkeys(name for one in measured for name in one.metrics)
  return [name for name in names if name != 'block_efficiency']


def values_of(measured: Iterable[Measurement], name: str) -> list[Any]:
  """The distinct values of a decoding setting, sorted."""
  values = {one.decoding.get(name) for one in measured}
  return sorted(values - {None})


def draft_names(measured: Iterable[Measurement]) -> list[str]:
  """The drafts' names; those of the standard experiment first."""
  names = dict.fromkeys(one.draft for one in measured if one.draft is not None)
  first = (
      'pretrained', 'fine-tuned', 'fine-tuned longer', 'distilled', 'parallel',
  )  # fmt: skip
  place = {name: i for i, name in enumerate(first)}
  return sorted(names, key=lambda name: place.get(name, len(place)))


def sampling_name(temperature: float) -> str:
  return 'greedy' if temperature == 0 else f'T = {temperature:g}'


def describe(decoding: dict[str, Any]) -> str:
  """The settings in words, without those that go without saying."""
  parts = []
  if decoding.get('batch_size') is not None:
    parts.append(f'batch {decoding["batch_size"]}')
  if decoding.get('temperature') is not None:
    parts.append(sampling_name(decoding['temperature']))
  if decoding.get('block_length') is not None:
    parts.append(f'block length {decoding["block_length"]}')
  parts += [
      f'{name.replace("_", "-")} {decoding[name]}'
      for name, default in DEFAULTS.items()
      if decoding.get(name) not in (default, None)
  ]
  return ', '.join(parts)


def is_lossy(decoding: dict[str, Any]) -> bool:
  """Whether outputs may depart from the target's distribution."""
  return decoding.get('lossless') is False


def short_name(path: str) -> str:
  """The last part of a model's folder."""
  return path.rstrip('/').rsplit('/', 1)[-1]


def _with_different_names(lines: Sequence[Line]) -> list[Line]:
  """The lines, in which drafts of one name in unrelated folders get others."""

  def draft(line):
    return line['draft_folder'], line['provenance']['seed']

  drafts = [line for line in lines if line.get('draft_folder')]
  names = naming.names({draft(line): None for line in drafts})
  meanings = collections.defaultdict(set)
  for line in drafts:
    meanings[line['draft']].add(names[draft(line)])
  renamed = []
  for line in lines:
    if len(meanings[line['draft']]) > 1 and line.get('draft_folder'):
      name, decoding = names[draft(line)], line['decoding']
      if decoding.get('model') == line['draft']:
        decoding = {**decoding, 'model': name}
      line = {**line, 'draft': name, 'decoding': decoding}
    renamed.append(_named_by_drafting(line))
  return renamed


def _named_by_drafting(line: Line) -> Line:
  """The line, whose draft's name says how it drafts, if that is unusual."""
  decoding, name = line['decoding'] or {}, line['draft']
  if 'parallel' not in decoding or line['kind'] == 'run':
    return line
  line = {**line, 'decoding': dict(decoding)}
  parallel = line['decoding'].pop('parallel')
  if name and decoding.get('block_length') is not None:
    if parallel and 'parallel' not in name:
      line['draft'] = f'{name} (parallel)'
    elif not parallel and name == 'parallel':
      line['draft'] = f'{name} (token by token)'
  return line


def _setting(line: Line) -> tuple[Any, ...]:
  """Lines with equal settings are one measurement."""
  decoding = line['decoding'] or {}
  items = sorted((name, repr(value)) for name, value in decoding.items())
  # The quality of the target does not depend on the draft it is paired with.
  draft = None if decoding.get('model') == 'target' else line['draft']
  return (draft, *items)


def _measurement(lines: Sequence[Line], average: bool) -> Measurement:
  by_seed = collections.defaultdict(list)
  for line in lines:
    by_seed[line['provenance']['seed']].append(line)
  metrics = {
      seed: _one_seed(repeated, average)
      for seed, repeated in sorted(by_seed.items())
  }
  recorded = {
      seed: _newest(repeated)['examples']
      for seed, repeated in by_seed.items()
      if 'examples' in _newest(repeated) and not average
  }
  examples = {
      seed: {
          name: _contributions(*columns)
          for name, columns in one['metrics'].items()
      }
      for seed, one in recorded.items()
  }
  inputs = {seed: one['inputs'] for seed, one in recorded.items()}

  return Measurement(
      draft=lines[0]['draft'],
      decoding=lines[0]['decoding'] or {},
      metrics=_over_seeds(metrics, examples, inputs),
      by_seed=metrics,
      examples=examples,
      inputs=inputs,
      pairs=tuple(
          gain
          for line in lines
          for column in line.get('examples', {})
          .get('metrics', {})
          .get('paired_speedup', [])
          for gain in column
      ),
  )


def _over_seeds(by_seed, examples, inputs):
  """Metric -> its mean over the seeds that have it."""
  values = collections.defaultdict(dict)
  for seed, one in by_seed.items():
    for name, value in one.items():
      values[name][seed] = value

  def mean(name, of_seeds):
    known = [examples.get(seed, {}).get(name) for seed in of_seeds]
    if len({inputs.get(seed) for seed in of_seeds}) > 1:
      known = [None]
    return over_seeds(list(of_seeds.values()), known)

  return {name: mean(name, each) for name, each in values.items()}


def _contributions(totals, counts=None):
  if counts is None:
    return np.asarray(totals, np.float64)
  return statistics.contributions(totals, counts)


def _newest(lines: Sequence[Line]) -> Line:
  return max(lines, key=lambda line: line['provenance']['time_utc'])


def number(value: float) -> float:
  """The value, or nan where it is none that was measured: 1e300, infinity."""
  return value if abs(value) < _TOO_LARGE else math.nan


def _one_seed(lines: Sequence[Line], average: bool) -> dict[str, Value]:
  """The metrics of lines that repeat a measurement with the same seed."""
  newest = _newest(lines)
  values = {}
  for name, metric in newest['metrics'].items():
    all_of_it = [
        line['metrics'][name] for line in lines if name in line['metrics']
    ]
    if name == 'compile_s':  # Repetitions find the program in the cache.
      metric = max(all_of_it, key=lambda one: one['value'])
    error = metric['standard_error']
    if error is not None and math.isnan(number(error)):
      error = None
    value = Value(number(metric['value']), error, 1, metric['count'])
    if average and len(all_of_it) > 1 and name != 'compile_s':
      estimate = statistics.mean([number(one['value']) for one in all_of_it])
      value = Value(*estimate, 1, sum(one['count'] for one in all_of_it))
    values[name] = value
  return values


def _without_seed(target: str | None) -> str:
  """A target's name without the folder that names the seed of its run."""
  parts = (target or '').split('/')
  return '/'.join(p for p in parts if not re.fullmatch(r'seed[_-]?\d+', p))
