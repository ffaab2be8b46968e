import collections
import dataclasses
import functools
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import types

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.losses import divergences
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import loop
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import parallel
from distillspec_jax.training import recorder
from distillspec_jax.training import settings
from distillspec_jax.training import tensorboard
from tests import tiny

MODEL = tiny.config(tiny.BYTES)
NEW = settings.Start(model=MODEL)
ON_POLICY = method_lib.Method(divergence='forward_kl', fixed_fraction=0.0)
PARALLEL = dataclasses.replace(
    ON_POLICY, parallel=parallel.Parallel(block_length=3, chains=2)
)
FAST = optimizers.Optimizer(name='adamw', learning_rate=3e-3, warmup_steps=1)
VALIDATION = settings.Validation(
    every=3,
    examples=8,
    decoding=decoding_lib.Decoding(drafting=decoding_lib.Drafting(length=2)),
)
STEPS = {'num_steps': 6, 'batch_size': 8, 'log_every': 1, 'checkpoint_every': 3}
_STEP_NAMES = {field for field in settings.Steps.__dataclass_fields__}


def train(folder, task, start=NEW, **changes):
  """Trains; `changes` are fields of Training, or of its Steps."""
  if isinstance(start, str):
    start = settings.Start(checkpoint=start)
  steps = {k: changes.pop(k) for k in list(changes) if k in _STEP_NAMES}
  groups = {'optimizer': FAST, 'validation': VALIDATION, **changes}
  training = settings.Training(
      start=start, steps=settings.Steps(**STEPS | steps), **groups
  )
  return loop.train(run=str(folder), task=task, training=training)


@pytest.fixture(scope='module')
def target(tmp_path_factory, task):
  folder = tmp_path_factory.mktemp('runs') / 'target'
  train(folder, task, num_steps=3)
  return str(folder)


def lines(folder):
  """What was recorded, but for times and rates."""
  recorded = results.read(folder / 'results.jsonl')
  for line in recorded:
    line['metrics'].pop('tokens_per_second', None)
    line.pop('provenance')
    line.pop('run')
    line.pop('draft')
  return [line for line in recorded if line['kind'] == 'training']


def values(folder, name):
  """The values of a metric, in order."""
  return [
      line['metrics'][name]['value']
      for line in results.read(folder / 'results.jsonl')
      if name in line['metrics']
  ]


def latest_step(folder):
  with store.Store(folder / 'checkpoints') as checkpoints:
    return checkpoints.latest_step()


def last_state(folder):
  """All arrays of the last checkpoint."""
  path = folder / 'checkpoints' / str(latest_step(folder)) / 'state'
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path)


def params(folder):
  return loading.load(folder).model.params


def scalars(folder):
  """What TensorBoard reads, but for rates: (step, name) -> values."""
  found = collections.defaultdict(list)
  for path in sorted((folder / 'metrics').glob('*tfevents*')):
    for event in tensorboard._events(path):
      for value in event.summary.value:
        if value.tag != 'tokens_per_second':
          found[event.step, value.tag].append(value.simple_value)
  return found


@pytest.mark.parametrize('distil', [False, True], ids=['fine-tune', 'distil'])
def test_an_interrupted_run_ends_as_if_it_had_not_been_interrupted(
    tmp_path, task, target, distil
):
  changes = {'start': NEW}
  if distil:
    changes = {'start': target, 'target': target, 'method': PARALLEL}
  train(tmp_path / 'whole', task, **changes)

  # Stopped hard: in the first step, when only step 0 is recorded and nothing
  # is saved, twice; and in the second after a checkpoint: step 4 is redone.
  class Stop(Exception):
    pass

  original, on_disk = recorder.Recorder.step, []

  def stopping(self, number, metrics):
    original(self, number, metrics)
    if number == stops[0]:
      on_disk.append({step for step, _ in scalars(tmp_path / 'stopped')})
      raise Stop

  stops = [1, 1, 5]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(recorder.Recorder, 'step', stopping)
    while stops:
      with pytest.raises(Stop):
        train(tmp_path / 'stopped', task, **changes)
      del stops[0]
  train(tmp_path / 'stopped', task, **changes)

  assert lines(tmp_path / 'whole') == lines(tmp_path / 'stopped')
  assert scalars(tmp_path / 'whole') == scalars(tmp_path / 'stopped')
  assert {step for step, _ in scalars(tmp_path / 'whole')} == set(range(7))
  assert on_disk[-1] >= {0, 1, 2, 3}  # before it was stopped
  assert all(len(x) == 1 for x in scalars(tmp_path / 'stopped').values())
  assert latest_step(tmp_path / 'whole') == 6
  whole, stopped = (
      last_state(tmp_path / name) for name in ('whole', 'stopped')
  )
  jax.tree.map(np.testing.assert_array_equal, whole, stopped)
  best = [params(tmp_path / name) for name in ('whole', 'stopped')]
  jax.tree.map(np.testing.assert_array_equal, *best)
  mask_token = loading.load(tmp_path / 'whole').config.mask_token
  assert mask_token == (2 if distil else None)


def test_a_run_leaves_its_files(tmp_path, task):
  best = train(tmp_path / 'run', task)
  folder = tmp_path / 'run'
  assert best == str(folder / 'best')
  assert (folder / 'best' / 'model.json').is_file()
  assert json.loads((folder / 'best' / 'vocabulary.json').read_text()) == {
      'kind': 'bytes'
  }
  assert list((folder / 'metrics').glob('events*'))
  kinds = {line['kind'] for line in results.read(folder / 'results.jsonl')}
  assert kinds == {'run', 'training'}
  model = loading.load(folder)
  assert model.vocabulary.decode(model.vocabulary.encode('ab')) == 'ab'


def test_what_is_truncated_is_printed(tmp_path, capfd):
  task = tiny.task(tmp_path / 'task', validation=8, label_length=6)
  train(tmp_path / 'run', task, num_steps=1)
  printed = capfd.readouterr().err
  assert 'run: train: 48 examples' in printed
  assert '48 labels cut, without EOS' in printed


def test_a_finished_run_is_not_done_again(tmp_path, task):
  train(tmp_path / 'run', task, num_steps=3)
  before = (tmp_path / 'run' / 'results.jsonl').read_text()
  train(tmp_path / 'run', task, num_steps=3)
  assert (tmp_path / 'run' / 'results.jsonl').read_text() == before


def test_distillation_records_acceptance_and_block_efficiency(
    tmp_path, task, target
):
  train(
      tmp_path / 'run',
      task,
      target,
      target=target,
      method=ON_POLICY,
      num_steps=2,
  )
  recorded = results.read(tmp_path / 'run' / 'results.jsonl')
  # The draft starts as the target itself: all is accepted.
  first = next(line for line in recorded if line['split'] == 'train')
  assert first['metrics']['expected_acceptance']['value'] > 0.99
  validation = next(line for line in recorded if line['split'] == 'validation')
  assert 2.0 < validation['metrics']['block_efficiency']['value'] <= 3.0


def test_a_draft_with_a_trimmed_vocabulary_is_distilled_and_kept(
    tmp_path, task, target
):
  texts = tmp_path / 'texts.txt'
  texts.write_text('\n'.join(word * 2 for word in tiny.WORDS[:3]))
  trimmed = tmp_path / 'trimmed'
  conversion.convert(target, str(trimmed), trim_vocabulary=9, texts=str(texts))
  best = train(
      tmp_path / 'run',
      task,
      str(trimmed),
      target=target,
      method=method_lib.Method(divergence='total_variation'),
      num_steps=2,
  )
  kept = loading.load(best).config.trimmed_vocabulary
  assert kept == loading.load(trimmed).config.trimmed_vocabulary
  assert len(kept) == 9
  assert 0.1 < values(tmp_path / 'run', 'uncovered')[0] < 0.9
  assert values(tmp_path / 'run', 'loss')[0] < 1.0


def test_a_draft_with_dropout_has_nothing_to_learn_from_itself(
    tmp_path, task, target
):
  conversion.convert(target, str(tmp_path / 'model'), to='hugging_face')
  path = tmp_path / 'model' / 'config.json'
  path.write_text(
      json.dumps({**json.loads(path.read_text()), 'dropout_rate': 0.1})
  )
  start = str(tmp_path / 'model')
  run = functools.partial(train, task=task, start=start, target=start)
  run(tmp_path / 'run', method=ON_POLICY, num_steps=1)
  (loss,) = values(tmp_path / 'run', 'loss')
  assert abs(loss) < 1e-6
  assert values(tmp_path / 'run', 'gradient_norm')[0] < 1e-5
  # What is handed on is the model's own configuration.
  assert loading.load(tmp_path / 'run').config.dropout_rate == 0.1
  noisy = dataclasses.replace(ON_POLICY, dropout_rate=0.1)
  run(tmp_path / 'noisy', method=noisy, num_steps=1)
  assert values(tmp_path / 'noisy', 'loss')[0] > 1e-2


# Which step is kept.

HARMFUL = optimizers.Optimizer(name='adamw', learning_rate=1.0)


def test_scores_are_printed_and_what_is_kept_is_recorded(tmp_path, task, capfd):
  train(tmp_path / 'run', task)
  err = capfd.readouterr().err
  for step in (0, 3, 6):
    assert f'run: step {step}: validation cross_entropy ' in err
  assert 'run: best/ is step 6 of 6, chosen by loss on the labels' in err
  assert 'WARNING' not in err
  about = json.loads((tmp_path / 'run' / 'best' / 'model.json').read_text())
  assert about['step'] == 6
  *_, kept = values(tmp_path / 'run', 'cross_entropy')
  assert about['metrics'] == {
      'cross_entropy': kept,
      'examples': 8,
      'measure': 'loss on the labels',
      'keep': 'best',
  }
  assert values(tmp_path / 'run', 'best_step') == [0, 3, 6]


def test_an_untrained_draft_is_returned_with_a_warning_or_not_at_all(
    tmp_path, task, target, capfd
):
  for keep in ('best', 'last'):
    train(
        tmp_path / keep, task, target, target=target, optimizer=HARMFUL,
        method=ON_POLICY, num_steps=3,
        validation=dataclasses.replace(VALIDATION, keep=keep),
    )  # fmt: skip
  err = capfd.readouterr().err
  assert 'WARNING: best: best/ is step 0 of 3, chosen by block eff' in err
  assert 'last: best/ is step 3 of 3, the last one' in err
  as_it_came, best, last = map(
      params, (target, tmp_path / 'best', tmp_path / 'last')
  )
  same = lambda *trees: all(
      jax.tree.leaves(jax.tree.map(np.array_equal, *trees))
  )
  assert same(as_it_came, best) and not same(as_it_came, last)


def test_no_step_is_kept_that_was_trained_anew_otherwise(
    tmp_path, task, monkeypatch
):
  # Stopped when step 4 is in best/, but the checkpoint is of step 3.
  every = dataclasses.replace(VALIDATION, every=1)
  original = recorder.Recorder.step

  def stopping(self, number, metrics):
    original(self, number, metrics)
    if number == 5:
      raise ZeroDivisionError

  with monkeypatch.context() as patch:
    patch.setattr(recorder.Recorder, 'step', stopping)
    with pytest.raises(ZeroDivisionError):
      train(tmp_path / 'run', task, validation=every)
  path = tmp_path / 'run' / 'best' / 'model.json'
  assert json.loads(path.read_text())['step'] == 4
  worse = dataclasses.replace(FAST, learning_rate=100.0)
  train(tmp_path / 'run', task, validation=every, optimizer=worse)
  about = json.loads(path.read_text())
  assert about['step'] == values(tmp_path / 'run', 'best_step')[-1]
  scores = values(tmp_path / 'run', 'cross_entropy')
  assert about['metrics']['cross_entropy'] in scores


@pytest.mark.parametrize('measure', ['sampled', 'loss'])
def test_the_measure_is_chosen(tmp_path, task, target, capfd, measure):
  train(
      tmp_path / 'run', task, target=target, method=ON_POLICY, num_steps=2,
      validation=dataclasses.replace(VALIDATION, measure=measure),
  )  # fmt: skip
  err = capfd.readouterr().err
  text = {'sampled': 'T = 1, block length 2', 'loss': 'loss on the labels'}
  assert f'{text[measure]}, on validation: ' in err


# Numbers that are not finite.


class Exploding:
  """An optimizer of one's own: plain descent that bursts at a step."""

  def __init__(self, at=None, learning_rate=1e38):
    self.at, self.learning_rate = at, learning_rate

  def schedule(self, num_steps):
    at = num_steps if self.at is None else self.at - 1
    return lambda step: jnp.where(step == at, self.learning_rate, 0.01)

  def build(self, num_steps):
    return optax.sgd(self.schedule(num_steps))


def test_training_stops_where_numbers_are_not_finite(tmp_path, task):
  folder = tmp_path / 'run'
  stopped = 'stops at step 5, which is not finite: .*of step 3. Lower Opt'
  with pytest.raises(errors.Failed, match=stopped):
    train(folder, task, optimizer=Exploding(5), log_every=10)
  assert latest_step(folder) == 3
  assert values(folder, 'step')[-1] == 3
  for state in (last_state(folder)['params'], params(folder)):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  # With another rate it resumes.
  train(folder, task, optimizer=Exploding())
  assert latest_step(folder) == 6


@pytest.mark.parametrize('rate', [1e38, math.nan])
def test_without_a_good_step_there_is_no_checkpoint(tmp_path, task, rate):
  with pytest.raises(errors.Failed, match='at step 1, .*no checkpoint yet'):
    train(
        tmp_path / 'run', task, optimizer=Exploding(1, rate),
        log_every=10, checkpoint_every=1,
    )  # fmt: skip
  assert latest_step(tmp_path / 'run') is None
  assert 'NaN' not in (tmp_path / 'run' / 'results.jsonl').read_text()


def test_packed_fine_tuning_runs(tmp_path, task):
  train(tmp_path / 'run', task, num_steps=2, pack=True)
  assert (tmp_path / 'run' / 'best').is_dir()


def half_forward_kl(p_logits, q_logits):
  """A divergence of one's own."""
  return 0.5 * divergences.forward_kl(p_logits, q_logits)


class Halving:
  """An optimizer of one's own: plain descent, its rate halved every step."""

  def schedule(self, num_steps):
    return lambda step: 0.1 * 0.5**step

  def build(self, num_steps):
    return optax.sgd(self.schedule(num_steps))


def test_a_divergence_and_an_optimizer_of_ones_own_are_trained_with(
    tmp_path, task, target
):
  own = method_lib.Method(divergence=half_forward_kl)
  named = method_lib.Method(divergence='forward_kl')
  for name, method in (('own', own), ('named', named)):
    train(
        tmp_path / name,
        task,
        target=target,
        method=method,
        optimizer=Halving(),
        num_steps=2,
    )
  # The same model and data at the first step: half the divergence.
  own_losses, losses = (
      values(tmp_path / name, 'loss') for name in ('own', 'named')
  )
  assert own_losses[0] == pytest.approx(0.5 * losses[0], rel=1e-5)
  assert losses[1] < losses[0] and own_losses[1] < own_losses[0]
  rates = values(tmp_path / 'own', 'learning_rate')
  assert rates == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'num_steps': 0}, 'num_steps is 0'),
        ({'batch_size': 0}, 'batch_size is 0'),
        ({'micro_batches': 3}, 'micro_batches is 3'),
        ({'log_every': 0}, 'log_every is 0'),
        ({'method': ON_POLICY}, 'needs a target'),
        ({'start': settings.Start()}, 'give one of them'),
        ({'start': settings.Start(model='huge')}, "'huge'"),
        ({'mesh': mesh_lib.MeshSizes(data=3)}, 'The mesh is data 3'),
        ({'batch_size': 12}, 'batch size 12 is not a multiple of 8'),
        (
            {'optimizer': types.SimpleNamespace(build=None)},
            'has no function build',
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path, task, changes, message
):
  with pytest.raises(errors.UserError, match=message):
    train(tmp_path / 'run', task, **changes)
  left = (
      list((tmp_path / 'run').iterdir()) if (tmp_path / 'run').exists() else []
  )
  assert not left


def test_a_run_resumes_on_another_mesh(tmp_path, task, target):
  steady = optimizers.Optimizer(
      name='adamw', learning_rate=3e-3, cooldown_from=1.0
  )
  distil = functools.partial(
      train, task=task, target=target, method=ON_POLICY, optimizer=steady
  )
  distil(tmp_path / 'whole', start=target)
  distil(tmp_path / 'moved', start=target, num_steps=3)
  distil(
      tmp_path / 'moved',
      start=settings.Start(checkpoint=target, layout='fsdp', remat='dots'),
      mesh=mesh_lib.MeshSizes(fsdp=2, tensor=2),
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
      settings.Start(
          checkpoint=target, dtype='bfloat16', remat='full', scan_layers=True
      ),
      target=settings.Target(
          checkpoint=target,
          weights='int8',
          layout='replicated',
          scan_layers=True,
      ),
      method=ON_POLICY,
      num_steps=1,
      micro_batches=2,
      mesh=mesh_lib.MeshSizes(fsdp=2, tensor=2),
  )
  (loss,) = values(tmp_path / 'run', 'loss')
  # Nearly the same model: what is lost in the third digit.
  assert 0.0 < loss < 0.05
  draft = loading.load(tmp_path / 'run')
  assert draft.config.dtype == 'bfloat16' and draft.config.scan_layers
  embedding = draft.model.params['token_embedder']['embedding']
  assert embedding.dtype == jnp.float32


def test_a_target_is_computed_as_it_is_placed(target):
  placed = settings.Target(
      checkpoint=target, dtype='bfloat16', weights='int8', attention='xla',
      scan_layers=True,
  )  # fmt: skip
  loaded = loop._load_target(placed, mesh_lib.make_mesh())
  names = {field.name for field in dataclasses.fields(placed)}
  expected = {
      field.name: getattr(placed, field.name)
      for field in dataclasses.fields(loaded.config)
      if field.name in names
  }
  assert {'attention', 'dtype', 'scan_layers', 'weights'} == set(expected)
  assert {n: getattr(loaded.config, n) for n in expected} == expected
  assert loaded.model.network.config == loaded.config


def test_another_model_in_the_same_folder_is_refused(tmp_path, task):
  train(tmp_path / 'run', task, num_steps=1)
  other = settings.Start(model=tiny.config(tiny.BYTES, emb_dim=32))
  with pytest.raises(errors.UserError, match='another model'):
    train(tmp_path / 'run', task, other, num_steps=2)


def test_a_terminated_run_writes_a_checkpoint(tmp_path):
  # A process of its own: a signal is for a whole process.
  script = tmp_path / 'run.py'
  script.write_text(f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
from distillspec_jax.training import loop, recorder, settings
from tests import tiny
original = recorder.Recorder.step
def step(self, number, metrics):
  original(self, number, metrics)
  if number == 2:
    os.kill(os.getpid(), signal.SIGTERM)
recorder.Recorder.step = step
loop.train(
    run={str(tmp_path / 'run')!r},
    task=tiny.task(pathlib.Path({str(tmp_path / 'task')!r})),
    training=settings.Training(
        start=settings.Start(model=tiny.config(tiny.BYTES)),
        steps=settings.Steps(
            num_steps=50, batch_size=8, log_every=50, checkpoint_every=50),
        validation=settings.Validation(every=50, examples=4)))
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


# Runs that continue one of t5x.


@pytest.fixture(scope='module')
def adafactor_checkpoint(tmp_path_factory):
  """A checkpoint of t5x after 4 steps, and the moments in it."""
  folder = tmp_path_factory.mktemp('t5x')
  params = tiny.model(tiny.BYTES).params
  transform = optimizers.Optimizer().build(10)
  state = transform.init(params)
  ones = jax.tree.map(jnp.ones_like, params)
  update = jax.jit(transform.update)
  for _ in range(4):
    _, state = update(ones, state, params)
  moments = optimizers.adafactor_moments(state)
  flat = tensors.flatten(params)
  t5x.write(
      epath.Path(folder),
      {path: tensors.from_array(x) for path, x in flat.items()},
      *moments,
  )
  return str(folder), moments


def continuing(folder):
  return settings.Start(checkpoint=folder, with_optimizer=True)


def test_a_run_of_t5x_is_continued(tmp_path, task, adafactor_checkpoint):
  folder, moments = adafactor_checkpoint
  train(
      tmp_path / 'run', task, continuing(folder), num_steps=6,
      optimizer=optimizers.Optimizer(),
      method=method_lib.Method(reduction='sum'),
  )  # fmt: skip
  assert moments.step == 4
  assert latest_step(tmp_path / 'run') == 6
  steps = set(values(tmp_path / 'run', 'step'))
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
def test_what_cannot_be_continued_is_refused(
    tmp_path, task, adafactor_checkpoint, changes, message
):
  changes = {'optimizer': optimizers.Optimizer(), **changes}
  start = continuing(adafactor_checkpoint[0])
  with pytest.raises(errors.UserError, match=message):
    train(tmp_path / 'run', task, start, **changes)


def test_only_a_run_of_t5x_is_continued(tmp_path, task, target):
  with pytest.raises(errors.UserError, match='is no checkpoint of t5x'):
    train(tmp_path / 'run', task, continuing(target))


# Vocabularies.


def test_the_vocabulary_is_that_of_the_model(tmp_path, target):
  task = tiny.task(tmp_path / 'task', validation=8, vocabulary=None)
  train(tmp_path / 'run', task, target, num_steps=1)
  assert loading.load(tmp_path / 'run').vocabulary.vocab_size == 259


def test_a_model_without_vocabulary_needs_one(tmp_path, adafactor_checkpoint):
  task = tiny.task(tmp_path / 'task', validation=8, vocabulary=None)
  with pytest.raises(errors.UserError, match='comes without a vocabulary'):
    train(tmp_path / 'run', task, adafactor_checkpoint[0])


# A draft that shares the target's encoder.


@pytest.mark.parametrize('how', ['model', 'checkpoint', 'again'])
def test_a_draft_that_shares_the_encoder_is_trained(
    tmp_path, task, target, how
):
  distil = functools.partial(train, task=task, target=target)
  start = settings.Start(model='test', shared_encoder=True)
  if how != 'model':
    train(tmp_path / 'first', task, num_steps=1)
    start = settings.Start(
        checkpoint=str(tmp_path / 'first'), shared_encoder=True
    )
  if how == 'again':  # it shares already, and need not be told
    distil(tmp_path / 'second', start=start, num_steps=1)
    start = str(tmp_path / 'second')
  folder = tmp_path / 'draft'
  distil(folder, start=start, method=ON_POLICY)
  draft = loading.load(folder)
  assert draft.config.encoded_dim == 16 and draft.config.num_encoder_layers == 0
  loading.check_pair(loading.load(target), draft)
  losses = values(folder, 'loss')
  assert losses[-1] < losses[0]
  # Started again, it does nothing more.
  distil(folder, start=start, method=ON_POLICY)
  assert values(folder, 'loss') == losses


def test_a_draft_starts_near_the_one_it_was_made_of(tmp_path, task, target):
  # The target itself as the draft: the fitted map is the identity, nearly.
  starts = {
      'fitted': settings.Start(checkpoint=target, shared_encoder=True),
      'new': settings.Start(model=MODEL, shared_encoder=True),
  }
  for name, start in starts.items():
    train(
        tmp_path / name,
        task,
        start,
        target=target,
        method=method_lib.Method(divergence='forward_kl'),
        num_steps=1,
    )
  (fitted,), (new,) = (values(tmp_path / name, 'loss') for name in starts)
  assert fitted < 0.05 * new


@pytest.mark.parametrize(
    'start, message',
    [
        (
            settings.Start(model='test', shared_encoder=True),
            'there is no target',
        ),
        (
            settings.Start(model=tiny.config(tiny.BYTES, encoded_dim=16)),
            "reads its target's encoder output, but there is no target",
        ),
    ],
)
def test_a_shared_encoder_needs_a_target(tmp_path, task, start, message):
  with pytest.raises(errors.UserError, match=message):
    train(tmp_path / 'run', task, start)
  assert not (tmp_path / 'run').exists()
