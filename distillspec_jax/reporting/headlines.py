"""What to read first: the gain from distillation, and the wall clock."""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import NamedTuple

from distillspec_jax.core import statistics
from distillspec_jax.reporting import measurements

BEFORE, AFTER, CONTROL = 'fine-tuned', 'distilled', 'fine-tuned longer'
_UNCLEAR = 'no clear difference'


class Gain(NamedTuple):
  """The difference of two numbers.

  Attributes:
    percent: relative to the first number.
    error: standard error of `percent`, or None.
    standard_errors: the difference over its standard error, or None.
  """

  percent: float
  error: float | None
  standard_errors: float | None

  @property
  def is_clear(self) -> bool:
    """Whether the difference exceeds two of its standard errors."""
    return self.standard_errors is not None and abs(self.standard_errors) > 2

  def text(self) -> str:
    if self.error is None:
      return f'{self.percent:+.1f} %'
    return f'{self.percent:+.1f} ± {self.error:.1f} %'


class Card(NamedTuple):
  """A number to read first.

  Attributes:
    what: its name.
    number: itself.
    badge: the gain, or what the number means in two words.
    tone: 'good', 'bad' or 'even': the colour of the badge.
    detail: below it.
  """

  what: str
  number: str
  badge: str
  tone: str
  detail: str


def acceptance(study: measurements.Study) -> list[measurements.Measurement]:
  """The measurements of acceptance that figures and headlines show."""
  return measurements.comparable(
      _speculative(study, 'acceptance'), ('temperature', 'block_length')
  )


def latency(study: measurements.Study) -> list[measurements.Measurement]:
  """The measurements of speculative decoding's speed that figures show."""
  return measurements.comparable(
      _speculative(study, 'latency', 'measured_speedup'),
      ('temperature', 'block_length', 'batch_size'),
  )


def block_length(measured: Sequence[measurements.Measurement]) -> int | None:
  """The block length of the headlines: 5 if measured, else the largest."""
  lengths = measurements.values_of(measured, 'block_length')
  return 5 if 5 in lengths else max(lengths, default=None)


def gain(
    before: measurements.Measurement | None,
    after: measurements.Measurement | None,
    metric: str,
) -> Gain | None:
  """The gain of `after` over `before`, paired by seed if there are several.

  With one seed, the two errors are treated as independent. Both drafts answer
  the same inputs, so this overestimates the error of the difference.
  """
  first, last = (one and one.value(metric) for one in (before, after))
  if first is None or last is None or first.value <= 0:
    return None
  gains = [
      100 * (values[metric].value / before.by_seed[seed][metric].value - 1)
      for seed, values in after.by_seed.items()
      if metric in values and metric in before.by_seed.get(seed, {})
  ]
  if len(gains) > 1:
    percent, error = statistics.mean(gains)
    return Gain(percent, error, percent / error if error else None)
  ratio = last.value / first.value
  percent = 100 * (ratio - 1)
  if first.error is None or last.error is None:
    return Gain(percent, None, None)
  error = math.hypot(first.error / first.value, last.error / last.value)
  spread = math.hypot(first.error, last.error)
  sigmas = (last.value - first.value) / spread if spread else None
  return Gain(percent, 100 * ratio * error, sigmas)


def cards(study: measurements.Study) -> list[Card]:
  """Block efficiency before and after distillation, and the best speed-up."""
  shown = []
  for sampling, settings, here in _block_efficiency(study):
    what = f'Block efficiency, {sampling}'
    detail = f'tokens per target call at {settings}'
    values = {
        name: one.metrics['block_efficiency'] for name, one in here.items()
    }
    change = gain(here.get(BEFORE), here.get(AFTER), 'block_efficiency')
    if change is None:
      for draft, value in values.items():
        text = f'{detail}: {value.text(2)}'
        shown.append(Card(what, f'{value.value:.2f}', draft, 'even', text))
      continue
    first, last = values[BEFORE], values[AFTER]
    number = f'{first.value:.2f} → {last.value:.2f}'
    detail += f': {BEFORE} {first.text(2)}, {AFTER} {last.text(2)}'
    tone = 'good' if change.percent > 0 else 'bad'
    tone = tone if change.is_clear else 'even'
    shown.append(Card(what, number, change.text(), tone, detail))
  speedups, best = _lossless(study)
  if best is not None:
    value = best.metrics['measured_speedup']
    detail = (
        f'{value.text(2)}: the best of {len(speedups)} settings measured on'
        f' this machine ({_setting(best)})'
    )
    what, number = 'Speed-up over autoregressive', f'{value.value:.2f} ×'
    shown.append(Card(what, number, *_verdict(value), detail))
  return shown


def sentences(study: measurements.Study) -> list[str]:
  """The findings in words, disappointing ones included."""
  texts = []
  for draft, start in (
      (AFTER, 'Distillation changes'),
      (
          CONTROL,
          'The control, the same draft fine-tuned for longer instead of'
          ' distilled, changes',
      ),
  ):
    changes = []
    for sampling, settings, here in _block_efficiency(study):
      change = gain(here.get(BEFORE), here.get(draft), 'block_efficiency')
      if change is None:
        continue
      sigmas = ''
      if change.standard_errors is not None:
        sigmas = f'; {abs(change.standard_errors):.1f} standard errors'
        sigmas += '' if change.is_clear else ', which may be chance'
      changes.append(f'{change.text()} ({sampling}{sigmas})')
      what = f'{start} block efficiency at {settings} by'
    if changes:
      texts.append(f'{what} {" and ".join(changes)}.')
  return texts + _wall_clock(study)


def _block_efficiency(study):
  """(name of the sampling, settings, draft -> measurement) of headlines."""
  measured = acceptance(study)
  length = block_length(measured)
  for temperature in measurements.values_of(measured, 'temperature'):
    here = {
        one.draft: one
        for one in measurements.select(
            measured, temperature=temperature, block_length=length
        )
        if one.value('block_efficiency')
    }
    if here:
      settings = dict(next(iter(here.values())).decoding)
      del settings['temperature']
      yield (
          measurements.sampling_name(temperature),
          measurements.describe({**settings, 'batch_size': None}),
          here,
      )


def _wall_clock(study):
  measured, best = _lossless(study)
  if best is None:
    return []
  value = best.metrics['measured_speedup']
  device = next(
      line['provenance']['device']
      for line in study.lines
      if line['kind'] == 'latency'
  )
  several = len(measured) > 1
  best_of = f'the best of {len(measured)} settings' if several else 'it'
  verdict, _ = _verdict(value)
  text = (
      f'On this machine ({device}), speculative decoding is'
      f' {verdict.replace(_UNCLEAR, "not measurably faster")} than'
      f' autoregressive decoding: {best_of} reaches {value.text(2)} times its'
      f' speed ({_setting(best)}).'
  )
  if several:
    verdicts = [
        _verdict(one.metrics['measured_speedup'])[0] for one in measured
    ]
    text += (
        ' By more than two standard errors,'
        f' {verdicts.count("faster")} of {len(measured)} are faster and'
        f' {verdicts.count("slower")} slower.'
    )
  return [text + _costs(best, verdict)]


def _costs(best, verdict):
  """How the measured costs explain the speed-up."""
  c, v = best.value('cost_ratio'), best.value('verify_ratio')
  if c is None:
    return ''
  text = f' A draft step takes {c.value:.2f} times as long as a target step'
  if v is not None:
    text += (
        ', and a target call that verifies a block'
        f' {v.value:.2f} times as long as one on a single token (ideally 1)'
    )
  text += '.'
  if verdict != 'faster':
    text += (
        ' Block efficiency is a property of the two models and the task and'
        ' carries over to other machines; these costs do not.'
    )
  return text


def _speculative(study, kind, metric=None):
  return [
      one
      for one in study.measurements(kind)
      if one.draft and one.decoding.get('block_length')
      if metric is None or one.value(metric)
  ]


def _lossless(study):
  """Speed-ups that leave the output distribution unchanged, and the best."""
  measured = [
      one
      for one in _speculative(study, 'latency', 'measured_speedup')
      if not measurements.is_lossy(one.decoding)
  ]
  speedup = lambda one: one.metrics['measured_speedup'].value
  return measured, max(measured, key=speedup, default=None)


def _verdict(value):
  """(in words, tone) of a speed-up."""
  margin = 2 * (value.error or 0.0)
  if value.value - margin > 1:
    return 'faster', 'good'
  if value.value + margin < 1:
    return 'slower', 'bad'
  return _UNCLEAR, 'even'


def _setting(one):
  return f'{one.draft} draft, {measurements.describe(one.decoding)}'
