"""Figures show what there is, with the numbers that were measured."""

import math

import pytest

from distillspec_jax.reporting import figures
from distillspec_jax.reporting import measurements


def sections(lines):
  (study,) = measurements.studies(list(lines))
  return figures.sections(study)


def names(drawn):
  return [panel.name for section in drawn for panel in section.panels]


def panel(lines, name):
  (wanted,) = [
      panel
      for section in sections(lines)
      for panel in section.panels
      if panel.name == name
  ]
  return wanted


def test_all_figures_are_drawn(lines):
  drawn = sections(lines)
  assert [section.title for section in drawn] == [
      'Acceptance and block efficiency',
      'Acceptance by position',
      'Block efficiency by block length',
      'Lossy verification',
      'Wall clock',
      'Training',
  ]
  assert names(drawn) == [
      'acceptance',
      'block_efficiency',
      'acceptance_by_position_greedy',
      'acceptance_by_position_temperature_1',
      'block_efficiency_by_block_length_greedy',
      'block_efficiency_by_block_length_temperature_1',
      'trade_off_exact_match_greedy',
      'speedup_greedy',
      'tokens_per_second_greedy',
      'training_loss',
      'distillation_loss',
      'training_acceptance',
      'validation_block_efficiency',
  ]
  assert all(section.caption for section in drawn)


def test_each_kind_draws_its_own_sections(made_up):
  assert names(sections(made_up['latency'](['distilled']))) == [
      'speedup_greedy', 'tokens_per_second_greedy',
  ]  # fmt: skip
  assert len(sections(made_up['training']((0,)))) == 1
  assert names(sections(made_up['quality'](['distilled']))) == []
  assert names(sections(made_up['plans']())) == ['plan_step', 'plan_memory']


def test_bars_have_the_measured_values(made_up):
  lines = list(made_up['acceptance']((0,), ['fine-tuned', 'distilled']))
  for series in panel(lines, 'acceptance').series:
    assert series.style == 'bars'
    expected = {
        line['decoding']['temperature']: line['metrics']['expected_acceptance']
        for line in lines
        if line['draft'] == series.label
        and line['decoding']['block_length'] == 5
    }
    assert [point.at for point in series.points] == [
        (0.0, 'greedy'), (1.0, 'T = 1'),
    ]  # fmt: skip
    for point in series.points:
      assert point.value.value == expected[point.at[0]]['value']


def test_acceptance_is_shown_at_every_position(made_up):
  lines = list(made_up['acceptance']((0,), ['distilled', 'fine-tuned']))
  name = 'acceptance_by_position_greedy'
  first, last = panel(lines, name).series
  assert (first.label, last.label) == ('fine-tuned', 'distilled')
  assert [point.at for point in last.points] == list(range(1, 9))
  metrics = next(
      line['metrics']
      for line in lines
      if line['draft'] == 'distilled' and 'acceptance_at_8' in line['metrics']
  )
  assert last.points[7].value.value == metrics['acceptance_at_8']['value']


def test_block_efficiency_is_shown_with_its_prediction(made_up):
  lines = made_up['acceptance']((0,), ['distilled'])
  measured, predicted = panel(
      lines, 'block_efficiency_by_block_length_greedy'
  ).series
  assert [point.at for point in measured.points] == [1, 2, 3, 5, 8]
  assert (predicted.style, predicted.owner) == ('dashed', 'distilled')
  # The fixture's measurements are below independence by 1.2 % per token.
  assert [point.at for point in predicted.points] == [1, 2, 3, 5, 8]
  assert predicted.points[3].value.value == pytest.approx(
      measured.points[3].value.value / (1 - 0.012 * 5)
  )


def test_the_trade_off_has_one_point_per_decoding(lines):
  series = {
      one.label: one
      for one in panel(lines, 'trade_off_exact_match_greedy').series
  }
  assert list(series) == [
      'token', 'lenient', 'typical',
      'target alone', 'fine-tuned alone', 'distilled alone',
  ]  # fmt: skip
  points = series['lenient'].points
  assert [point.note for point in points] == [
      'linear, 0.3', 'linear, 0.5', 'linear, 0.8',
  ]  # fmt: skip
  assert [point.at for point in points] == [3.2, 3.5, 4.0]
  assert [point.value.value for point in points] == [0.4, 0.37, 0.3]
  assert [point.at_error for point in points] == [0.05] * 3


def test_drafts_and_lengths_are_separate_series_of_the_trade_off(made_up):
  lines = [*made_up['lossy'](), *made_up['lossy']('fine-tuned')]
  for line in made_up['lossy']():
    line['decoding']['block_length'] = 3
    lines.append(line)
  labels = [
      one.label for one in panel(lines, 'trade_off_exact_match_greedy').series
  ]
  assert sorted(set(labels)) == sorted(
      f'{draft}, {verifier}, block length {length}'
      for draft, length in (
          ('distilled', 3), ('distilled', 5), ('fine-tuned', 5),
      )
      for verifier in ('lenient', 'typical')
  )  # fmt: skip


def test_speed_ups_and_their_predictions_share_their_places(made_up):
  series = panel(made_up['latency'](['distilled']), 'speedup_greedy').series
  assert [(one.label, one.style) for one in series] == [
      ('distilled', 'bars'),
      ('predicted', 'diamond'),
      ('with verification', 'triangle'),
  ]
  places = [[point.at for point in one.points] for one in series]
  assert places[0] == places[1] == places[2]
  assert ((8, 5), 'batch 8\nlength 5') in places[0]


def test_validation_takes_the_colour_of_its_run(made_up):
  series = panel(made_up['training']((0,)), 'training_loss').series
  owners = [one.owner for one in series if one.label == 'validation']
  assert owners == ['target', 'fine-tuned', 'fine-tuned longer']


def test_numbers_that_are_not_finite_are_not_drawn(made_up):
  lines = list(made_up['acceptance']((0,), ['distilled']))
  for line in lines:
    line['metrics']['expected_acceptance']['value'] = math.nan
  assert 'acceptance' not in names(sections(lines))


def test_plans_of_one_slice_are_told_apart(made_up):
  lines = made_up['plans']()
  lines[2]['metrics'] = lines[1]['metrics']
  places = [point.at for point in panel(lines, 'plan_step').series[0].points]
  assert places == [
      (0, 'v5e-16'),
      (1, 'v5e-256\nsmall\n256 x 1 x 1'),
      (2, 'v5e-256\nsmall\n64 x 1 x 4'),
  ]
