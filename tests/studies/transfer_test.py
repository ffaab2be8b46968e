"""Transfer: drafts measured elsewhere, and their geometric mean."""

import math
import types

import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import study_file
from distillspec_jax.studies import transfer
from tests.studies import conftest

OTHER = types.SimpleNamespace(name='other', vocabulary='bytes')


def test_drafts_are_measured_on_other_tasks_and_with_other_targets(stages):
  study = transfer.Transfer(
      setup=stages.setup(), tasks={'other': OTHER}, targets=('mini',)
  )
  stages.run(study)
  rows = {row.name: row for row in study_file.read(stages.root)['rows']}
  assert len(rows) == 9
  row = rows['distilled on other']
  assert row.labels == {'draft': 'distilled', 'measured_on': 'other'}
  assert row.control == 'fine-tuned longer on other'
  at = lambda name: str(stages.root / name)
  distilled = at('seed_0/distilled')
  assert stages.pairs[row.results[0]] == (at('target'), distilled)
  (measured,) = rows['distilled on mini'].results
  assert stages.pairs[measured] == (at('target_mini'), distilled)
  assert stages.trained.count('target_mini') == 1
  assert 'seed_0/distilled' in stages.trained and len(stages.trained) == 5


def test_the_average_is_the_geometric_mean_of_the_other_places(stages):
  study = transfer.Transfer(
      setup=stages.setup(seeds=(0, 1)),
      tasks={'other': OTHER},
      targets=('mini',),
  )
  stages.run(study)
  averages = study_file.read(stages.root)['averages']
  assert [one['name'] for one in averages] == [
      'fine-tuned', 'fine-tuned longer', 'distilled',
  ]  # fmt: skip
  for one in averages:  # 3 on the other task, 2 with the other target
    assert one['metric'] == 'block_efficiency' and one['seeds'] == 2
    assert one['value'] == pytest.approx(math.sqrt(6))
    relative = math.hypot(0.1 / 3, 0.1 / 2) / 2
    assert one['standard_error'] == pytest.approx(math.sqrt(6) * relative)


def test_each_task_may_have_a_target_of_its_own(stages):
  study = transfer.Transfer(
      setup=stages.setup(), tasks={'other': OTHER}, own_targets=conftest.LONGER
  )
  stages.run(study)
  training = stages.trainings['target_other']
  assert training.start.checkpoint == str(stages.root / 'target')
  rows = {row.name: row for row in study_file.read(stages.root)['rows']}
  (measured,) = rows['distilled on other'].results
  assert stages.pairs[measured][0] == str(stages.root / 'target_other')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({}, 'nothing to transfer to'),
        ({'targets': ('task',)}, "each item once, 'task' too"),
        ({'targets': ('a',), 'own_targets': conftest.LONGER}, 'not be used'),
    ],
)
def test_what_transfers_nothing_is_refused(stages, changes, message):
  with pytest.raises(errors.UserError, match=message):
    transfer.Transfer(setup=stages.setup(), **changes)


def test_other_targets_need_one_that_is_trained(stages):
  with pytest.raises(errors.UserError, match='but the target is given'):
    transfer.Transfer(setup=stages.setup(target='folder'), targets=('mini',))


def test_places_whose_folders_would_be_the_same_are_refused(stages):
  tasks = {'a b': OTHER, 'a_b': OTHER}
  tasks['a_b'] = types.SimpleNamespace(name='third', vocabulary='bytes')
  with pytest.raises(errors.UserError, match='Two different measurements'):
    stages.run(transfer.Transfer(setup=stages.setup(), tasks=tasks))
  assert not stages.trained
