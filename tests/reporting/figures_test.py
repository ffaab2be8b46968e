"""Figures: drawn for what there is, in words too, for light and dark."""

import math

import pytest

from distillspec_jax.reporting import figures
from distillspec_jax.reporting import rows


def draw(lines, theme=figures.LIGHT):
  (study,) = rows.studies(list(lines))
  return figures.draw(study, theme)


def names(sections):
  return [panel.name for section in sections for panel in section.panels]


def test_all_figures_are_drawn(lines):
  sections = draw(lines)
  assert [section.title for section in sections] == [
      'Before and after distillation',
      'Acceptance by position',
      'Block efficiency by block length',
      'Wall clock',
      'Training',
  ]
  assert names(sections) == [
      'acceptance',
      'block_efficiency',
      'acceptance_by_position_greedy',
      'acceptance_by_position_sampled_1',
      'block_efficiency_by_block_length_greedy',
      'block_efficiency_by_block_length_sampled_1',
      'speedup_greedy',
      'tokens_per_second_greedy',
      'training_loss',
      'distillation_loss',
      'training_acceptance',
      'validation_block_efficiency',
  ]


def test_every_figure_says_its_numbers_in_words(lines):
  for section in draw(lines):
    assert section.caption
    for panel in section.panels:
      assert any(character.isdigit() for character in panel.alt)
      assert len(panel.alt) > len(panel.title)


def test_a_kind_alone_draws_its_own_section(made_up):
  assert names(draw(made_up['latency'](['distilled']))) == [
      'speedup_greedy', 'tokens_per_second_greedy',
  ]  # fmt: skip
  assert len(draw(made_up['training']((0,)))) == 1
  assert names(draw(made_up['quality'](['distilled']))) == []
  plans = draw(made_up['plans']())
  assert names(plans) == ['plan_step', 'plan_memory']
  assert 'v5e-256 rollouts 0.3' in plans[0].panels[0].alt


def test_themes_differ_in_colour_alone(lines):
  light, dark = draw(lines), draw(lines, figures.DARK)
  assert names(light) == names(dark)
  paper = {
      section.panels[0].figure.get_facecolor() for section in (*light, *dark)
  }
  assert len(paper) == 2


def test_bars_stand_at_the_measured_values(made_up):
  lines = list(made_up['acceptance']((0,), ['fine-tuned', 'distilled']))
  panel = draw(lines)[0].panels[0]
  heights = [bar.get_height() for bar in panel.figure.axes[0].patches]
  expected = [
      line['metrics']['acceptance_rate']['value']
      for draft in ('fine-tuned', 'distilled')
      for temperature in (0.0, 1.0)
      for line in lines
      if line['draft'] == draft
      and line['decoding']['temperature'] == temperature
      and line['decoding']['block_length'] == 5
  ]
  assert heights == pytest.approx(expected)


def test_what_is_not_a_number_is_not_drawn(made_up):
  lines = list(made_up['acceptance']((0,), ['distilled']))
  for line in lines:
    line['metrics']['acceptance_rate']['value'] = math.nan
  assert 'acceptance' not in names(draw(lines))


def test_unknown_drafts_have_colours_of_their_own(made_up):
  lines = list(made_up['acceptance']((0,), ['fine-tuned', 'distilled']))
  for line in lines:
    line['draft'] = f'my {line["draft"]}'
  bars = draw(lines)[0].panels[0].figure.axes[0].patches
  assert len({bar.get_facecolor() for bar in bars}) == 2
