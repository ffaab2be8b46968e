"""How well a draft agrees with its target: acceptance and block efficiency.

Both are measured on text that has the target's distribution, which is what
speculative decoding emits. The acceptance rate is expected, from both models'
distributions on that text (1 - TVD, DistillSpec equation 3); block efficiency
is counted.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
from typing import Any
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from distillspec_jax.core import configuration
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import cost_model
from distillspec_jax.evaluation import quality
from distillspec_jax.evaluation import statistics
from distillspec_jax.losses import divergences
from distillspec_jax.models import pretrained
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import warping

_CHUNK = 16


def evaluate(
    *,
    run: str,
    target: str | pretrained.Model,
    draft: str | pretrained.Model,
    task: tasks.Task,
    split: str = 'validation',
    examples: int = 128,
    batch_size: int = 32,
    temperatures: Sequence[float] = (0.0, 1.0),
    block_lengths: Sequence[int] = (5,),
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    draft_name: str | None = None,
) -> list[dict[str, Any]]:
  """Measures a pair and writes RUN/results.jsonl; returns the lines.

  Args:
    run: folder for the results.
    target: folder of a model, or a model.
    draft: likewise.
    task: whose inputs.
    split: of the task.
    examples: from the start of the split.
    batch_size: rows at a time; has no influence on the numbers.
    temperatures: 0 is greedy.
    block_lengths: drafted tokens a block.
    top_k: see `Decoding`.
    top_p: see `Decoding`.
    max_new_tokens: default: the task's label length.
    seed: of sampling.
    draft_name: in results; default: the folder's.

  Raises:
    UserError: folders without models, models that do not fit, settings.
  """
  if isinstance(target, str):
    target = pretrained.load(target)
  if isinstance(draft, str):
    draft = pretrained.load(draft)
  pretrained.check_pair(target, draft)
  name = draft_name or pathlib.Path(draft.name).name
  path = pathlib.Path(run) / 'results.jsonl'
  settings = [
      decoding_lib.Decoding(
          temperature=temperature,
          top_k=top_k,
          top_p=top_p,
          block_length=block_length,
          max_new_tokens=max_new_tokens or task.label_length,
      )
      for temperature, block_length in itertools.product(
          temperatures, block_lengths
      )
  ]
  batches = first_batches(task, split, examples, batch_size)
  lines = []

  def write(kind, decoding, metrics):
    lines.append(
        results.write(
            path,
            kind,
            run=pathlib.Path(run).name,
            target=target.name,
            draft=name,
            task=task.name,
            split=split,
            decoding=decoding,
            metrics=metrics,
            seed=seed,
            config_hash=configuration.current().hash,
        )
    )

  table = rich.table.Table(
      'temperature', 'block length', 'acceptance rate', 'block efficiency',
      title=f'{name}, {task.name} {split}',
  )  # fmt: skip
  for decoding in settings:
    metrics = measure(target, draft, batches, decoding, seed)
    described = decoding.describe(speculative=True, batch_size=batch_size)
    write('acceptance', described, metrics)
    table.add_row(
        f'{decoding.temperature:g}',
        str(decoding.block_length),
        _show(metrics['acceptance_rate']),
        _show(metrics['block_efficiency']),
    )
  if task.metrics and target.vocabulary is not None:
    for model, who in ((target, 'target'), (draft, name)):
      decoding = settings[0]
      metrics = quality.measure(model, task, batches, decoding, seed)
      described = decoding.describe(speculative=False, batch_size=batch_size)
      write('task_quality', {**described, 'model': who}, metrics)
  rich.console.Console(stderr=True).print(table)
  return lines


def measure(
    target: pretrained.Model,
    draft: pretrained.Model,
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
    Metrics with standard errors over examples.
  """
  rows: list[dict[str, np.ndarray]] = []
  start = 0
  for batch in batches:
    size = batch.inputs.shape[0]
    keys = randomness.row_keys(jax.random.key(seed), start + jnp.arange(size))
    start += size
    samples = speculative.generate(
        target.transformer,
        target.params,
        draft.transformer,
        draft.params,
        batch.inputs,
        batch.input_segments,
        keys,
        decoding,
    )
    expected = _expected_acceptance(
        target.transformer,
        draft.transformer,
        decoding,
        target.params,
        draft.params,
        batch,
        samples,
    )
    counts = samples.statistics
    real = np.any(np.asarray(batch.segments) > 0, axis=1)
    fetched = jax.device_get(
        {
            'expected': expected,
            'emitted': counts.emitted,
            'blocks': counts.blocks,
            'reached_at': counts.reached_at,
            'accepted_at': counts.accepted_at,
        }
    )
    rows.append({key: value[real] for key, value in fetched.items()})
  every = {key: np.concatenate([r[key] for r in rows]) for key in rows[0]}
  count = len(every['emitted'])

  def metric(totals, counts, unit):
    estimate = statistics.ratio(totals, counts)
    error = estimate.standard_error
    return results.Metric(
        estimate.value, None if np.isnan(error) else error, count, unit
    )

  rate = metric(every['expected'], every['emitted'], '1')
  found = {
      'acceptance_rate': rate,
      'block_efficiency': metric(
          every['emitted'], every['blocks'], 'tokens/block'
      ),
      'predicted_block_efficiency': results.Metric(
          cost_model.predicted_block_efficiency(
              min(rate.value, 1.0), decoding.block_length
          ),
          None,
          count,
          'tokens/block',
      ),
      'tokens': metric(every['emitted'], np.ones(count), 'tokens'),
  }
  for place in range(decoding.block_length):
    reached = every['reached_at'][:, place]
    if reached.sum():
      found[f'acceptance_at_{place + 1}'] = metric(
          every['accepted_at'][:, place], reached, '1'
      )
  return found


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _expected_acceptance(
    target: transformer_lib.Transformer,
    draft: transformer_lib.Transformer,
    decoding: decoding_lib.Decoding,
    target_params: Any,
    draft_params: Any,
    batch: types.Batch,
    samples: samples_lib.Samples,
) -> jax.Array:
  """float32[B]: sum over emitted tokens of sum_v min(p, q), both warped."""
  length = samples.tokens.shape[1]
  written = jnp.arange(length)[None] < samples.lengths[:, None]
  segments = written.astype(jnp.int32)
  tokens = transformer_lib.shift_right(samples.tokens, segments)
  inputs = (batch.inputs, batch.input_segments, tokens, segments)
  p_hidden = target.hidden(target_params, *inputs)
  q_hidden = draft.hidden(draft_params, *inputs)
  size = min(target.config.vocab_size, draft.config.vocab_size)
  padding = -length % _CHUNK

  def split(array):
    array = jnp.pad(array, ((0, 0), (0, padding), (0, 0)))
    array = array.reshape(array.shape[0], -1, _CHUNK, array.shape[-1])
    return jnp.swapaxes(array, 0, 1)

  def chunk(hidden):
    p = target.unembed(target_params, hidden[0])[..., :size]
    q = draft.unembed(draft_params, hidden[1])[..., :size]
    return divergences.acceptance(
        warping.warp(p, decoding), warping.warp(q, decoding)
    )

  found = jax.lax.map(chunk, (split(p_hidden), split(q_hidden)))
  found = jnp.swapaxes(found, 0, 1).reshape(written.shape[0], -1)[:, :length]
  return jnp.sum(found, axis=1, where=written)


def first_batches(
    task: tasks.Task, split: str, examples: int, batch_size: int
) -> list[types.Batch]:
  """The first examples of a split, the rows after them emptied."""
  found: list[types.Batch] = []
  left = examples
  for batch in batches_lib.batches(
      task,
      split,
      min(batch_size, examples),
      seed=0,
      shuffle=False,
      num_epochs=1,
  ):
    if left <= 0:
      break
    rows = batch.inputs.shape[0]
    if left < rows:
      used = np.arange(rows) < left
      batch = jax.tree.map(
          lambda x, used=used: np.where(used[:, None], x, np.zeros_like(x)),
          batch,
      )
    left -= rows
    found.append(batch)
  return found


def _show(metric: results.Metric) -> str:
  if metric.standard_error is None:
    return f'{metric.value:.3f}'
  return f'{metric.value:.3f} ± {metric.standard_error:.3f}'
