"""A grid: every combination, each run once, and what they share once."""

import dataclasses

import pytest

from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import study_file
from distillspec_jax.studies import grid
from distillspec_jax.training import method

METHODS = {
    'forward': method.Method(divergence='forward_kl'),
    'reverse': method.Method(divergence='reverse_kl'),
}


def test_targets_and_fine_tuned_drafts_are_trained_once(stages):
  study = grid.Grid(
      setup=stages.setup(seeds=(3, 4)), methods=METHODS, num_steps=(5, 6)
  )
  stages.run(study)
  assert stages.trained.count('target') == 1
  assert len(stages.trained) == len(set(stages.trained)) == 1 + 2 * 7
  assert 'seed_4/reverse_6_steps' in stages.trained
  training = stages.trainings['seed_4/reverse_6_steps']
  assert training.steps.num_steps == 6
  assert training.method.divergence == 'reverse_kl'
  assert training.start.checkpoint == str(stages.root / 'seed_4/fine-tuned')
  assert training.target.checkpoint == str(stages.root / 'target')
  longer = stages.trainings['seed_4/fine-tuned_longer_6_steps']
  assert longer.steps.num_steps == 6 and longer.target is None


def test_rows_tell_what_they_are_and_what_they_are_compared_with(stages):
  study = grid.Grid(setup=stages.setup(), methods=METHODS)
  assert stages.run(study).endswith('report.html')
  written = study_file.read(stages.root)
  assert written['kind'] == 'grid' and written['axes'] == ['method']
  assert written['stages'] == {'total': 9, 'done': 9, 'failed': 0}
  rows = {row.name: row for row in written['rows']}
  assert list(rows) == [
      'fine-tuned', 'fine-tuned longer', 'forward', 'reverse',
  ]  # fmt: skip
  assert dataclasses.asdict(rows['reverse']) == {
      'name': 'reverse',
      'labels': {'method': 'reverse'},
      'seed': 0,
      'target_seed': 0,
      'folder': 'seed_0/reverse',
      'results': ['seed_0/evaluation_reverse'],
      'lines': {},
      'control': 'fine-tuned longer',
      'seconds': 2.0,
      'failed': None,
  }
  assert rows['fine-tuned'].control is None


def test_each_seed_may_have_a_target_of_its_own(stages):
  setup = stages.setup(seeds=(0, 1), target_seeds=(7, 8), control=None)
  stages.run(grid.Grid(setup=setup, methods=METHODS))
  assert [name for name in stages.trained if 'target' in name] == [
      'target_7', 'target_8',
  ]  # fmt: skip
  training = stages.trainings['seed_1/forward']
  assert training.target.checkpoint == str(stages.root / 'target_8')
  rows = study_file.read(stages.root)['rows']
  assert {(row.seed, row.target_seed) for row in rows} == {(0, 7), (1, 8)}


def test_drafts_of_several_models_are_told_apart(stages):
  study = grid.Grid(setup=stages.setup(), drafts=('test', 'nano'))
  stages.run(study)
  assert stages.trained.count('target') == 1
  assert stages.trainings['seed_0/nano_fine-tuned'].start.model == 'nano'
  rows = study_file.read(stages.root)['rows']
  assert [row.labels for row in rows if row.control] == [
      {'draft': 'test'}, {'draft': 'nano'},
  ]  # fmt: skip
  assert rows[-1].control == 'nano fine-tuned longer'


def test_a_changed_configuration_is_told(stages, monkeypatch, capsys):
  study = grid.Grid(setup=stages.setup(), methods=METHODS)
  for text, is_told in (('a = 1', False), ('a = 1', False), ('a = 2', True)):
    monkeypatch.setattr(
        configuration, '_current', configuration.Configuration(text, '')
    )
    stages.run(study)
    told = 'the configuration has changed' in capsys.readouterr().err
    assert told == is_told


def test_the_heat_maps_of_the_paper():
  methods = grid.divergences_by_data(data=('labels', 'mixed'))
  assert len(methods) == 8
  mixed = [each.method for each in methods if each.labels['data'] == 'mixed']
  assert {each.fixed_fraction for each in mixed} == {0.0}
  assert {each.draft_fraction for each in mixed} == {0.5}
  labels = [each.method for each in methods if each.labels['data'] == 'labels']
  assert {each.fixed_fraction for each in labels} == {1.0}


def test_named_methods_are_those_of_the_paper():
  named = {each.labels['method']: each.method for each in grid.named_methods()}
  assert named['SeqKD'].divergence == 'cross_entropy'
  assert not named['SeqKD'].samples_from_draft
  assert named['SeqKD'].samples_from_target
  assert named['supervised KD'].fixed_fraction == 1.0
  assert named['f-Distill'].samples_from_draft
  with pytest.raises(errors.UserError, match="names is 'KD'"):
    grid.named_methods(names=('KD',))


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'methods': {'a': METHODS['forward'], 'b': METHODS['forward']}},
            "Rows 'a' and 'b' of the study are equal",
        ),
        ({'methods': {}}, 'methods is empty'),
        ({'num_steps': (5, 5)}, 'each item once, 5 too'),
        ({'num_steps': (0,)}, 'num_steps.* is 0'),
        ({'drafts': ('nano', 'nano')}, "each item once, 'nano' too"),
        (
            {'methods': {'a b': METHODS['forward'], 'a_b': METHODS['reverse']}},
            'would be written into seed_0/a_b',
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_work_starts(
    stages, changes, message
):
  with pytest.raises(errors.UserError, match=message):
    stages.run(grid.Grid(setup=stages.setup(), **changes))
  assert not stages.trained


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'seeds': (0, 0)}, 'each item once, 0 too'),
        ({'target_seeds': (0, 1)}, 'give one seed of a target for each'),
        ({'target': 'a', 'target_seeds': (0,)}, 'but the target is given, a'),
        ({'seeds': ()}, 'seeds is empty'),
    ],
)
def test_seeds_that_do_not_fit_are_refused(stages, changes, message):
  with pytest.raises(errors.UserError, match=message):
    stages.setup(**changes)
