"""Headlines give gains with their errors, and do not embellish speed."""

import math

import pytest

from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements


def study(lines):
  (one,) = measurements.studies(list(lines))
  return one


def measured(name, *values, error=0.1):
  by_seed = {
      seed: {'x': measurements.Value(value, error, 1, 9)}
      for seed, value in enumerate(values)
  }
  value = measurements.over_seeds([one['x'] for one in by_seed.values()])
  return measurements.Measurement(name, {}, {'x': value}, by_seed)


def test_gain_of_one_seed_adds_both_errors():
  change = headlines.gain(measured('a', 2.0), measured('b', 3.0), 'x')
  assert change.percent == pytest.approx(50)
  assert change.error == pytest.approx(150 * math.hypot(0.05, 0.1 / 3))
  assert change.standard_errors == pytest.approx(1 / math.hypot(0.1, 0.1))
  assert change.is_clear
  assert change.text() == '+50.0 ± 9.0 %'


def test_gain_of_several_seeds_is_paired():
  # The drafts differ much from seed to seed, the gain does not.
  change = headlines.gain(
      measured('a', 1.0, 2.0, 4.0), measured('b', 1.1, 2.2, 4.44), 'x'
  )
  assert change.percent == pytest.approx(10 + 1 / 3)
  assert change.error == pytest.approx(1 / 3)
  assert change.standard_errors == pytest.approx(31)


def test_gain_within_two_standard_errors_is_not_clear():
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


def test_cards_show_before_and_after_and_the_best_speed(lines):
  greedy, sampled, speed = headlines.cards(study(lines))
  assert greedy.what == 'Block efficiency, greedy'
  assert sampled.what == 'Block efficiency, T = 1'
  assert '→' in greedy.number and greedy.badge.startswith('+')
  assert greedy.tone == 'good'
  assert 'block length 5' in greedy.detail
  assert speed.badge == 'faster' and speed.tone == 'good'
  assert 'best of 8' in speed.detail


def test_one_draft_alone_has_a_card_without_a_gain(made_up):
  cards = headlines.cards(study(made_up['acceptance']((0,), ['distilled'])))
  assert [card.badge for card in cards] == ['distilled', 'distilled']


def test_cards_take_the_largest_block_length_if_5_is_absent(made_up):
  lines = made_up['acceptance']((0,), ['distilled'], lengths=(2, 3))
  assert 'block length 3' in headlines.cards(study(lines))[0].detail


@pytest.mark.parametrize(
    'speed, words, counts',
    [
        (1.0, 'is faster than', '6 of 8 are faster and 1 slower'),
        (0.73, 'not measurably faster', '0 of 8 are faster and 7 slower'),
        (0.4, 'is slower than', '0 of 8 are faster and 8 slower'),
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
  assert 'slower than autoregressive decoding: it reaches 0.' in text
  assert 'settings' not in text


def test_the_control_follows_the_gain(lines, made_up):
  texts = headlines.sentences(study(lines))
  assert texts[0].startswith(
      'Distillation changes block efficiency at block length 5 by +'
  )
  assert texts[1].startswith('The control')
  few = study(made_up['acceptance']((0,), ('fine-tuned', 'distilled')))
  assert not any('control' in text for text in headlines.sentences(few))


def test_a_gain_that_may_be_chance_is_described_as_such(made_up):
  lines = list(made_up['acceptance']((0,), ('fine-tuned', 'distilled')))
  for line in lines:
    line['metrics']['block_efficiency']['standard_error'] = 2.0
  (text,) = headlines.sentences(study(lines))
  assert 'which may be chance' in text
  assert headlines.cards(study(lines))[0].tone == 'even'


def test_the_best_speed_up_is_lossless_and_names_its_settings(made_up):
  lines = list(made_up['latency'](['distilled']))
  fastest, second = sorted(
      (line for line in lines if line['draft']),
      key=lambda line: -line['metrics']['measured_speedup']['value'],
  )[:2]
  fastest['decoding'] |= {'verifier': 'typical(0.3, 0.5)', 'lossless': False}
  second['decoding'] |= {'verifier': 'block', 'paths': 1}
  (card,) = headlines.cards(study(lines))
  speedup = second['metrics']['measured_speedup']['value']
  assert card.number == f'{speedup:.2f} ×'
  assert 'best of 3 settings' in card.detail
  assert card.detail.endswith(', verifier block)')


def test_cards_name_a_verifier_that_is_not_the_default(made_up):
  lines = list(made_up['acceptance']((0,), ['distilled']))
  for line in lines:
    line['decoding']['verifier'] = 'block'
  for card in headlines.cards(study(lines)):
    assert 'at block length 5, verifier block' in card.detail
