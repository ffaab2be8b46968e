"""Wall clock: autoregressive and speculative decoding, side by side.

Compilation is timed apart and done before anything else; every timed call
waits for the device. The two ways take turns, so that a machine whose speed
drifts changes both alike, and the speed-up is the median of the ratios of
neighbouring runs on the same inputs. Both times hold the encoders.

Beside what is measured stands what was predicted from the costs of single
steps, and which block length a planner chooses that knows no time of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.core import cost_model
from distillspec_jax.core import errors
from distillspec_jax.core import progress
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.distributed import hosts
from distillspec_jax.evaluation import examples as examples_lib
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.evaluation.speed import block_length as block_length_lib
from distillspec_jax.evaluation.speed import costs as costs_lib
from distillspec_jax.evaluation.speed import time_breakdown
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative

Metrics = dict[str, results.Metric]


class Measured(NamedTuple):
  """Metrics of autoregressive decoding, and block length -> of speculative."""

  plain: Metrics
  fast: dict[int, Metrics]
  plan: block_length_lib.Plan


def benchmark(
    *,
    run: str,
    target: str | loading.Model,
    draft: str | loading.Model,
    task: tasks.Task,
    split: str = 'validation',
    examples: int = 128,
    batch_sizes: Sequence[int] = (1, 8),
    temperatures: Sequence[float] = (0.0,),
    block_lengths: Sequence[int] = (2, 3, 5),
    repeats: int = 5,
    max_new_tokens: int | None = None,
    seed: int = 0,
    draft_name: str | None = None,
    profile: bool = False,
) -> list[dict[str, Any]]:
  """Times a pair, adds to RUN/results.jsonl and returns the lines.

  For each batch size and temperature one line of kind `latency` for
  autoregressive decoding (draft and block length are null) and one for each
  block length, which also holds the plan: the block length that the planner
  chooses from acceptance by place and costs (0: do not speculate), the speed-up
  it predicts for it, and the one that was measured.

  Args:
    run: folder for the results.
    target: folder of a model or of a run, or a model.
    draft: likewise.
    task: whose inputs.
    split: of the task.
    examples: different inputs at most; taken again where they run out.
    batch_sizes: rows decoded together.
    temperatures: 0 is greedy.
    block_lengths: drafted tokens a block.
    repeats: pairs of runs, each with the next inputs.
    max_new_tokens: default: the task's label length.
    seed: of sampling.
    draft_name: in results; default: the folder's.
    profile: also where a block's time goes, for the fastest block length of
      each setting: its parts in the results, and a trace of one run (for
      TensorBoard or Perfetto) in RUN/profile.

  Raises:
    UserError: folders without models, models that do not fit each other or
      the task, settings out of range, a folder that cannot be written to.
    RuntimeError: the machine is too busy to time steps.
  """
  if repeats < 1:
    raise errors.UserError(f'repeats is {repeats}; it must be at least 1.')
  length = task.label_length if max_new_tokens is None else max_new_tokens
  settings = [
      [
          decoding_lib.Decoding(
              temperature=temperature,
              block_length=block_length,
              max_new_tokens=length,
          )
          for block_length in block_lengths
      ]
      for temperature in temperatures
  ]
  if not batch_sizes or not settings or not settings[0]:
    raise errors.UserError(
        f'batch_sizes is {batch_sizes}, temperatures {temperatures} and'
        f' block_lengths {block_lengths}; give at least one of each.'
    )
  store.check_writable(run)
  target, draft, name, task = pair_lib.load(target, draft, task, draft_name)
  inputs = [
      examples_lib.repeated(task, split, examples, batch_size, repeats)
      for batch_size in batch_sizes
  ]
  lines: list[dict[str, Any]] = []

  def write(decoding, batch_size, draft_name, metrics):
    lines.append(
        results.write(
            run,
            'latency',
            target=target.name,
            draft=draft_name,
            task=task.name,
            split=split,
            decoding=decoding.describe(
                speculative=draft_name is not None, batch_size=batch_size
            ),
            metrics=metrics,
            seed=seed,
        )
    )

  title = f'{name}, {task.name} {split}'
  speeds = rich.table.Table(
      'batch', 'temperature', 'block length', 'tokens/s', 'c', 'predicted',
      'measured', title=title,
  )  # fmt: skip
  plans = rich.table.Table(
      'batch', 'temperature', 'plan', 'predicted', 'measured', 'best measured',
      title=f'{title}: plans',
  )  # fmt: skip
  profiles = []
  for batches, batch_size in zip(inputs, batch_sizes):
    batches = jax.device_put(batches)
    for decodings in settings:
      here = str(batch_size), f'{decodings[0].temperature:g}'
      read = costs_lib.inputs(
          target, draft, batches[0].inputs, batches[0].input_segments
      )
      costs = costs_lib.measure(target, draft, read, decodings)
      found = measure(target, draft, batches, decodings, costs, seed)
      best = max(decodings, key=lambda d: _speedup(found.fast[d.block_length]))
      if profile:
        made = time_breakdown.measure(target, draft, read, best, seed)
        folder = (
            pathlib.Path(run)
            / 'profile'
            / '_'.join(('batch', here[0], 'temperature', here[1]))
        )
        trace(target, draft, batches[0], best, seed, folder)
        found.fast[best.block_length].update(made.metrics())
        profiles.append((*here, best.block_length, made))
      write(decodings[0], batch_size, None, found.plain)
      for decoding in decodings:
        metrics = found.fast[decoding.block_length]
        write(decoding, batch_size, name, metrics)
        speeds.add_row(
            *here,
            str(decoding.block_length),
            f'{found.plain["tokens_per_second"].value:.0f} ->'
            f' {metrics["tokens_per_second"].value:.0f}',
            f'{costs.draft_ratio:.2f}',
            f'{metrics["predicted_speedup_by_place"].value:.2f}',
            f'{_speedup(metrics):.2f}',
        )
      plans.add_row(*here, *_show_plan(found, best.block_length))
  console = rich.console.Console(stderr=True, quiet=not hosts.is_first())
  for table in (speeds, plans, *map(_profile_table, profiles)):
    console.print(table)
  return lines


def measure(
    target: loading.Model,
    draft: loading.Model,
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
      block length. Tokens of empty rows do not count.
    decodings: settings that differ in block length alone.
    costs: for the predictions and the plan.
    seed: of sampling.

  Returns:
    tokens_per_second and compile_s (without what the cache of compiled
    programs saves) of both; of speculative decoding also measured_speedup,
    predicted_speedup, predicted_speedup_with_verify,
    predicted_speedup_by_place (the planner's), block_efficiency, cost_ratio and
    verify_ratio; and planned_block_length (0: none), planned_speedup and
    planned_measured_speedup, which are the same for all block lengths.
  """
  rows = batches[0].inputs.shape[0]
  runs = []
  for i, batch in enumerate(batches):
    numbers = i * rows + jnp.arange(rows)
    keys = randomness.row_keys(jax.random.key(seed), numbers)
    runs.append((batch.inputs, batch.input_segments, keys))
  real = [examples_lib.real_rows(batch) for batch in batches]
  vocabulary = transformer_lib.shared_vocabulary(
      target.transformer, draft.transformer
  )
  plain = _compile(
      autoregressive.generate,
      (target.transformer,),
      (target.params,),
      runs[0],
      decodings[0],
      vocabulary=vocabulary,
  )
  everywhere, found, counts = [], {}, {}
  name = f'batch {rows}, T = {decodings[0].temperature:g}'
  for decoding in progress.shown(decodings, name):
    fast = _compile(
        speculative.generate,
        (target.transformer, draft.transformer),
        (target.params, draft.params),
        runs[0],
        decoding,
    )
    times = _take_turns(plain.call, fast.call, runs, real)
    everywhere.append(times.rates[:, 0])
    counts[decoding.block_length] = times.places, times.emitted
    found[decoding.block_length] = {
        **_rate(times.rates[:, 1], fast.compile_s),
        **_gains(times, decoding.block_length, costs),
    }
  plan = block_length_lib.plan(*counts[max(counts)], costs, rows)
  chosen = plan.block_length or 0
  for block_length, metrics in found.items():
    metrics['predicted_speedup_by_place'] = results.Metric(
        plan.speedups[block_length], None, len(times.emitted), '1'
    )
    metrics['planned_block_length'] = results.Metric(chosen, None, 1, 'tokens')
    metrics['planned_speedup'] = results.Metric(plan.speedup, None, 1, '1')
    metrics['planned_measured_speedup'] = (
        found[chosen]['measured_speedup']
        if chosen
        else results.Metric(1.0, None, 1, '1')
    )
  plain = _rate(np.concatenate(everywhere), plain.compile_s)
  return Measured(plain, found, plan)


def trace(
    target: loading.Model,
    draft: loading.Model,
    batch: types.Batch,
    decoding: decoding_lib.Decoding,
    seed: int,
    folder: pathlib.Path,
) -> None:
  """Writes a trace of one run on the device, compiled before, into `folder`."""
  for _, keys in examples_lib.with_keys([batch], seed):
    read = batch.inputs, batch.input_segments, keys
    jax.block_until_ready(pair_lib.answer(target, draft, *read, decoding))
    with jax.profiler.trace(str(folder)):
      jax.block_until_ready(pair_lib.answer(target, draft, *read, decoding))


class _Compiled(NamedTuple):
  call: Callable[..., Any]  # of inputs, input_segments and keys
  compile_s: float


def _compile(function, models, params, run, decoding, **static) -> _Compiled:
  """The compiled program of a pair or a model, warmed up."""
  arguments = [x for pair in zip(models, params) for x in pair]
  began = time.perf_counter()
  program = function.lower(*arguments, *run, decoding, **static).compile()
  compile_s = time.perf_counter() - began
  call = functools.partial(program, *params)
  jax.block_until_ready(call(*run))
  return _Compiled(call, compile_s)


class _Times(NamedTuple):
  rates: np.ndarray  # float64[n, 2] tokens a second: plain, fast
  emitted: np.ndarray  # int[rows of all runs] by speculative decoding
  blocks: np.ndarray  # int[rows of all runs]
  places: tuple[float, ...]  # acceptance by place of a block


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
  places = block_length_lib.acceptance_by_place(
      np.concatenate(reached), np.concatenate(accepted)
  )
  return _Times(rates, np.concatenate(emitted), np.concatenate(blocks), places)


def _rate(rates: np.ndarray, compile_s: float) -> Metrics:
  return {
      'tokens_per_second': results.Metric(
          *statistics.median(rates), len(rates), 'tokens/s'
      ),
      'compile_s': results.Metric(compile_s, None, 1, 's'),
  }


def _gains(times: _Times, gamma: int, costs: costs_lib.Costs) -> Metrics:
  """What speculation gains, measured and predicted."""
  tau = statistics.ratio(times.emitted, times.blocks)
  gains = times.rates[:, 1] / times.rates[:, 0]
  ratio, verify = costs.draft_ratio, costs.verify_ratio(gamma)

  def predicted(verify):
    value, error = (
        None if x is None else cost_model.speedup(x, ratio, gamma, verify)
        for x in tau
    )
    return results.Metric(value, error, len(times.emitted), '1')

  return {
      'cost_ratio': results.Metric(ratio, None, 1, '1'),
      'verify_ratio': results.Metric(verify, None, 1, '1'),
      'block_efficiency': results.Metric(
          *tau, len(times.emitted), 'tokens/block'
      ),
      'predicted_speedup': predicted(1.0),
      'predicted_speedup_with_verify': predicted(verify),
      'measured_speedup': results.Metric(
          *statistics.median(gains), len(gains), '1'
      ),
  }


def _speedup(metrics: Metrics) -> float:
  return metrics['measured_speedup'].value


def _show_plan(found: Measured, best: int) -> tuple[str, ...]:
  """Cells: what is planned, predicted, measured, and the best there was."""
  plan = found.plan
  what, measured = 'autoregressive', 1.0
  if plan.block_length is not None:
    what = f'block length {plan.block_length}'
    measured = _speedup(found.fast[plan.block_length])
  speedup = _speedup(found.fast[best])
  most = f'{speedup:.2f} (block length {best})'
  if speedup <= 1.0:
    most = '1.00 (autoregressive)'
  return what, f'{plan.speedup:.2f}', f'{measured:.2f}', most


def _profile_table(
    profiled: tuple[str, str, int, time_breakdown.Profile],
) -> rich.table.Table:
  """Where a block's time goes, and what comes before the first."""
  batch_size, temperature, block_length, profile = profiled
  table = rich.table.Table(
      'part', 'calls', 'ms a call', 'ms', 'share',
      title=f'A block of {block_length}, batch {batch_size}, temperature'
      f' {temperature}',
  )  # fmt: skip

  def add(name, seconds, calls='', call=''):
    share = f'{seconds / profile.block_s:.0%}'
    table.add_row(name, calls, call, f'{1e3 * seconds:.3f}', share)

  for part in profile.parts:
    each = f'{1e3 * part.seconds:.3f}'
    add(part.name, part.total_s, str(part.calls), each)
  add('all parts', profile.parts_s)
  add('the block in the loop', profile.block_s)
  for part in profile.prefill:
    add(f'once a generation: encoder of the {part.name}', part.total_s)
  return table
