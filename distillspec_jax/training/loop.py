"""The training loop: fine-tuning and distillation, by the method it is given.

A run lives in a folder. Started again in the same folder it goes on from its
last checkpoint, with the state, the random numbers and the data position it
had, and ends as if it had never been stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import store
from distillspec_jax.checkpoints import t5x
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.core import sources
from distillspec_jax.core import types
from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import sharded_batches
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.distributed import hosts
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import progress as progress_lib
from distillspec_jax.training import shared_encoder as shared_encoder_lib
from distillspec_jax.training import step as step_lib
from distillspec_jax.training import validation

_FINE_TUNING = method_lib.Method()
_ADAFACTOR = optimizers.Optimizer()
# Examples on which a shared encoder's projection is fitted.
_FITTED_ON = 512


def train(
    *,
    run: str,
    task: tasks.Task,
    num_steps: int,
    model: config_lib.T5Config | str | None = None,
    initial: str | None = None,
    initial_optimizer: bool = False,
    target: str | None = None,
    shared_encoder: bool = False,
    method: method_lib.Method = _FINE_TUNING,
    optimizer: optimizers.Optimizer = _ADAFACTOR,
    batch_size: int = 32,
    micro_batches: int = 1,
    pack: bool = False,
    log_every: int = 10,
    validation_every: int = 100,
    validation_examples: int = 64,
    validation_block_length: int = 5,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    seed: int = 0,
    mesh_data: int = -1,
    mesh_fsdp: int = 1,
    mesh_tensor: int = 1,
    layout: str | tuple = 'split',
    target_layout: str | tuple = 'split',
    dtype: str | None = None,
    remat: str | None = None,
    target_dtype: str | None = None,
    target_weights: str | None = None,
) -> str:
  """Trains a model in the folder `run`; goes on where it left off.

  Args:
    run: the run's folder; made if it is absent.
    task: what to train on.
    num_steps: updates in all, those before a restart included.
    model: the model to start from scratch: a configuration, or a name of
      `models.config.published`, which then gets the task's vocabulary.
    initial: folder of the model to start from instead.
    initial_optimizer: goes on with the step and the Adafactor state of
      `initial`, a t5x checkpoint; num_steps counts its steps, too. t5x's loss
      is a sum over tokens: set Method.reduction = 'sum'.
    target: folder of the target, where the method or a shared encoder needs
      one.
    shared_encoder: what is trained is a draft that reads the target's encoder
      output and has no encoder: that of `model` is left out, that of `initial`
      is replaced by a projection fitted to it.
    method: what is minimised and on whose tokens; default: fine-tuning.
    optimizer: and its schedule.
    batch_size: examples (rows, if packed) a step, over all devices.
    micro_batches: parts the batch is split into, to save memory.
    pack: several examples a row; not where tokens are sampled.
    log_every: steps between lines of results.
    validation_every: steps between validations; the best model is kept.
    validation_examples: how many examples are judged.
    validation_block_length: drafted tokens a block, with a target.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many are kept.
    seed: of initialisation, data order and sampling.
    mesh_data: size of the data axis, -1: all devices that are left.
    mesh_fsdp: size of the fsdp axis.
    mesh_tensor: size of the tensor axis.
    layout: how the trained model lies on the mesh: 'split' over the axes fsdp
      and tensor, over 'fsdp' alone, or 'whole' on every device; or pairs, see
      `core.layouts.rules`.
    target_layout: the same for the target.
    dtype: what the trained model computes in, 'float32' or 'bfloat16'; its
      parameters are float32 all the same. Default: as its configuration says.
    remat: what its backward pass computes again, to save memory: 'none', 'dots'
      (all but matrix products) or 'full'. Default: as its configuration says.
    target_dtype: what the target is held and computed in. Default: as saved.
    target_weights: 'int8' or 'int8_weight_only' hold the target in a quarter of
      the memory, see `models.pretrained.load`. Default: as saved.

  Returns:
    The folder of the best model, RUN/best.

  Raises:
    UserError: anything that is wrong with the arguments, before work starts.
  """
  folder = pathlib.Path(run)
  _check(num_steps, batch_size, micro_batches, pack, method, target)
  if shared_encoder and target is None:
    raise errors.UserError(
        'shared_encoder is True, but there is no target whose encoder is to be'
        ' shared; set loop.train.target to the folder of one.'
    )
  for name, value in (
      ('log_every', log_every),
      ('validation_every', validation_every),
      ('checkpoint_every', checkpoint_every),
      ('validation_examples', validation_examples),
      ('validation_block_length', validation_block_length),
  ):
    if value < 1:
      raise errors.UserError(f'{name} is {value}; it must be at least 1.')
  transform = optimizer.build(num_steps)
  schedule = optimizer.schedule(num_steps)
  mesh = mesh_lib.make_mesh(mesh_data, mesh_fsdp, mesh_tensor)
  mesh_lib.check_batch(mesh, batch_size // micro_batches)
  target_model = None
  if target is not None:
    target_model = loading.load(
        target,
        mesh=mesh,
        layout=layouts.rules(target_layout),
        dtype=target_dtype,
        param_dtype=target_dtype,
        weights=target_weights,
    )
    if initial is None:
      task = task.with_vocabulary(target_model.vocabulary, str(target))
  shared = target_model if shared_encoder else None
  changes = {'dtype': dtype, 'remat': remat}
  changes = {name: v for name, v in changes.items() if v is not None}
  trained, task = _model_to_train(
      model, initial, shared, task, seed, mesh, layouts.rules(layout), changes
  )
  if target_model is not None:
    loading.check_pair(target_model, trained)
  elif trained.config.shares_encoder:
    raise errors.UserError(
        "The model reads its target's encoder output, but there is no target;"
        ' set loop.train.target to the folder of the one that it is made for.'
    )
  moments = _moments(initial, num_steps) if initial_optimizer else None
  # All that can fail on the data fails here, before anything is written.
  held_out = _first(task, 'validation', validation_examples, batch_size, mesh)
  sharded_batches.batches(mesh, task, 'train', batch_size, seed=seed)
  _describe_data(task, folder.name)
  store.check_writable(folder)
  store.check_shared(folder)

  with (
      jax.set_mesh(mesh),
      store.Store(folder / 'checkpoints', keep=keep_checkpoints) as checkpoints,
  ):
    state, abstract = _initial_state(trained, transform, mesh, seed)
    if initial_optimizer:
      state = state.replace(
          step=jax.device_put(jnp.int32(moments.step), state.step.sharding),
          optimizer=optimizers.with_adafactor_moments(state.optimizer, moments),
      )
    target_params = target_model.params if target_model else None
    best = None
    latest = checkpoints.latest_step()
    if latest is not None:
      _check_same_model(folder, trained.config)
      state, extra = checkpoints.restore(latest, abstract)
      best = extra['best']
    start = int(state.step)
    recorder = _Recorder(folder, task, trained, target_model, seed, start)
    if hosts.is_first():
      model_folder.write_config(folder, trained.config.to_dict())
      configuration.write(folder)

    update = jax.jit(
        step_lib.make_step(
            method,
            transform,
            trained.transformer,
            target_model.transformer if target_model else None,
            micro_batches,
        ),
        donate_argnums=0,
        out_shardings=(
            jax.tree.map(lambda leaf: leaf.sharding, abstract),
            mesh_lib.replicated(mesh),
        ),
    )

    def judge(params) -> validation.Score:
      if target_model is None:
        return validation.cross_entropy(trained.transformer, params, held_out)
      return validation.block_efficiency(
          target_model.transformer,
          target_params,
          trained.transformer,
          params,
          held_out,
          validation_block_length,
      )

    def keep_if_best(step: int) -> None:
      nonlocal best
      score = judge(state.params)
      recorder.score(step, score)
      if best is None or score.goodness > best:
        best = score.goodness
        _save_best(folder, trained, state.params, step, score)

    if latest is None:
      keep_if_best(start)
    data = sharded_batches.batches(
        mesh, task, 'train', batch_size, seed=seed, pack=pack, start=start
    )
    with (
        _interruptions() as interrupted,
        recorder,
        progress_lib.Progress(num_steps, start, folder.name) as progress,
    ):
      for number in range(start, num_steps):
        state, metrics = update(state, target_params, next(data))
        done = number + 1
        recorder.step(done, metrics)
        if done % log_every == 0 or done == num_steps:
          values = recorder.flush(done, float(schedule(number)))
          progress.update(done, values)
        if done % validation_every == 0 or done == num_steps:
          keep_if_best(done)
        stop = hosts.stop_here(bool(interrupted))
        if done % checkpoint_every == 0 or done == num_steps or stop:
          recorder.flush(done, float(schedule(number)))
          checkpoints.save(done, state, {'best': best, 'seed': seed})
        if stop:
          checkpoints.wait()
          if interrupted == [signal.SIGINT]:
            raise KeyboardInterrupt
          raise errors.Terminated
  return str(folder / 'best')


def _check(num_steps, batch_size, micro_batches, pack, method, target) -> None:
  if num_steps < 1:
    raise errors.UserError(f'num_steps is {num_steps}; it must be at least 1.')
  if batch_size < 1:
    raise errors.UserError(
        f'batch_size is {batch_size}; it must be at least 1.'
    )
  if micro_batches < 1 or batch_size % micro_batches:
    raise errors.UserError(
        f'micro_batches is {micro_batches}; it must divide the batch size'
        f' {batch_size}.'
    )
  if method.needs_target and target is None:
    raise errors.UserError(
        f'The method ({method.divergence}, fixed_fraction'
        f' {method.fixed_fraction}, draft_fraction {method.draft_fraction})'
        ' needs a target; set loop.train.target to the folder of one.'
    )
  if pack and method.fixed_fraction < 1.0:
    raise errors.UserError(
        'pack is True, but the method samples tokens (fixed_fraction is'
        f' {method.fixed_fraction}), one example a row. Set pack = False.'
    )


def _model_to_train(
    model: config_lib.T5Config | str | None,
    initial: str | None,
    shared: loading.Model | None,
    task: tasks.Task,
    seed: int,
    mesh: Any,
    layout: layouts.Rules,
    changes: dict[str, str],
) -> tuple[loading.Model, tasks.Task]:
  """The model to train, its starting parameters on the mesh, and its task.

  Args:
    model: as in `train`.
    initial: as in `train`.
    shared: the model whose encoder it reads, if it is to have none.
    task: gets the vocabulary of `initial`, unless it has one; otherwise its
      vocabulary, which is trained if it has none, becomes the model's.
    seed: of new parameters.
    mesh: where they are.
    layout: and how.
    changes: of its configuration that concern the computation alone.
  """
  if (model is None) == (initial is None):
    raise errors.UserError(
        f'model is {model!r} and initial is {initial!r}; give one of them: the'
        ' configuration of a new model, or the folder of one to start from.'
    )
  if initial is not None:
    trained = loading.load(
        initial, param_dtype='float32', mesh=mesh, layout=layout
    )
    trained = dataclasses.replace(
        trained,
        transformer=transformer_lib.Transformer(
            dataclasses.replace(trained.config, **changes), layout
        ),
    )
    task = task.with_vocabulary(trained.vocabulary, str(initial))
    if trained.vocabulary is None:
      trained = dataclasses.replace(trained, vocabulary=task.vocabulary)
    if not vocabularies.same(trained.vocabulary, task.vocabulary):
      raise errors.UserError(
          f'The model in {initial} has another vocabulary than task'
          f" {task.name!r}. Leave the task's vocabulary out, or set it to"
          f' {initial}.'
      )
    if shared is not None and not trained.config.shares_encoder:
      batches = _first(task, 'train', _FITTED_ON, 32, mesh)
      trained = shared_encoder_lib.from_draft(
          trained,
          shared,
          ((batch.inputs, batch.input_segments) for batch in batches),
          mesh,
      )
    return trained, task
  task = task.with_trained_vocabulary()
  vocabulary = task.vocabulary
  if isinstance(model, str):
    padded = -(-vocabulary.vocab_size // 128) * 128
    model = config_lib.published(model, vocab_size=padded)
  if model.vocab_size < vocabulary.vocab_size:
    raise errors.UserError(
        f'The model has {model.vocab_size} rows for tokens, task {task.name!r}'
        f' has {vocabulary.vocab_size} tokens. Set vocab_size to at least'
        ' that.'
    )
  if shared is not None:
    model = shared_encoder_lib.config(model, shared.config)
  model = dataclasses.replace(model, **changes)
  transformer = transformer_lib.Transformer(model, layout)
  key = randomness.stream(jax.random.key(seed), 'init')
  params = transformer.init(key, mesh)
  return loading.Model(transformer, params, vocabulary, 'new'), task


def _moments(initial: str | None, num_steps: int) -> optimizers.Moments:
  """The state of the optimizer in a t5x checkpoint."""
  folder = None
  if initial is not None:
    folder = t5x.find(sources.resolve(initial))
  if folder is None:
    raise errors.UserError(
        f'initial_optimizer is True, but initial ({initial}) is no checkpoint'
        ' of t5x; only its Adafactor is taken over. Leave it out to start the'
        ' optimizer anew.'
    )
  moments = optimizers.Moments(*t5x.read_adafactor(folder))
  if moments.step >= num_steps:
    raise errors.UserError(
        f'num_steps is {num_steps}, but {folder} has done {moments.step} steps'
        ' already, which count; set num_steps to the last step of all.'
    )
  return moments


def _initial_state(trained, transform, mesh, seed):
  """The state at step 0, and its shapes with shardings for restoring."""
  abstract = step_lib.abstract_state(trained.params, transform, mesh)
  key = randomness.stream(jax.random.key(seed), 'training')
  make = jax.jit(
      lambda params, key: (jnp.int32(0), transform.init(params), key),
      out_shardings=jax.tree.map(
          lambda leaf: leaf.sharding,
          (abstract.step, abstract.optimizer, abstract.key),
      ),
  )
  step, optimizer, key = make(trained.params, key)
  # The step donates the parameters that the model came with.
  return step_lib.TrainState(step, trained.params, optimizer, key), abstract


def _first(
    task: tasks.Task, split: str, examples: int, batch_size: int, mesh: Any
) -> list[types.Batch]:
  """The first examples of a split, in batches of one shape."""
  rows = min(batch_size, examples)
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  rows = -(-rows // ways) * ways
  found = sharded_batches.batches(
      mesh, task, split, rows, seed=0, shuffle=False, num_epochs=1
  )
  return list(itertools.islice(found, -(-examples // rows)))


def _describe_data(task: tasks.Task, name: str) -> None:
  """Says what is trained on, and what is cut off or left out."""
  if hosts.is_first():
    for split in ('train', 'validation'):
      described = batches_lib.statistics(task, split).describe()
      print(f'{name}: {split}: {described}', file=sys.stderr, flush=True)


def _check_same_model(folder: pathlib.Path, config: config_lib.T5Config):
  """Refuses to go on in a folder where another model was trained."""
  known = config_lib.T5Config.from_dict(model_folder.read_config(folder))
  # How it is computed may change.
  known = dataclasses.replace(known, dtype=config.dtype, remat=config.remat)
  if known != config:
    raise errors.UserError(
        f'{folder} holds checkpoints of another model: {known}, but this run'
        f' trains {config}. Name another folder, or remove this one.'
    )


def _save_best(folder, trained, params, step, score) -> None:
  model_folder.save_model(
      folder / 'best',
      trained.config.to_dict(),
      params,
      step,
      metrics={score.name: score.value},
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


class _Recorder:
  """Collects step metrics on the device and writes them window by window.

  Results of steps that a restart repeats are written once: lines after the
  restored checkpoint are dropped when it starts.
  """

  def __init__(self, folder, task, trained, target_model, seed, start):
    self._folder = folder
    self._seed = seed
    self._task = task.name
    self._target = target_model.name if target_model else None
    self._steps: list[tuple[int, dict[str, types.Mean]]] = []
    self._time = time.perf_counter()
    self._writer = progress_lib.MetricsWriter(folder / 'metrics')
    results.drop_after(folder, start)

  def __enter__(self):
    self._time = time.perf_counter()
    return self

  def __exit__(self, *exception):
    self._writer.close()

  def step(self, number: int, metrics: dict[str, types.Mean]) -> None:
    self._steps.append((number, metrics))

  def flush(self, number: int, learning_rate: float) -> dict[str, float]:
    """Writes the steps since the last call; returns the window's means."""
    if not self._steps:
      return {}
    fetched = jax.device_get(self._steps)
    self._steps = []
    window: dict[str, types.Mean] = {}
    for at, metrics in fetched:
      for name, mean in metrics.items():
        mean = types.Mean(*mean)
        self._writer.write(at, {name: float(mean.value())})
        window[name] = window[name].merge(mean) if name in window else mean
    elapsed = time.perf_counter() - self._time
    self._time = time.perf_counter()
    tokens = float(window['loss'].count)
    values = {name: float(mean.value()) for name, mean in window.items()}
    rename = {'acceptance': 'acceptance_rate'}
    values = {rename.get(k, k): v for k, v in values.items()}
    values['learning_rate'] = learning_rate
    values['tokens_per_second'] = tokens / max(elapsed, 1e-9)
    self._writer.write(
        number,
        {
            'learning_rate': learning_rate,
            'tokens_per_second': values['tokens_per_second'],
        },
    )
    units = {
        'loss': 'nats/token',
        'cross_entropy': 'nats/token',
        'target_cross_entropy': 'nats/token',
        'tokens_per_second': 'tokens/s',
    }
    self._write(
        number,
        {
            name: results.Metric(value, None, int(tokens), units.get(name, '1'))
            for name, value in values.items()
        },
        split='train',
    )
    return values

  def score(self, number: int, score: validation.Score) -> None:
    """Writes the outcome of a validation."""
    self._writer.write(number, {f'validation/{score.name}': score.value})
    metric = results.Metric(score.value, None, score.examples, score.unit)
    self._write(number, {score.name: metric}, split='validation')
    # Judging is not training: it does not count in the rate.
    self._time = time.perf_counter()

  def _write(self, number, metrics, split):
    results.write(
        self._folder,
        'training',
        target=self._target,
        draft=self._folder.name,
        task=self._task,
        split=split,
        decoding=None,
        metrics={'step': results.Metric(number, None, 1, 'step'), **metrics},
        seed=self._seed,
    )
