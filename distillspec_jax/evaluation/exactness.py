"""Is what the sampler emits the target's? Measured, on any pair and device.

greedy      speculative tokens beside autoregressive ones; where they differ,
            how near to a tie the target's logits are
uniforms    sampled tokens as numbers that are uniform in [0, 1) if, and
            for the orders that matter only if, their law is the target's
enumerated  whole outputs of a tiny pair beside the law of all outputs
incremental logits through the cache beside teacher-forced ones
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import randomness
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows as rows_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import warping

_BINS = 40
_TINY_VOCABULARY, _TINY_LENGTH = 8, 3


class Greedy(NamedTuple):
  """How greedy speculative rows compare with autoregressive ones.

  Attributes:
    rows: how many were compared.
    different: how many are not the same tokens.
    margin: in logits, how far at most a token that differs, of either way, is
      below the best where the two part.
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
  """How a model speaks through its cache.

  Attributes:
    apart: largest difference from teacher-forced log-probabilities, in nats.
    confidence: probability of its likeliest token, the median.
    entropy: of its next token, in nats, the median.
  """

  apart: float
  confidence: float
  entropy: float


class Fit(NamedTuple):
  """A chi-squared test: tokens (or outputs) and the chance to be so far off."""

  count: int
  p_value: float


def compute_in(model: loading.Model, dtype: str) -> loading.Model:
  """The model, computing in another dtype."""
  config = dataclasses.replace(model.config, dtype=dtype)
  transformer = transformer_lib.Transformer(config)
  return dataclasses.replace(model, transformer=transformer)


def speculate(
    target: loading.Model,
    draft: loading.Model,
    inputs: jax.Array,
    segments: jax.Array,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> samples_lib.Samples:
  """Rows of the pair; row i draws from the stream (seed, i)."""
  keys = randomness.row_keys(jax.random.key(seed), inputs.shape[0])
  return pair_lib.answer(target, draft, inputs, segments, keys, decoding)


def greedy(
    target: loading.Model,
    draft: loading.Model,
    inputs: jax.Array,
    segments: jax.Array,
    decoding: decoding_lib.Decoding,
) -> Greedy:
  """Compares greedy rows; inputs int32[B, S], segments int32[B, S]."""
  decoding = dataclasses.replace(decoding, temperature=0.0)
  fast = speculate(target, draft, inputs, segments, decoding, 0)
  vocabulary = transformer_lib.shared_vocabulary(
      target.transformer, draft.transformer
  )
  plain = autoregressive.generate(
      target.transformer,
      target.params,
      inputs,
      segments,
      randomness.row_keys(jax.random.key(0), inputs.shape[0]),
      _of_target(decoding),
      vocabulary,
  )
  logits, rounding = _both_logits(
      target.transformer,
      target.params,
      inputs,
      segments,
      plain.tokens,
      plain.lengths,
      vocabulary,
  )
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
    model: loading.Model,
    inputs: jax.Array,
    segments: jax.Array,
    decoding: decoding_lib.Decoding,
    seed: int,
    target: loading.Model | None = None,
) -> Incremental:
  """What a model samples, read through the cache and teacher-forced.

  Args:
    model: a target, or a draft.
    inputs: int32[B, S].
    segments: int32[B, S], 0 is padding.
    decoding: how to sample.
    seed: of sampling.
    target: whose encoder a draft may share.
  """
  encoded = None
  if target is not None:
    encoded = transformer_lib.shared_encoding(
        model.transformer, target.transformer, target.params, inputs, segments
    )
  samples = autoregressive.generate(
      model.transformer,
      model.params,
      inputs,
      segments,
      randomness.row_keys(jax.random.key(seed), inputs.shape[0]),
      _of_target(decoding),
      encoded=encoded,
  )
  logits, apart = _both_logits(
      model.transformer,
      model.params,
      inputs,
      segments,
      samples.tokens,
      samples.lengths,
      model.config.vocab_size,
      in_log_probabilities=True,
      encoded=encoded,
  )
  length = samples.tokens.shape[1]
  real = np.arange(length)[None] < np.asarray(samples.lengths)[:, None]

  def median(measure):
    return float(np.median(np.asarray(jax.jit(measure)(logits))[real]))

  return Incremental(
      float(apart), median(rows_lib.confidence), median(rows_lib.entropy)
  )


def _of_target(decoding: decoding_lib.Decoding) -> decoding_lib.Decoding:
  """Without what is of drafts, so that programs are compiled once for all."""
  return dataclasses.replace(
      decoding,
      block_length=1,
      num_drafts=1,
      draft_stop=None,
      verification='token',
      lenience=None,
  )


def uniforms(
    target: loading.Model,
    draft: loading.Model,
    inputs: jax.Array,
    segments: jax.Array,
    decoding: decoding_lib.Decoding,
    seed: int,
) -> Fit:
  """Whether sampled tokens have the target's law, given what was before them.

  The tokens are ordered by p - q, what the draft says too often first; with
  them in that order, the mass of the target below the token that was emitted,
  plus a random share of its own, is uniform in [0, 1) and independent of the
  tokens before, whatever the pair. A verifier that favours the draft, or
  the target, moves it.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    inputs: int32[B, S].
    segments: int32[B, S], 0 is padding.
    decoding: with the rule and the warping to test.
    seed: of sampling.
  """
  samples = speculate(target, draft, inputs, segments, decoding, seed)
  key = randomness.stream(jax.random.key(seed), 'certificate')
  values = _uniforms(
      target.transformer,
      target.params,
      draft.transformer,
      draft.params,
      inputs,
      segments,
      samples.tokens,
      samples.lengths,
      key,
      _of_target(decoding),
      transformer_lib.shared_vocabulary(target.transformer, draft.transformer),
  )
  real = (
      np.arange(samples.tokens.shape[1]) < np.asarray(samples.lengths)[:, None]
  )
  values = np.asarray(values)[real]
  counts = np.bincount(
      np.clip((values * _BINS).astype(int), 0, _BINS - 1), minlength=_BINS
  )
  expected = np.full(_BINS, len(values) / _BINS)
  return Fit(len(values), chi_squared(counts, expected))


def enumerated(decoding: decoding_lib.Decoding, rows: int, seed: int) -> Fit:
  """Whether whole outputs of a tiny pair have the law of all outputs.

  Args:
    decoding: its warping and its rule are tested, in blocks of two; a draft
      that stops by itself does so at the first place, and at some later ones.
    rows: outputs to sample.
    seed: of the pair and of sampling.
  """
  decoding = dataclasses.replace(
      decoding, max_new_tokens=_TINY_LENGTH, block_length=2
  )
  target, draft = _tiny(seed), _tiny(seed + 1)
  inputs = jnp.broadcast_to(jnp.array([[5, 3, 1]], jnp.int32), (rows, 3))
  if decoding.draft_stop is not None:
    name = decoding.draft_stop[0]
    stop = (name, _tiny_threshold(draft, inputs[:1], name))
    decoding = dataclasses.replace(decoding, draft_stop=stop)
  samples = speculate(
      target, draft, inputs, jnp.ones_like(inputs), decoding, seed
  )
  law = _law(target, inputs[:1], decoding)
  observed = dict.fromkeys(law, 0)
  for row in map(tuple, np.asarray(samples.tokens).tolist()):
    if row not in observed:
      return Fit(rows, 0.0)
    observed[row] += 1
  chances = np.array(list(law.values()))
  counts = np.array(list(observed.values()))
  if counts[chances == 0.0].any():
    return Fit(rows, 0.0)
  order = np.argsort(-chances)
  expected, counts = (chances / chances.sum() * rows)[order], counts[order]
  common = max(int((expected >= 5.0).sum()), 2)  # the rest shares a cell
  expected = np.append(expected[: common - 1], expected[common - 1 :].sum())
  counts = np.append(counts[: common - 1], counts[common - 1 :].sum())
  return Fit(rows, chi_squared(counts, expected))


def chi_squared(observed: np.ndarray, expected: np.ndarray) -> float:
  """The chance that counts of the expected law are as far off, or farther."""
  statistic = float(((observed - expected) ** 2 / expected).sum())
  return float(special.chdtrc(len(observed) - 1, statistic))


@functools.cache
def _tiny(seed: int) -> loading.Model:
  config = config_lib.published(
      'test',
      vocab_size=_TINY_VOCABULARY,
      emb_dim=8,
      num_encoder_layers=1,
      num_decoder_layers=1,
  )
  transformer = transformer_lib.Transformer(config)
  return loading.Model(transformer, transformer.init(jax.random.key(seed)))


def _tiny_threshold(
    draft: loading.Model, inputs: jax.Array, name: str
) -> float:
  """Where a tiny draft goes on at half of its places, the first not among."""
  _, logits = _all_logits(draft, inputs, _TINY_LENGTH)
  if name == 'confidence':
    found = np.asarray(rows_lib.confidence(logits))
    return float(max(np.median(found), 1.0001 * found[0, 0]))
  found = np.asarray(rows_lib.entropy(logits))
  return float(min(np.median(found), 0.9999 * found[0, 0]))


def _all_logits(
    model: loading.Model, inputs: jax.Array, size: int
) -> tuple[np.ndarray, jax.Array]:
  """All outputs int[N, size], and teacher-forced logits [N, size, V]."""
  outputs = np.array(
      list(itertools.product(range(model.config.vocab_size), repeat=size))
  )
  labels = jnp.asarray(outputs, jnp.int32)
  inputs = jnp.broadcast_to(inputs, (len(outputs), inputs.shape[1]))
  segments = jnp.ones_like(labels)
  logits = model.logits(inputs, transformer_lib.shift_right(labels, segments))
  return outputs, logits


def _law(
    model: loading.Model, inputs: jax.Array, decoding: decoding_lib.Decoding
) -> dict[tuple[int, ...], float]:
  """P(tokens) of all outputs, from teacher-forced logits of all of them."""
  size = decoding.max_new_tokens
  outputs, logits = _all_logits(model, inputs, size)
  p = np.asarray(jax.nn.softmax(warping.warp(logits, decoding)), np.float64)
  law = {}
  for row, tokens in enumerate(outputs):
    ends = np.flatnonzero(np.isin(tokens, decoding.eos_ids))
    length = ends[0] + 1 if len(ends) else size
    key = (*tokens[:length].tolist(), *[0] * (size - length))
    law[key] = float(np.prod(p[row, np.arange(length), tokens[:length]]))
  return law


@functools.partial(jax.jit, static_argnums=(0, 6, 7))
def _both_logits(
    model: transformer_lib.Transformer,
    params: Any,
    inputs: jax.Array,
    segments: jax.Array,
    tokens: jax.Array,
    lengths: jax.Array,
    vocabulary: int,
    in_log_probabilities: bool = False,
    encoded: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Teacher-forced logits [B, L, V], and how far cached ones are from them."""
  rows, length = tokens.shape
  ones = jnp.ones_like(tokens)
  forced = model.logits(
      params,
      inputs,
      segments,
      transformer_lib.shift_right(tokens, ones),
      ones,
      encoded=encoded,
  )[..., :vocabulary]
  state, prefix = model.prefill(
      params, inputs, segments, length, encoded=encoded
  )
  first = jnp.take_along_axis(prefix.tokens, prefix.length[:, None] - 1, 1)

  def step(carry, token):
    state, last = carry
    hidden, state = model.extend(params, state, last)
    logits = model.all_logits(params, hidden, vocabulary)[:, 0]
    return (state, token[:, None]), logits

  _, cached = jax.lax.scan(step, (state, first), tokens.T)
  cached = jnp.swapaxes(cached, 0, 1)  # [L, B, V] -> [B, L, V]
  a, b = forced, cached
  if in_log_probabilities:
    a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
  apart = jnp.where(a == b, 0.0, jnp.abs(a - b))  # -inf is in both
  real = jnp.arange(length)[None] < lengths[:, None]
  return forced, jnp.max(apart, where=real[..., None], initial=0.0)


@functools.partial(jax.jit, static_argnums=(0, 2, 9, 10))
def _uniforms(
    target: transformer_lib.Transformer,
    target_params: Any,
    draft: transformer_lib.Transformer,
    draft_params: Any,
    inputs: jax.Array,
    segments: jax.Array,
    tokens: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    decoding: decoding_lib.Decoding,
    vocabulary: int,
) -> jax.Array:
  """float32[B, L], see `uniforms`; distributions are held row by row."""
  shares = jax.random.uniform(key, tokens.shape)

  def law(model, params, row, encoded):
    inputs, segments, tokens = row
    ones = jnp.ones_like(tokens)
    decoder_inputs = transformer_lib.shift_right(tokens, ones)
    logits = model.logits(
        params, inputs, segments, decoder_inputs, ones, encoded=encoded
    )
    return jax.nn.softmax(warping.warp(logits[..., :vocabulary], decoding))

  def one(row):
    inputs, segments, tokens, share = jax.tree.map(lambda x: x[None], row)
    encoded = transformer_lib.shared_encoding(
        draft, target, target_params, inputs, segments
    )
    row = inputs, segments, tokens
    p = law(target, target_params, row, encoded)  # [1, L, V]
    q = law(draft, draft_params, row, encoded)
    order = p - q
    index = tokens[..., None]  # [1, L, 1]
    own = jnp.take_along_axis(order, index, -1)
    number = jnp.arange(vocabulary)[None, None]
    is_before = (order < own) | ((order == own) & (number < index))
    # Compilers may compute `order` twice, and round it otherwise.
    is_before &= number != index
    below = jnp.sum(p, where=is_before, axis=-1)
    return (below + share * jnp.take_along_axis(p, index, -1)[..., 0])[0]

  del lengths  # what follows a row's end is left out by the caller
  return jax.lax.map(one, (inputs, segments, tokens, shares))
