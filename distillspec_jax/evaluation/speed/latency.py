"""Latency: autoregressive and speculative decoding of the same inputs.

Compilation is timed separately and done before anything else; every timed call
waits for the device. The two ways take turns, so that a machine whose speed
drifts changes both alike, and the speed-up is the median of the ratios of
neighbouring runs on the same inputs. Both times include the encoders.

Next to what is measured is what was predicted from the costs of single steps,
and the block length that a planner chooses without having timed any run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.core import check
from distillspec_jax.core import cost_model
from distillspec_jax.core import errors
from distillspec_jax.core import progress
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.distributed import locks
from distillspec_jax.evaluation import examples as examples_lib
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.evaluation.speed import block_length as block_length_lib
from distillspec_jax.evaluation.speed import costs as costs_lib
from distillspec_jax.evaluation.speed import time_breakdown
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative

Metrics = dict[str, results.Metric]


class Measured(NamedTuple):
  """What decodings that differ in block length alone were measured to be.

  Attributes:
    batch_size: sequences decoded together.
    decodings: in the order of `fast`.
    costs: of single steps.
    plain: metrics of autoregressive decoding.
    fast: metrics of speculative decoding, one for each decoding.
    pairs: likewise, the speed-up in each pair of runs.
    plan: the choice of block length; None with adaptive draft length.
    breakdown: where a block's time goes, of the fastest decoding, if asked for.
  """

  batch_size: int
  decodings: list[decoding_lib.Decoding]
  costs: costs_lib.Costs
  plain: Metrics
  fast: list[Metrics]
  pairs: list[np.ndarray]
  plan: block_length_lib.BlockLengthPlan | None
  breakdown: time_breakdown.Breakdown | None = None

  @property
  def best(self) -> int:
    """Index of the decoding with the largest measured speed-up."""
    speedups = [metrics['measured_speedup'].value for metrics in self.fast]
    return int(np.argmax(speedups))


def benchmark(
    *,
    run: str,
    target: str | loading.Loaded,
    draft: str | loading.Loaded,
    task: tasks.Task,
    split: str | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    decodings: Sequence[decoding_lib.Decoding] | None = None,
    repeats: int = 5,
    seed: int = 0,
    draft_name: str | None = None,
    profile: bool = False,
    show: Callable[[str, list[Measured]], None] | None = None,
) -> list[dict[str, Any]]:
  """Times a pair, appends to RUN/results.jsonl and returns the lines.

  For each batch size and each group of decodings that differ in block length
  alone: one line of kind `latency` for autoregressive decoding (draft and block
  length are null), and one for each decoding, which also holds the plan: the
  block length that is chosen from acceptance by position and costs (0: do not
  speculate), the speed-up predicted for it, and the one that was measured.

  Args:
    run: folder for the results.
    target: folder of a model or of a run, or a model.
    draft: likewise.
    task: whose inputs.
    split: of the task, from its start; after the last input comes the first
      again. Default: 'test', or 'validation' if there is none.
    batch_sizes: sequences decoded together.
    decodings: default: greedy in blocks of 2, 3 and 5.
    repeats: pairs of runs, each with the next inputs.
    seed: of sampling.
    draft_name: in results; default: the folder's.
    profile: also where a block's time goes, for the fastest block length of
      each group: its parts in the results, and a trace of one run (for
      TensorBoard or Perfetto) in RUN/profile.
    show: is called with a title and what was measured, for tables.

  Raises:
    UserError: folders without models, models that do not fit each other or
      the task, settings out of range, a folder that cannot be written to.
    RuntimeError: the machine is too busy to time steps.
  """
  check.at_least(1, repeats=repeats)
  if decodings is None:
    decodings = decoding_lib.grid(temperatures=(0.0,), block_lengths=(2, 3, 5))
  if not isinstance(batch_sizes, Sequence) or not batch_sizes:
    raise errors.UserError(
        f'batch_sizes is {check.shown(batch_sizes)}; give a list of at least'
        ' one.'
    )
  for batch_size in batch_sizes:
    check.at_least(1, max_value=check.MAX_ROWS, batch_size=batch_size)
  decodings = decoding_lib.for_task(decodings, task)
  check.seed(seed=seed)
  folder = store.check_writable(run)
  locks.check_free(folder)
  target, draft, task, name = pair_lib.load(
      target, draft, task, draft_name, decodings
  )
  split = examples_lib.final_split(task, split)
  inputs = [
      examples_lib.repeated(
          task, split, batch_size * repeats, batch_size, repeats
      )
      for batch_size in batch_sizes
  ]
  lines: list[dict[str, Any]] = []

  def write(decoding, batch_size, draft_name, metrics, examples=None):
    lines.append(
        results.write(
            folder,
            'latency',
            target=target.name,
            draft=draft_name,
            draft_folder=None if draft_name is None else draft.name,
            task=task.name,
            split=split,
            decoding=decoding.describe(
                speculative=draft_name is not None, batch_size=batch_size
            ),
            metrics=metrics,
            seed=seed,
            examples=examples,
        )
    )

  measured = []
  for batches, batch_size in zip(inputs, batch_sizes):
    identity = examples_lib.fingerprint(batches)
    batches = jax.device_put(batches)
    prompt = batches[0].prompt
    for group in _groups(decodings):
      costs = costs_lib.measure(target.model, draft.model, prompt, group)
      one = measure(target.model, draft.model, batches, group, costs, seed)
      best = group[one.best]
      if profile and time_breakdown.can_measure(best):
        breakdown = time_breakdown.measure(
            target.model, draft.model, prompt, best, seed
        )
        one.fast[one.best].update(breakdown.metrics())
        one = one._replace(breakdown=breakdown)
      if profile:
        label = best.label().replace(', ', '_').replace(' ', '-')
        traces = folder / 'profile' / f'batch-{batch_size}_{label}'
        trace(target.model, draft.model, batches[0], best, seed, traces)
      measured.append(one)
      write(group[0], batch_size, None, one.plain)
      for decoding, metrics, pairs in zip(group, one.fast, one.pairs):
        examples = results.Examples(identity, {'paired_speedup': (pairs,)})
        write(decoding, batch_size, name, metrics, examples)
  if show is not None:
    show(f'{name}, {task.name} {split}', measured)
  return lines


def _groups(
    decodings: Sequence[decoding_lib.Decoding],
) -> list[list[decoding_lib.Decoding]]:
  """Decodings that differ in block length alone, together."""
  groups: dict[decoding_lib.Decoding, list[decoding_lib.Decoding]] = {}
  for decoding in decodings:
    groups.setdefault(decoding.replace(length=1), []).append(decoding)
  return list(groups.values())


def measure(
    target: model_lib.Model,
    draft: model_lib.Model,
    batches: Sequence[types.Batch],
    decodings: Sequence[decoding_lib.Decoding],
    costs: costs_lib.Costs,
    seed: int,
) -> Measured:
  """Times both ways of decoding the same inputs.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    batches: of one shape, on the device; one pair of runs each for every
      decoding. Tokens of empty rows do not count.
    decodings: settings that differ in block length alone.
    costs: for the predictions and the plan.
    seed: of sampling.

  Returns:
    tokens_per_second and compile_s (less what the compilation cache saves) of
    both; of speculative decoding also measured_speedup, block_efficiency,
    cost_ratio and verify_ratio. Without adaptive draft length also
    predicted_speedup, predicted_speedup_with_verify and
    predicted_speedup_by_place (the planner's); and planned_block_length (0:
    none), planned_speedup and planned_measured_speedup, which are the same for
    all block lengths.
  """
  rows = batches[0].inputs.shape[0]
  runs = []
  for i, batch in enumerate(batches):
    numbers = i * rows + jnp.arange(rows)
    keys = randomness.row_keys(jax.random.key(seed), numbers)
    runs.append((batch.prompt, keys))
  real = [examples_lib.real_rows(batch) for batch in batches]
  plain = _compile(
      autoregressive.generate,
      (target,),
      runs[0],
      decodings[0].without_draft(),
      vocabulary_size=model_lib.common_vocabulary(target, draft),
  )
  times, fast = [], []
  for decoding in progress.shown(decodings, f'batch {rows}'):
    program = _compile(speculative.generate, (target, draft), runs[0], decoding)
    times.append(_take_turns(plain.call, program.call, runs, real))
    fast.append(
        {
            **_rate(times[-1].rates[:, 1], program.compile_s),
            **_gains(times[-1], decoding, costs),
        }
    )
  plan = None
  if decodings[0].drafting.adaptive is None:
    lengths = [decoding.drafting.length for decoding in decodings]
    longest = times[int(np.argmax(lengths))]
    plan = block_length_lib.plan(
        longest.acceptance, longest.emitted, costs, rows
    )
    _add_plan(fast, lengths, plan, len(longest.emitted))
  rates = np.concatenate([each.rates[:, 0] for each in times])
  return Measured(
      rows, list(decodings), costs, _rate(rates, plain.compile_s), fast,
      [each.gains for each in times], plan,
  )  # fmt: skip


def _add_plan(fast, lengths, plan, examples) -> None:
  """Adds what was planned to the metrics of each block length."""
  planned = results.Metric(1.0, None, 1, '1')
  if plan.block_length is not None:
    planned = fast[lengths.index(plan.block_length)]['measured_speedup']
  for length, metrics in zip(lengths, fast):
    metrics['predicted_speedup_by_place'] = results.Metric(
        plan.speedups[length], None, examples, '1'
    )
    metrics['planned_block_length'] = results.Metric(
        plan.block_length or 0, None, 1, 'tokens'
    )
    metrics['planned_speedup'] = results.Metric(plan.speedup, None, 1, '1')
    metrics['planned_measured_speedup'] = planned


def trace(
    target: model_lib.Model,
    draft: model_lib.Model,
    batch: types.Batch,
    decoding: decoding_lib.Decoding,
    seed: int,
    folder: pathlib.Path,
) -> None:
  """Writes a trace of one run on the device, compiled before, into `folder`."""
  for _, keys in examples_lib.with_keys([batch], seed):

    def run(keys=keys):
      jax.block_until_ready(
          speculative.generate(target, draft, batch.prompt, keys, decoding)
      )

    run()
    with jax.profiler.trace(str(folder)):
      run()


class _Compiled(NamedTuple):
  call: Callable[..., Any]  # of a prompt and keys
  compile_s: float


def _compile(function, models, run, decoding, **static) -> _Compiled:
  """The compiled program of a pair or a model, warmed up."""
  began = time.perf_counter()
  program = function.lower(*models, *run, decoding, **static).compile()
  compile_s = time.perf_counter() - began
  call = lambda prompt, keys: program(*models, prompt, keys)
  jax.block_until_ready(call(*run))
  return _Compiled(call, compile_s)


class _Times(NamedTuple):
  rates: np.ndarray  # float64[n, 2] tokens a second: plain, fast
  emitted: np.ndarray  # int[rows of all runs] by speculative decoding
  blocks: np.ndarray  # int[rows of all runs]
  acceptance: tuple[float, ...]  # by position in a block

  @property
  def gains(self) -> np.ndarray:
    """float64[n]: the speed-up in each pair of runs."""
    return self.rates[:, 1] / self.rates[:, 0]


def _take_turns(plain, fast, runs, real) -> _Times:
  rates = np.zeros((len(runs), 2))
  emitted, blocks, reached, accepted = [], [], [], []
  for i, (run, is_real) in enumerate(zip(runs, real)):
    # Either goes first as often as the other.
    for way in (0, 1) if i % 2 == 0 else (1, 0):
      began = time.perf_counter()
      out = jax.block_until_ready((plain, fast)[way](*run))
      seconds = time.perf_counter() - began
      lengths = np.asarray(out.lengths)[is_real]
      rates[i, way] = lengths.sum() / seconds
      if way:
        counts = jax.device_get(out.statistics)
        emitted.append(lengths)
        blocks.append(counts.blocks[is_real])
        reached.append(counts.reached_at[is_real])
        accepted.append(counts.accepted_at[is_real])
  acceptance = block_length_lib.acceptance_by_position(
      np.concatenate(reached), np.concatenate(accepted)
  )
  return _Times(
      rates, np.concatenate(emitted), np.concatenate(blocks), acceptance
  )


def _rate(rates: np.ndarray, compile_s: float) -> Metrics:
  return {
      'tokens_per_second': results.Metric(
          *statistics.median(rates), len(rates), 'tokens/s'
      ),
      'compile_s': results.Metric(compile_s, None, 1, 's'),
  }


def _gains(
    times: _Times, decoding: decoding_lib.Decoding, costs: costs_lib.Costs
) -> Metrics:
  """What speculation gains, measured and predicted."""
  length = decoding.drafting.length
  tau = statistics.ratio(times.emitted, times.blocks)
  ratio, verify = costs.draft_ratio(length), costs.verify_ratio(length)
  steps = 1 if decoding.drafting.parallel else length

  def predicted(verify):
    value, error = (
        None if x is None else cost_model.speedup(x, ratio, steps, verify)
        for x in tau
    )
    return results.Metric(value, error, len(times.emitted), '1')

  metrics = {
      'cost_ratio': results.Metric(ratio, None, 1, '1'),
      'verify_ratio': results.Metric(verify, None, 1, '1'),
      'block_efficiency': results.Metric(
          *tau, len(times.emitted), 'tokens/block'
      ),
      'measured_speedup': results.Metric(
          *statistics.median(times.gains), len(times.gains), '1'
      ),
  }
  if decoding.drafting.adaptive is None:
    # The formulas are those of blocks of a fixed length.
    metrics['predicted_speedup'] = predicted(1.0)
    metrics['predicted_speedup_with_verify'] = predicted(verify)
  return metrics
