"""Stages: done once, resumed, and a failure is reported and not fatal."""

import json
import types

import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import study_file
from distillspec_jax.studies import grid
from tests.studies import grid_test


def study_of(stages, **changes):
  return grid.Grid(setup=stages.setup(**changes), methods=grid_test.METHODS)


def test_started_again_nothing_is_done_twice(stages):
  stages.run(study_of(stages))
  done = len(stages.trained), len(stages.measured)
  stages.run(study_of(stages))
  assert (len(stages.trained), len(stages.measured)) == done == (5, 4)


def test_a_kill_leaves_what_was_done_and_the_rest_is_done_later(stages):
  stages.failing['seed_0/evaluation_fine-tuned_longer'] = KeyboardInterrupt()
  with pytest.raises(KeyboardInterrupt):
    stages.run(study_of(stages))
  written = study_file.read(stages.root)
  assert written['stages'] == {'total': 9, 'done': 4, 'failed': 0}
  assert [row.results for row in written['rows']] == [
      ['seed_0/evaluation_fine-tuned'], [], [], [],
  ]  # fmt: skip
  before = list(stages.trained)
  stages.failing.clear()
  stages.run(study_of(stages))
  assert stages.trained[len(before) :] == ['seed_0/forward', 'seed_0/reverse']
  assert stages.measured.count('seed_0/evaluation_fine-tuned') == 1
  assert stages.measured.count('seed_0/evaluation_fine-tuned_longer') == 2
  assert not list(stages.root.rglob('.incomplete'))


def test_a_failure_is_recorded_and_others_go_on(stages, capfd):
  stages.failing['seed_0/forward'] = ValueError('the loss is nan\nat step 3')
  with pytest.raises(
      errors.Failed,
      match='2 of 9 stages are not done: seed_0/'
      'forward: ValueError: the loss is nan at step 3',
  ):
    stages.run(study_of(stages))
  assert 'seed_0/evaluation_reverse' in stages.measured
  assert 'seed_0/evaluation_forward' not in stages.measured
  record = json.loads((stages.root / 'seed_0/forward/stage.json').read_text())
  assert record['failed'] == 'ValueError: the loss is nan at step 3'
  rows = {row.name: row for row in study_file.read(stages.root)['rows']}
  assert rows['forward'].failed.startswith('seed_0/forward: ValueError')
  assert rows['reverse'].failed is None and rows['reverse'].results
  assert 'Traceback' in capfd.readouterr().err
  stages.failing.clear()
  assert stages.run(study_of(stages)).endswith('report.html')
  rows = {row.name: row for row in study_file.read(stages.root)['rows']}
  assert rows['forward'].failed is None and rows['forward'].results
  assert stages.trained.count('seed_0/reverse') == 1


def test_without_its_target_a_study_ends_with_the_reason(stages):
  stages.failing['target'] = errors.UserError('the data is not there.')
  with pytest.raises(errors.UserError, match='the data is not there'):
    stages.run(study_of(stages))
  assert stages.trained == ['target']


def test_models_wait_for_the_one_that_has_their_vocabulary(stages):
  task = types.SimpleNamespace(name='task', vocabulary=None)
  setup = stages.setup(task=task, seeds=(0, 1), target_seeds=(0, 1))
  stages.failing['target_0'] = ValueError('no')
  with pytest.raises(ValueError, match='no'):
    stages.run(grid.Grid(setup=setup, methods=grid_test.METHODS))
  assert stages.trained == ['target_0']


def test_a_model_that_has_changed_is_measured_again(stages, capfd):
  stages.run(study_of(stages))
  path = stages.root / 'seed_0/forward/best/checksums.json'
  path.write_text('{"digest": "another"}')
  stages.run(study_of(stages))
  assert stages.measured.count('seed_0/evaluation_forward') == 2
  assert stages.measured.count('seed_0/evaluation_reverse') == 1
  assert 'measured again' in capfd.readouterr().err


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(stages):
  lines = stages.run(study_of(stages), is_dry_run=True).split('\n')
  assert lines[0] == 'to do    training   target'
  assert lines[-1] == '9 stages, 0 done, 9 to do'
  assert not stages.root.exists()
  stages.failing['seed_0/forward'] = ValueError('no')
  with pytest.raises(errors.Failed):
    stages.run(study_of(stages))
  lines = stages.run(study_of(stages), is_dry_run=True).split('\n')
  assert 'failed   training   seed_0/forward' in lines
  assert 'done     evaluation seed_0/evaluation_reverse' in lines
  assert any(
      line.startswith('row: forward, seed 0 (method forward), compared with')
      for line in lines
  )
  assert lines[-1].startswith('9 stages, 7 done, 2 to do, about 1 min')
