"""Headlines give gains with their errors, and do not embellish speed."""

import dataclasses
import math

import numpy as np
import pytest

from distillspec_jax.core import statistics
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from tests.reporting.cards_test import answers


def study(lines):
  (one,) = measurements.studies(list(lines))
  return one


def measured(name, *values, error=0.1, count=9):
  by_seed = {
      seed: {'x': measurements.Value(value, error, 1, count)}
      for seed, value in enumerate(values)
  }
  value = measurements.over_seeds([one['x'] for one in by_seed.values()])
  return measurements.Measurement(name, {}, {'x': value}, by_seed)


def test_gain_of_one_seed_adds_both_errors():
  change = headlines.gain(measured('a', 2.0), measured('b', 3.0), 'x')
  assert change.value == pytest.approx(50)
  error = 150 * math.hypot(0.05, 0.1 / 3)
  assert change.error == pytest.approx(error)
  low, high = change.interval  # Student's t, 8 degrees of freedom
  margin = 2.306 * error
  assert (low, high) == pytest.approx((50 - margin, 50 + margin), rel=1e-4)
  assert change.is_clear and change.seeds == 1
  assert change.text() == '+50.0 ± 9.0 %'
  assert change.interval_text() == '95 % interval +29.2 to +70.8 %'


def test_gain_of_several_seeds_is_paired():
  # The drafts differ much from seed to seed, the gain does not.
  change = headlines.gain(
      measured('a', 1.0, 2.0, 4.0, error=0.0),
      measured('b', 1.1, 2.2, 4.44, error=0.0),
      'x',
  )
  assert change.value == pytest.approx(10 + 1 / 3)
  assert change.error == pytest.approx(1 / 3)
  assert change.seeds == 3


def test_few_seeds_need_a_larger_difference():
  values = (1.0, 1.0), (1.08, 1.12)
  two = headlines.gain(*(measured('a', *v, error=0.0) for v in values), 'x')
  six = headlines.gain(*(measured('a', *v * 3, error=0.0) for v in values), 'x')
  assert two.value > 4 * two.error  # and yet
  assert not two.is_clear and six.is_clear


def test_examples_that_are_shared_by_all_seeds_are_not_averaged_away():
  seeds = [measured('a', *[v] * 4, error=0.2, count=99) for v in (2.0, 2.2)]
  change = headlines.gain(*seeds, 'x')
  assert change.error == pytest.approx(110 * math.hypot(0.1, 0.2 / 2.2))


TRUE_GAIN, STUDIES, EXAMPLES = 30.0, 400, 80


def simulated(rng, gain, difficulty, spread=0.05):
  """A draft with 3 seeds on examples of some difficulty, as it is recorded."""
  by_seed, examples = {}, {}
  for seed in range(3):
    blocks = rng.integers(5, 15, EXAMPLES)
    noise = rng.normal(size=EXAMPLES)
    efficiency = (
        2
        * (1 + gain / 100)
        * np.exp(0.4 * difficulty + 0.2 * noise + spread * rng.normal())
    )
    emitted = blocks * efficiency
    value = statistics.ratio(emitted, blocks)
    by_seed[seed] = {'x': measurements.Value(*value, 1, EXAMPLES)}
    examples[seed] = {'x': statistics.contributions(emitted, blocks)}
  values = [one['x'] for one in by_seed.values()]
  known = [one['x'] for one in examples.values()]
  return measurements.Measurement(
      '', {}, {'x': measurements.over_seeds(values, known)}, by_seed, examples,
      dict.fromkeys(range(3), 'same'),
  )  # fmt: skip


def coverage_of_gains(interval):
  """How often an interval has the true gain."""
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(STUDIES):
    difficulty = rng.normal(size=EXAMPLES)
    before, after = (simulated(rng, g, difficulty) for g in (0, TRUE_GAIN))
    low, high = interval(before, after)
    covered += low <= TRUE_GAIN <= high
  return covered / STUDIES


def test_intervals_of_gains_cover_the_true_gain_in_95_percent():
  share = coverage_of_gains(lambda *pair: headlines.gain(*pair, 'x').interval)
  # A false alarm of 1e-6, and 2.5 % for Satterthwaite's approximation.
  assert abs(share - 0.95) < 0.025 + 4.9 * math.sqrt(0.05 * 0.95 / STUDIES)


def test_two_standard_errors_over_seeds_do_not_cover_it():
  def interval(before, after):
    gains = [
        100 * (after.by_seed[seed]['x'].value / one['x'].value - 1)
        for seed, one in before.by_seed.items()
    ]
    mean, error = statistics.mean(gains)
    return mean - 2 * error, mean + 2 * error

  share = coverage_of_gains(interval)
  assert abs(share - 0.95) > 0.025 + 4.9 * math.sqrt(0.05 * 0.95 / STUDIES)


def test_pairing_by_example_makes_the_error_smaller():
  rng = np.random.default_rng(1)
  difficulty = rng.normal(size=EXAMPLES)
  before, after = (simulated(rng, g, difficulty, 0) for g in (0, TRUE_GAIN))
  paired = headlines.gain(before, after, 'x')
  other = dataclasses.replace(after, inputs=dict.fromkeys(range(3), 'others'))
  unpaired = headlines.gain(before, other, 'x')
  assert paired.value == pytest.approx(unpaired.value)
  assert paired.error < 0.7 * unpaired.error


def test_gain_within_its_interval_is_not_clear():
  assert not headlines.gain(
      measured('a', 2.0), measured('b', 2.2), 'x'
  ).is_clear


def test_gain_without_errors_claims_none():
  change = headlines.gain(
      measured('a', 2.0, error=None), measured('b', 3.0), 'x'
  )
  assert (change.error, change.is_clear, change.text()) == (
      None,
      False,
      '+50.0 %',
  )


def test_gain_without_a_number_is_none():
  assert headlines.gain(None, measured('b', 3.0), 'x') is None
  assert (
      headlines.gain(measured('a', math.nan), measured('b', 3.0), 'x') is None
  )
  assert headlines.gain(measured('a', 0.0), measured('b', 3.0), 'x') is None


@pytest.mark.parametrize('name', ['fine-tuned', 'pretrained'])
def test_without_a_control_the_gain_is_over_the_first_draft(made_up, name):
  lines = list(made_up['acceptance']((0,), ['fine-tuned', 'distilled']))
  for line in lines:
    line['draft'] = line['draft'].replace('fine-tuned', name)
  card = answers(study(lines))['Block efficiency, greedy']
  assert f': {name} ' in card.detail and 'Over the' not in card.detail
  (text,) = headlines.sentences(study(lines))
  assert f'Compared with the {name} draft' in text
  assert 'There is no control' in text
  assert ('fine-tuned' in text) == (name == 'fine-tuned')


@pytest.mark.parametrize(
    'speed, words, counts',
    [
        (1.0, 'is faster than', 'above 1 for 6 of 8 and below 1 for 0.'),
        (0.73, 'not measurably', 'above 1 for 0 of 8 and below 1 for 6.'),
        (0.4, 'is slower than', 'above 1 for 0 of 8 and below 1 for 8.'),
    ],
)  # fmt: skip
def test_the_speed_is_described_as_measured(made_up, speed, words, counts):
  lines = made_up['latency'](('fine-tuned', 'distilled'), speed)
  (text,) = headlines.sentences(study(lines))
  assert words in text
  assert counts in text
  assert 'A draft step takes 0.20 times as long as a target step' in text
  assert ('do not' in text) == (speed < 1)


def test_one_slow_setting_is_not_called_the_best(made_up):
  lines = list(made_up['latency'](['distilled'], 0.4))[:2]
  (text,) = headlines.sentences(study(lines))
  assert 'slower than plain, autoregressive decoding' in text
  assert 'same target: it reaches 0.' in text
  assert 'settings' not in text


def test_the_gain_over_the_control_comes_before_that_over_the_start(lines):
  texts = headlines.sentences(study(lines))
  assert texts[0].startswith('On this machine')
  assert texts[1].startswith(
      'Distilled instead of fine-tuned for as many more steps, the draft’s'
      ' block efficiency changes by +'
  )
  assert 'Compared with the fine-tuned draft' in texts[2]
  assert 'the additional steps alone by +' in texts[2]


def test_the_controls_compute_is_reported(lines):
  for line in lines:
    if line['kind'] == 'training' and line['split'] == 'train':
      slow = 2 if line['run'] == 'distilled' else 1
      rate = {'value': 100 / slow, 'count': 60, 'standard_error': None}
      line['metrics']['tokens_per_second'] = {**rate, 'unit': 'tokens/s'}
  text = headlines.sentences(study(lines))[3]
  assert 'fair in steps, not in compute' in text
  # 51 and 41 lines, each of 60 tokens.
  assert 'fine-tuned longer, 500 steps in 31 s of training' in text
  assert 'distilled, 400 steps in 49 s of training' in text


def test_a_gain_that_may_be_chance_is_described_as_such(made_up):
  lines = list(made_up['acceptance']((0,), ('fine-tuned', 'distilled')))
  for line in lines:
    line['metrics']['block_efficiency']['standard_error'] = 2.0
  (text,) = headlines.sentences(study(lines))
  assert 'which may be chance' in text
  card = answers(study(lines))['Block efficiency, greedy']
  assert card.tone == 'even'
