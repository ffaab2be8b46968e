"""The whole pipeline in one call: fine-tune, distil, measure, report.

  target      fine-tuned on the task
  draft       fine-tuned on the task: the baseline of speculative decoding
  distilled   the draft, distilled from the target
  parallel    the distilled draft, trained to propose a block in one call
  evaluation  acceptance and block efficiency with each draft
  benchmark   wall-clock time with each draft, and without one

Each stage has a folder of its own: a finished stage is not repeated, a training
run that was stopped resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import json
import os
import pathlib
import shutil
import sys
from typing import Any

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import store
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.distributed import hosts
from distillspec_jax.distributed import locks
from distillspec_jax.evaluation import sample_texts
from distillspec_jax.reporting import report as report_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import loop
from distillspec_jax.training import settings

_LONGER, _PARALLEL = 'fine-tuned_longer', 'parallel'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelDraft:
  """A draft that proposes a block in one call, made of the distilled one.

  Attributes:
    training: the training run, whose method has `Method.parallel`.
    evaluate: as in `run_experiment`, with decodings for it.
    benchmark: likewise.
  """

  training: settings.Training
  evaluate: Callable[..., Any]
  benchmark: Callable[..., Any] | None = None

  def __post_init__(self):
    if self.training.method.parallel is None:
      raise errors.UserError(
          'Method.parallel is None in the training of the parallel draft; set'
          ' it to a Parallel, or leave the draft out of the experiment.'
      )


def run_experiment(
    *,
    run: str,
    task: tasks.Task,
    fine_tune_target: settings.Training,
    fine_tune_draft: settings.Training,
    distil: settings.Training,
    evaluate: Callable[..., Any],
    benchmark: Callable[..., Any] | None = None,
    control: settings.Training | None = None,
    parallel: ParallelDraft | None = None,
    seeds: Sequence[int] = (0,),
    samples: int = 3,
    show: Callable[[str, list[Any]], None] | None = None,
) -> str:
  """Runs all stages for every seed and writes the page; returns its path.

  The target is trained once, with the first seed, and shared: the seeds vary
  the draft's initialisation, the order of its data, and sampling.

  Args:
    run: the experiment's folder; created if it is absent.
    task: what the models are trained and measured on.
    fine_tune_target: the training run of the target.
    fine_tune_draft: that of the draft; with `Start.shared_encoder` all drafts
      read the target's encoder output and have no encoder.
    distil: that of the distilled draft; starts from the fine-tuned one.
    evaluate: `evaluation.acceptance.evaluate`, with its settings.
    benchmark: `evaluation.speed.latency.benchmark`, likewise; None: none.
    control: fine-tunes the draft for longer instead, which shows what the
      additional steps alone gain; None: no control.
    parallel: trains the distilled draft further, to propose blocks in one call,
      and measures it; None: no such draft.
    seeds: of the drafts.
    samples: number of sample texts on the page.
    show: gets titles and measurements of evaluate and benchmark, for tables.
  """
  if not seeds:
    raise errors.UserError('seeds is empty; give at least one, e.g. (0,).')
  if isinstance(task, tasks.Task):  # a metric that fails does so before all
    labels = [label for _, label in task.texts('validation')[:2]]
    metrics_lib.measure(metrics_lib.resolve(task.metrics), labels, labels)
  folder = store.check_writable(run)
  if hosts.is_first():
    configuration.write(folder)
  target = str(folder / 'target')
  fine_tune_target.check()
  drafts = {
      seed: _drafts(
          folder / f'seed_{seed}', target, fine_tune_draft, distil, control,
          None if parallel is None else parallel.training,
      )
      for seed in seeds
  }  # fmt: skip
  with locks.held(folder / locks.FILE):
    loop.train(run=target, task=task, training=fine_tune_target, seed=seeds[0])
    # One vocabulary for all, also where the files have changed in between.
    task = task.with_vocabulary(vocabularies.load_from(target), target)
    for seed in seeds:
      for draft, training in drafts[seed].items():
        loop.train(run=str(draft), task=task, training=training, seed=seed)
      for draft in drafts[seed]:
        measures = evaluate, benchmark
        if draft.name == _PARALLEL:
          measures = parallel.evaluate, parallel.benchmark
        stages = {f'evaluation_{draft.name}': measures[0]}
        is_timed = seed == seeds[0] and draft.name != _LONGER
        if measures[1] is not None and is_timed:
          stages[f'benchmark_{draft.name}'] = measures[1]
        for name, stage in stages.items():
          _once(
              draft.parent / name, stage, target=target, draft=str(draft),
              draft_name=draft.name.replace('_', ' '), task=task, seed=seed,
              **({} if show is None else {'show': show}),
          )  # fmt: skip
    if hosts.is_first():  # the others wait for it when they leave
      if samples:
        _write_samples(
            folder, task, target, folder / f'seed_{seeds[0]}', samples
        )
      report_lib.report(run=str(folder))
  return str(folder / 'report.html')


def _drafts(
    folder: pathlib.Path,
    target: str,
    fine_tune: settings.Training,
    distil: settings.Training,
    control: settings.Training | None,
    parallel: settings.Training | None,
) -> dict[pathlib.Path, settings.Training]:
  """Folder of a draft -> how it is trained, in order.

  Raises:
    UserError: the settings of one do not fit together.
  """

  def complete(training, has_target=False, **start):
    given = training.target and training.target.checkpoint
    if 'checkpoint' in start:
      given = given or training.start.checkpoint
    if given:
      raise errors.UserError(
          f'The checkpoint {given} would not be used: an experiment trains its'
          ' own target and draft. Leave it out, or use `train`.'
      )
    if fine_tune.start.shared_encoder:
      start['shared_encoder'] = True
    start = dataclasses.replace(training.start, **start)
    training = dataclasses.replace(training, start=start)
    if has_target or start.shared_encoder or training.target is not None:
      placement = training.target or settings.Target()
      placement = dataclasses.replace(placement, checkpoint=target)
      training = dataclasses.replace(training, target=placement)
    training.check()
    return training

  fine_tuned = folder / 'fine-tuned'
  drafts = {fine_tuned: complete(fine_tune)}
  if control is not None:
    drafts[folder / _LONGER] = complete(control, checkpoint=str(fine_tuned))
  drafts[folder / 'distilled'] = complete(
      distil, has_target=True, checkpoint=str(fine_tuned)
  )
  if parallel is not None:
    drafts[folder / _PARALLEL] = complete(
        parallel, has_target=True, checkpoint=str(folder / 'distilled')
    )
  return drafts


def _once(folder: pathlib.Path, stage: Callable[..., Any], **kwargs: Any):
  """Runs a measurement into `folder`, which is then complete or absent.

  It is repeated where a model has changed, e.g. was trained for longer.
  """
  made_of = {
      name: model_folder.identity(kwargs[name]) for name in ('target', 'draft')
  }
  record = folder / 'models.json'
  if folder.is_dir():
    if not record.is_file() or json.loads(record.read_text()) == made_of:
      return
    if hosts.is_first():
      print(
          f'{folder}: measured again, as a model is another.', file=sys.stderr
      )
      shutil.rmtree(folder)
  # The folder's name stays, because results hold it.
  temporary = folder.parent / '.incomplete' / folder.name
  if hosts.is_first():
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
  hosts.wait_for_all('the folder for results')
  stage(run=str(temporary), **kwargs)
  if hosts.is_first():
    (temporary / 'models.json').write_text(json.dumps(made_of))
    os.replace(temporary, folder)
    temporary.parent.rmdir()


def _write_samples(
    folder: pathlib.Path,
    task: tasks.Task,
    target: str,
    drafts: pathlib.Path,
    count: int,
) -> None:
  """Writes samples.json: the same inputs with either draft, greedy.

  They are drawn from the whole split; `sample_texts.choose` has the rule.
  """
  model = loading.load(target)
  task = task.with_vocabulary(model.vocabulary, target)
  decoding = decoding_lib.Decoding(
      drafting=decoding_lib.Drafting(length=min(5, task.label_length)),
      max_new_tokens=task.label_length,
  )
  split, drawn = 'test' if 'test' in task.splits else 'validation', 8 * count
  batches = batches_lib.batches(
      task, split, drawn, seed=0, shuffle=True, num_epochs=1
  )
  batch = next(batches)
  outputs = [
      sample_texts.collect(
          model,
          loading.load(drafts / name),
          [batch],
          decoding,
          seed=0,
          count=drawn,
          draft_name=name,
      )
      for name in ('fine-tuned', 'distilled')
  ]
  pairs = list(zip(*outputs))
  # Only a task of several files knows which one an input comes from.
  find = getattr(task, 'source_file', lambda split, text: None)
  files = [find(split, pair[0]['input']) for pair in pairs]
  distinct = [file or number for number, file in enumerate(files)]
  chosen = sample_texts.choose(pairs, distinct, count)
  texts = [{**each[i], 'file': files[i]} for each in outputs for i in chosen]
  (folder / 'samples.json').write_text(json.dumps(texts, indent=1))
