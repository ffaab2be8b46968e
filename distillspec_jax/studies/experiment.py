"""The whole pipeline in one call: fine-tune, distil, measure, report.

  target      fine-tuned on the task, or given
  draft       fine-tuned on the task, or given: the baseline
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
import pathlib
from typing import Any, ClassVar

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import sample_texts
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.studies import builder as builder_lib
from distillspec_jax.studies import setup as setup_lib
from distillspec_jax.studies import study as study_lib
from distillspec_jax.training import settings


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """One way of distilling, with the drafts that it is compared with.

  Attributes:
    setup: the models and how they are measured.
    parallel: as in `run_experiment`.
    samples: likewise.
  """

  setup: setup_lib.Setup
  parallel: ParallelDraft | None = None
  samples: int = 3

  kind: ClassVar[str] = 'experiment'
  axes: ClassVar[tuple[str, ...]] = ('draft',)

  def build(self, builder: builder_lib.Builder) -> None:
    setup = self.setup
    for seed in setup.seeds:
      target, fine_tuned = builder.target(seed), builder.fine_tuned(seed)
      control, drafts = fine_tuned.name, [fine_tuned]
      if setup.control is not None:
        control = builder_lib.LONGER
        drafts.append(
            builder.from_draft(
                setup.control, seed, name=control, start=fine_tuned,
                target=None,
            )
        )  # fmt: skip
      distilled = builder.from_draft(
          setup.distil, seed, name='distilled', start=fine_tuned, target=target
      )
      drafts.append(distilled)
      if self.parallel is not None:
        drafts.append(
            builder.from_draft(
                self.parallel.training, seed, name='parallel', start=distilled,
                target=target,
            )
        )  # fmt: skip
      for draft in drafts:
        measures = None
        if self.parallel is not None and draft.name == 'parallel':
          measures = self.parallel.evaluate, self.parallel.benchmark
        measured = builder.measure_pair(
            target, draft, seed, timed=draft.name != builder_lib.LONGER,
            measures=measures,
        )  # fmt: skip
        is_baseline = draft is fine_tuned or draft.name == builder_lib.LONGER
        builder.row(
            draft, seed, {'draft': draft.name}, measured,
            control=None if is_baseline else control,
        )  # fmt: skip

  def finish(self, root: pathlib.Path, builder: builder_lib.Builder) -> None:
    if not self.samples:
      return
    seed = self.setup.seeds[0]
    drafts = builder.fine_tuned(seed), builder.model(f'seed_{seed}/distilled')
    _write_samples(
        root, self.setup.task, builder.target(seed), drafts, self.samples
    )


def run_experiment(
    *,
    run: str,
    task: tasks.Task,
    fine_tune_target: settings.Training | str,
    fine_tune_draft: settings.Training | str,
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
    fine_tune_target: the training run of the target, or the folder of a model
      that is the target as it is.
    fine_tune_draft: that of the draft, or the folder of a model to distil as it
      is; with `Start.shared_encoder` all drafts read the target's encoder
      output and have no encoder.
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
  setup = setup_lib.Setup(
      task=task,
      target=fine_tune_target,
      draft=fine_tune_draft,
      distil=distil,
      evaluate=evaluate,
      control=control,
      benchmark=benchmark,
      seeds=seeds,
  )
  study = Experiment(setup=setup, parallel=parallel, samples=samples)
  return study_lib.run_study(run=run, study=study, show=show)


def _write_samples(
    folder: pathlib.Path,
    task: tasks.Task,
    target: builder_lib.Model,
    drafts: Sequence[builder_lib.Model],
    count: int,
) -> None:
  """Writes samples.json: the same inputs with either draft, greedy.

  They are drawn from the whole split; `sample_texts.choose` has the rule.
  """
  model = loading.load(target.folder)
  task = task.with_vocabulary(model.vocabulary, target.folder)
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
          loading.load(draft.folder),
          [batch],
          decoding,
          seed=0,
          count=drawn,
          draft_name=draft.name,
      )
      for draft in drafts
  ]
  pairs = list(zip(*outputs))
  # Only a task of several files knows which one an input comes from.
  find = getattr(task, 'source_file', lambda split, text: None)
  files = [find(split, pair[0]['input']) for pair in pairs]
  distinct = [file or number for number, file in enumerate(files)]
  chosen = sample_texts.choose(pairs, distinct, count)
  texts = [{**each[i], 'file': files[i]} for each in outputs for i in chosen]
  (folder / 'samples.json').write_text(json.dumps(texts, indent=1))
