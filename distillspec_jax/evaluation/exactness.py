"""Is what the sampler emits the target's? Measured, on any pair and device.

greedy       speculative against autoregressive tokens; where they differ, how
             close to a tie the target's logits are
uniforms     sampled tokens, mapped to numbers that are uniform in [0, 1) if
             (and, for the orders that matter, only if) their distribution is
             the target's
enumerated   complete outputs of a tiny pair against the distribution of all
             outputs
incremental  logits through the cache against teacher-forced ones
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows as rows_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import warping

_BINS = 40
_TINY_VOCABULARY, _TINY_LENGTH = 8, 3


class Greedy(NamedTuple):
  """How greedy speculative sequences compare with autoregressive ones.

  Attributes:
    rows: how many were compared.
    different: how many are not the same tokens.
    margin: in logits, the largest distance of a differing token, of either way,
      below the best one at the position where the two diverge.
    rounding: largest difference between logits through the cache and
      teacher-forced ones, on the same rows.
  """

  rows: int
  different: int
  margin: float
  rounding: float

  @property
  def are_ties(self) -> bool:
    """Whether rounding explains every difference: it moves both logits."""
    return self.margin <= 2.0 * self.rounding


class Incremental(NamedTuple):
  """A model's predictions through its cache.

  Attributes:
    difference: largest from teacher-forced log-probabilities, in nats.
    confidence: probability of the most likely token, the median.
    entropy: of the next token, in nats, the median.
  """

  difference: float
  confidence: float
  entropy: float


class Fit(NamedTuple):
  """A chi-squared test of so many tokens or outputs."""

  count: int
  p_value: float


def compute_in(model: loading.Loaded, dtype: str) -> loading.Loaded:
  """The model, computing in another dtype."""
  network = transformer_lib.Transformer(
      dataclasses.replace(model.config, dtype=dtype)
  )
  return dataclasses.replace(model, model=model.model.replace(network=network))


def speculate(
    target: loading.Loaded,
    draft: loading.Loaded,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> samples_lib.Samples:
  """Outputs of the pair; row i draws from the stream (seed, i)."""
  return speculative.generate(
      target.model, draft.model, prompt, _keys(prompt, seed), decoding
  )


def _keys(prompt: types.Prompt, seed: int) -> jax.Array:
  return randomness.row_keys(jax.random.key(seed), prompt.tokens.shape[0])


def greedy(
    target: loading.Loaded,
    draft: loading.Loaded,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
) -> Greedy:
  """Compares greedy outputs with a draft and without."""
  decoding = decoding.replace(temperature=0.0)
  vocabulary_size = model_lib.common_vocabulary(target.model, draft.model)
  fast = speculate(target, draft, prompt, decoding, 0)
  plain = autoregressive.generate(
      target.model,
      prompt,
      _keys(prompt, 0),
      decoding.without_draft(),
      vocabulary_size=vocabulary_size,
  )
  logits, rounding = _both_logits(target.model, prompt, plain, vocabulary_size)
  logits = np.asarray(logits)
  a, b = np.asarray(fast.tokens), np.asarray(plain.tokens)
  margin, different = 0.0, 0
  for row in np.flatnonzero((a != b).any(axis=1)):
    different += 1
    at = int(np.argmax(a[row] != b[row]))
    here = logits[row, at]
    lower = min(here[a[row, at]], here[b[row, at]])
    margin = max(margin, float(here.max() - lower))
  return Greedy(len(a), different, margin, float(rounding))


def incremental(
    model: loading.Loaded,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
    seed: int,
    target: loading.Loaded | None = None,
) -> Incremental:
  """What a model samples, scored through the cache and teacher-forced.

  Args:
    model: a target, or a draft.
    prompt: what it reads.
    decoding: how to sample.
    seed: of sampling.
    target: whose encoder a draft may share.
  """
  if target is not None:
    prompt = model_lib.with_shared_encoding(prompt, target.model, model.model)
  samples = autoregressive.generate(
      model.model, prompt, _keys(prompt, seed), decoding.without_draft()
  )
  logits, difference = _both_logits(
      model.model,
      prompt,
      samples,
      model.config.vocab_size,
      in_log_probabilities=True,
  )
  length = samples.tokens.shape[1]
  real = np.arange(length)[None] < np.asarray(samples.lengths)[:, None]

  def median(measure):
    return float(np.median(np.asarray(jax.jit(measure)(logits))[real]))

  return Incremental(
      float(difference), median(rows_lib.confidence), median(rows_lib.entropy)
  )


def uniforms(
    target: loading.Loaded,
    draft: loading.Loaded,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> Fit:
  """Whether sampled tokens have the target's distribution, given those before.

  The vocabulary is ordered by p - q, tokens that the draft proposes too often
  first. In that order, the target's mass below the emitted token, plus a random
  share of the token's own, is uniform in [0, 1) and independent of the tokens
  before, whatever the pair. A verifier that favours the draft, or the target,
  shifts it.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    prompt: what they read.
    decoding: with the verifier and the warping to test.
    seed: of sampling.
  """
  samples = speculate(target, draft, prompt, decoding, seed)
  key = randomness.stream(jax.random.key(seed), 'certificate')
  values = _uniforms(
      target.model, draft.model, prompt, samples.tokens, key, decoding.sampling
  )
  length = samples.tokens.shape[1]
  real = np.arange(length) < np.asarray(samples.lengths)[:, None]
  values = np.asarray(values)[real]
  counts = np.bincount(
      np.clip((values * _BINS).astype(int), 0, _BINS - 1), minlength=_BINS
  )
  expected = np.full(_BINS, len(values) / _BINS)
  return Fit(len(values), chi_squared(counts, expected))


def enumerated(decoding: decoding_lib.Decoding, rows: int, seed: int) -> Fit:
  """Whether outputs of a tiny pair are distributed as all its outputs are.

  Args:
    decoding: its warping and verifier are tested, in blocks of two; adaptive
      blocks stop at the first position, and at some later ones.
    rows: outputs to sample.
    seed: of the pair and of sampling.
  """
  decoding = decoding.replace(max_new_tokens=_TINY_LENGTH, length=2)
  target, draft = _tiny(seed), _tiny(seed + 1)
  inputs = jnp.broadcast_to(jnp.array([[5, 3, 1]], jnp.int32), (rows, 3))
  prompt = types.Prompt(inputs, jnp.ones_like(inputs))
  adaptive = decoding.drafting.adaptive
  if adaptive is not None:
    threshold = _tiny_threshold(draft, inputs[:1], adaptive)
    adaptive = dataclasses.replace(adaptive, threshold=threshold)
    decoding = decoding.replace(adaptive=adaptive)
  samples = speculate(target, draft, prompt, decoding, seed)
  distribution = _distribution(target, inputs[:1], decoding)
  observed = dict.fromkeys(distribution, 0)
  for row in map(tuple, np.asarray(samples.tokens).tolist()):
    if row not in observed:
      return Fit(rows, 0.0)
    observed[row] += 1
  probabilities = np.array(list(distribution.values()))
  counts = np.array(list(observed.values()))
  if counts[probabilities == 0.0].any():
    return Fit(rows, 0.0)
  order = np.argsort(-probabilities)
  expected = (probabilities / probabilities.sum() * rows)[order]
  counts = counts[order]
  # Chi-squared needs expected counts of about 5; the rest shares one cell.
  common = max(int((expected >= 5.0).sum()), 2)
  expected = np.append(expected[: common - 1], expected[common - 1 :].sum())
  counts = np.append(counts[: common - 1], counts[common - 1 :].sum())
  return Fit(rows, chi_squared(counts, expected))


def chi_squared(observed: np.ndarray, expected: np.ndarray) -> float:
  """The p-value of counts under their expected values."""
  statistic = float(((observed - expected) ** 2 / expected).sum())
  return float(special.chdtrc(len(observed) - 1, statistic))


@functools.cache
def _tiny(seed: int) -> loading.Loaded:
  config = config_lib.published(
      'test',
      vocab_size=_TINY_VOCABULARY,
      emb_dim=8,
      num_encoder_layers=1,
      num_decoder_layers=1,
  )
  network = transformer_lib.Transformer(config)
  params = network.init(jax.random.key(seed))
  return loading.Loaded(model_lib.Model(params, network))


def _tiny_threshold(
    draft: loading.Loaded,
    inputs: jax.Array,
    adaptive: adaptive_length.AdaptiveLength,
) -> float:
  """Where a tiny draft continues at half of the positions, not at the first."""
  _, logits = _all_logits(draft, inputs, _TINY_LENGTH)
  if isinstance(adaptive, adaptive_length.Confidence):
    confidence = np.asarray(rows_lib.confidence(logits))
    return float(max(np.median(confidence), 1.0001 * confidence[0, 0]))
  entropy = np.asarray(rows_lib.entropy(logits))
  return float(min(np.median(entropy), 0.9999 * entropy[0, 0]))


def _all_logits(
    model: loading.Loaded, inputs: jax.Array, size: int
) -> tuple[np.ndarray, jax.Array]:
  """All outputs int[N, size], and teacher-forced logits [N, size, V]."""
  outputs = np.array(
      list(itertools.product(range(model.config.vocab_size), repeat=size))
  )
  labels = jnp.asarray(outputs, jnp.int32)
  inputs = jnp.broadcast_to(inputs, (len(outputs), inputs.shape[1]))
  segments = jnp.ones_like(labels)
  logits = model.logits(inputs, model_lib.shift_right(labels, segments))
  return outputs, logits


def _distribution(
    model: loading.Loaded, inputs: jax.Array, decoding: decoding_lib.Decoding
) -> dict[tuple[int, ...], float]:
  """P(tokens) of all outputs, from teacher-forced logits of all of them."""
  size = decoding.output_length
  outputs, logits = _all_logits(model, inputs, size)
  warped = warping.warp(logits, decoding.sampling)
  p = np.asarray(jax.nn.softmax(warped), np.float64)
  distribution = {}
  for row, tokens in enumerate(outputs):
    ends = np.flatnonzero(np.isin(tokens, decoding.eos_ids))
    length = ends[0] + 1 if len(ends) else size
    key = (*tokens[:length].tolist(), *[0] * (size - length))
    probabilities = p[row, np.arange(length), tokens[:length]]
    distribution[key] = float(np.prod(probabilities))
  return distribution


@functools.partial(
    jax.jit, static_argnames=('vocabulary_size', 'in_log_probabilities')
)
def _both_logits(
    model: model_lib.Model,
    prompt: types.Prompt,
    samples: samples_lib.Samples,
    vocabulary_size: int,
    in_log_probabilities: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Teacher-forced logits [B, L, V], and the difference of cached ones."""
  tokens = samples.tokens
  ones, length = jnp.ones_like(tokens), tokens.shape[1]
  forced = model.logits(prompt, model_lib.shift_right(tokens, ones), ones)
  forced = forced[..., :vocabulary_size]
  state, context = model.prefill(prompt, length)
  last = rows_lib.window(context.tokens, context.length - 1, 1)

  def step(carry, token):
    state, last = carry
    hidden, state = model.extend(state, last)
    logits = model.all_logits(hidden, vocabulary_size)[:, 0]
    return (state, token[:, None]), logits

  _, cached = jax.lax.scan(step, (state, last), tokens.T)
  cached = jnp.swapaxes(cached, 0, 1)  # [L, B, V] -> [B, L, V]
  a, b = forced, cached
  if in_log_probabilities:
    a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
  difference = jnp.where(a == b, 0.0, jnp.abs(a - b))  # -inf may be in both
  real = jnp.arange(length)[None] < samples.lengths[:, None]
  return forced, jnp.max(difference, where=real[..., None], initial=0.0)


@functools.partial(jax.jit, static_argnames='sampling')
def _uniforms(
    target: model_lib.Model,
    draft: model_lib.Model,
    prompt: types.Prompt,
    tokens: jax.Array,
    key: jax.Array,
    sampling: decoding_lib.Sampling,
) -> jax.Array:
  """float32[B, L], see `uniforms`; what follows a sequence's end is arbitrary.

  Distributions [L, V] are held for one row at a time.
  """
  shares = jax.random.uniform(key, tokens.shape)
  size = model_lib.common_vocabulary(target, draft)
  prompt = model_lib.with_shared_encoding(prompt, target, draft)

  def distribution(model, prompt, tokens):
    ones = jnp.ones_like(tokens)
    shifted = model_lib.shift_right(tokens, ones)
    logits = model.logits(prompt, shifted, ones)[..., :size]
    return jax.nn.softmax(warping.warp(logits, sampling))

  def one(row):
    prompt, tokens, share = jax.tree.map(lambda x: x[None], row)
    p = distribution(target, prompt, tokens)  # [1, L, V]
    q = distribution(draft, prompt, tokens)
    order = p - q
    index = tokens[..., None]  # [1, L, 1]
    own = jnp.take_along_axis(order, index, -1)
    number = jnp.arange(size)[None, None]
    is_before = (order < own) | ((order == own) & (number < index))
    # Compilers may compute `order` twice, and round it differently.
    is_before &= number != index
    below = jnp.sum(p, where=is_before, axis=-1)
    return (below + share * jnp.take_along_axis(p, index, -1)[..., 0])[0]

  return jax.lax.map(one, (prompt, tokens, shares))
