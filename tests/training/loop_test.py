import json
import os
import pathlib
import signal
import subprocess
import sys

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.training import loop
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from tests import tiny

MODEL = tiny.config(tiny.BYTES)
ON_POLICY = method_lib.Method(divergence='forward_kl', fixed_fraction=0.0)
FAST = optimizers.Optimizer(name='adamw', learning_rate=3e-3, warmup_steps=1)


def train(folder, task, **changes):
  defaults = {
      'num_steps': 6,
      'batch_size': 8,
      'log_every': 1,
      'validation_every': 3,
      'validation_examples': 8,
      'validation_block_length': 2,
      'checkpoint_every': 3,
      'optimizer': FAST,
  }
  return loop.train(run=str(folder), task=task, **{**defaults, **changes})


@pytest.fixture(scope='module')
def task(tmp_path_factory):
  return tiny.task(tmp_path_factory.mktemp('task'), validation=8)


@pytest.fixture(scope='module')
def target(tmp_path_factory, task):
  folder = tmp_path_factory.mktemp('runs') / 'target'
  train(folder, task, model=MODEL, num_steps=3)
  return str(folder)


def lines(folder):
  """What was recorded, but for times and rates."""
  found = results.read(folder / 'results.jsonl')
  for line in found:
    line['metrics'].pop('tokens_per_second', None)
    line.pop('provenance')
    line.pop('run')
    line.pop('draft')
  return found


def latest_step(folder):
  with store.Store(folder / 'checkpoints') as checkpoints:
    return checkpoints.latest_step()


def last_state(folder):
  """All arrays of the last checkpoint."""
  path = folder / 'checkpoints' / str(latest_step(folder)) / 'state'
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path)


@pytest.mark.parametrize('distil', [False, True], ids=['fine-tune', 'distil'])
def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(
    tmp_path, task, target, distil
):
  changes = (
      {'initial': target, 'target': target, 'method': ON_POLICY}
      if distil
      else {'model': MODEL}
  )
  train(tmp_path / 'whole', task, **changes)

  # Stopped hard after step 4, one step after a checkpoint: step 4 is redone.
  class Stop(Exception):
    pass

  original = loop._Recorder.step

  def stopping(self, number, metrics):
    original(self, number, metrics)
    if number == 5:
      raise Stop

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop._Recorder, 'step', stopping)
    with pytest.raises(Stop):
      train(tmp_path / 'stopped', task, **changes)
  train(tmp_path / 'stopped', task, **changes)

  assert lines(tmp_path / 'whole') == lines(tmp_path / 'stopped')
  assert latest_step(tmp_path / 'whole') == 6
  whole, stopped = (
      last_state(tmp_path / name) for name in ('whole', 'stopped')
  )
  jax.tree.map(np.testing.assert_array_equal, whole, stopped)
  best = [loading.load(tmp_path / name).params for name in ('whole', 'stopped')]
  jax.tree.map(np.testing.assert_array_equal, *best)


def test_a_run_leaves_its_files(tmp_path, task):
  best = train(tmp_path / 'run', task, model=MODEL)
  folder = tmp_path / 'run'
  assert best == str(folder / 'best')
  assert (folder / 'best' / 'model.json').is_file()
  assert json.loads((folder / 'best' / 'vocabulary.json').read_text()) == {
      'kind': 'bytes'
  }
  assert list((folder / 'metrics').glob('events*'))
  kinds = {line['kind'] for line in results.read(folder / 'results.jsonl')}
  assert kinds == {'training'}
  model = loading.load(folder)
  assert model.vocabulary.decode(model.vocabulary.encode('ab')) == 'ab'


def test_what_is_cut_off_is_said(tmp_path, capfd):
  task = tiny.task(tmp_path / 'task', validation=8, label_length=6)
  train(tmp_path / 'run', task, model=MODEL, num_steps=1)
  said = capfd.readouterr().err
  assert 'run: train: 48 examples' in said
  assert '48 labels cut, without EOS' in said


def test_a_finished_run_is_not_done_again(tmp_path, task):
  train(tmp_path / 'run', task, model=MODEL, num_steps=3)
  before = (tmp_path / 'run' / 'results.jsonl').read_text()
  train(tmp_path / 'run', task, model=MODEL, num_steps=3)
  assert (tmp_path / 'run' / 'results.jsonl').read_text() == before


def test_distillation_records_acceptance_and_block_efficiency(
    tmp_path, task, target
):
  train(
      tmp_path / 'run',
      task,
      initial=target,
      target=target,
      method=ON_POLICY,
      num_steps=2,
  )
  found = results.read(tmp_path / 'run' / 'results.jsonl')
  # The draft starts as the target itself: all is accepted.
  first = next(line for line in found if line['split'] == 'train')
  assert first['metrics']['acceptance_rate']['value'] > 0.99
  validation = next(line for line in found if line['split'] == 'validation')
  assert 2.0 < validation['metrics']['block_efficiency']['value'] <= 3.0


def test_a_draft_of_frequent_tokens_is_distilled_and_kept(
    tmp_path, task, target
):
  texts = tmp_path / 'texts.txt'
  texts.write_text('\n'.join(word * 2 for word in tiny.WORDS[:3]))
  cut = conversion.convert(
      target, str(tmp_path / 'cut'), trim_vocabulary=9, texts=str(texts)
  ).folder
  best = train(
      tmp_path / 'run',
      task,
      initial=str(cut),
      target=target,
      method=method_lib.Method(divergence='total_variation'),
      num_steps=2,
  )
  kept = loading.load(best).config.output_tokens
  assert kept == loading.load(cut).config.output_tokens
  assert len(kept) == 9
  found = results.read(tmp_path / 'run' / 'results.jsonl')
  metrics = next(line for line in found if line['split'] == 'train')['metrics']
  assert 0.1 < metrics['uncovered']['value'] < 0.9
  assert metrics['loss']['value'] < 1.0


def test_packed_fine_tuning_runs(tmp_path, task):
  train(
      tmp_path / 'run',
      task,
      model=MODEL,
      num_steps=2,
      pack=True,
  )
  assert (tmp_path / 'run' / 'best').is_dir()


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'num_steps': 0}, 'num_steps is 0'),
        ({'batch_size': 0}, 'batch_size is 0'),
        ({'micro_batches': 3}, 'micro_batches is 3'),
        ({'log_every': 0}, 'log_every is 0'),
        ({'method': ON_POLICY}, 'needs a target'),
        ({'model': None}, 'give one of them'),
        ({'model': 'huge'}, "'huge'"),
        ({'mesh_data': 3}, 'The mesh is data 3'),
        ({'batch_size': 12}, '12 rows cannot be split'),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path, task, changes, message
):
  with pytest.raises(errors.UserError, match=message):
    train(tmp_path / 'run', task, **{'model': MODEL, **changes})
  left = (
      list((tmp_path / 'run').iterdir()) if (tmp_path / 'run').exists() else []
  )
  assert not left


def test_packing_where_tokens_are_sampled_is_refused(tmp_path, task, target):
  with pytest.raises(errors.UserError, match='pack is True'):
    train(
        tmp_path, task, initial=target, target=target, method=ON_POLICY,
        pack=True,
    )  # fmt: skip


def test_a_run_goes_on_on_another_mesh(tmp_path, task, target):
  steady = optimizers.Optimizer(
      name='adamw', learning_rate=3e-3, cooldown_from=1.0
  )
  changes = {
      'initial': target,
      'target': target,
      'method': ON_POLICY,
      'optimizer': steady,
  }
  train(tmp_path / 'whole', task, **changes)
  train(tmp_path / 'moved', task, num_steps=3, **changes)
  train(
      tmp_path / 'moved',
      task,
      mesh_fsdp=2,
      mesh_tensor=2,
      layout='fsdp',
      remat='dots',
      **changes,
  )
  for line, moved in zip(
      lines(tmp_path / 'whole'), lines(tmp_path / 'moved'), strict=True
  ):
    assert {k: m['value'] for k, m in moved['metrics'].items()} == (
        pytest.approx(
            {k: m['value'] for k, m in line['metrics'].items()}, rel=1e-4
        )
    )


def test_a_target_in_little_memory(tmp_path, task, target):
  train(
      tmp_path / 'run',
      task,
      initial=target,
      target=target,
      method=ON_POLICY,
      num_steps=1,
      micro_batches=2,
      mesh_fsdp=2,
      mesh_tensor=2,
      dtype='bfloat16',
      remat='full',
      target_weights='int8',
      target_layout='whole',
  )
  (line,) = (
      line['metrics']
      for line in lines(tmp_path / 'run')
      if 'loss' in line['metrics']
  )
  # Nearly the same model: what is lost in the third digit.
  assert 0.0 < line['loss']['value'] < 0.05
  draft = loading.load(tmp_path / 'run')
  assert draft.config.dtype == 'bfloat16'
  assert draft.params['token_embedder']['embedding'].dtype == jnp.float32


def test_another_model_in_the_same_folder_is_refused(tmp_path, task):
  train(tmp_path / 'run', task, model=MODEL, num_steps=1)
  with pytest.raises(errors.UserError, match='another model'):
    train(
        tmp_path / 'run',
        task,
        model=tiny.config(tiny.BYTES, emb_dim=32),
        num_steps=2,
    )


def test_an_interrupted_run_writes_a_checkpoint(tmp_path):
  # A process of its own: a signal is for a whole process.
  script = tmp_path / 'run.py'
  script.write_text(f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
from distillspec_jax.training import loop
from tests import tiny
original = loop._Recorder.step
def step(self, number, metrics):
  original(self, number, metrics)
  if number == 2:
    os.kill(os.getpid(), signal.SIGTERM)
loop._Recorder.step = step
loop.train(run={str(tmp_path / 'run')!r},
           task=tiny.task(pathlib.Path({str(tmp_path / 'task')!r})),
           model=tiny.config(tiny.BYTES), num_steps=50, batch_size=8,
           log_every=50, validation_every=50, checkpoint_every=50,
           validation_examples=4)
""")
  done = subprocess.run(
      [sys.executable, str(script)],
      capture_output=True,
      text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      timeout=300,
      check=False,
  )
  assert 'errors.Terminated' in done.stderr, done.stderr
  assert done.returncode in (1, 130, -signal.SIGINT)
  assert latest_step(tmp_path / 'run') == 2


@pytest.fixture(scope='module')
def adafactor_checkpoint(tmp_path_factory):
  """A checkpoint of t5x after 4 steps, and the moments in it."""
  folder = tmp_path_factory.mktemp('t5x')
  params = tiny.model(tiny.BYTES).params
  transform = optimizers.Optimizer().build(10)
  state = transform.init(params)
  ones = jax.tree.map(jnp.ones_like, params)
  for _ in range(4):
    _, state = jax.jit(transform.update)(ones, state, params)
  moments = optimizers.adafactor_moments(state)
  flat = tensors.flatten(params)
  t5x.write(
      epath.Path(folder),
      {path: tensors.from_array(x) for path, x in flat.items()},
      *moments,
  )
  return str(folder), moments


def test_a_run_of_t5x_is_gone_on_with(tmp_path, task, adafactor_checkpoint):
  folder, moments = adafactor_checkpoint
  train(
      tmp_path / 'run', task, initial=folder, initial_optimizer=True,
      num_steps=6, optimizer=optimizers.Optimizer(),
      method=method_lib.Method(reduction='sum'),
  )  # fmt: skip
  assert moments.step == 4
  assert latest_step(tmp_path / 'run') == 6
  steps = {line['metrics']['step']['value'] for line in lines(tmp_path / 'run')}
  assert steps >= {5, 6} and min(steps) == 4
  state = last_state(tmp_path / 'run')
  assert int(state['step']) == 6


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'num_steps': 4}, 'has done 4 steps already'),
        ({'optimizer': FAST}, 'The optimizer is not Adafactor'),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(
    tmp_path, task, adafactor_checkpoint, changes, message
):
  with pytest.raises(errors.UserError, match=message):
    train(
        tmp_path / 'run', task, initial=adafactor_checkpoint[0],
        initial_optimizer=True,
        **{'optimizer': optimizers.Optimizer(), **changes},
    )  # fmt: skip


def test_only_a_run_of_t5x_is_gone_on_with(tmp_path, task, target):
  with pytest.raises(errors.UserError, match='is no checkpoint of t5x'):
    train(tmp_path / 'run', task, initial=target, initial_optimizer=True)


def test_the_vocabulary_is_that_of_the_model(tmp_path, target):
  chosen_by_none = tiny.task(tmp_path / 'task', validation=8, vocabulary=None)
  train(tmp_path / 'run', chosen_by_none, initial=target, num_steps=1)
  assert loading.load(tmp_path / 'run').vocabulary.vocab_size == 259


def test_a_model_without_vocabulary_needs_one(tmp_path, adafactor_checkpoint):
  task = tiny.task(tmp_path / 'task', validation=8, vocabulary=None)
  with pytest.raises(errors.UserError, match='comes without a vocabulary'):
    train(tmp_path / 'run', task, initial=adafactor_checkpoint[0])


# A draft that shares the target's encoder.


@pytest.mark.parametrize('how', ['model', 'initial', 'again'])
def test_a_draft_that_shares_the_encoder_is_trained(
    tmp_path, task, target, how
):
  folder = tmp_path / 'draft'
  changes = {'model': 'test', 'shared_encoder': True}
  if how != 'model':
    train(tmp_path / 'first', task, model=MODEL, num_steps=1)
    changes = {'initial': str(tmp_path / 'first'), 'shared_encoder': True}
  if how == 'again':  # it shares already, and nothing needs to be said
    train(tmp_path / 'second', task, num_steps=1, target=target, **changes)
    changes = {'initial': str(tmp_path / 'second')}
  train(folder, task, target=target, method=ON_POLICY, **changes)
  draft = loading.load(folder)
  assert draft.config.encoded_dim == 16 and draft.config.num_encoder_layers == 0
  loading.check_pair(loading.load(target), draft)
  losses = [
      line['metrics']['loss']['value']
      for line in results.read(folder / 'results.jsonl')
      if 'loss' in line['metrics']
  ]
  assert losses[-1] < losses[0]
  # Gone on with, it does nothing more.
  train(folder, task, target=target, method=ON_POLICY, **changes)


def test_a_draft_starts_near_the_one_it_was_made_of(tmp_path, task, target):
  # The target itself as the draft: the fitted map is the identity, nearly.
  method = method_lib.Method(divergence='forward_kl')
  firsts = []
  for name, changes in (
      ('made', {'initial': target, 'shared_encoder': True}),
      ('new', {'model': MODEL, 'shared_encoder': True}),
  ):
    folder = tmp_path / name
    train(folder, task, target=target, method=method, num_steps=1, **changes)
    firsts += [
        line['metrics']['loss']['value']
        for line in results.read(folder / 'results.jsonl')
        if 'loss' in line['metrics']
    ]
  made, new = firsts
  assert made < 0.05 * new


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'model': 'test', 'shared_encoder': True}, 'there is no target'),
        (
            {'model': tiny.config(tiny.BYTES, encoded_dim=16)},
            "reads its target's encoder output, but there is no target",
        ),
    ],
)
def test_a_shared_encoder_needs_a_target(tmp_path, task, changes, message):
  with pytest.raises(errors.UserError, match=message):
    train(tmp_path / 'run', task, **changes)
  assert not (tmp_path / 'run').exists()
