"""What a run was started with, and what of it may change when it is resumed.

The settings lie in every checkpoint. A run that is resumed with others says
which have changed, and refuses those that no run can be continued with.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import pathlib
import sys
from typing import Any

from etils import epath

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import store
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import checksums
from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.data import examples as examples_lib
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.data import vocabulary_kinds
from distillspec_jax.distributed import hosts
from distillspec_jax.models import config as config_lib
from distillspec_jax.training import settings as settings_lib

# Another of these makes another run.
_FIXED = (
    'method', 'optimizer', 'optimizer.name', 'target', 'task.vocabulary_size',
)  # fmt: skip
# What scores depend on: those before a change and after it are not compared.
_OF_SCORES = ('validation', 'target', 'task', 'data.validation')

Settings = dict[str, str]


def describe(
    training: settings_lib.Training, task: tasks.Task, seed: int
) -> Settings:
  """Name -> value of all that decides what a run computes."""
  values = dict(_flat(training, ''))
  for name in ('start', 'target'):  # a folder may hold another model by now
    checkpoint = getattr(getattr(training, name), 'checkpoint', None)
    values[f'{name}.content'] = repr(model_folder.identity(checkpoint))
  for name in ('name', 'input_length', 'label_length'):
    values[f'task.{name}'] = repr(getattr(task, name))
  if training.start.checkpoint is None and training.target is None:
    # Else the vocabulary comes with the model.
    size = getattr(task, 'vocabulary_size', None)
    values['task.vocabulary_size'] = repr(size)
  for split in ('train', 'validation'):
    examples = examples_lib.of(task, split)
    described = f'{len(examples)} examples ({examples.fingerprint})'
    values[f'data.{split}'] = described
  return values | {'seed': repr(seed)}


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
  """The fields of dataclasses, in dataclasses; of objects the class's name."""
  if isinstance(value, (str, int, float, tuple, list, type(None))):
    yield name, repr(value)
    return
  kind = value if hasattr(value, '__qualname__') else type(value)
  if name:
    yield name, f'{kind.__module__}.{kind.__qualname__}'
  if dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      inner = f'{name}.{field.name}' if name else field.name
      yield from _flat(getattr(value, field.name), inner)


def check_place(folder: pathlib.Path, training: settings_lib.Training) -> None:
  """Raises UserError where the run would be written into a model's folder."""
  groups = (training.start, training.target)
  used = [group.checkpoint for group in groups if group and group.checkpoint]
  for checkpoint in used:
    path = pathlib.Path(sources.expanded(checkpoint)).resolve()
    if folder.resolve() in (path, path.parent if path.name == 'best' else path):
      raise errors.UserError(
          f'The run would be written into {checkpoint}, which it starts from or'
          ' learns from; name another folder for it.'
      )
  path = epath.Path(folder)
  if (path / 'params').exists() or hugging_face.is_checkpoint(path):
    raise errors.UserError(
        f'{folder} holds a model, which is no run; name another folder for it.'
    )


def check(
    folder: pathlib.Path,
    done: int,
    extra: dict[str, Any],
    settings: Settings,
    config: config_lib.T5Config,
    num_steps: int,
) -> None:
  """Raises UserError where the run in a folder cannot be continued.

  Args:
    folder: of the run.
    done: steps of its checkpoint.
    extra: of the checkpoint.
    settings: to continue with.
    config: of the model, likewise.
    num_steps: likewise.
  """
  known = config_lib.T5Config.from_dict(extra['model']).to_dict()
  differences = {
      name: (str(known[name]), str(value))
      for name, value in config.to_dict().items()
      # How it is computed may change between starts.
      if name not in ('attention', 'dtype', 'remat') and known[name] != value
  }
  if differences:
    raise errors.UserError(
        f'{folder} holds checkpoints of another model: {_listed(differences)}.'
        ' Name another folder, or remove this one.'
    )
  fixed = {
      name: change
      for name, change in changes(extra, settings).items()
      if name in _FIXED or name.startswith('method.')
  }
  if fixed:
    raise errors.UserError(
        f'{folder} cannot be resumed with another {_listed(fixed)}. Set it'
        ' back, or name another folder.'
    )
  if num_steps < done:
    raise errors.UserError(
        f'num_steps is {num_steps}, but {folder} has done {done} steps already;'
        f' set it to at least {done}, or name another folder.'
    )


def changes(
    extra: dict[str, Any], settings: Settings
) -> dict[str, tuple[str, str]]:
  """Name -> value before and now, of the settings that are not as they were."""
  old = extra['settings']
  names = dict.fromkeys([*settings, *old])
  values = {n: (old.get(n, 'None'), settings.get(n, 'None')) for n in names}
  return {name: pair for name, pair in values.items() if pair[0] != pair[1]}


def announce(
    folder: pathlib.Path,
    done: int,
    changed: dict[str, tuple[str, str]],
    num_steps: int,
) -> None:
  """Prints what has changed since the checkpoint, if anything has."""
  if not changed or not hosts.is_first():
    return
  how = f'resumes from step {done} with'
  if done == num_steps:
    how = f'has done all of its {done} steps; without effect is'
  line = f'{folder.name}: {how} a changed {_listed(changed)}'
  if affects_scores(changed):
    line += '; validation scores are not compared with earlier ones'
  print(line, file=sys.stderr, flush=True)


def affects_scores(changed: dict[str, tuple[str, str]]) -> bool:
  """Whether scores before and after the change are of different things."""
  return any(
      name == part or name.startswith(f'{part}.')
      for name in changed
      for part in _OF_SCORES
      if name != 'validation.every'
  )


def _listed(changed: dict[str, tuple[str, str]]) -> str:
  return ', '.join(f'{n} ({old} -> {new})' for n, (old, new) in changed.items())


def repair_best(
    folder: pathlib.Path,
    trained: loading.Loaded,
    checkpoints: store.Store,
    abstract: Any,
    state: Any,
    step: int,
) -> None:
  """Writes RUN/best again from the checkpoint of its step, if it is not whole.

  Args:
    folder: of the run.
    trained: the model's configuration and vocabulary.
    checkpoints: of the run.
    abstract: shapes of a state.
    state: of the checkpoint that the run resumes from.
    step: of the best model.

  Raises:
    UserError: there is no checkpoint of that step any more.
  """
  best, reason = folder / 'best', ''
  if hosts.is_first():
    try:
      model_folder.check_whole(best)
    except errors.UserError as error:
      reason = str(error)
  if not tensors.add_up([int(reason != '')])[0]:
    return
  if step != int(state.step):
    kept = store.steps(folder / 'checkpoints')
    if step not in kept:
      raise errors.UserError(
          f'{best} is missing or damaged, and the checkpoint of step {step},'
          f' from which it was written, is not kept. {reason} Copy it back, or'
          f' write another: rm -r {best}; distillspec convert {folder} {best}'
          f' --step={kept[-1]}'
      )
    state, _ = checkpoints.restore(step, abstract)
  if hosts.is_first():
    print(
        f'{best} is missing or damaged; it is written again from the checkpoint'
        f' of step {step}. {reason}',
        file=sys.stderr,
        flush=True,
    )
  model_folder.save_model(
      best,
      trained.config.to_dict(),
      state.params,
      step,
      also=lambda path: vocabularies.save(trained.vocabulary, path),
  )


# The vocabulary.


def stored_vocabulary(
    folder: pathlib.Path,
) -> vocabularies.Vocabulary | None:
  """The vocabulary that a run was started with; None before its first step.

  Raises:
    UserError: there are checkpoints, but no vocabulary, or a damaged one.
  """
  if not store.steps(folder / 'checkpoints'):
    return None
  for place in (folder / 'vocabulary', folder / 'best'):
    vocabulary = vocabularies.load_from(place)
    if vocabulary is not None:
      return vocabulary
  raise errors.UserError(
      f'{folder} has checkpoints, but {folder / "vocabulary"} is missing, which'
      ' they were trained with; copy it back.'
  )


def check_vocabulary(
    folder: pathlib.Path,
    vocabulary: vocabularies.Vocabulary,
    stored: vocabularies.Vocabulary | None,
) -> None:
  """Raises UserError for another vocabulary than was stored."""
  if stored not in (None, vocabulary_kinds.from_seqio(vocabulary)):
    raise errors.UserError(
        f'{folder} was started with another vocabulary than the one that it is'
        " to be resumed with: the task's vocabulary, or the file that it was"
        ' read from or trained on, has changed. Set it back, set the'
        f" vocabulary of the task to {folder / 'vocabulary'}, or name another"
        ' folder.'
    )


def store_vocabulary(
    folder: pathlib.Path, vocabulary: vocabularies.Vocabulary
) -> None:
  """Writes RUN/vocabulary."""
  path = epath.Path(folder / 'vocabulary')
  if path.exists():
    path.rmtree()  # of a start that came to no checkpoint
  path.mkdir(parents=True)
  vocabularies.save(vocabulary, path)
  checksums.write(path)
