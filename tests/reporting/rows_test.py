"""Rows: what is grouped, what is averaged, and what is kept apart."""

import math

import pytest

from distillspec_jax.reporting import rows


def acceptance(made_up, value, seed=0, **more):
  decoding = more.pop('decoding', made_up['decoding'](0.0, 5))
  return made_up['line'](
      'acceptance',
      {'acceptance_rate': made_up['metric'](value, 0.01)},
      draft='distilled',
      decoding=decoding,
      seed=seed,
      **more,
  )


def at(line, time):
  line['provenance']['time_utc'] = time
  return line


def test_one_seed_keeps_its_own_error(made_up):
  (row,) = rows.rows([acceptance(made_up, 0.5)], 'acceptance')
  assert row.metrics['acceptance_rate'] == (0.5, 0.01, 1, 128)


def test_several_seeds_are_averaged_with_the_error_over_seeds(made_up):
  found = [acceptance(made_up, v, s) for s, v in enumerate((0.4, 0.5, 0.6))]
  (row,) = rows.rows(found, 'acceptance')
  value = row.metrics['acceptance_rate']
  assert value.value == pytest.approx(0.5)
  assert value.error == pytest.approx(0.1 / math.sqrt(3))
  assert value.seeds == 3
  assert [row.by_seed[s]['acceptance_rate'].value for s in range(3)] == [
      0.4, 0.5, 0.6,
  ]  # fmt: skip


def test_a_measurement_repeated_with_one_seed_is_not_a_second_seed(made_up):
  found = [
      at(acceptance(made_up, 0.6), '2000-01-02T00:00:00Z'),
      at(acceptance(made_up, 0.4), '2000-01-01T00:00:00Z'),
  ]
  (row,) = rows.rows(found, 'acceptance')
  assert row.metrics['acceptance_rate'] == (0.6, 0.01, 1, 128)  # the newest


def test_repeated_times_are_averaged_and_the_first_compilation_counts(made_up):
  found = [
      made_up['line'](
          'latency',
          {
              'tokens_per_second': made_up['metric'](rate, 1.0, 5),
              'compile_s': made_up['metric'](compile_s),
          },
          decoding=made_up['decoding'](0.0, None),
      )
      for rate, compile_s in ((100.0, 3.0), (120.0, 0.0))
  ]
  (row,) = rows.rows(found, 'latency')
  value = row.metrics['tokens_per_second']
  assert (value.value, value.seeds, value.count) == (110.0, 1, 10)
  assert value.error == pytest.approx(10.0)
  assert row.metrics['compile_s'].value == 3.0


def test_other_decodings_are_other_rows(made_up):
  found = [
      acceptance(made_up, 0.5, decoding=made_up['decoding'](t, g))
      for t in (0.0, 1.0)
      for g in (2, 5)
  ]
  made = rows.rows(found, 'acceptance')
  assert len(made) == 4
  assert rows.values_of(made, 'block_length') == [2, 5]
  assert len(rows.select(made, temperature=1.0, draft='distilled')) == 2


def test_the_target_has_one_quality_whatever_the_draft(made_up):
  lines = made_up['quality'](('fine-tuned', 'distilled'))
  made = rows.rows(lines, 'task_quality')
  assert [row.draft for row in made] == [
      'fine-tuned',
      'fine-tuned',
      'distilled',
  ]
  models = [row.decoding['model'] for row in made]
  assert models == ['target', 'fine-tuned', 'distilled']


def test_studies_are_apart_by_task_split_and_target(made_up):
  lines = [
      acceptance(made_up, 0.5),
      acceptance(made_up, 0.5, task='other'),
      acceptance(made_up, 0.5, split='test'),
      acceptance(made_up, 0.5, target='runs/large'),
  ]
  made = rows.studies(lines)
  assert [(s.task, s.split, s.target) for s in made] == [
      ('made_up_task', 'validation', 'runs/made_up/target'),
      ('other', 'validation', 'runs/made_up/target'),
      ('made_up_task', 'test', 'runs/made_up/target'),
      ('made_up_task', 'validation', 'runs/large'),
  ]


def test_targets_in_folders_of_seeds_are_one_study(made_up):
  lines = [
      acceptance(made_up, 0.5, seed, target=f'runs/seed_{seed}/target')
      for seed in range(3)
  ]
  (study,) = rows.studies(lines)
  (row,) = study.rows('acceptance')
  assert row.metrics['acceptance_rate'].seeds == 3


def test_training_belongs_to_its_task_or_else_to_its_target(made_up):
  training = list(made_up['training']((0,)))
  measured = [acceptance(made_up, 0.5)]
  (study,) = rows.studies([*training, *measured])
  assert study.training == training
  both = rows.studies(
      [
          *training,
          *measured,
          acceptance(made_up, 0.5, target='runs/large'),
      ]
  )
  # Which of the two targets the fine-tuned draft was for, nobody wrote down.
  assert {line['run'] for line in both[0].training} == {'distilled'}
  assert both[1].training == []


def test_training_alone_is_a_study(made_up):
  (study,) = rows.studies(list(made_up['training']((0,))))
  assert (study.task, study.split, study.target) == ('made_up_task', '', None)


def test_figures_show_the_usual_settings(made_up):
  rare = {**made_up['decoding'](0.0, 5), 'top_k': 40}
  lines = [
      acceptance(made_up, 0.9, decoding=rare),
      acceptance(made_up, 0.5),
      acceptance(made_up, 0.5, decoding=made_up['decoding'](1.0, 5)),
  ]
  made = rows.rows(lines, 'acceptance')
  shown = rows.usual(made, ('temperature', 'block_length'))
  assert [row.decoding['top_k'] for row in shown] == [0, 0]
  assert rows.usual([], ()) == []


def test_a_number_that_is_not_finite_is_not_drawn(made_up):
  (row,) = rows.rows([acceptance(made_up, math.nan)], 'acceptance')
  assert row.value('acceptance_rate') is None
  assert row.value('absent') is None


@pytest.mark.parametrize('rate', [0.0, 0.3, 0.99])
def test_prediction_is_the_closed_form(rate):
  expected = (1 - rate**6) / (1 - rate)
  assert rows.predicted_block_efficiency(rate, 5) == pytest.approx(expected)


def test_prediction_of_a_perfect_draft_is_the_block_and_one():
  assert rows.predicted_block_efficiency(1.0, 5) == 6


def test_text_of_a_value():
  assert rows.Value(0.1234, 0.01, 1, 5).text() == '0.123 ± 0.010'
  assert rows.Value(12345.6, None, 1, 5).text(0) == '12,346'
