"""Each question has a card, and a slow pair is called slow."""

import pytest

from distillspec_jax.reporting import cards
from distillspec_jax.reporting import measurements

FASTER, COST, LOSSLESS = (
    'How much faster is it?', 'At what cost?', 'Is it lossless?',
)  # fmt: skip


def study(lines):
  (one,) = measurements.studies(list(lines))
  return one


def answers(of):
  """Question -> card."""
  return {card.what: card for card in cards.cards(of)}


def test_each_question_has_a_card(lines):
  shown = answers(study(lines))
  greedy, sampled = 'Block efficiency, greedy', 'Block efficiency, T = 1'
  assert list(shown) == [FASTER, COST, LOSSLESS, greedy, sampled]
  speed, greedy = shown[FASTER], shown[greedy]
  assert speed.badge == 'faster than plain decoding' and speed.tone == 'good'
  assert 'best of 8' in speed.detail
  assert '→' in greedy.number and greedy.badge.startswith('+')
  assert greedy.tone == 'good'
  assert 'block length 5: fine-tuned longer' in greedy.detail
  assert '95 % interval +' in greedy.detail
  assert 'Over the fine-tuned draft: +' in greedy.detail


def test_the_wall_clock_of_each_pair_stands_next_to_plain_decoding(made_up):
  lines = list(made_up['latency'](['fine-tuned', 'distilled']))
  for line in list(made_up['latency'](['distilled'])):
    line['decoding'] |= {'temperature': 1.0, 'parallel': True}
    if line['draft'] is None:
      line['decoding']['parallel'] = None
      line['metrics']['tokens_per_second'] = made_up['metric'](400.0)
    lines.append(line)
  body = answers(study(lines))[FASTER].table.body
  assert [row[:2] for row in body if row[0].startswith('batch 1,')] == [
      ['batch 1, greedy', 'plain decoding'],
      ['batch 1, greedy', 'fine-tuned draft, block length 2'],
      ['batch 1, greedy', 'distilled draft, block length 5'],
      ['batch 1, T = 1', 'plain decoding'],
      ['batch 1, T = 1', 'distilled (parallel) draft, block length 5'],
  ]
  plain = [row[2:] for row in body if row[1] == 'plain decoding']
  assert plain[1] == ['400', '1'] and plain[0] != plain[1]
  assert all(' to ' in row[3] for row in body if 'draft' in row[1])


def test_the_cost_is_that_of_distillation(made_up):
  lines = [
      *made_up['training']((0,)),
      *made_up['latency'](['distilled']),
  ]
  run = made_up['line'](
      'run', {
          'parameters': made_up['metric'](2.3e5),
          'target_parameters': made_up['metric'](9e6),
      },
      run='distilled', draft='distilled',
      decoding={
          'method.divergence': "'forward_kl'", 'method.fixed_fraction': '0.0',
          'method.temperature': '0.5', 'steps.batch_size': '32',
      },
  )  # fmt: skip
  run['provenance'] |= {'seconds': 125.0, 'command': 'distillspec train'}
  card = answers(study([*lines, run]))[COST]
  assert (card.number, card.badge) == ('2 min 5 s', 'distilled by forward KL')
  assert card.command == 'distillspec train'
  for words in (
      '400 steps of 32 sequences', 'text: draft, T = 0.5',
      'target of 9 M parameters', 'draft of 230 k parameters',
  ):  # fmt: skip
    assert words in card.detail
  rows = {row[0]: row[1:] for row in card.table.body}
  assert rows['distilled'] == ['230 k', '400', '2 min 5 s']
  assert rows['target'] == ['–', '500', '–']


@pytest.mark.parametrize('lossy', [False, True])
def test_lossless_or_not(made_up, lossy):
  lines = list(made_up['lossy']())
  if not lossy:
    lines += made_up['acceptance']((0,), ['distilled'])
  card = answers(study(lines))[LOSSLESS]
  assert card.number == ('no' if lossy else 'yes')
  assert card.tone == ('bad' if lossy else 'good')
  assert ('typical' in card.badge) == lossy
  assert ('Lossy verifiers (lenient(linear, 0.3)' in card.detail) != lossy
  assert 'There is no certificate' in card.detail


@pytest.mark.parametrize('holds', [True, False])
def test_a_certificate_of_the_pair_is_reported(made_up, holds):
  checks = {
      f'{name}: holds': made_up['metric'](value)
      for name, value in (('greedy', 1.0), ('sampling', float(holds)))
  }
  certificate = made_up['line']('certificate', checks, draft='distilled')
  certificate |= {'task': 'certificate', 'split': 'all'}
  lines = [*made_up['latency'](['distilled']), certificate]
  detail = answers(study(lines))[LOSSLESS].detail
  expected = 'holds: all of 2 checks' if holds else 'FAILS: sampling.'
  assert f'The certificate {expected}' in detail


def test_one_draft_alone_has_a_card_without_a_gain(made_up):
  shown = answers(study(made_up['acceptance']((0,), ['distilled'])))
  badges = [
      card.badge for what, card in shown.items() if what.startswith('Block')
  ]
  assert badges == ['distilled', 'distilled']


def test_cards_take_the_largest_block_length_if_5_is_absent(made_up):
  lines = made_up['acceptance']((0,), ['distilled'], lengths=(2, 3))
  card = answers(study(lines))['Block efficiency, greedy']
  assert 'block length 3' in card.detail


@pytest.mark.parametrize(
    'pairs, badge',
    [
        ((0.6, 0.7, 0.77, 0.9, 1.4), 'slower than plain decoding'),
        ((0.6, 0.7, 0.77, 1.2, 1.4), 'not faster than plain decoding'),
        (None, 'not faster than plain decoding'),
    ],
)
def test_a_speed_below_1_has_no_even_badge(made_up, pairs, badge):
  _, line = list(made_up['latency'](['distilled']))[:2]
  speed = made_up['metric'](0.77, 0.14, 5)
  line['metrics']['measured_speedup'] = speed
  if pairs:
    columns = {'paired_speedup': [list(pairs)]}
    line['examples'] = {'inputs': '', 'metrics': columns}
  card = answers(study([line]))[FASTER]
  assert (card.badge, card.tone) == (badge, 'bad')
  assert ('4 of 5 pairs of runs are slower' in card.detail) == (
      badge.startswith('slower')
  )


def test_the_best_speed_up_is_lossless_and_names_its_settings(made_up):
  lines = list(made_up['latency'](['distilled']))
  fastest, second = sorted(
      (line for line in lines if line['draft']),
      key=lambda line: -line['metrics']['measured_speedup']['value'],
  )[:2]
  fastest['decoding'] |= {'verifier': 'typical(0.3, 0.5)', 'lossless': False}
  second['decoding'] |= {'verifier': 'block', 'paths': 1}
  card = answers(study(lines))[FASTER]
  speedup = second['metrics']['measured_speedup']['value']
  assert card.number == f'{speedup:.2f} ×'
  assert 'best of 3 settings' in card.detail
  assert ', verifier block; ' in card.detail


def test_cards_name_a_verifier_that_is_not_the_default(made_up):
  lines = list(made_up['acceptance']((0,), ['distilled']))
  for line in lines:
    line['decoding']['verifier'] = 'block'
  shown = answers(study(lines))
  assert shown[LOSSLESS].badge == 'verifier block'
  for what, card in shown.items():
    if what.startswith('Block'):
      assert 'at block length 5, verifier block' in card.detail
