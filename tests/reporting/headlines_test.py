"""Headlines: gains with their errors, and honest words about speed."""

import math

import pytest

from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import rows


def study(lines):
  (found,) = rows.studies(list(lines))
  return found


def row(name, *values, error=0.1):
  by_seed = {
      seed: {'x': rows.Value(value, error, 1, 9)}
      for seed, value in enumerate(values)
  }
  value = rows.over_seeds([one['x'] for one in by_seed.values()])
  return rows.Row(name, {}, {'x': value}, by_seed)


def test_gain_of_one_seed_adds_both_errors():
  found = headlines.gain(row('a', 2.0), row('b', 3.0), 'x')
  assert found.percent == pytest.approx(50)
  assert found.error == pytest.approx(150 * math.hypot(0.05, 0.1 / 3))
  assert found.standard_errors == pytest.approx(1 / math.hypot(0.1, 0.1))
  assert found.clear
  assert found.text() == '+50.0 ± 9.0 %'


def test_gain_of_several_seeds_is_paired():
  # The drafts differ much from seed to seed, the gain does not.
  found = headlines.gain(row('a', 1.0, 2.0, 4.0), row('b', 1.1, 2.2, 4.44), 'x')
  assert found.percent == pytest.approx(10 + 1 / 3)
  assert found.error == pytest.approx(1 / 3)
  assert found.standard_errors == pytest.approx(31)


def test_gain_within_two_standard_errors_is_not_clear():
  assert not headlines.gain(row('a', 2.0), row('b', 2.2), 'x').clear


def test_gain_without_errors_claims_none():
  found = headlines.gain(row('a', 2.0, error=None), row('b', 3.0), 'x')
  assert (found.error, found.clear, found.text()) == (None, False, '+50.0 %')


def test_gain_without_a_number_is_none():
  assert headlines.gain(row('a', math.nan), row('b', 3.0), 'x') is None
  assert headlines.gain(row('a', 0.0), row('b', 3.0), 'x') is None


def test_cards_show_before_and_after_and_the_best_speed(lines):
  greedy, sampled, speed = headlines.cards(study(lines))
  assert greedy.what == 'Block efficiency, greedy'
  assert sampled.what == 'Block efficiency, sampled, T = 1'
  assert '→' in greedy.number and greedy.badge.startswith('+')
  assert greedy.tone == 'good'
  assert 'block length 5' in greedy.detail
  assert speed.badge == 'faster' and speed.tone == 'good'
  assert 'best of 8' in speed.detail


def test_one_draft_alone_has_a_card_without_a_gain(made_up):
  found = headlines.cards(study(made_up['acceptance']((0,), ['distilled'])))
  assert [card.badge for card in found] == ['distilled', 'distilled']


def test_cards_take_the_largest_block_where_5_is_absent(made_up):
  lines = made_up['acceptance']((0,), ['distilled'], lengths=(2, 3))
  assert 'block length 3' in headlines.cards(study(lines))[0].detail


@pytest.mark.parametrize(
    'speed, words, counts',
    [
        (1.0, 'times as fast as autoregressive', '6 are faster and 1 slower'),
        (0.73, 'not clearly faster', '0 are faster and 7 slower'),
        (0.4, 'slower than autoregressive decoding in every setting',
         '0 are faster and 8 slower'),
    ],
)  # fmt: skip
def test_the_speed_is_said_as_it_was_measured(made_up, speed, words, counts):
  lines = made_up['latency'](('fine-tuned', 'distilled'), speed)
  (text,) = headlines.sentences(study(lines))
  assert words in text
  assert counts in text
  assert 'A step of the draft takes 0.20 of the time' in text
  assert ('do not' in text) == (speed < 1)


def test_one_slow_setting_is_said_as_one(made_up):
  lines = list(made_up['latency'](['distilled'], 0.4))[:2]
  (text,) = headlines.sentences(study(lines))
  assert 'slower than autoregressive decoding: it runs at' in text
  assert 'settings' not in text


def test_the_control_is_told_beside_the_gain(lines, made_up):
  texts = headlines.sentences(study(lines))
  assert texts[0].startswith('Distillation changes block efficiency')
  assert texts[1].startswith('The control')
  few = study(made_up['acceptance']((0,), ('fine-tuned', 'distilled')))
  assert not any('control' in text for text in headlines.sentences(few))


def test_a_gain_that_may_be_chance_is_called_so(made_up):
  lines = list(made_up['acceptance']((0,), ('fine-tuned', 'distilled')))
  for line in lines:
    line['metrics']['block_efficiency']['standard_error'] = 2.0
  (text,) = headlines.sentences(study(lines))
  assert 'which chance may explain' in text
  assert headlines.cards(study(lines))[0].tone == 'even'
