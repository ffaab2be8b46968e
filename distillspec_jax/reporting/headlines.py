"""The findings in words: the wall clock, and the gain from distillation.

The gain is that over the control, the draft fine-tuned for as many more steps,
where there is one: the additional steps alone gain something, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import math
from typing import NamedTuple

import numpy as np

from distillspec_jax.core import statistics
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import runs

BEFORE, AFTER, CONTROL = 'fine-tuned', 'distilled', 'fine-tuned longer'
PRETRAINED = 'pretrained'  # a draft as it was published
UNCLEAR, NO_SPEEDUP = 'no clear difference', 'no speed-up'
_PAIRS = 3 / 4  # of the runs are slower: slower, whatever the spread


class Gain(NamedTuple):
  """By how much one number exceeds another.

  Attributes:
    value: the mean over seeds: in percent of the other, or the difference.
    error: its standard error, over examples and seeds; or None.
    interval: that contains the true gain in 95 % of such studies; or None.
    seeds: number of seeds that both have.
    unit: '%', or '' for a difference.
  """

  value: float
  error: float | None
  interval: tuple[float, float] | None
  seeds: int
  unit: str = '%'

  @property
  def is_clear(self) -> bool:
    """Whether the interval excludes 0; without a gain, by chance in 5 %."""
    return self.interval is not None and not (
        self.interval[0] <= 0 <= self.interval[1]
    )

  @property
  def ends(self) -> str:
    """The interval, or '' without one."""
    if self.interval is None:
      return ''
    return self._tail('{} to {}', *self.interval)

  def text(self) -> str:
    if self.error is None:
      return self._tail('{}', self.value)
    return self._tail(f'{{}} ± {self.error:.{self._digits}f}', self.value)

  def interval_text(self) -> str:
    return f'95 % interval {self.ends}' if self.ends else 'no interval'

  @property
  def _digits(self):
    return 1 if self.unit else 3

  def _tail(self, text, *numbers):
    text = text.format(*(f'{one:+.{self._digits}f}' for one in numbers))
    return f'{text} {self.unit}'.rstrip()


def acceptance(study: measurements.Study) -> list[measurements.Measurement]:
  """The measurements of acceptance that figures and headlines show."""
  return measurements.comparable(
      speculative(study, 'acceptance'), ('temperature', 'block_length')
  )


def latency(study: measurements.Study) -> list[measurements.Measurement]:
  """The measurements of speculative decoding's speed that figures show."""
  return measurements.comparable(
      speculative(study, 'latency', 'measured_speedup'),
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
  """The gain of `after` over `before` in percent, paired by seed and example.

  Where single examples were not recorded, the errors of the two are taken to be
  independent. Both drafts answer the same inputs, so this overestimates the
  error of the gain.
  """
  first, last = (one and one.value(metric) for one in (before, after))
  if first is None or last is None or first.value <= 0:
    return None
  seeds = [
      seed
      for seed in _shared(before, after, metric)
      if before.by_seed[seed][metric].value > 0
  ]
  inference = _paired(before, after, metric, seeds, _ratio, _examples_ratio)
  error, interval = inference.standard_error, inference.interval()
  return Gain(
      100 * (inference.value - 1),
      None if error is None else 100 * error,
      interval and tuple(100 * (end - 1) for end in interval),
      len(seeds) or 1,
  )


def difference(
    before: measurements.Measurement | None,
    after: measurements.Measurement | None,
    metric: str,
) -> Gain | None:
  """As `gain`, in the metric's unit: for a quality, which may be 0."""
  if not all(one and one.value(metric) for one in (before, after)):
    return None
  seeds = _shared(before, after, metric)
  inference = _paired(
      before, after, metric, seeds, _less, lambda old, new: new - old
  )
  error, interval = inference.standard_error, inference.interval()
  return Gain(inference.value, error, interval, len(seeds) or 1, unit='')


def _shared(before, after, metric):
  """The seeds with which both were measured."""
  return [
      seed
      for seed, values in after.by_seed.items()
      if metric in values and metric in before.by_seed.get(seed, {})
  ]


def _paired(before, after, metric, seeds, of_values, of_examples):
  """How two values compare, over seeds and examples that they share."""
  values = [
      of_values(before.by_seed[seed][metric], after.by_seed[seed][metric])
      for seed in seeds
  ]
  inputs = {one.inputs.get(seed) for one in (before, after) for seed in seeds}
  examples: list[np.ndarray | None] = [None]
  if len(inputs) == 1:
    examples = []
    for seed in seeds:
      old, new = (
          one.examples.get(seed, {}).get(metric) for one in (before, after)
      )
      known = old is not None and new is not None and len(old) == len(new)
      examples.append(of_examples(old, new) if known else None)
  if not values:
    values = [of_values(before.metrics[metric], after.metrics[metric])]
  return measurements.infer(values, examples)


def _ratio(first, last):
  """The ratio of two values, as if their errors were independent."""
  ratio, error = last.value / first.value, None
  if first.error is not None and last.error is not None:
    error = math.hypot(last.error, ratio * first.error) / first.value
  # Of values that are means over seeds, these limit the degrees of freedom.
  seeds = [value.seeds for value in (first, last) if value.seeds > 1]
  return measurements.Value(ratio, error, 1, min(seeds, default=last.count))


def _less(first, last):
  """The difference of two values, as if their errors were independent."""
  error = None
  if first.error is not None and last.error is not None:
    error = math.hypot(first.error, last.error)
  seeds = [value.seeds for value in (first, last) if value.seeds > 1]
  return measurements.Value(
      last.value - first.value, error, 1, min(seeds, default=last.count)
  )


def _examples_ratio(old, new):
  """What each example contributes to the ratio, to first order."""
  ratio = new.mean() / old.mean()
  return ratio + (new - ratio * old) / old.mean()


def sentences(study: measurements.Study) -> list[str]:
  """The findings in words, disappointing ones included."""
  texts = _wall_clock(study)
  drafts = {name for *_, here in block_efficiency(study) for name in here}
  if AFTER not in drafts or baseline(drafts) is None:
    return texts
  if CONTROL in drafts:
    changes = _changes(study, CONTROL, AFTER)
    texts.append(
        'Distilled instead of fine-tuned for as many more steps, the draft’s'
        f' block efficiency changes by {changes}.'
    )
  start = baseline(drafts, control=False)
  if start is not None:
    text = (
        f'Compared with the {start} draft, distillation changes it by'
        f' {_changes(study, start, AFTER)}'
    )
    if CONTROL in drafts:
      text += (
          f', the additional steps alone by {_changes(study, start, CONTROL)}'
      )
    else:
      text += (
          '. There is no control: how much of that the additional steps alone'
          ' would gain is not known'
      )
    texts.append(f'{text}.')
  return texts + _compute(study)


def baseline(drafts: Iterable[str], control: bool = True) -> str | None:
  """The draft that the distilled one is compared with."""
  names = (CONTROL, BEFORE, PRETRAINED)[not control :]
  return next((name for name in names if name in drafts), None)


def _changes(study, before, after):
  """The gain in block efficiency for each temperature, in words."""
  changes = []
  for sampling, settings, here in block_efficiency(study):
    change = gain(here.get(before), here.get(after), 'block_efficiency')
    if change is not None:
      chance = '' if change.is_clear else ', which may be chance'
      changes.append(
          f'{change.text()} ({sampling}, {settings}; {change.interval_text()}'
          f'{chance})'
      )
  return ' and '.join(changes)


def _compute(study):
  """What the control and the distillation cost: steps, and time."""
  costs = {}
  for run in runs.runs(study.training):
    if run.name in (CONTROL, AFTER) and run.steps:
      costs[run.name] = f'{max(run.steps.values()):.0f} steps'
      if run.seconds:
        costs[run.name] += f' in {runs.mean(run.seconds):.0f} s of training'
  if len(costs) < 2:
    return []
  words = '; '.join(f'{name}, {cost}' for name, cost in costs.items())
  return [
      'The control is fair in steps, not in compute: a step of'
      f' distillation also runs the target, and the draft where it samples.'
      f' Training: {words}.'
  ]


def block_efficiency(
    study: measurements.Study,
) -> Iterator[tuple[str, str, dict[str, measurements.Measurement]]]:
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
  measured, best = lossless_speedups(study)
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
  word, _ = verdict(best)
  words = {UNCLEAR: 'not measurably faster', NO_SPEEDUP: 'not faster'}
  text = (
      f'On this machine ({device}), speculative decoding is'
      f' {words.get(word, word)} than plain, autoregressive decoding with'
      f' the same target: {best_of} reaches {value.text(2)} times its speed'
      f' ({setting(best)}).'
  )
  if several:
    intervals = [speedup(one) for one in measured]
    slower = sum(one.excludes(1.0) and one.value < 1 for one in intervals)
    faster = sum(one.excludes(1.0) and one.value > 1 for one in intervals)
    text += (
        f' 95 % intervals are above 1 for {faster} of {len(measured)} and below'
        f' 1 for {slower}.'
    )
  return [text + _costs(best, word)]


def _costs(best, word):
  """How the measured costs explain the speed-up."""
  c, v = best.value('cost_ratio'), best.value('verify_ratio')
  if c is None:
    return ''
  text = f' A draft step takes {c.value:.2f} times as long as a target step'
  if best.decoding.get('parallel'):
    text = text.replace('draft step', 'draft step that proposes a block')
  if v is not None:
    text += (
        ', and a target call that verifies a block'
        f' {v.value:.2f} times as long as one on a single token (ideally 1)'
    )
  text += '.'
  if word != 'faster':
    text += (
        ' Block efficiency is a property of the two models and the task and'
        ' carries over to other machines; these costs do not.'
    )
  return text


def speculative(
    study: measurements.Study, kind: str, metric: str | None = None
) -> list[measurements.Measurement]:
  """Measurements of speculative decoding that have the metric."""
  return [
      one
      for one in study.measurements(kind)
      if one.draft and one.decoding.get('block_length')
      if metric is None or one.value(metric)
  ]


def lossless_speedups(
    study: measurements.Study,
) -> tuple[list[measurements.Measurement], measurements.Measurement | None]:
  """Speed-ups that leave the output distribution unchanged, and the best."""
  measured = [
      one
      for one in speculative(study, 'latency', 'measured_speedup')
      if not measurements.is_lossy(one.decoding)
  ]
  value = lambda one: one.metrics['measured_speedup'].value
  return measured, max(measured, key=value, default=None)


def verdict(one: measurements.Measurement) -> tuple[str, str]:
  """(in words, tone) of a speed-up."""
  speed = speedup(one)
  if speed.excludes(1.0) and speed.value > 1:
    return 'faster', 'good'
  slower = sum(gain < 1 for gain in one.pairs)
  if speed.value < 1:
    if speed.excludes(1.0) or slower >= _PAIRS * (len(one.pairs) or math.inf):
      return 'slower', 'bad'
    return NO_SPEEDUP, 'bad'
  return UNCLEAR, 'even'


def speedup(one: measurements.Measurement) -> statistics.Inference:
  """The measured speed-up, over pairs of runs."""
  value = one.metrics['measured_speedup']
  number = len(one.pairs) or value.count
  degrees = number - 1 if number > 1 else None
  return statistics.Inference(value.value, value.error, degrees)


def setting(one: measurements.Measurement) -> str:
  """The draft and the decoding, in words."""
  return f'{one.draft} draft, {measurements.describe(one.decoding)}'
