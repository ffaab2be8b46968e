"""How well a draft agrees with its target: acceptance and block efficiency.

Both are measured on text that has the target's distribution, which is what
speculative decoding emits. The acceptance rate is expected, from both models'
distributions on that text (1 - TVD, DistillSpec equation 3); block efficiency
is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import itertools
from typing import Any

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
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.distributed import hosts
from distillspec_jax.evaluation import examples as examples_lib
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.evaluation import quality
from distillspec_jax.losses import divergences
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import warping

# Positions whose distributions [B, 16, V] are held at a time.
_CHUNK = 16


def evaluate(
    *,
    run: str,
    target: str | loading.Model,
    draft: str | loading.Model,
    task: tasks.Task,
    split: str = 'validation',
    examples: int = 128,
    batch_size: int = 32,
    temperatures: Sequence[float] = (0.0, 1.0),
    block_lengths: Sequence[int] = (5,),
    verifications: Sequence[str] = ('token',),
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    draft_name: str | None = None,
) -> list[dict[str, Any]]:
  """Measures a pair, adds to RUN/results.jsonl and returns the lines.

  A line of kind `acceptance` for each temperature, block length and rule of
  verification, and one of kind `task_quality` for each model if the task has
  metrics (greedy answers). Greedy, the rules are the same one; sampled, the
  lines of all but the first have `block_efficiency_gain`: tokens a call of the
  target more than by the first, on the same inputs, with the standard error of
  the paired difference.

  Args:
    run: folder for the results.
    target: folder of a model or of a run, or a model.
    draft: likewise.
    task: whose inputs.
    split: of the task.
    examples: from the start of the split; all there are if it has fewer.
    batch_size: rows at a time; has no influence on the numbers.
    temperatures: 0 is greedy.
    block_lengths: drafted tokens a block.
    verifications: 'token', 'block' or both.
    top_k: see `Decoding`.
    top_p: see `Decoding`.
    max_new_tokens: default: the task's label length.
    seed: of sampling.
    draft_name: in results; default: the folder's.

  Raises:
    UserError: folders without models, models that do not fit each other or
      the task, settings out of range, a folder that cannot be written to.
  """
  settings = [
      decoding_lib.Decoding(
          temperature=temperature,
          top_k=top_k,
          top_p=top_p,
          block_length=block_length,
          verification=verification,
          max_new_tokens=task.label_length
          if max_new_tokens is None
          else max_new_tokens,
      )
      for temperature, block_length, verification in itertools.product(
          temperatures, block_lengths, verifications
      )
  ]
  if not settings:
    raise errors.UserError(
        f'temperatures is {temperatures}, block_lengths {block_lengths} and'
        f' verifications {verifications}; give at least one of each.'
    )
  settings = [
      decoding
      for decoding in settings
      if decoding.verification == verifications[0] or not decoding.greedy
  ]
  store.check_writable(run)
  target, draft, name, task = pair_lib.load(target, draft, task, draft_name)
  batches = examples_lib.first(task, split, examples, batch_size)
  lines = []

  def write(kind, decoding, metrics):
    lines.append(
        results.write(
            run,
            kind,
            target=target.name,
            draft=name,
            task=task.name,
            split=split,
            decoding=decoding,
            metrics=metrics,
            seed=seed,
        )
    )

  table = rich.table.Table(
      'temperature', 'block length', 'verification', 'acceptance rate',
      'block efficiency', 'gain', title=f'{name}, {task.name} {split}',
  )  # fmt: skip
  first = {}
  for decoding in settings:
    what = f'{name}, {_describe(decoding)}'
    counts = count(target, draft, progress.shown(batches, what), decoding, seed)
    metrics = _metrics(counts, decoding.block_length)
    if decoding.verification == verifications[0]:
      first = counts
    else:
      metrics['block_efficiency_gain'] = _gain(first, counts)
    described = decoding.describe(speculative=True, batch_size=batch_size)
    write('acceptance', described, metrics)
    table.add_row(
        f'{decoding.temperature:g}',
        str(decoding.block_length),
        decoding.verification,
        _show(metrics['acceptance_rate']),
        _show(metrics['block_efficiency']),
        _show(metrics.get('block_efficiency_gain')),
    )
  if task.metrics and target.vocabulary is not None:
    # What a model can do is asked without chance.
    decoding = dataclasses.replace(settings[0], temperature=0.0)
    for model, who in ((target, 'target'), (draft, name)):
      shown = progress.shown(batches, f'{who}, task quality')
      metrics = quality.measure(model, task, shown, decoding, seed, target)
      described = decoding.describe(speculative=False, batch_size=batch_size)
      write('task_quality', {**described, 'model': who}, metrics)
  rich.console.Console(stderr=True, quiet=not hosts.is_first()).print(table)
  return lines


def measure(
    target: loading.Model,
    draft: loading.Model,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
) -> dict[str, results.Metric]:
  """Acceptance rate, block efficiency and acceptance by position.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    batches: whose inputs are answered; empty rows do not count.
    decoding: settings.
    seed: of sampling; row i of all batches draws from stream (seed, i).

  Returns:
    Name -> metric, with standard errors over examples: acceptance_rate,
    block_efficiency, predicted_block_efficiency, tokens (an answer), and
    acceptance_at_1 .. acceptance_at_G: how often the token at this place of a
    block is accepted if all before it were (places never reached are left out).

  Raises:
    UserError: there is no example.
  """
  counts = count(target, draft, batches, decoding, seed)
  return _metrics(counts, decoding.block_length)


def count(
    target: loading.Model,
    draft: loading.Model,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
) -> dict[str, np.ndarray]:
  """What each example counts for, each [n] or [n, G]; arguments: `measure`.

  Returns:
    expected (accepted tokens, by both distributions), emitted, blocks,
    reached_at, accepted_at.

  Raises:
    UserError: there is no example.
  """
  rows: list[dict[str, np.ndarray]] = []
  for batch, keys in examples_lib.with_keys(batches, seed):
    samples = pair_lib.answer(
        target, draft, batch.inputs, batch.input_segments, keys, decoding
    )
    found = {
        'expected': _expected_acceptance(
            target.transformer,
            draft.transformer,
            decoding,
            target.params,
            draft.params,
            batch.inputs,
            batch.input_segments,
            samples,
        ),
        'emitted': samples.statistics.emitted,
        'blocks': samples.statistics.blocks,
        'reached_at': samples.statistics.reached_at,
        'accepted_at': samples.statistics.accepted_at,
    }
    real = examples_lib.real_rows(batch)
    rows.append({k: v[real] for k, v in jax.device_get(found).items()})
  if not sum(len(row['emitted']) for row in rows):
    raise errors.UserError(
        'There is no example to measure: no batches, or only padding rows.'
    )
  return {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}


def _gain(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> results.Metric:
  """Block efficiency of the second less that of the first, paired."""
  difference = statistics.ratio_difference(
      (first['emitted'], second['emitted']), (first['blocks'], second['blocks'])
  )
  return results.Metric(*difference, len(first['emitted']), 'tokens/block')


def _metrics(
    counts: dict[str, np.ndarray], block_length: int
) -> dict[str, results.Metric]:
  """Metrics of the examples' counts, each [n] or [n, G]."""
  number = len(counts['emitted'])

  def metric(totals, weights, unit):
    return results.Metric(*statistics.ratio(totals, weights), number, unit)

  rate = metric(counts['expected'], counts['emitted'], '1')
  # A sum of rounded terms, which may end above 1.
  rate = rate._replace(value=min(rate.value, 1.0))
  slope = cost_model.block_efficiency_slope(rate.value, block_length)
  error = rate.standard_error
  found = {
      'acceptance_rate': rate,
      'block_efficiency': metric(
          counts['emitted'], counts['blocks'], 'tokens/block'
      ),
      'predicted_block_efficiency': results.Metric(
          cost_model.predicted_block_efficiency(rate.value, block_length),
          None if error is None else slope * error,
          number,
          'tokens/block',
      ),
      'tokens': metric(counts['emitted'], np.ones(number), 'tokens'),
  }
  for place in range(block_length):
    reached = counts['reached_at'][:, place]
    if reached.any():
      found[f'acceptance_at_{place + 1}'] = metric(
          counts['accepted_at'][:, place], reached, '1'
      )
  return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _expected_acceptance(
    target: transformer_lib.Transformer,
    draft: transformer_lib.Transformer,
    decoding: decoding_lib.Decoding,
    target_params: Any,
    draft_params: Any,
    inputs: jax.Array,
    input_segments: jax.Array,
    samples: samples_lib.Samples,
) -> jax.Array:
  """float32[B]: sum over emitted tokens of sum_v min(p, q), both warped."""
  length = samples.tokens.shape[1]
  written = jnp.arange(length)[None] < samples.lengths[:, None]
  segments = written.astype(jnp.int32)
  tokens = transformer_lib.shift_right(samples.tokens, segments)
  read = (inputs, input_segments, tokens, segments)
  encoded = transformer_lib.shared_encoding(
      draft, target, target_params, inputs, input_segments
  )
  p_hidden = target.hidden(target_params, *read, encoded=encoded)
  q_hidden = draft.hidden(draft_params, *read, encoded=encoded)
  size = transformer_lib.shared_vocabulary(target, draft)
  padding = -length % _CHUNK

  def split(array):
    array = jnp.pad(array, ((0, 0), (0, padding), (0, 0)))
    array = array.reshape(array.shape[0], -1, _CHUNK, array.shape[-1])
    return jnp.swapaxes(array, 0, 1)  # [T / 16, B, 16, D]

  def chunk(hidden):
    p = target.all_logits(target_params, hidden[0], size)
    q = draft.all_logits(draft_params, hidden[1], size)
    return divergences.acceptance(
        warping.warp(p, decoding), warping.warp(q, decoding)
    )

  found = jax.lax.map(chunk, (split(p_hidden), split(q_hidden)))
  found = jnp.swapaxes(found, 0, 1).reshape(written.shape[0], -1)[:, :length]
  return jnp.sum(found, axis=1, where=written)


def _describe(decoding: decoding_lib.Decoding) -> str:
  how = 'greedy' if decoding.greedy else f'T = {decoding.temperature:g}'
  by = '' if decoding.verification == 'token' else f', {decoding.verification}'
  return f'{how}, block length {decoding.block_length}{by}'


def _show(metric: results.Metric | None) -> str:
  if metric is None:
    return '–'
  if metric.standard_error is None:
    return f'{metric.value:.3f}'
  return f'{metric.value:.3f} ± {metric.standard_error:.3f}'
