"""Result lines -> rows: grouped, and averaged over seeds.

Pure functions of the lines of results.jsonl; figures and page draw what they
return.
"""

from __future__ import annotations

import collections
import math
from typing import Any, NamedTuple
from collections.abc import Callable, Iterable

Line = dict[str, Any]


class Value(NamedTuple):
  """A number as it is shown.

  Attributes:
    value: the mean over seeds.
    error: standard error, over seeds if there are several, else over examples;
      nan where there is none.
    seeds: how many.
    count: examples a seed.
  """

  value: float
  error: float
  seeds: int
  count: int

  def text(self, digits: int = 3) -> str:
    if math.isnan(self.error):
      return f'{self.value:.{digits}f}'
    return f'{self.value:.{digits}f} ± {self.error:.{digits}f}'


class Row(NamedTuple):
  """What was measured in one setting: draft, decoding, and metrics."""

  task: str
  draft: str
  decoding: dict[str, Any]
  metrics: dict[str, Value]


def rows(lines: Iterable[Line], kind: str) -> list[Row]:
  """One row a setting, in the order of first appearance.

  Lines that differ in seed alone are one row.
  """
  groups: dict[tuple[Any, ...], list[Line]] = collections.defaultdict(list)
  for line in lines:
    if line['kind'] == kind:
      decoding = line['decoding'] or {}
      key = (line['task'], line['split'], line['draft'])
      groups[(*key, *sorted((k, str(v)) for k, v in decoding.items()))].append(
          line
      )
  found = []
  for group in groups.values():
    names = list(group[0]['metrics'])
    metrics = {}
    for name in names:
      have = [
          line['metrics'][name] for line in group if name in line['metrics']
      ]
      metrics[name] = over_seeds(have)
    first = group[0]
    found.append(
        Row(
            first['task'],
            first['draft'] or 'none',
            first['decoding'] or {},
            metrics,
        )
    )
  return found


def over_seeds(metrics: list[dict[str, Any]]) -> Value:
  """The mean of the same metric of several seeds, and its standard error."""
  values = [float(m['value']) for m in metrics]
  mean = sum(values) / len(values)
  count = int(metrics[0]['count'])
  if len(values) == 1:
    error = metrics[0]['standard_error']
    return Value(mean, math.nan if error is None else float(error), 1, count)
  variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
  return Value(mean, math.sqrt(variance / len(values)), len(values), count)


def select(found: list[Row], **wanted: Any) -> list[Row]:
  """Rows whose draft or decoding has the wanted values."""

  def fits(row):
    for name, value in wanted.items():
      have = row.draft if name == 'draft' else row.decoding.get(name)
      if have != value:
        return False
    return True

  return [row for row in found if fits(row)]


def values_of(found: list[Row], name: str) -> list[Any]:
  """The different values of a decoding setting, sorted."""
  return sorted(
      {
          row.decoding[name]
          for row in found
          if row.decoding.get(name) is not None
      }
  )


def drafts(found: list[Row]) -> list[str]:
  """The drafts' names in the order of first appearance, without 'none'."""
  return list(dict.fromkeys(r.draft for r in found if r.draft != 'none'))


class Table(NamedTuple):
  """A table for the page: title, header, rows of text, and definitions."""

  title: str
  header: list[str]
  body: list[list[str]]
  definitions: list[str]


def acceptance_table(lines: list[Line]) -> Table | None:
  """Acceptance rate and block efficiency, draft by draft."""
  found = rows(lines, 'acceptance')
  if not found:
    return None
  body = []
  for row in found:
    metrics = row.metrics
    body.append(
        [
            row.draft,
            temperature_name(row.decoding['temperature']),
            str(row.decoding['block_length']),
            metrics['acceptance_rate'].text(),
            metrics['block_efficiency'].text(),
            metrics['predicted_block_efficiency'].text(),
            str(metrics['block_efficiency'].seeds),
            str(metrics['block_efficiency'].count),
        ]
    )
  return Table(
      'Acceptance and block efficiency',
      ['draft', 'decoding', 'block length', 'acceptance rate',
       'block efficiency', 'predicted', 'seeds', 'examples'],
      body,
      [
          'Acceptance rate: 1 minus the mean total variation distance between'
          ' target and draft over tokens that have the target’s distribution;'
          ' the chance that a drafted token is accepted.',
          'Block efficiency: tokens emitted a call of the target, the'
          ' correction or bonus token included; between 1 and block length +'
          ' 1.',
          'Predicted: block efficiency if every token were accepted'
          ' independently at the acceptance rate.',
          '±: one standard error, over seeds where there are several, else'
          ' over examples.',
      ],
  )  # fmt: skip


def latency_table(lines: list[Line]) -> Table | None:
  """Tokens per second and speed-up, predicted and measured."""
  found = rows(lines, 'latency')
  if not found:
    return None
  body = []
  for row in found:
    metrics = row.metrics
    body.append(
        [
            'autoregressive' if row.draft == 'none' else row.draft,
            str(row.decoding['batch_size']),
            temperature_name(row.decoding['temperature']),
            _or_dash(row.decoding['block_length']),
            metrics['tokens_per_second'].text(0),
            _metric(metrics, 'cost_ratio', 2),
            _metric(metrics, 'predicted_speedup', 2),
            _metric(metrics, 'predicted_speedup_with_verify', 2),
            _metric(metrics, 'measured_speedup', 2),
            metrics['compile_s'].text(1),
        ]
    )
  return Table(
      'Wall clock',
      ['draft', 'batch', 'decoding', 'block length', 'tokens/s', 'c',
       'predicted', 'predicted, with verify cost', 'measured speed-up',
       'compile s'],
      body,
      [
          'c: time of a draft step over that of a target step.',
          'Predicted: block efficiency / (c × block length + 1); with verify'
          ' cost, the 1 is replaced by the measured time of a target call on a'
          ' whole block over that of one token.',
          'Measured speed-up: median over pairs of neighbouring runs on the'
          ' same inputs, encoders included, compilation apart. Below 1'
          ' speculation is slower.',
      ],
  )  # fmt: skip


def quality_table(lines: list[Line]) -> Table | None:
  """Task quality of the models' own greedy answers."""
  found = rows(lines, 'task_quality')
  if not found:
    return None
  body = [
      [str(row.decoding.get('model', row.draft)), row.task, name, value.text()]
      for row in found
      for name, value in row.metrics.items()
  ]
  body = list(map(list, dict.fromkeys(map(tuple, body))))
  return Table(
      'Task quality',
      ['model', 'task', 'metric', 'value'],
      body,
      ['Each model’s own autoregressive answers on the held-out inputs.'],
  )


def curves(
    lines: list[Line], metric: str
) -> dict[str, list[tuple[float, float]]]:
  """Run -> (step, value averaged over seeds) of a training metric."""
  found: dict[str, dict[float, list[float]]] = collections.defaultdict(
      lambda: collections.defaultdict(list)
  )
  for line in lines:
    if line['kind'] == 'training' and metric in line['metrics']:
      step = line['metrics']['step']['value']
      found[line['run']][step].append(line['metrics'][metric]['value'])
  return {
      run: sorted((step, sum(v) / len(v)) for step, v in points.items())
      for run, points in found.items()
  }


def gain(
    lines: list[Line], pick: Callable[[Row], bool]
) -> tuple[Row, Row] | None:
  """(fine-tuned, distilled) rows of one setting, where both are there."""
  found = [row for row in rows(lines, 'acceptance') if pick(row)]
  before = select(found, draft='fine-tuned')
  after = select(found, draft='distilled')
  return (before[0], after[0]) if before and after else None


def temperature_name(temperature: float) -> str:
  return 'greedy' if temperature == 0 else f'T = {temperature:g}'


def _or_dash(value: Any) -> str:
  return '–' if value is None else str(value)


def _metric(metrics: dict[str, Value], name: str, digits: int) -> str:
  return metrics[name].text(digits) if name in metrics else '–'
