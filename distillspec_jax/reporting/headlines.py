"""Rows -> what to read first: the gain of distillation, and the wall clock."""

from __future__ import annotations

import math
from typing import NamedTuple

from distillspec_jax.reporting import rows as rows_lib

BEFORE, AFTER, CONTROL = 'fine-tuned', 'distilled', 'fine-tuned longer'


class Gain(NamedTuple):
  """How far one number is above another.

  Attributes:
    percent: of the first number.
    error: standard error of `percent`, or None.
    standard_errors: the difference over its standard error, or None.
  """

  percent: float
  error: float | None
  standard_errors: float | None

  @property
  def clear(self) -> bool:
    """Whether the difference is more than two of its standard errors."""
    return self.standard_errors is not None and abs(self.standard_errors) > 2

  def text(self) -> str:
    if self.error is None:
      return f'{self.percent:+.1f} %'
    return f'{self.percent:+.1f} ± {self.error:.1f} %'


class Card(NamedTuple):
  """A number that is read first.

  Attributes:
    what: it is.
    number: itself.
    badge: the gain, or what it means in two words.
    tone: 'good', 'bad' or 'even': colours the badge.
    detail: below it.
  """

  what: str
  number: str
  badge: str
  tone: str
  detail: str


def gain(before: rows_lib.Row, after: rows_lib.Row, metric: str) -> Gain | None:
  """The gain of `after` over `before`; paired by seed where seeds allow it.

  With one seed, the errors are taken as independent. Both drafts answer the
  same inputs, so this errs towards less certainty.
  """
  first, last = before.value(metric), after.value(metric)
  if first is None or last is None or first.value <= 0:
    return None
  pairs = [
      (before.by_seed[seed][metric].value, after.by_seed[seed][metric].value)
      for seed in before.by_seed
      if metric in before.by_seed[seed]
      and metric in after.by_seed.get(seed, {})
  ]
  if len(pairs) > 1:
    percent, error = rows_lib.mean_and_error(
        [100 * (b / a - 1) for a, b in pairs]
    )
    return Gain(percent, error, percent / error if error else None)
  ratio = last.value / first.value
  percent = 100 * (ratio - 1)
  if first.error is None or last.error is None:
    return Gain(percent, None, None)
  error = math.hypot(first.error / first.value, last.error / last.value)
  spread = math.hypot(first.error, last.error)
  difference = last.value - first.value
  return Gain(
      percent, 100 * ratio * error, difference / spread if spread else None
  )


def block_length(found: list[rows_lib.Row]) -> int | None:
  """The block length of the headlines: 5 as is usual, or else the largest."""
  lengths = rows_lib.values_of(found, 'block_length')
  return None if not lengths else 5 if 5 in lengths else max(lengths)


def acceptance_rows(study: rows_lib.Study) -> list[rows_lib.Row]:
  """Rows of acceptance that figures and headlines show."""
  return rows_lib.usual(
      [r for r in study.rows('acceptance') if r.draft is not None],
      ('temperature', 'block_length'),
  )


def latency_rows(study: rows_lib.Study) -> list[rows_lib.Row]:
  """Rows of speculative wall clock that figures and headlines show."""
  found = [r for r in study.rows('latency') if r.value('measured_speedup')]
  return rows_lib.usual(found, ('temperature', 'block_length', 'batch_size'))


def cards(study: rows_lib.Study) -> list[Card]:
  """Block efficiency before and after, and the best speed-up."""
  found = acceptance_rows(study)
  length = block_length(found)
  made = []
  for temperature in rows_lib.values_of(found, 'temperature'):
    here = rows_lib.select(found, temperature=temperature, block_length=length)
    made += _efficiency(here, temperature, length)
  speculative = latency_rows(study)
  best = _best(speculative)
  if best is not None:
    value = best.metrics['measured_speedup']
    verdict, tone = _verdict(value)
    made.append(
        Card(
            'Speed-up over autoregressive',
            f'{value.value:.2f} ×',
            verdict,
            tone,
            f'best of {len(speculative)} measured on this machine:'
            f' {value.text(2)} with the {best.draft} draft,'
            f' {_settings(best)}',
        )
    )
  return made


def sentences(study: rows_lib.Study) -> list[str]:
  """What the numbers say, in words, also where they disappoint."""
  return [
      text
      for text in (_gains(study), _control(study), _wall_clock(study))
      if text
  ]


def _efficiency(here, temperature, length) -> list[Card]:
  """The card of one temperature; one a draft where there is no comparison."""
  what = f'Block efficiency, {rows_lib.temperature_name(temperature)}'
  before = rows_lib.select(here, draft=BEFORE)
  after = rows_lib.select(here, draft=AFTER)
  if before and after:
    found = gain(before[0], after[0], 'block_efficiency')
    if found is not None:
      first, last = (
          row.metrics['block_efficiency'] for row in (before[0], after[0])
      )
      tone = 'even'
      if found.clear:
        tone = 'good' if found.percent > 0 else 'bad'
      return [
          Card(
              what,
              f'{first.value:.2f} → {last.value:.2f}',
              found.text(),
              tone,
              f'tokens per target call, fine-tuned {first.text(2)} → distilled'
              f' {last.text(2)}; block length {length}',
          )
      ]
  return [
      Card(
          what,
          f'{value.value:.2f}',
          row.draft,
          'even',
          f'tokens per target call, {value.text(2)}; block length {length}',
      )
      for row in here
      if (value := row.value('block_efficiency'))
  ]


def _pairs(study, first, last):
  """(temperature, gain) of `last` over `first` at the headline's length."""
  found = acceptance_rows(study)
  length = block_length(found)
  for temperature in rows_lib.values_of(found, 'temperature'):
    here = rows_lib.select(found, temperature=temperature, block_length=length)
    one = rows_lib.select(here, draft=first)
    other = rows_lib.select(here, draft=last)
    if one and other:
      value = gain(one[0], other[0], 'block_efficiency')
      if value is not None:
        yield temperature, value


def _gains(study: rows_lib.Study) -> str:
  parts = []
  for temperature, value in _pairs(study, BEFORE, AFTER):
    text = f'{value.text()} {rows_lib.temperature_name(temperature)}'
    if value.standard_errors is not None:
      text += f' ({abs(value.standard_errors):.1f} standard errors'
      text += ')' if value.clear else ', which chance may explain)'
    parts.append(text)
  if not parts:
    return ''
  length = block_length(acceptance_rows(study))
  return (
      'Distillation changes block efficiency, at block length'
      f' {length}, by {"; ".join(parts)}.'
  )


def _control(study: rows_lib.Study) -> str:
  """What the additional steps alone would have given."""
  parts = [
      f'{value.text()} {rows_lib.temperature_name(temperature)}'
      for temperature, value in _pairs(study, BEFORE, CONTROL)
  ]
  if not parts:
    return ''
  return (
      'The control, which is the same draft fine-tuned for longer instead of'
      f' distilled, changes block efficiency by {"; ".join(parts)}.'
  )


def _wall_clock(study: rows_lib.Study) -> str:
  found = latency_rows(study)
  best = _best(found)
  if best is None:
    return ''
  value = best.metrics['measured_speedup']
  verdicts = [_verdict(row.metrics['measured_speedup'])[0] for row in found]
  device = next(
      line['provenance']['device']
      for line in study.lines
      if line['kind'] == 'latency'
  )
  verdict, _ = _verdict(value)
  text = f'On this machine ({device}) speculative decoding is '
  if verdict == 'faster':
    text += (
        f'{value.value:.2f} times as fast as autoregressive decoding in the'
        f' best of {len(found)} settings'
    )
  elif verdict == 'slower':
    text += (
        'slower than autoregressive decoding in every setting: the best of'
        f' {len(found)} runs at {value.value:.2f} times its speed'
        if len(found) > 1
        else 'slower than autoregressive decoding: it runs at'
        f' {value.value:.2f} times its speed'
    )
  else:
    text += (
        'not clearly faster than autoregressive decoding in any setting: the'
        f' best of {len(found)} measures {value.text(2)} times its speed'
    )
  text += f' ({best.draft} draft, {_settings(best)})'
  text += '.'
  if len(found) > 1:
    text += (
        f' Of the {len(found)} settings, {verdicts.count("faster")} are faster'
        f' and {verdicts.count("slower")} slower by more than two standard'
        ' errors.'
    )
  return text + _why(best, verdict)


def _why(best: rows_lib.Row, verdict: str) -> str:
  """What the measured costs say about a speed-up."""
  c, v = best.value('cost_ratio'), best.value('verify_ratio')
  if c is None:
    return ''
  text = (
      f' A step of the draft takes {c.value:.2f} of the time of a step of the'
      ' target'
  )
  if v is not None:
    text += (
        ', and a target call that checks a whole block takes'
        f' {v.value:.2f} times that of one token (1 is the ideal)'
    )
  text += '.'
  if verdict != 'faster':
    text += (
        ' Block efficiency is a property of the two models on this task and'
        ' carries over to other machines; these two costs do not.'
    )
  return text


def _verdict(value: rows_lib.Value) -> tuple[str, str]:
  """(in words, tone) of a speed-up."""
  margin = 2 * (value.error or 0.0)
  if value.value - margin > 1:
    return 'faster', 'good'
  if value.value + margin < 1:
    return 'slower', 'bad'
  return 'no clear difference', 'even'


def _best(found: list[rows_lib.Row]) -> rows_lib.Row | None:
  return max(
      found, key=lambda row: row.metrics['measured_speedup'].value, default=None
  )


def _settings(row: rows_lib.Row) -> str:
  settings = row.decoding
  parts = []
  if settings.get('batch_size') is not None:
    parts.append(f'batch {settings["batch_size"]}')
  if settings.get('block_length') is not None:
    parts.append(f'block length {settings["block_length"]}')
  if settings.get('temperature') is not None:
    parts.append(rows_lib.temperature_name(settings['temperature']))
  return ', '.join(parts)
