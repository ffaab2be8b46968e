"""Wall clock: autoregressive and speculative decoding, side by side.

Compilation is timed apart and done before anything else; every timed call
waits for the device. The two ways take turns, so that a machine whose speed
drifts changes both alike, and the speed-up is the median of the ratios of
neighbouring runs.
"""

from __future__ import annotations

import itertools
import pathlib
import time
from typing import Any, NamedTuple
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation import cost_model
from distillspec_jax.models import pretrained
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative

# Steps timed together for the cost of one.
_STEPS = 16


class Timed(NamedTuple):
  """A compiled call and what compiling took."""

  call: Callable[[], Any]
  compile_s: float


def benchmark(
    *,
    run: str,
    target: str | pretrained.Model,
    draft: str | pretrained.Model,
    task: tasks.Task,
    split: str = 'validation',
    batch_sizes: Sequence[int] = (1, 8),
    temperatures: Sequence[float] = (0.0,),
    block_lengths: Sequence[int] = (2, 3, 5),
    repeats: int = 5,
    max_new_tokens: int | None = None,
    seed: int = 0,
    draft_name: str | None = None,
) -> list[dict[str, Any]]:
  """Times a pair and writes RUN/results.jsonl; returns the lines.

  Args:
    run: folder for the results.
    target: folder of a model, or a model.
    draft: likewise.
    task: whose inputs.
    split: of the task.
    batch_sizes: rows decoded together.
    temperatures: 0 is greedy.
    block_lengths: drafted tokens a block.
    repeats: pairs of runs, each with inputs of its own.
    max_new_tokens: default: the task's label length.
    seed: of sampling.
    draft_name: in results; default: the folder's.

  Raises:
    UserError: folders without models, models that do not fit, settings.
  """
  if repeats < 1:
    raise errors.UserError(f'repeats is {repeats}; it must be at least 1.')
  if isinstance(target, str):
    target = pretrained.load(target)
  if isinstance(draft, str):
    draft = pretrained.load(draft)
  pretrained.check_pair(target, draft)
  name = draft_name or pathlib.Path(draft.name).name
  lines: list[dict[str, Any]] = []
  table = rich.table.Table(
      'batch', 'temperature', 'block length', 'tokens/s', 'c', 'predicted',
      'measured', title=f'{name}, {task.name} {split}',
  )  # fmt: skip
  for batch_size in batch_sizes:
    batches = acceptance.first_batches(
        task, split, batch_size * repeats, batch_size
    )
    batches = jax.device_put(batches)
    step = step_time(target, batches[0], 1)
    c = step_time(draft, batches[0], 1) / step
    for temperature, block_length in itertools.product(
        temperatures, block_lengths
    ):
      decoding = decoding_lib.Decoding(
          temperature=temperature,
          block_length=block_length,
          max_new_tokens=max_new_tokens or task.label_length,
      )
      verify = step_time(target, batches[0], block_length + 1) / step
      plain, fast = measure(target, draft, batches, decoding, seed, c, verify)
      for who, speculative_, metrics in (
          (None, False, plain),
          (name, True, fast),
      ):
        lines.append(
            results.write(
                pathlib.Path(run) / 'results.jsonl',
                'latency',
                run=pathlib.Path(run).name,
                target=target.name,
                draft=who,
                task=task.name,
                split=split,
                decoding=decoding.describe(
                    speculative=speculative_, batch_size=batch_size
                ),
                metrics=metrics,
                seed=seed,
                config_hash=configuration.current().hash,
            )
        )
      table.add_row(
          str(batch_size),
          f'{temperature:g}',
          str(block_length),
          f'{plain["tokens_per_second"].value:.0f} ->'
          f' {fast["tokens_per_second"].value:.0f}',
          f'{c:.2f}',
          f'{fast["predicted_speedup"].value:.2f}',
          f'{fast["measured_speedup"].value:.2f}',
      )
  rich.console.Console(stderr=True).print(table)
  return lines


def measure(
    target: pretrained.Model,
    draft: pretrained.Model,
    batches: Sequence[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
    c: float,
    verify: float,
) -> tuple[dict[str, results.Metric], dict[str, results.Metric]]:
  """Metrics of autoregressive and of speculative decoding.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    batches: of one shape, on the device; one pair of runs each.
    decoding: settings.
    seed: of sampling.
    c: time of a draft step over that of a target step.
    verify: time of a target call on a block over that of a target step.
  """
  rows = batches[0].inputs.shape[0]
  keys = randomness.row_keys(jax.random.key(seed), rows)
  first = batches[0]
  plain, plain_compile = _compile(
      autoregressive.generate,
      (target.transformer, target.params),
      (first.inputs, first.input_segments, keys),
      decoding,
  )
  fast, fast_compile = _compile(
      speculative.generate,
      (target.transformer, target.params, draft.transformer, draft.params),
      (first.inputs, first.input_segments, keys),
      decoding,
  )
  pairs = [(target.params,), (target.params, draft.params)]
  for call, params in zip((plain, fast), pairs):  # warm-up
    jax.block_until_ready(
        call(*params, first.inputs, first.input_segments, keys)
    )
  seconds = np.zeros((len(batches), 2))
  tokens = np.zeros((len(batches), 2))
  blocks = np.zeros(len(batches))
  for i, batch in enumerate(batches):
    # Either goes first as often as the other.
    for way in (0, 1) if i % 2 == 0 else (1, 0):
      began = time.perf_counter()
      out = (plain, fast)[way](
          *pairs[way], batch.inputs, batch.input_segments, keys
      )
      jax.block_until_ready(out)
      seconds[i, way] = time.perf_counter() - began
      tokens[i, way] = int(np.sum(np.asarray(out.lengths)))
      if way:
        blocks[i] = int(np.sum(np.asarray(out.statistics.blocks)))
  rates = tokens / seconds
  gains = rates[:, 1] / rates[:, 0]
  tau = tokens[:, 1].sum() / blocks.sum()
  gamma = decoding.block_length
  count = len(batches)

  def spread(values):
    """Standard error of the median, from the quartiles."""
    if count < 3:
      return None
    low, high = np.percentile(values, [25, 75])
    return float(1.2533 * (high - low) / 1.349 / np.sqrt(count))

  def rate(way, compile_s):
    return {
        'tokens_per_second': results.Metric(
            float(np.median(rates[:, way])),
            spread(rates[:, way]),
            count,
            'tokens/s',
        ),
        'compile_s': results.Metric(compile_s, None, 1, 's'),
    }

  return rate(0, plain_compile), {
      **rate(1, fast_compile),
      'cost_ratio': results.Metric(c, None, 1, '1'),
      'verify_ratio': results.Metric(verify, None, 1, '1'),
      'block_efficiency': results.Metric(tau, None, count, 'tokens/block'),
      'predicted_speedup': results.Metric(
          cost_model.speedup(tau, c, gamma), None, count, '1'
      ),
      'predicted_speedup_with_verify': results.Metric(
          cost_model.speedup(tau, c, gamma, verify), None, count, '1'
      ),
      'measured_speedup': results.Metric(
          float(np.median(gains)), spread(gains), count, '1'
      ),
  }


def step_time(model: pretrained.Model, batch: types.Batch, block: int) -> float:
  """Seconds of appending `block` tokens and making their logits.

  The least of several runs of a compiled loop of such steps.
  """
  transformer = model.transformer
  rows = batch.inputs.shape[0]

  @jax.jit
  def many(params, inputs, segments):
    state, prefix = transformer.begin(
        params, inputs, segments, _STEPS + block + 1
    )
    tokens = jnp.zeros((rows, block), jnp.int32)

    def one(_, carry):
      state, tokens = carry
      start = state.length
      hidden, state = transformer.advance(params, state, tokens)
      logits = transformer.unembed(params, hidden)
      tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
      return transformer.rewind(state, start + 1), tokens

    return jax.lax.fori_loop(0, _STEPS, one, (state, tokens))[1], prefix

  @jax.jit
  def begin(params, inputs, segments):
    state, prefix = transformer.begin(
        params, inputs, segments, _STEPS + block + 1
    )
    return state.cross, state.length, prefix

  args = (model.params, batch.inputs, batch.input_segments)

  def least(function):
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(7):
      began = time.perf_counter()
      jax.block_until_ready(function(*args))
      times.append(time.perf_counter() - began)
    return min(times)

  return max(least(many) - least(begin), 1e-9) / _STEPS


def _compile(function, models, arguments, decoding) -> Timed:
  began = time.perf_counter()
  compiled = function.lower(*models, *arguments, decoding).compile()
  return Timed(compiled, time.perf_counter() - began)
