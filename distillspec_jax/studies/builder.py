"""What studies are put together from: models, measurements and rows.

A `Builder` turns calls such as `builder.train(..)` into stages, each of them
once: whoever asks for a model again gets the one that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import pathlib
import re
from typing import Any, NamedTuple

from distillspec_jax.checkpoints import model_folder
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import sources
from distillspec_jax.core import study_file
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.studies import setup as setup_lib
from distillspec_jax.studies import stages as stages_lib
from distillspec_jax.training import loop
from distillspec_jax.training import resumption
from distillspec_jax.training import settings

# What a pair is evaluated and timed by.
Measures = tuple[Callable[..., Any], Callable[..., Any] | None]
FINE_TUNED, LONGER, PRETRAINED = 'fine-tuned', 'fine-tuned longer', 'pretrained'


class Model(NamedTuple):
  """A model of a study.

  Attributes:
    folder: of its run, or as it was given.
    stage: that makes it; None for one that is given.
    name: in results.
  """

  folder: str
  stage: str | None
  name: str


class Builder:
  """Collects the stages and rows of a study.

  Args:
    root: the study's folder.
    setup: what all runs have in common.
    show: gets titles and measurements of evaluate and benchmark, for tables.
  """

  def __init__(
      self,
      root: pathlib.Path,
      setup: setup_lib.Setup,
      show: Callable[[str, list[Any]], None] | None = None,
  ):
    self.root, self.setup = root, setup
    self.stages: list[stages_lib.Stage] = []
    self.rows: list[study_file.Row] = []
    self._show = {} if show is None else {'show': show}
    self._trained: dict[str, Any] = {}  # stage -> all that decides the model
    self._models: dict[str, Model] = {}
    self._measured: dict[str, Any] = {}
    self._tasks: dict[int, tasks.Task] = {}
    self._vocabulary_of: Model | None = None
    if isinstance(setup.task, tasks.Task):  # a metric that fails does so first
      pairs = filter(None, setup.task.stream('validation'))
      labels = [label for _, label in itertools.islice(pairs, 128)]
      metrics_lib.check_task(setup.task, labels)

  # Models.

  def given(self, folder: str) -> Model:
    """A model that is there already.

    Raises:
      UserError: it is not.
    """
    sources.resolve(folder)
    return Model(sources.expanded(folder), None, PRETRAINED)

  def train(
      self,
      folder: str,
      training: settings.Training,
      seed: int,
      *,
      name: str,
      start: Model | None = None,
      target: Model | None = None,
      task: tasks.Task | None = None,
  ) -> Model:
    """The model that a training run makes; one that is known is not made anew.

    Args:
      folder: of the run, relative to the study's.
      training: the run, without the models that are given here.
      seed: of the run.
      name: of the model in results.
      start: the model to start from; None: as `training.start` says.
      target: to learn from.
      task: default: that of the setup.

    Raises:
      UserError: the settings do not fit together, or a run with other settings
        has this folder.
    """
    task = self.setup.task if task is None else task
    training = _completed(training, start, target)
    key = training, seed, task
    if folder in self._trained:
      if self._trained[folder] != key:
        raise _same_folder('runs', folder)
      return self._models[folder]
    self._trained[folder] = key
    model = self._models[folder] = Model(str(self.root / folder), folder, name)
    vocabulary = None
    if getattr(task, 'vocabulary', None) is None:
      vocabulary = self._vocabulary_of
    if self._vocabulary_of is None and not (start or target):
      self._vocabulary_of = model

    def made_of():
      resolved = self._task(task)
      if getattr(resolved, 'vocabulary', None) is None:
        return None
      return resumption.describe(training, resolved, seed)

    self.stages.append(
        stages_lib.Stage(
            name=folder,
            what='training',
            work=lambda path: loop.train(
                run=str(path), task=self._task(task), training=training,
                seed=seed,
            ),
            made_of=made_of,
            needs=_stages(start, target, vocabulary),
            is_resumable=True,
        )
    )  # fmt: skip
    return model

  def model(self, folder: str) -> Model:
    """The model that the run in a folder, relative to the study's, makes."""
    return self._models[folder]

  def target(self, seed: int, model: Any = None, size: str = '') -> Model:
    """The target that drafts of a seed are made for.

    Args:
      seed: of the drafts.
      model: of the target instead of `setup.target.start.model`, or a Training.
      size: names it, where there are targets of several sizes.
    """
    setup = self.setup
    if isinstance(setup.target, str):
      return self.given(setup.target)
    name = f'target {size}'.strip()
    training = model
    if not isinstance(model, settings.Training):
      training = with_model(setup.target, model)
    return self._target(seed, name, training)

  def distilled_target(
      self,
      seed: int,
      training: settings.Training,
      size: str,
      start: Model,
      teacher: Model,
  ) -> Model:
    """A target that is distilled from a larger one; arguments: `target`."""
    name = f'target {size} distilled'
    return self._target(seed, name, training, start=start, target=teacher)

  def own_target(
      self,
      seed: int,
      training: settings.Training,
      place: str,
      start: Model,
      task: tasks.Task,
  ) -> Model:
    """The target, trained further on another task."""
    return self._target(
        seed, f'target {place}', training, start=start, task=task
    )

  def _target(
      self, seed: int, name: str, training: settings.Training, **given: Any
  ) -> Model:
    """A target; one for each seed of targets, or one in all."""
    setup, folder = self.setup, slug(name)
    target_seed = setup.target_seed(seed)
    if target_seed is None:
      target_seed = setup.seeds[0]
    elif setup.target_seeds is not None:
      folder += f'_{target_seed}'
    return self.train(folder, training, target_seed, name=name, **given)

  def fine_tuned(self, seed: int, model: Any = None, prefix: str = '') -> Model:
    """The fine-tuned draft: the baseline of speculative decoding.

    Args:
      seed: of the draft.
      model: to start from instead of `setup.draft.start.model`.
      prefix: of its name, where there are drafts of several kinds.
    """
    setup = self.setup
    if isinstance(setup.draft, str):
      return self.given(setup.draft)
    training = with_model(setup.draft, model)
    name = prefix + FINE_TUNED
    shares = training.start.shared_encoder
    return self.train(
        f'seed_{seed}/{slug(name)}', training, seed, name=name,
        target=self.target(seed) if shares or training.target else None,
    )  # fmt: skip

  def from_draft(
      self,
      training: settings.Training,
      seed: int,
      *,
      name: str,
      start: Model,
      target: Model | None,
  ) -> Model:
    """A draft that is made of the fine-tuned one.

    Args:
      training: the run.
      seed: of the draft.
      name: in results, and, as far as it can, of the folder.
      start: the draft to start from.
      target: to learn from; None where the training needs none.
    """
    draft = self.setup.draft
    if isinstance(draft, settings.Training) and draft.start.shared_encoder:
      changed = dataclasses.replace(training.start, shared_encoder=True)
      training = dataclasses.replace(training, start=changed)
    if target is None and (training.start.shared_encoder or training.target):
      target = self.target(seed)
    return self.train(
        f'seed_{seed}/{slug(name)}', training, seed, name=name, start=start,
        target=target,
    )  # fmt: skip

  # Measurements.

  def measure(
      self,
      folder: str,
      function: Callable[..., Any],
      *,
      target: Model,
      draft: Model,
      seed: int,
      task: tasks.Task | None = None,
      what: str = 'evaluation',
      name: str | None = None,
      **settings_of: Any,
  ) -> str:
    """The folder with the results of a pair, relative to the study's.

    Args:
      folder: that folder; asked for again, it is not measured anew.
      function: evaluate or benchmark.
      target: of the pair.
      draft: of the pair.
      seed: of the measurement.
      task: default: that of the setup.
      what: kind of the stage, for people.
      name: of the draft in results; default: its own.
      **settings_of: of the function; what they are decides the outcome.
    """
    task = self.setup.task if task is None else task
    key = function, target, draft, seed, id(task), settings_of
    if folder in self._measured:
      if self._measured[folder] != key:
        raise _same_folder('measurements', folder)
      return folder
    self._measured[folder] = key

    def made_of():
      described = {name: repr(value) for name, value in settings_of.items()}
      if task is not self.setup.task:
        described['task'] = task.name
      return {
          'target': model_folder.identity(target.folder),
          'draft': model_folder.identity(draft.folder),
          **described,
      }

    self.stages.append(
        stages_lib.Stage(
            name=folder,
            what=what,
            work=lambda path: function(
                run=str(path), target=target.folder, draft=draft.folder,
                draft_name=name or draft.name, task=self._task(task), seed=seed,
                **settings_of, **self._show,
            ),
            made_of=made_of,
            needs=_stages(target, draft),
        )
    )  # fmt: skip
    return folder

  def measure_pair(
      self,
      target: Model,
      draft: Model,
      seed: int,
      *,
      timed: bool = True,
      measures: Measures | None = None,
      suffix: str = '',
      **settings_of: Any,
  ) -> list[str]:
    """Evaluates a pair, and times it where its seed is timed.

    Args:
      target: of the pair.
      draft: of the pair.
      seed: of the draft.
      timed: whether its time is of interest.
      measures: evaluate, and benchmark or None; default: those of the setup.
      suffix: of the folders' names, where a draft is measured several times.
      **settings_of: see `measure`.
    """
    setup, stem = self.setup, f'{slug(draft.name)}{suffix}'
    evaluate, benchmark = measures or (setup.evaluate, setup.benchmark)
    pair = {'target': target, 'draft': draft, 'seed': seed, **settings_of}
    folders = [self.measure(f'seed_{seed}/evaluation_{stem}', evaluate, **pair)]
    if timed and benchmark is not None and setup.is_timed(seed):
      folder = f'seed_{seed}/benchmark_{stem}'
      folders.append(self.measure(folder, benchmark, what='benchmark', **pair))
    return folders

  # Rows.

  def row(
      self,
      model: Model,
      seed: int,
      labels: dict[str, Any],
      measured: Sequence[str],
      *,
      name: str | None = None,
      control: str | None = None,
      lines: dict[str, dict[str, Any]] | None = None,
  ) -> None:
    """Adds a row of the study; `core.study_file` describes the arguments.

    Raises:
      UserError: another row has a model that is made in the same way.
    """
    folder = model.folder if model.stage is None else model.stage
    for other in self.rows:
      known = self._trained.get(other.folder)
      if (
          other.folder != folder
          and _is_draft(other.folder) == _is_draft(folder)
          and known
          and known == self._trained.get(folder)
      ):
        raise errors.UserError(
            f'Rows {other.name!r} and {name or model.name!r} of the study are'
            ' equal: their models would be trained in the same way. Leave one'
            ' of them out.'
        )
    self.rows.append(
        study_file.Row(
            name=name or model.name,
            labels=labels,
            seed=seed,
            target_seed=self.setup.target_seed(seed),
            folder=folder,
            results=list(measured),
            control=control,
            lines=lines or {},
        )
    )

  def rows_now(self, failed: dict[str, str]) -> list[study_file.Row]:
    """The rows, with what is there by now."""
    return [
        dataclasses.replace(
            row,
            results=[
                folder
                for folder in row.results
                if (self.root / folder / results.FILE).is_file()
            ],
            seconds=training_seconds(self.root / row.folder),
            failed=next(
                (
                    failed[name]
                    for name in (row.folder, *row.results)
                    if name in failed
                ),
                None,
            ),
        )
        for row in self.rows
    ]

  def _task(self, task: tasks.Task) -> tasks.Task:
    """The task with the vocabulary of the study's first model.

    One vocabulary for all, also where files have changed in between.
    """
    if id(task) not in self._tasks:
      source = self._vocabulary_of
      if source is None or not pathlib.Path(source.folder).is_dir():
        return task
      vocabulary = vocabularies.load_from(source.folder)
      if vocabulary is None:
        return task
      self._tasks[id(task)] = task.with_vocabulary(vocabulary, source.folder)
    return self._tasks[id(task)]


def with_model(training: settings.Training, model: Any) -> settings.Training:
  """The training of another model, unless that is None."""
  if model is None:
    return training
  start = dataclasses.replace(training.start, model=model)
  return dataclasses.replace(training, start=start)


def with_steps(
    training: settings.Training, num_steps: int | None
) -> settings.Training:
  """The training for another number of steps, unless that is None."""
  if num_steps is None:
    return training
  steps = training.steps
  is_given = getattr(steps, 'is_batch_size_given', True)
  given = steps.batch_size if is_given else None
  steps = dataclasses.replace(steps, num_steps=num_steps, batch_size=given)
  return dataclasses.replace(training, steps=steps)


def slug(name: str) -> str:
  """The name as a folder's."""
  return re.sub(r'[^\w.=+-]+', '_', name).strip('_')


def training_seconds(folder: pathlib.Path) -> float | None:
  """Seconds of training alone of the run in a folder; None where unknown."""
  path = folder / results.FILE
  if not path.is_file():
    return None
  seconds = 0.0
  for line in results.read(path):
    rate = line['metrics'].get('tokens_per_second')
    if line['kind'] == 'training' and rate and rate['value'] > 0:
      seconds += rate['count'] / rate['value']
  return round(seconds, 3) or None


def _is_draft(folder: str) -> bool:
  return folder.startswith('seed_')


def _same_folder(what: str, folder: str) -> errors.UserError:
  return errors.UserError(
      f'Two different {what} would be written into {folder}; give them names'
      ' that differ in letters and digits.'
  )


def _stages(*models: Model | None) -> tuple[str, ...]:
  return tuple(model.stage for model in models if model and model.stage)


def _completed(
    training: settings.Training, start: Model | None, target: Model | None
) -> settings.Training:
  """The training with its models.

  Raises:
    UserError: it names others itself, or its settings do not fit together.
  """
  given = training.target and training.target.checkpoint
  if start is not None:
    given = given or training.start.checkpoint
    changed = dataclasses.replace(training.start, checkpoint=start.folder)
    training = dataclasses.replace(training, start=changed)
  if given:
    raise errors.UserError(
        f'The checkpoint {given} would not be used: a study trains its own'
        ' target and draft. Leave it out, or use `train`.'
    )
  if target is not None:
    placement = training.target or settings.Target()
    placement = dataclasses.replace(placement, checkpoint=target.folder)
    training = dataclasses.replace(training, target=placement)
  training.check()
  return training
