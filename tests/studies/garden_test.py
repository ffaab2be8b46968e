"""A garden: four curves and the control, a point for each size."""

import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import study_file
from distillspec_jax.studies import garden
from tests.studies import conftest


def garden_of(stages, targets=('midi', 'mini', 'nano'), **changes):
  setup = stages.setup(**{'benchmark': stages.benchmark, **changes})
  return garden.Garden(
      setup=setup, targets=targets, distil_targets=conftest.DISTIL
  )


def test_smaller_targets_learn_from_the_largest_and_drafts_from_them(stages):
  stages.run(garden_of(stages))
  at = lambda name: str(stages.root / name)
  assert [name for name in stages.trained if name.startswith('target')] == [
      'target_midi', 'target_mini', 'target_mini_distilled', 'target_nano',
      'target_nano_distilled',
  ]  # fmt: skip
  training = stages.trainings['target_nano_distilled']
  assert training.start.checkpoint == at('target_nano')
  assert training.target.checkpoint == at('target_midi')
  assert stages.trainings['target_mini'].start.model == 'mini'
  draft = stages.trainings['seed_0/distilled_for_nano']
  assert draft.target.checkpoint == at('target_nano_distilled')
  draft = stages.trainings['seed_0/distilled_for_midi']
  assert draft.target.checkpoint == at('target_midi')
  assert stages.trained.count('seed_0/fine-tuned') == 1
  assert stages.trained.count('seed_0/fine-tuned_longer') == 1


def test_each_curve_has_a_row_for_each_size(stages):
  stages.run(garden_of(stages))
  rows = {row.name: row for row in study_file.read(stages.root)['rows']}
  curves = {row.labels['curve'] for row in rows.values()}
  assert len(curves) == 5 and len(rows) == 15
  row = rows['distilled target and draft, mini']
  assert row.control == 'distilled target, draft fine-tuned longer, mini'
  assert row.control in rows and row.folder == 'seed_0/distilled_for_mini'
  assert row.lines['latency'] == {
      'kind': 'latency', 'draft': 'distilled for mini',
  }  # fmt: skip
  assert row.results == [
      'seed_0/evaluation_distilled_for_mini',
      'seed_0/benchmark_distilled_for_mini',
  ]
  plain = rows['standard, mini']
  assert plain.folder == 'target_mini'
  assert plain.lines['latency']['block_length'] is None
  (measured,) = {plain.results[0], rows['speculative, mini'].results[0]}
  assert stages.pairs[measured] == (
      str(stages.root / 'target_mini'),
      str(stages.root / 'seed_0/fine-tuned'),
  )
  measured, _ = rows[row.control].results
  assert stages.pairs[measured] == (
      str(stages.root / 'target_mini_distilled'),
      str(stages.root / 'seed_0/fine-tuned_longer'),
  )


def test_targets_that_are_made_alike_are_refused(stages):
  targets = {'large': 'mini', 'small': 'mini'}
  with pytest.raises(errors.UserError, match="'standard, small' of the study"):
    stages.run(garden_of(stages, targets=targets))
  assert not stages.trained


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'targets': ('mini',)}, 'give at least two, the largest first'),
        ({'targets': ('mini', 'mini')}, "each item once, 'mini' too"),
        ({'benchmark': None}, 'not all is timed'),
        ({'seeds': (0, 1)}, 'Setup.timed_seeds to 2'),
        ({'target': 'folder'}, 'a garden trains its own'),
    ],
)
def test_what_makes_no_garden_is_refused(stages, changes, message):
  with pytest.raises(errors.UserError, match=message):
    garden_of(stages, **changes)
