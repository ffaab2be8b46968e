"""Wall clock: autoregressive and speculative decoding, side by side.

Compilation is timed apart and done before anything else; every timed call
waits for the device. The two ways take turns, so that a machine whose speed
drifts changes both alike, and the speed-up is the median of the ratios of
neighbouring runs on the same inputs. Both times hold the encoders.
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

from distillspec_jax.checkpoints import store
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import cost_model
from distillspec_jax.evaluation import examples as examples_lib
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.core import progress
from distillspec_jax.evaluation import statistics
from distillspec_jax.models import pretrained
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows
from distillspec_jax.sampling import speculative

# Steps at most that are timed together for the cost of one.
_STEPS = 32

Metrics = dict[str, results.Metric]


class Costs(NamedTuple):
  """Times over that of one target step.

  Attributes:
    draft: of a draft step, c.
    verify: block length -> of a target call on a block, 1 + block length
      tokens.
  """

  draft: float
  verify: dict[int, float]


class Measured(NamedTuple):
  """Metrics of autoregressive decoding, and block length -> of speculative."""

  plain: Metrics
  fast: dict[int, Metrics]


def benchmark(
    *,
    run: str,
    target: str | pretrained.Model,
    draft: str | pretrained.Model,
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
) -> list[dict[str, Any]]:
  """Times a pair, adds to RUN/results.jsonl and returns the lines.

  For each batch size and temperature one line of kind `latency` for
  autoregressive decoding (draft and block length are null) and one for each
  block length.

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

  Raises:
    UserError: folders without models, models that do not fit each other or
      the task, settings out of range, a folder that cannot be written to.
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
  target, draft, name = pair_lib.load(target, draft, task, draft_name)
  inputs = [
      examples_lib.repeated(task, split, examples, batch_size, repeats)
      for batch_size in batch_sizes
  ]
  lines: list[dict[str, Any]] = []

  def write(decoding, batch_size, draft_name, metrics):
    lines.append(
        results.write(
            pathlib.Path(run) / 'results.jsonl',
            'latency',
            run=pathlib.Path(run).name,
            target=target.name,
            draft=draft_name,
            task=task.name,
            split=split,
            decoding=decoding.describe(
                speculative=draft_name is not None, batch_size=batch_size
            ),
            metrics=metrics,
            seed=seed,
            config_hash=configuration.current().hash,
        )
    )

  table = rich.table.Table(
      'batch', 'temperature', 'block length', 'tokens/s', 'c', 'predicted',
      'measured', title=f'{name}, {task.name} {split}',
  )  # fmt: skip
  for batches, batch_size in zip(inputs, batch_sizes):
    batches = jax.device_put(batches)
    costs = measure_costs(target, draft, batches[0], block_lengths, length)
    for decodings in settings:
      found = measure(target, draft, batches, decodings, costs, seed)
      write(decodings[0], batch_size, None, found.plain)
      for decoding in decodings:
        metrics = found.fast[decoding.block_length]
        write(decoding, batch_size, name, metrics)
        table.add_row(
            str(batch_size),
            f'{decoding.temperature:g}',
            str(decoding.block_length),
            f'{found.plain["tokens_per_second"].value:.0f} ->'
            f' {metrics["tokens_per_second"].value:.0f}',
            f'{costs.draft:.2f}',
            f'{metrics["predicted_speedup"].value:.2f}',
            f'{metrics["measured_speedup"].value:.2f}',
        )
  rich.console.Console(stderr=True).print(table)
  return lines


def measure(
    target: pretrained.Model,
    draft: pretrained.Model,
    batches: Sequence[types.Batch],
    decodings: Sequence[decoding_lib.Decoding],
    costs: Costs,
    seed: int,
) -> Measured:
  """Times both ways of decoding the same inputs.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    batches: of one shape, on the device; one pair of runs each for every
      block length. Tokens of empty rows do not count.
    decodings: settings that differ in block length alone.
    costs: for the predictions.
    seed: of sampling.

  Returns:
    tokens_per_second and compile_s (without what the cache of compiled
    programs saves) of both; of speculative decoding also measured_speedup,
    predicted_speedup, predicted_speedup_with_verify, block_efficiency,
    cost_ratio and verify_ratio.
  """
  rows = batches[0].inputs.shape[0]
  runs = []
  for i, batch in enumerate(batches):
    numbers = i * rows + jnp.arange(rows)
    keys = randomness.row_keys(jax.random.key(seed), numbers)
    runs.append((batch.inputs, batch.input_segments, keys))
  real = [examples_lib.real_rows(batch) for batch in batches]
  # Rows of the larger vocabulary beyond the smaller are padding to both ways.
  vocabulary = min(target.config.vocab_size, draft.config.vocab_size)
  plain = _compile(
      autoregressive.generate,
      (target.transformer,),
      (target.params,),
      runs[0],
      decodings[0],
      vocabulary=vocabulary,
  )
  everywhere, found = [], {}
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
    found[decoding.block_length] = {
        **_rate(times.rates[:, 1], fast.compile_s),
        **_gains(times, decoding.block_length, costs),
    }
  return Measured(_rate(np.concatenate(everywhere), plain.compile_s), found)


def measure_costs(
    target: pretrained.Model,
    draft: pretrained.Model,
    batch: types.Batch,
    block_lengths: Sequence[int],
    max_new_tokens: int,
) -> Costs:
  """Costs of single steps on a batch, with caches as large as in decoding.

  A step feeds tokens, makes their logits and takes the most likely tokens.
  """
  step = step_time(target, batch, 1, max_new_tokens)
  return Costs(
      draft=step_time(draft, batch, 1, max_new_tokens, target) / step,
      verify={
          length: step_time(target, batch, length + 1, max_new_tokens) / step
          for length in block_lengths
      },
  )


def step_time(
    model: pretrained.Model,
    batch: types.Batch,
    block: int,
    max_new_tokens: int,
    target: pretrained.Model | None = None,
) -> float:
  """Seconds that a step on `block` tokens takes after the prefix is read.

  One program runs few and many such steps; the difference of its least times
  is free of the encoder, the prompt and the start. A draft that shares an
  encoder needs its `target`.

  Raises:
    RuntimeError: the clock sees no difference.
  """
  many = min(_STEPS, max_new_tokens)
  few = many // 4
  steps = jax.device_put([np.int32(few), np.int32(many)])
  encoded = None
  if target is not None:
    encoded = transformer_lib.shared_encoding(
        model.transformer,
        target.transformer,
        target.params,
        batch.inputs,
        batch.input_segments,
    )
  for attempts in (7, 21, 63):
    least = [float('inf'), float('inf')]
    for attempt in range(attempts + 1):
      for i in (0, 1):
        began = time.perf_counter()
        jax.block_until_ready(
            _steps(
                model.transformer,
                model.params,
                batch.inputs,
                batch.input_segments,
                block,
                max_new_tokens + block,
                steps[i],
                encoded=encoded,
            )
        )
        if attempt:  # the first compiles and warms up
          least[i] = min(least[i], time.perf_counter() - began)
    if least[1] > least[0]:
      return (least[1] - least[0]) / (many - few)
  raise RuntimeError(
      f'{many} steps of {model.name} take no longer than {few}: {least[1]} s'
      f' and {least[0]} s. The machine is too busy to time them; run again.'
  )


@functools.partial(jax.jit, static_argnames=('model', 'block', 'slots'))
def _steps(
    model: transformer_lib.Transformer,
    params: Any,
    inputs: jax.Array,
    input_segments: jax.Array,
    block: int,
    slots: int,
    steps: jax.Array,
    encoded: jax.Array | None = None,
) -> jax.Array:
  """int32[B, block]: the last tokens of `steps` steps, one kept of each."""
  state, prefix = model.begin(
      params, inputs, input_segments, slots, encoded=encoded
  )
  start = prefix.length - 1

  def one(number, carry):
    state, tokens = carry
    hidden, state = model.advance(params, state, tokens)
    logits = model.unembed(params, hidden)
    tokens = model.columns().tokens(rows.best(logits))
    return model.rewind(state, start + number + 1), tokens

  tokens = jnp.zeros((inputs.shape[0], block), jnp.int32)
  return jax.lax.fori_loop(0, steps, one, (state, tokens))[1]


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


def _take_turns(plain, fast, runs, real) -> _Times:
  rates = np.zeros((len(runs), 2))
  emitted, blocks = [], []
  for i, (run, is_real) in enumerate(zip(runs, real)):
    # Either goes first as often as the other.
    for way in (0, 1) if i % 2 == 0 else (1, 0):
      began = time.perf_counter()
      out = jax.block_until_ready((plain, fast)[way](*run))
      seconds = time.perf_counter() - began
      lengths = np.asarray(out.lengths)[is_real]
      rates[i, way] = lengths.sum() / seconds
      if way:
        emitted.append(lengths)
        blocks.append(np.asarray(out.statistics.blocks)[is_real])
  return _Times(rates, np.concatenate(emitted), np.concatenate(blocks))


def _rate(rates: np.ndarray, compile_s: float) -> Metrics:
  return {
      'tokens_per_second': results.Metric(
          *statistics.median(rates), len(rates), 'tokens/s'
      ),
      'compile_s': results.Metric(compile_s, None, 1, 's'),
  }


def _gains(times: _Times, gamma: int, costs: Costs) -> Metrics:
  """What speculation gains, measured and predicted."""
  tau = statistics.ratio(times.emitted, times.blocks)
  gains = times.rates[:, 1] / times.rates[:, 0]
  verify = costs.verify[gamma]

  def predicted(verify):
    value, error = (
        None if x is None else cost_model.speedup(x, costs.draft, gamma, verify)
        for x in tau
    )
    return results.Metric(value, error, len(times.emitted), '1')

  return {
      'cost_ratio': results.Metric(costs.draft, None, 1, '1'),
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
