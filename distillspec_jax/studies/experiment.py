"""The whole story in one call: fine-tune, measure, distil, measure, report.

  target      fine-tuned on the task
  draft       fine-tuned on the task: the baseline of speculative decoding
  distilled   the draft, distilled from the target
  evaluation  acceptance and block efficiency of both drafts
  benchmark   wall clock with both drafts, and without one

An experiment is a gin file that binds the five stages. Each stage has a folder
of its own; a stage that is finished is not done again, one that was stopped
goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import shutil
from typing import Any

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import tasks
from distillspec_jax.distributed import hosts
from distillspec_jax.evaluation import sample_texts
from distillspec_jax.reporting import report as report_lib
from distillspec_jax.sampling import decoding as decoding_lib


def run_experiment(
    *,
    run: str,
    task: tasks.Task,
    fine_tune_target: Callable[..., str],
    fine_tune_draft: Callable[..., str],
    distil: Callable[..., str],
    evaluate: Callable[..., Any],
    benchmark: Callable[..., Any] | None = None,
    control: Callable[..., str] | None = None,
    shared_encoder: bool = False,
    seeds: Sequence[int] = (0,),
    samples: int = 3,
) -> str:
  """Runs all stages for every seed and writes the page; returns its path.

  The target is trained once, with the first seed, and shared: the seeds vary
  the draft's initialisation, the order of its data and what it samples.

  Args:
    run: the experiment's folder; made if it is absent.
    task: what the pair is for.
    fine_tune_target: `training.loop.train` but for run, task and seed.
    fine_tune_draft: likewise.
    distil: likewise; gets `initial`, the fine-tuned draft, and `target`.
    evaluate: `evaluation.acceptance.evaluate` but for run, pair, task, seed.
    benchmark: `evaluation.latency.benchmark`, likewise; None leaves it out.
    control: as `distil`, but without a target: the draft fine-tuned for
      longer, which shows what the additional steps alone would have gained.
    shared_encoder: all drafts read the target's encoder output and have no
      encoder; only the distilled one does where `distil` is bound so.
    seeds: of the drafts.
    samples: how many sample texts the page shows.
  """
  if not seeds:
    raise errors.UserError('seeds is empty; give at least one, e.g. (0,).')
  folder = pathlib.Path(run)
  folder.mkdir(parents=True, exist_ok=True)
  if hosts.is_first():
    configuration.write(folder)
  fine_tune_target(run=str(folder / 'target'), task=task, seed=seeds[0])
  target = str(folder / 'target')
  shared = {'target': target, 'shared_encoder': True} if shared_encoder else {}

  for seed in seeds:
    here = folder / f'seed_{seed}'
    drafts = {'fine-tuned': str(here / 'fine-tuned')}
    fine_tune_draft(run=drafts['fine-tuned'], task=task, seed=seed, **shared)
    if control is not None:
      drafts['fine-tuned longer'] = str(here / 'fine-tuned_longer')
      control(
          run=drafts['fine-tuned longer'],
          task=task,
          seed=seed,
          initial=drafts['fine-tuned'],
          **shared,
      )
    drafts['distilled'] = str(here / 'distilled')
    distil(
        run=drafts['distilled'],
        task=task,
        seed=seed,
        initial=drafts['fine-tuned'],
        **{'target': target, **shared},
    )
    for name, draft in drafts.items():
      _once(
          here / f'evaluation_{name.replace(" ", "_")}',
          evaluate,
          target=target,
          draft=draft,
          draft_name=name,
          task=task,
          seed=seed,
      )
      if (
          benchmark is not None
          and seed == seeds[0]
          and name != 'fine-tuned longer'
      ):
        _once(
            here / f'benchmark_{name}',
            benchmark,
            target=target,
            draft=draft,
            draft_name=name,
            task=task,
            seed=seed,
        )
  if hosts.is_first():  # the others wait for it where they leave
    if samples:
      _write_samples(folder, task, target, folder / f'seed_{seeds[0]}', samples)
    report_lib.report(run=str(folder))
  return str(folder / 'report.html')


def _once(folder: pathlib.Path, stage: Callable[..., Any], **kwargs: Any):
  """Runs a measurement into `folder`, which is then complete or absent."""
  if folder.is_dir():
    return
  # The name of the folder stays, because it stands in the results.
  beside = folder.parent / '.incomplete' / folder.name
  if hosts.is_first():
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
  hosts.wait_for_all('there is room for results')
  stage(run=str(beside), **kwargs)
  if hosts.is_first():
    os.replace(beside, folder)
    beside.parent.rmdir()


def _write_samples(
    folder: pathlib.Path,
    task: tasks.Task,
    target: str,
    drafts: pathlib.Path,
    count: int,
) -> None:
  """Writes samples.json: the same inputs with either draft, greedy."""
  model = loading.load(target)
  task = task.with_vocabulary(model.vocabulary, target)
  decoding = decoding_lib.Decoding(
      max_new_tokens=task.label_length,
      block_length=min(5, task.label_length),
  )
  found = []
  for name in ('fine-tuned', 'distilled'):
    batches = batches_lib.batches(
        task, 'validation', count, seed=0, shuffle=False, num_epochs=1
    )
    found += sample_texts.collect(
        model,
        loading.load(drafts / name),
        [next(batches)],
        decoding,
        seed=0,
        count=count,
        draft_name=name,
    )
  (folder / 'samples.json').write_text(json.dumps(found, indent=1))
