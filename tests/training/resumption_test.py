"""A run is continued as it was begun, or says what is different."""

import dataclasses
import functools
import json
import shutil
import types

import numpy as np
import pytest

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.core import errors
from distillspec_jax.data import vocabularies
from distillspec_jax.data import vocabulary_kinds
from distillspec_jax.training import loop
from distillspec_jax.training import method
from distillspec_jax.training import optimizers
from distillspec_jax.training import recorder
from distillspec_jax.training import resumption
from distillspec_jax.training import settings
from tests import tiny

STEPS = settings.Steps(
    num_steps=2, batch_size=8, log_every=1, checkpoint_every=1
)
TRAINING = settings.Training(
    start=settings.Start(model=tiny.config(tiny.BYTES)),
    steps=STEPS,
    optimizer=optimizers.Optimizer(name='adamw', learning_rate=1e-3),
    validation=settings.Validation(every=2, examples=8),
)
ADAFACTOR = optimizers.Optimizer(learning_rate=1e-3)
WIDER = settings.Start(model=tiny.config(tiny.BYTES, mlp_dim=48))


def replace(**groups):
  """TRAINING with changes to its groups, or other groups."""
  changes = {
      name: dataclasses.replace(getattr(TRAINING, name), **change)
      if isinstance(change, dict)
      else change
      for name, change in groups.items()
  }
  return dataclasses.replace(TRAINING, **changes)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, task):
  folder = tmp_path_factory.mktemp('runs') / 'run'
  loop.train(run=str(folder), task=task, training=TRAINING)
  return folder


@pytest.fixture
def run(tmp_path, finished):
  shutil.copytree(finished, tmp_path / 'run')
  return tmp_path / 'run'


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'steps': {'num_steps': 1}},
            'num_steps is 1, .* done 2 steps already',
        ),
        ({'optimizer': ADAFACTOR}, "optimizer.name ('adamw' -> 'adafactor')"),
        ({'start': WIDER}, 'another model: mlp_dim (32 -> 48)'),
        (
            {'method': method.Method(reduction='sum')},
            "method.reduction ('mean' -> 'sum')",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused_in_one_line(
    run, task, changes, message
):
  before = sorted(run.rglob('*'))
  with pytest.raises(errors.UserError) as raised:
    loop.train(run=str(run), task=task, training=replace(**changes))
  for part in message.split(', .* '):
    assert part in str(raised.value)
  assert sorted(run.rglob('*')) == before


def test_another_size_of_the_vocabulary_is_refused(run, task):
  larger = dataclasses.replace(task, vocabulary_size=5000)
  with pytest.raises(errors.UserError, match=r'size \(4096 -> 5000\)'):
    loop.train(run=str(run), task=larger, training=TRAINING)


def test_a_run_without_checkpoints_starts_again_and_says_so(run, task, capfd):
  shutil.rmtree(run / 'checkpoints')
  loop.train(run=str(run), task=task, training=TRAINING)
  assert (
      'run: there is no checkpoint; starts again from step 0, and best/ is'
      ' replaced\n'
  ) in capfd.readouterr().err


def test_what_has_changed_is_printed(run, task, capfd):
  changed = replace(
      steps={'num_steps': 3, 'batch_size': 16}, optimizer={'learning_rate': 0.5}
  )
  loop.train(run=str(run), task=task, training=changed, seed=1)
  printed = capfd.readouterr().err
  assert 'run: resumes from step 2 with a changed' in printed
  for change in (
      'optimizer.learning_rate (0.001 -> 0.5)',
      'steps.batch_size (8 -> 16)',
      'steps.num_steps (2 -> 3)',
      'seed (0 -> 1)',
  ):
    assert change in printed
  loop.train(run=str(run), task=task, training=changed, seed=1)
  assert 'changed' not in capfd.readouterr().err  # they are the run's own now


def test_a_change_after_the_last_step_has_no_effect(run, task, capfd):
  changed = replace(optimizer={'learning_rate': 0.5})
  loop.train(run=str(run), task=task, training=changed)
  assert (
      'run: has done all of its 2 steps; without effect is a changed'
      ' optimizer.learning_rate (0.001 -> 0.5)\n'
  ) in capfd.readouterr().err


def test_other_data_are_printed(tmp_path, run, task, capfd):
  fewer = tiny.task(tmp_path / 'fewer', validation=8, train=40)
  loop.train(run=str(run), task=fewer, training=TRAINING)
  assert 'data.train (48 examples (crc' in capfd.readouterr().err


@pytest.mark.parametrize(
    'name, affects',
    [
        ('validation.every', False),
        ('validation.examples', True),
        ('data.validation', True),
        ('data.train', False),
        ('target.checkpoint', True),
        ('seed', False),
    ],
)
def test_scores_of_different_things_are_not_compared(name, affects):
  assert resumption.affects_scores({name: ('1', '2')}) == affects


class Own:
  """An optimizer of one's own."""

  build = schedule = None


def test_settings_are_described_by_value(task):
  describe = functools.partial(resumption.describe, task=task, seed=0)
  described = describe(TRAINING)
  assert described == json.loads(json.dumps(described))
  assert described == describe(replace())
  assert described['steps.batch_size'] == '8'
  own = describe(replace(optimizer=Own()))
  assert own['optimizer'].endswith('resumption_test.Own')
  assert describe(replace(optimizer=Own())) == own  # no address in it


def test_a_target_that_has_changed_is_noticed(tmp_path, task):
  target = settings.Target(checkpoint=str(tmp_path / 'target'))
  described = []
  for seed in (0, 0, 1):
    tiny.save(tmp_path / 'target', tiny.model(tiny.BYTES, seed=seed))
    described.append(resumption.describe(replace(target=target), task, 0))
  first, same, other = described
  assert first == same
  changed = resumption.changes({'settings': first}, other)
  assert list(changed) == ['target.content']
  assert resumption.affects_scores(changed)


# The best model.


def arrays(folder):
  return {
      path: tensor.all()
      for path, tensor in model_folder.read(folder / 'best').tensors.items()
  }


@pytest.mark.parametrize('how', ['removed', 'damaged', 'no array'])
def test_the_best_model_is_written_again(run, task, capfd, how):
  before = arrays(run)
  best = run / 'best'
  if how == 'removed':
    shutil.rmtree(best)
  elif how == 'damaged':
    (best / 'vocabulary.json').write_text('{}')
  else:
    shutil.rmtree(best / 'params' / 'd')
  loop.train(run=str(run), task=task, training=TRAINING)
  assert 'written again from the checkpoint of step 2' in capfd.readouterr().err
  model_folder.check_whole(best)
  np.testing.assert_equal(arrays(run), before)
  assert vocabularies.load_from(best) == task.vocabulary


def test_a_best_model_that_cannot_be_written_again_is_refused(run):
  shutil.rmtree(run / 'best')
  state = types.SimpleNamespace(step=2)
  with pytest.raises(errors.UserError) as raised:
    resumption.repair_best(run, None, None, None, state, 7)
  message = str(raised.value)
  assert 'the checkpoint of step 7, from which' in message
  assert f'distillspec convert {run} {run}/best --step=2' in message
  conversion.convert(str(run), str(run / 'best'), step=2)  # as it says
  resumption.repair_best(run, None, None, None, state, 7)


def test_a_folder_that_is_removed_ends_the_run(tmp_path, task, monkeypatch):
  folder = tmp_path / 'run'
  original = recorder.Recorder.step

  def removing(self, number, metrics):
    original(self, number, metrics)
    if number == 2:
      shutil.rmtree(folder)

  monkeypatch.setattr(recorder.Recorder, 'step', removing)
  with pytest.raises(errors.Failed, match='run was removed'):
    loop.train(
        run=str(folder),
        task=task,
        training=replace(steps={'num_steps': 3, 'checkpoint_every': 3}),
    )
  assert not (folder / 'results.jsonl').exists()


# Vocabularies.


@pytest.fixture
def trained_vocabularies(monkeypatch):
  """Vocabularies are 'trained' at once; each text has another."""

  def train(texts, size):
    return vocabulary_kinds.Bytes([f'<{len("".join(texts))}>'])

  monkeypatch.setattr(vocabularies, 'train_sentencepiece', train)


def test_a_vocabulary_is_not_trained_anew(tmp_path, trained_vocabularies):
  folder = tmp_path / 'run'
  for count, steps in ((48, 1), (40, 2)):
    task = tiny.task(
        tmp_path / 'task', train=count, validation=8, vocabulary=None
    )
    training = replace(steps={'num_steps': steps})
    loop.train(run=str(folder), task=task, training=training)
    if count == 48:
      first = vocabularies.load_from(folder / 'vocabulary')
  assert task.with_trained_vocabulary().vocabulary != first
  assert vocabularies.load_from(folder / 'vocabulary') == first
  assert vocabularies.load_from(folder / 'best') == first


@pytest.mark.parametrize('is_stored', [True, False])
def test_another_vocabulary_is_refused(tmp_path, run, task, is_stored):
  if not is_stored:  # best/ has it, too
    shutil.rmtree(run / 'vocabulary')
  other = dataclasses.replace(
      task, vocabulary=vocabulary_kinds.Bytes(['<another>'])
  )
  with pytest.raises(errors.UserError, match='started with another vocabulary'):
    loop.train(run=str(run), task=other, training=TRAINING)


def test_a_vocabulary_that_is_gone_is_not_made_anew(run, task):
  shutil.rmtree(run / 'vocabulary')
  shutil.rmtree(run / 'best')
  with pytest.raises(errors.UserError, match='vocabulary is missing'):
    loop.train(run=str(run), task=task, training=TRAINING)


def test_a_vocabulary_that_is_damaged_is_refused(run, task):
  path = run / 'vocabulary' / 'vocabulary.json'
  path.write_text(path.read_text().replace('bytes', 'bytfs'))
  with pytest.raises(errors.UserError, match='vocabulary.json is damaged'):
    loop.train(run=str(run), task=task, training=TRAINING)


@pytest.mark.parametrize('name', ['draft', 'draft/best'])
@pytest.mark.parametrize('group', ['start', 'target'])
def test_a_run_is_not_written_into_what_it_reads(
    tmp_path, monkeypatch, task, group, name
):
  monkeypatch.chdir(tmp_path)
  kind = {'start': settings.Start, 'target': settings.Target}[group]
  training = replace(**{group: kind(checkpoint=f'../{tmp_path.name}/{name}')})
  with pytest.raises(errors.UserError, match='run would be written into'):
    loop.train(run='draft', task=task, training=training)


@pytest.mark.parametrize('file', ['params/x', 'config.json'])
def test_a_run_is_not_written_into_a_model(tmp_path, task, file):
  path = tmp_path / 'model' / file
  path.parent.mkdir(parents=True)
  path.touch()
  with pytest.raises(errors.UserError, match='holds a model, which is no run'):
    loop.train(run=str(tmp_path / 'model'), task=task, training=TRAINING)
  assert [x for x in tmp_path.rglob('*') if x.is_file()] == [path]
