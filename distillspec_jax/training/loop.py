"""The training loop: fine-tuning and distillation, by the method it is given.

A run lives in a folder. Started again in the same folder, it resumes from its
last checkpoint, with the state, the random numbers and the data position that
it had, and ends as if it had never been interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import itertools
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import store
from distillspec_jax.checkpoints import t5x
from distillspec_jax.core import check
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import progress as progress_lib
from distillspec_jax.core import randomness
from distillspec_jax.core import sources
from distillspec_jax.core import types
from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import sharded_batches
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.distributed import hosts
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import locks
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.training import how_made
from distillspec_jax.training import optimizers
from distillspec_jax.training import recorder as recorder_lib
from distillspec_jax.training import resumption
from distillspec_jax.training import settings as settings_lib
from distillspec_jax.training import shared_encoder
from distillspec_jax.training import step as step_lib
from distillspec_jax.training import validation as validation_lib

# Examples on which a shared encoder's projection is fitted.
_FITTED_ON = 512


def train(
    *,
    run: str,
    task: tasks.Task,
    training: settings_lib.Training,
    seed: int = 0,
) -> str:
  """Trains a model in the folder `run`; resumes from its last checkpoint.

  Args:
    run: the run's folder; created if it is absent.
    task: what to train on.
    training: the model, the method, the steps.
    seed: of initialisation, data order and sampling.

  Returns:
    The folder of the best model, RUN/best.

  Raises:
    UserError: anything that is wrong with the arguments, before work starts.
  """
  folder = sources.run_folder(run)
  training.check()
  check.seed(seed=seed)
  resumption.check_place(folder, training)
  if training.method.parallel:
    training.method.parallel.sizes(task.label_length)  # checks block_length
  start, steps = training.start, training.steps
  transform = training.optimizer.build(steps.num_steps)
  learning_rate = training.optimizer.schedule(steps.num_steps)
  mesh = training.mesh.create()
  mesh_lib.check_batch(mesh, steps.batch_size // steps.micro_batches)
  target = _load_target(training.target, mesh)
  stored = resumption.stored_vocabulary(folder)
  trained, task = _model_to_train(training, target, task, stored, seed, mesh)
  resumption.check_vocabulary(folder, trained.vocabulary, stored)
  if target is not None:
    loading.check_pair(target, trained)
  elif trained.config.shares_encoder:
    raise errors.UserError(
        "The model reads its target's encoder output, but there is no target;"
        ' set Target.checkpoint to the folder of the one that it was made for.'
    )
  moments = None
  if start.with_optimizer:
    moments = _moments(start.checkpoint, steps.num_steps)
  judge, measure = _judge(training, target, task)
  # All that can fail on the data fails here, before anything is written.
  held_out = _first(
      task, 'validation', training.validation.examples, steps.batch_size, mesh
  )
  sharded_batches.batches(mesh, task, 'train', steps.batch_size, seed=seed)
  settings = resumption.describe(training, task, seed)
  _describe_data(task, folder.name)
  store.check_writable(folder)
  store.check_shared(folder)

  with (
      store.writing(folder),
      locks.held(folder / locks.FILE) as lock,
      jax.set_mesh(mesh),
      store.Store(
          folder / 'checkpoints', keep=steps.keep_checkpoints
      ) as checkpoints,
  ):
    state, abstract = _initial_state(trained.model, transform, mesh, seed)
    if moments is not None:
      state = state.replace(
          step=jax.device_put(jnp.int32(moments.step), state.step.sharding),
          optimizer=optimizers.with_adafactor_moments(state.optimizer, moments),
      )
    selection = validation_lib.Selection(training.validation.keep)
    done = None
    found = checkpoints.restore_last(
        abstract,
        lambda done, extra: resumption.check(
            folder, done, extra, settings, trained.config, steps.num_steps
        ),
    )
    if found is not None:
      done, state, extra = found
      changed = resumption.changes(extra, settings)
      resumption.announce(folder, done, changed, steps.num_steps)
      selection.restore(extra['best'])
      resumption.repair_best(
          folder, trained, checkpoints, abstract, state, selection.step
      )
      # best/ may be of a later step, which is trained otherwise this time.
      is_left = model_folder.read(folder / 'best').step != selection.step
      if resumption.affects_scores(changed) or (changed and is_left):
        selection.best = None
    first = int(state.step)
    recorder = recorder_lib.Recorder(folder, task, target, seed, done, lock)
    how_made.record(folder, settings, trained, target, task, seed)
    if hosts.is_first():
      if found is None:
        if (folder / 'best').exists():
          print(
              f'{folder.name}: there is no checkpoint; starts again from step'
              f' {first}, and best/ is replaced',
              file=sys.stderr,
              flush=True,
          )
        resumption.store_vocabulary(folder, trained.vocabulary)
      model_folder.write_config(folder, trained.config.to_dict())
      configuration.write(folder)

    network = trained.model.network
    target_model = None if target is None else target.model
    update = jax.jit(
        step_lib.make_step(
            training.method, transform, network, steps.micro_batches
        ),
        # The old state is not needed once there is a new one.
        donate_argnums=0,
        out_shardings=(
            jax.tree.map(lambda leaf: leaf.sharding, abstract),
            mesh_lib.replicated(mesh),
        ),
    )

    def keep_if_best(step: int) -> None:
      recorder.check()
      score = judge(trained.model.replace(params=state.params), held_out)
      is_kept = selection.takes(step, score)
      recorder.score(step, score, selection)
      if is_kept:
        _save_best(folder, trained, state.params, selection, score, measure)

    if found is None:
      keep_if_best(first)
    data = sharded_batches.batches(
        mesh, task, 'train', steps.batch_size, seed=seed, pack=steps.pack,
        start=first,
    )  # fmt: skip
    last = steps.num_steps
    extra = {
        'seed': seed,
        'settings': settings,
        'model': trained.config.to_dict(),
    }
    with (
        _interruptions() as interrupted,
        recorder,
        progress_lib.Progress(folder.name, last, first) as progress,
    ):
      for number in range(first, last):
        state, metrics = update(state, target_model, next(data))
        done = number + 1
        recorder.step(done, metrics)
        if done % steps.log_every == 0 or done == last:
          values = recorder.flush(done, float(learning_rate(number)))
          progress.update(done, _progress_text(values))
        if done % training.validation.every == 0 or done == last:
          keep_if_best(done)
        stop = hosts.stop_here(bool(interrupted))
        if done % steps.checkpoint_every == 0 or done == last or stop:
          recorder.flush(done, float(learning_rate(number)))
          best = selection.to_dict()
          checkpoints.save(done, state, {'best': best, **extra})
          recorder.saved = done
        if stop:
          checkpoints.wait()
          if interrupted == [signal.SIGINT]:
            raise KeyboardInterrupt
          raise errors.Terminated
    checkpoints.wait()
    lock.check()
    model_folder.read_config(folder / 'best')  # it is what is returned
  if hosts.is_first():
    print(selection.describe(folder.name, measure, last), file=sys.stderr)
  return str(folder / 'best')


def _load_target(
    target: settings_lib.Target | None, mesh: jax.sharding.Mesh
) -> loading.Loaded | None:
  if target is None:
    return None
  layout = layouts.rules(target.layout)
  loaded = loading.load(
      target.checkpoint,
      mesh=mesh,
      layout=layout,
      dtype=target.dtype,
      param_dtype=target.dtype,
      weights=target.weights,
      scan_layers=target.scan_layers,
  )
  return _with_config(loaded, target.configure(loaded.config), layout)


def _model_to_train(
    training: settings_lib.Training,
    target: loading.Loaded | None,
    task: tasks.Task,
    stored: Any | None,
    seed: int,
    mesh: jax.sharding.Mesh,
) -> tuple[loading.Loaded, tasks.Task]:
  """The model to train, on the mesh, and the task with its vocabulary.

  One that is stored in the run is not trained anew.
  """
  start = training.start
  if start.checkpoint is not None:
    return _from_checkpoint(training, target, task, mesh)
  if target is not None:
    task = task.with_vocabulary(target.vocabulary, target.name)
  elif stored is not None:
    task = task.with_vocabulary(stored, 'of the run')
  task = task.with_trained_vocabulary()
  vocabulary, config = task.vocabulary, start.model
  if isinstance(config, str):
    padded = -(-vocabulary.vocab_size // 128) * 128
    config = config_lib.published(config, vocab_size=padded)
  if config.vocab_size < vocabulary.vocab_size:
    raise errors.UserError(
        f'The model has {config.vocab_size} rows for tokens, task {task.name!r}'
        f' has {vocabulary.vocab_size} tokens. Set vocab_size to at least'
        ' that.'
    )
  if start.shared_encoder:
    config = shared_encoder.config(config, target.config)
  network = transformer_lib.Transformer(
      training.configure(config), layouts.rules(start.layout)
  )
  key = randomness.stream(jax.random.key(seed), 'init')
  model = model_lib.Model(network.init(key, mesh), network)
  return loading.Loaded(model, vocabulary, 'new'), task


def _from_checkpoint(
    training: settings_lib.Training,
    target: loading.Loaded | None,
    task: tasks.Task,
    mesh: jax.sharding.Mesh,
) -> tuple[loading.Loaded, tasks.Task]:
  """The model of a checkpoint, and the task with its vocabulary."""
  start, layout = training.start, layouts.rules(training.start.layout)
  trained = loading.load(
      start.checkpoint,
      param_dtype='float32',
      scan_layers=start.scan_layers,
      mesh=mesh,
      layout=layout,
  )
  trained = _with_config(trained, training.configure(trained.config), layout)
  task = task.with_vocabulary(trained.vocabulary, str(start.checkpoint))
  if trained.vocabulary is None:
    trained = dataclasses.replace(trained, vocabulary=task.vocabulary)
  if not vocabularies.same(trained.vocabulary, task.vocabulary):
    raise errors.UserError(
        f'The model in {start.checkpoint} has another vocabulary than task'
        f" {task.name!r}. Leave the task's vocabulary out, or set it to"
        f' {start.checkpoint}.'
    )
  if start.shared_encoder and not trained.config.shares_encoder:
    batches = _first(task, 'train', _FITTED_ON, 32, mesh)
    prompts = (batch.prompt for batch in batches)
    trained = shared_encoder.from_draft(trained, target, prompts, mesh)
  return trained, task


def _with_config(
    loaded: loading.Loaded, config: config_lib.T5Config, layout: layouts.Rules
) -> loading.Loaded:
  """The same parameters, computed otherwise."""
  network = transformer_lib.Transformer(config, layout)
  model = loaded.model.replace(network=network)
  return dataclasses.replace(loaded, model=model)


def _judge(
    training: settings_lib.Training,
    target: loading.Loaded | None,
    task: tasks.Task,
) -> tuple[Callable[..., validation_lib.Score], str]:
  """(model, batches) -> its score, and in words what that is."""
  validation = training.validation
  if target is None or validation.measure == 'loss':
    model = None if target is None else target.model
    judge = functools.partial(validation_lib.loss, training.method, model)
    measure = 'loss on the labels'
  else:
    decoding = validation.decoding_for(
        task.label_length, training.method.parallel
    )
    measure = f'block efficiency, {decoding.label()}'
    judge = functools.partial(
        validation_lib.block_efficiency, target.model, decoding=decoding
    )
  return functools.partial(judge, examples=validation.examples), measure


def _moments(checkpoint: str | None, num_steps: int) -> optimizers.Moments:
  """The state of the optimizer in a t5x checkpoint."""
  folder = None
  if checkpoint is not None:
    folder = t5x.find(sources.resolve(checkpoint))
  if folder is None:
    raise errors.UserError(
        f'Start.with_optimizer is True, but Start.checkpoint ({checkpoint}) is'
        ' no checkpoint of t5x; only its Adafactor state can be continued.'
        ' Leave it out to start the optimizer anew.'
    )
  moments = optimizers.Moments(*t5x.read_adafactor(folder))
  if moments.step >= num_steps:
    raise errors.UserError(
        f'num_steps is {num_steps}, but {folder} has done {moments.step} steps'
        ' already, which count; set num_steps to the last step of all.'
    )
  return moments


def _initial_state(model, transform, mesh, seed):
  """The state at step 0, and its shapes with shardings for restoring."""
  abstract = step_lib.abstract_state(model.params, transform, mesh)
  key = randomness.stream(jax.random.key(seed), 'training')
  create = jax.jit(
      lambda params, key: (jnp.int32(0), transform.init(params), key),
      out_shardings=jax.tree.map(
          lambda leaf: leaf.sharding,
          (abstract.step, abstract.optimizer, abstract.key),
      ),
  )
  step, optimizer, key = create(model.params, key)
  # The step donates the parameters that the model came with.
  return step_lib.TrainState(step, model.params, optimizer, key), abstract


def _first(
    task: tasks.Task, split: str, examples: int, batch_size: int, mesh: Any
) -> list[types.Batch]:
  """The first examples of a split, in batches of one shape."""
  rows = min(batch_size, examples)
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  rows = -(-rows // ways) * ways
  batches = sharded_batches.batches(
      mesh, task, split, rows, seed=0, shuffle=False, num_epochs=1
  )
  return list(itertools.islice(batches, -(-examples // rows)))


def _describe_data(task: tasks.Task, name: str) -> None:
  """Prints what is trained on, and what is truncated or left out."""
  if hosts.is_first():
    for split in ('train', 'validation'):
      described = batches_lib.statistics(task, split).describe()
      print(f'{name}: {split}: {described}', file=sys.stderr, flush=True)


def _progress_text(values: dict[str, float]) -> str:
  names = [name for name in ('loss', 'expected_acceptance') if name in values]
  return '  '.join(f'{name} {values[name]:.3f}' for name in names)


def _save_best(folder, trained, params, selection, score, measure) -> None:
  model_folder.save_model(
      folder / 'best',
      trained.config.to_dict(),
      params,
      selection.step,
      metrics={
          score.name: score.value,
          'examples': len(score.totals),
          'measure': measure,
          'keep': selection.keep,
      },
      also=lambda path: vocabularies.save(trained.vocabulary, path),
  )


@contextlib.contextmanager
def _interruptions():
  """Yields a list that is no longer empty once the run is asked to stop.

  SIGINT and SIGTERM end the run after the step under way, with a checkpoint; on
  several hosts all stop after the same step. A second one stops at once.
  """
  asked: list[int] = []

  def handle(number, frame):
    if asked:
      raise KeyboardInterrupt
    asked.append(number)

  try:
    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
  except ValueError:  # not the main thread: the caller handles signals
    before = {}
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
