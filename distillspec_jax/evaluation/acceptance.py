"""How well a draft agrees with its target: acceptance and block efficiency.

Both are measured on the text that the decoding at hand emits; with a lossless
verifier it has the target's distribution. Expected acceptance comes
from both models' distributions on that text (1 - TVD, DistillSpec
equation 3); block efficiency is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.core import check
from distillspec_jax.core import cost_model
from distillspec_jax.core import errors
from distillspec_jax.core import example_records
from distillspec_jax.core import progress
from distillspec_jax.core import results
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.data import metrics as metrics_lib
from distillspec_jax.data import tasks
from distillspec_jax.distributed import locks
from distillspec_jax.evaluation import examples as examples_lib
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.evaluation import perplexity
from distillspec_jax.evaluation import quality
from distillspec_jax.losses import divergences
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from distillspec_jax.sampling import warping

# Positions whose distributions [B, 16, V] are held at a time.
_CHUNK = 16
# Labels that metrics are tried on before the measurement.
_CHECKED = 128
_Metrics = dict[str, results.Metric]


class Measured(NamedTuple):
  """What one decoding was measured to be; quality is empty without metrics.

  Attributes:
    decoding: its settings.
    acceptance: metrics; empty where a model decodes alone.
    quality: metrics of the task.
    model: 'target' or the draft's name where it decodes alone.
  """

  decoding: decoding_lib.Decoding
  acceptance: _Metrics
  quality: _Metrics
  model: str | None = None


def evaluate(
    *,
    run: str,
    target: str | loading.Loaded,
    draft: str | loading.Loaded,
    task: tasks.Task,
    split: str | None = None,
    examples: int = 128,
    batch_size: int = 32,
    decodings: Sequence[decoding_lib.Decoding] | None = None,
    seed: int = 0,
    draft_name: str | None = None,
    draft_samples: bool = False,
    show: Callable[[str, list[Measured]], None] | None = None,
) -> list[dict[str, Any]]:
  """Measures a pair, appends to RUN/results.jsonl and returns the lines.

  One line of kind `acceptance` for each decoding. Decodings that differ in
  nothing but verifier and paths are compared on the same inputs: all but the
  first have `block_efficiency_gain`, by how much their block efficiency exceeds
  that of the first, with the standard error of the paired difference.

  If the task has metrics, one line of kind `task_quality` for the text that
  each decoding emits ('pair'; greedy lossless decodings emit the target's and
  are left out), and one each for the greedy text of target and draft. A task
  without inputs also has their perplexity there.

  What was counted of each example is in RUN/examples.jsonl, one line for each
  example and decoding: `core.example_records`.

  Args:
    run: folder for the results.
    target: folder of a model or of a run, or a model.
    draft: likewise.
    task: whose inputs.
    split: of the task; default: 'test', or 'validation' if there is none.
    examples: from the start of the split; all there are if it has fewer.
    batch_size: sequences at a time; has no influence on the numbers.
    decodings: default: greedy and temperature 1 in blocks of five.
    seed: of sampling.
    draft_name: in results; default: the folder's.
    draft_samples: also lets the draft write a text of its own for each input,
      and measures the total variation there: `draft_total_variation`, and the
      bound on acceptance that follows from it, `acceptance_bound`.
    show: is called with a title and what was measured, for a table.

  Raises:
    UserError: folders without models, models that do not fit each other or
      the task, settings out of range, a folder that cannot be written to, a
      metric that the task cannot be judged by.
  """
  if decodings is None:
    decodings = decoding_lib.grid()
  decodings = decoding_lib.for_task(decodings, task)
  check.seed(seed=seed)
  folder = store.check_writable(run)
  locks.check_free(folder)
  target, draft, task, name = pair_lib.load(
      target, draft, task, draft_name, decodings
  )
  split = examples_lib.final_split(task, split)
  batches = examples_lib.first(task, split, examples, batch_size)
  judged = metrics_lib.of_task(task)
  if judged:  # a metric that fails does so before the measurement
    references = quality.references(task, split, batches)
    metrics_lib.check_task(task, references[:_CHECKED])
  lines: list[dict[str, Any]] = []

  inputs = examples_lib.fingerprint(batches)

  def write(kind, described, metrics, columns):
    lines.append(
        results.write(
            folder,
            kind,
            target=target.name,
            draft=name,
            draft_folder=draft.name,
            task=task.name,
            split=split,
            decoding=described,
            metrics=metrics,
            seed=seed,
            examples=results.Examples(inputs, columns),
        )
    )

  def write_quality(described, values):
    metrics = quality.means(values)
    columns = {metric: (each,) for metric, each in values.items()}
    write('task_quality', described, metrics, columns)
    return metrics

  measured: list[Measured] = []
  first: dict[decoding_lib.Decoding, dict[str, Any]] = {}
  drafts_own: dict[decoding_lib.Decoding, dict[str, Any]] = {}
  for decoding in decodings:
    shown = progress.shown(batches, f'{name}, {decoding.label()}')
    counts = count(target, draft, shown, decoding, seed)
    if draft_samples:
      alone = decoding.without_draft()
      if alone not in drafts_own:
        drafts_own[alone] = count_alone(target, draft, batches, alone, seed)
      counts |= drafts_own[alone]
    metrics = _metrics(counts, decoding)
    family = decoding.replace(verifier=verification.Token(), paths=1)
    if family in first:
      metrics['block_efficiency_gain'] = _gain(first[family], counts)
    else:
      first[family] = counts
    described = decoding.describe(speculative=True, batch_size=batch_size)
    columns = {
        'expected_acceptance': (counts['expected'], counts['emitted']),
        'block_efficiency': (counts['emitted'], counts['blocks']),
    }
    write('acceptance', described, metrics, columns)
    values = (
        quality.score(task, counts['outputs'], references) if judged else {}
    )
    example_records.write(folder, lines[-1], inputs, counts, values)
    quality_metrics = {}
    is_targets_own = decoding.is_greedy and decoding.verifier.is_lossless
    if judged and not is_targets_own:
      quality_metrics = write_quality({**described, 'model': 'pair'}, values)
    measured.append(Measured(decoding, metrics, quality_metrics))
  if judged or not task.input_length:
    greedy = decodings[0].replace(temperature=0.0).without_draft()
    described = greedy.describe(speculative=False, batch_size=batch_size)
    for model, who in ((target, 'target'), (draft, name)):
      values, counts = {}, {}
      if judged:
        shown = progress.shown(batches, f'{who}, task quality')
        outputs = quality.decode(model, shown, greedy, seed, target)
        values = quality.score(task, outputs, references)
        counts['emitted'] = [len(output) for output in outputs]
      if not task.input_length:
        nats, tokens = perplexity.measure(model, batches, target)
        counts |= {'label_nats': nats, 'label_tokens': tokens.astype(int)}
        values['perplexity'] = perplexity.contributions(nats, tokens)
      metrics = write_quality({**described, 'model': who}, values)
      example_records.write(folder, lines[-1], inputs, counts, values)
      measured.append(Measured(greedy, {}, metrics, who))
  if show is not None:
    show(f'{name}, {task.name} {split}', measured)
  return lines


def measure(
    target: loading.Loaded,
    draft: loading.Loaded,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
) -> _Metrics:
  """Expected acceptance, block efficiency and acceptance by position.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    batches: whose inputs are decoded; empty rows do not count.
    decoding: settings.
    seed: of sampling; row i of all batches draws from stream (seed, i).

  Returns:
    Name -> metric, with standard errors over examples: expected_acceptance (of
    a parallel draft, of a block's first token, and without a prediction),
    block_efficiency, uncut_block_efficiency (that of text without an end),
    predicted_block_efficiency (for these lengths), tokens (per output), and
    acceptance_at_1 .. acceptance_at_G: how often the token at this position of
    a block is accepted if all before it were (positions never reached are left
    out).

  Raises:
    UserError: there is no example.
  """
  counts = count(target, draft, batches, decoding, seed)
  return _metrics(counts, decoding)


def count(
    target: loading.Loaded,
    draft: loading.Loaded,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
) -> dict[str, Any]:
  """The counts of each example, each [n] or [n, G]; arguments: `measure`.

  Returns:
    expected (accepted tokens, by both distributions), the sampler's counts
    (emitted, blocks, drafted, accepted, reached_at, accepted_at), and outputs,
    a list of n token arrays.

  Raises:
    UserError: there is no example.
  """
  parts: list[dict[str, np.ndarray]] = []
  outputs: list[np.ndarray] = []
  for batch, keys in examples_lib.with_keys(batches, seed):
    prompt = model_lib.with_shared_encoding(
        batch.prompt, target.model, draft.model
    )
    samples = speculative.generate(
        target.model, draft.model, prompt, keys, decoding
    )
    counted = {
        'expected': _expected_acceptance(
            target.model, draft.model, prompt, samples, decoding.sampling
        ),
        **vars(samples.statistics),
    }
    real = examples_lib.real_rows(batch)
    counted, tokens, lengths = jax.device_get(
        (counted, samples.tokens, samples.lengths)
    )
    parts.append({name: array[real] for name, array in counted.items()})
    outputs += quality.emitted(tokens, lengths, batch)
  if not outputs:
    raise errors.UserError(
        'There is no example to measure: no batches, or only padding rows.'
    )
  counts = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  return {**counts, 'outputs': outputs}


def count_alone(
    target: loading.Loaded,
    draft: loading.Loaded,
    batches: Iterable[types.Batch],
    decoding: decoding_lib.Decoding,
    seed: int,
) -> dict[str, np.ndarray]:
  """How far the pair is apart on the draft's own text; arguments: `measure`.

  Returns:
    float64[n] each: draft_emitted (tokens of a text that the draft samples for
    the input) and draft_variation (the sum over them of the total variation of
    both warped distributions).
  """
  emitted, variation = [], []
  for batch, keys in examples_lib.with_keys(batches, seed):
    prompt = model_lib.with_shared_encoding(
        batch.prompt, target.model, draft.model
    )
    samples = autoregressive.generate(
        draft.model, prompt, keys, decoding.without_draft()
    )
    accepted = _expected_acceptance(
        target.model, draft.model, prompt, samples, decoding.sampling
    )
    real = examples_lib.real_rows(batch)
    lengths, accepted = jax.device_get((samples.lengths, accepted))
    emitted.append(lengths[real])
    # A sum of rounded terms, which may end below 0.
    variation.append(np.maximum(lengths - accepted, 0.0)[real])
  return {
      'draft_emitted': np.concatenate(emitted),
      'draft_variation': np.concatenate(variation).astype(np.float64),
  }


def acceptance_bound(
    counts: dict[str, Any], max_new_tokens: int
) -> tuple[results.Metric, results.Metric]:
  """Mean total variation on the draft's text, and the bound that follows.

  Acceptance is measured on the target's text; training on the draft's is
  justified by a bound (DistillSpec, theorem 4.1): with eps = E[1/|y| sum_t TVD]
  over texts y of the draft, and T the maximum length,

    E[acceptance] >= 1 - T E[T / L_p(x)] eps

  where L_p(x) is the mean length of the target's text for x, here that of the
  one that was emitted. It is far from tight.

  Args:
    counts: of `count` and `count_alone`, of a lossless decoding.
    max_new_tokens: T.
  """
  number = len(counts['emitted'])
  apart = counts['draft_variation'] / counts['draft_emitted']
  eps, inverse = apart.mean(), np.mean(1 / counts['emitted'])
  # To first order: what each example contributes to a product of two means.
  each = eps * inverse + (apart - eps) * inverse
  each = each + eps * (1 / counts['emitted'] - inverse)
  bound = statistics.mean(1 - max_new_tokens**2 * each)
  return (
      results.Metric(*statistics.mean(apart), number, '1'),
      results.Metric(*bound, number, '1'),
  )


def _gain(first: dict[str, Any], second: dict[str, Any]) -> results.Metric:
  """Block efficiency of the second less that of the first, paired."""
  difference = statistics.ratio_difference(
      (first['emitted'], second['emitted']), (first['blocks'], second['blocks'])
  )
  return results.Metric(*difference, len(first['emitted']), 'tokens/block')


def _metrics(
    counts: dict[str, Any], decoding: decoding_lib.Decoding
) -> _Metrics:
  """Metrics of the examples' counts."""
  number, size = len(counts['emitted']), decoding.drafting.length

  def metric(totals, weights, unit):
    return results.Metric(*statistics.ratio(totals, weights), number, unit)

  rate = metric(counts['expected'], counts['emitted'], '1')
  # A sum of rounded terms, which may end above 1.
  rate = rate._replace(value=min(rate.value, 1.0))
  metrics = {
      'expected_acceptance': rate,
      'block_efficiency': metric(
          counts['emitted'], counts['blocks'], 'tokens/block'
      ),
      'tokens': metric(counts['emitted'], np.ones(number), 'tokens'),
  }
  drafting, plain = decoding.drafting, decoding_lib.Drafting(length=size)
  if decoding.verifier.is_lossless and drafting == plain:
    # The formula is that of single drafts of this very length, whose tokens are
    # accepted equally often at every position.
    how = rate.value, size, np.maximum(counts['emitted'], 1).astype(int)
    slope = cost_model.block_efficiency_slope(*how)
    error = rate.standard_error
    metrics['predicted_block_efficiency'] = results.Metric(
        cost_model.predicted_block_efficiency(*how),
        None if error is None else slope * error,
        number,
        'tokens/block',
    )
  if 'draft_emitted' in counts and decoding.verifier.is_lossless:
    apart, bound = acceptance_bound(counts, decoding.output_length)
    metrics |= {'draft_total_variation': apart, 'acceptance_bound': bound}
  if dataclasses.replace(drafting, parallel=False) == plain:
    metrics |= _uncut(counts)
  for index in range(size):
    reached = counts['reached_at'][:, index]
    if reached.any():
      metrics[f'acceptance_at_{index + 1}'] = metric(
          counts['accepted_at'][:, index], reached, '1'
      )
  return metrics


def _uncut(counts: dict[str, Any]) -> _Metrics:
  """Block efficiency of text without an end, 1 + a_1 + a_1 a_2 + ..

  The last block of a text is cut where the text ends, at EOS or the limit.
  Acceptance a_i at a position counts tokens before the end alone.
  """
  reached, accepted = counts['reached_at'], counts['accepted_at']
  if not np.all(reached.any(axis=0)):
    return {}
  each = np.stack(
      [statistics.contributions(*pair) for pair in zip(accepted.T, reached.T)]
  )  # [G, n]
  chance = np.cumprod(each.mean(axis=1))
  # To first order: a product changes by the sum of its relative changes.
  relative = each / np.maximum(each.mean(axis=1, keepdims=True), 1e-9) - 1
  values = 1 + chance @ (1 + np.cumsum(relative, axis=0))
  mean = statistics.mean(values)
  return {
      'uncut_block_efficiency': results.Metric(
          *mean, len(values), 'tokens/block'
      )
  }


@functools.partial(jax.jit, static_argnames='sampling')
def _expected_acceptance(
    target: model_lib.Model,
    draft: model_lib.Model,
    prompt: types.Prompt,
    samples: samples_lib.Samples,
    sampling: decoding_lib.Sampling,
) -> jax.Array:
  """float32[B]: sum over emitted tokens of sum_v min(p, q), both warped."""
  length = samples.tokens.shape[1]
  written = jnp.arange(length)[None] < samples.lengths[:, None]
  segments = written.astype(jnp.int32)
  tokens = model_lib.shift_right(samples.tokens, segments)
  size = model_lib.common_vocabulary(target, draft)
  padding = -length % _CHUNK

  def split(hidden):
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    hidden = hidden.reshape(hidden.shape[0], -1, _CHUNK, hidden.shape[-1])
    return jnp.swapaxes(hidden, 0, 1)  # [T / 16, B, 16, D]

  def chunk(hidden):
    p = warping.warp(target.all_logits(hidden[0], size), sampling)
    q = warping.warp(draft.all_logits(hidden[1], size), sampling)
    return divergences.acceptance(p, q)

  hidden = tuple(
      split(model.hidden(prompt, tokens, segments)) for model in (target, draft)
  )
  acceptance = jnp.swapaxes(jax.lax.map(chunk, hidden), 0, 1)
  acceptance = acceptance.reshape(written.shape[0], -1)[:, :length]
  return jnp.sum(acceptance, axis=1, where=written)
