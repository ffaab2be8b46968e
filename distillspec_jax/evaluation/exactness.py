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
# The tiny pair: outputs of up to 4 of 4 tokens, so that samples suffice for
# each of them; blocks of 3, so that prefixes of all lengths are accepted, and a
# second block follows on cut-back caches. Seeds and gains were searched for a
# draft that is far from the target, and on both sides of it, and for a target
# under which no output is rare: what a fault of a verifier moves is then large
# beside the noise. Keeping 3 % of q in the residual moves 1.4 % of the
# probability, and so does accepting with 1.02 p / q.
_TINY_VOCABULARY, _TINY_LENGTH, _TINY_BLOCK = 4, 4, 3
_TINY_TARGET, _TINY_DRAFT = (28, 0.7), (18, 1.5)  # seed, gain of the logits
_TINY_MASK = 2  # of parallel drafts; any token will do
_ROWS = 65_536  # sampled at a time
# Expected counts from which Pearson's statistic is chi-squared far into its
# tail (simulated in the tests).
_MIN_EXPECTED = 20.0


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
    mean: float64[V] probability of each token, the mean over positions.
  """

  difference: float
  confidence: float
  entropy: float
  mean: np.ndarray


class Fit(NamedTuple):
  """A chi-squared test of so many tokens or outputs, in so many cells."""

  count: int
  cells: int
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
  fast = speculate(target, draft, prompt, decoding, 0)
  # With all of the target's tokens, also those that the draft does not have.
  plain = autoregressive.generate(
      target.model, prompt, _keys(prompt, 0), decoding.without_draft()
  )
  logits, rounding = _both_logits(target.model, prompt, plain)
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
      model.model, prompt, samples, in_log_probabilities=True
  )
  length = samples.tokens.shape[1]
  real = np.arange(length)[None] < np.asarray(samples.lengths)[:, None]

  def median(measure):
    return float(np.median(np.asarray(jax.jit(measure)(logits))[real]))

  p = np.asarray(jax.nn.softmax(logits))[real]
  return Incremental(
      float(difference),
      median(rows_lib.confidence),
      median(rows_lib.entropy),
      p.mean(axis=0, dtype=np.float64),
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
  first (a parallel draft, as a block's first token). In that order, the
  target's mass below the emitted token, plus a random share of the token's own,
  is uniform in [0, 1) and independent of the tokens before, whatever the pair.
  A verifier that favours the draft, or the target, shifts it. Tokens that the
  draft does not have are the target's all the same.

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
  return _fit(counts, np.full(_BINS, 1.0 / _BINS))


def num_outputs(decoding: decoding_lib.Decoding) -> int:
  """How many outputs of the tiny pair of `enumerated` are possible."""
  return int((_distribution(_of_tiny_pair(decoding)) > 0.0).sum())


def enumerated(decoding: decoding_lib.Decoding, samples: int, seed: int) -> Fit:
  """Whether outputs of a tiny pair are distributed as all its outputs are.

  An output is a complete sequence: what a token's distribution owes to the
  tokens before it, and to where blocks ended, is tested, too.

  Args:
    decoding: its warping and verifier are tested, in blocks of three; adaptive
      blocks stop at the first position, and at some later ones.
    samples: outputs to draw; full batches are drawn, which may be more.
    seed: of sampling.
  """
  decoding = _of_tiny_pair(decoding)
  pair = _tiny(*_TINY_TARGET), _tiny(*_TINY_DRAFT)
  rows = min(samples, _ROWS)
  prompt = _tiny_prompt(rows)
  counts = np.zeros(_TINY_VOCABULARY**_TINY_LENGTH, int)
  for first in range(0, samples, rows):
    keys = randomness.row_keys(
        jax.random.key(seed), first + jnp.arange(rows, dtype=jnp.int32)
    )
    drawn = speculative.generate(*pair, prompt, keys, decoding)
    counts += np.bincount(_number(drawn.tokens), minlength=len(counts))
  return _fit(counts, _distribution(decoding))


def _fit(counts: np.ndarray, probabilities: np.ndarray) -> Fit:
  """Pearson's test; cells of which few are expected are one."""
  total = int(counts.sum())
  if counts[probabilities == 0.0].any():
    return Fit(total, int((probabilities > 0.0).sum()) + 1, 0.0)
  order = np.argsort(-probabilities)
  expected = (probabilities / probabilities.sum() * total)[order]
  counts = counts[order]
  common = int((expected >= _MIN_EXPECTED).sum())
  if expected[common:].sum() < _MIN_EXPECTED:
    common = max(common - 1, 0)  # too few even together: with the next one
  expected = np.append(expected[:common], expected[common:].sum())
  counts = np.append(counts[:common], counts[common:].sum())
  return Fit(total, len(counts), chi_squared(counts, expected))


def chi_squared(observed: np.ndarray, expected: np.ndarray) -> float:
  """The p-value of counts under their expected values."""
  if len(observed) < 2:
    return 1.0
  statistic = float(((observed - expected) ** 2 / expected).sum())
  return float(special.chdtrc(len(observed) - 1, statistic))


@functools.cache
def _tiny(seed: int, gain: float) -> model_lib.Model:
  config = config_lib.published(
      'test',
      vocab_size=_TINY_VOCABULARY,
      emb_dim=4,
      num_heads=1,
      head_dim=4,
      mlp_dim=4,
      num_encoder_layers=1,
      num_decoder_layers=1,
      mask_token=_TINY_MASK,
  )
  network = transformer_lib.Transformer(config)
  params = network.init(jax.random.key(seed))
  head = params['decoder']['logits_dense']
  head['kernel'] = gain * head['kernel']
  return model_lib.Model(params, network)


def _tiny_prompt(rows: int) -> types.Prompt:
  tokens = jnp.full((rows, 1), 3, jnp.int32)
  return types.Prompt(tokens, jnp.ones_like(tokens))


def _of_tiny_pair(decoding: decoding_lib.Decoding) -> decoding_lib.Decoding:
  decoding = decoding.replace(max_new_tokens=_TINY_LENGTH, length=_TINY_BLOCK)
  adaptive = decoding.drafting.adaptive
  if adaptive is not None:
    adaptive = dataclasses.replace(adaptive, threshold=_threshold(adaptive))
  return decoding.replace(adaptive=adaptive)


def _threshold(adaptive: adaptive_length.AdaptiveLength) -> float:
  """Where a tiny draft continues at half of the positions, not at the first."""
  logits = _all_logits(*_TINY_DRAFT)
  if isinstance(adaptive, adaptive_length.Confidence):
    confidence = np.asarray(rows_lib.confidence(logits))
    return float(max(np.median(confidence), 1.0001 * confidence[0, 0]))
  entropy = np.asarray(rows_lib.entropy(logits))
  return float(min(np.median(entropy), 0.9999 * entropy[0, 0]))


def _all_outputs() -> np.ndarray:
  """int[N, L] all sequences of full length."""
  tokens = range(_TINY_VOCABULARY)
  return np.array(list(itertools.product(tokens, repeat=_TINY_LENGTH)))


def _number(outputs: np.ndarray | jax.Array) -> np.ndarray:
  """int[N] of sequences int[N, L], as in `_all_outputs`."""
  places = _TINY_VOCABULARY ** np.arange(_TINY_LENGTH)[::-1]
  return np.asarray(outputs) @ places


@functools.cache
def _all_logits(seed: int, gain: float) -> jax.Array:
  """Teacher-forced logits [N, L, V] of all sequences."""
  labels = jnp.asarray(_all_outputs(), jnp.int32)
  segments = jnp.ones_like(labels)
  model = _tiny(seed, gain)
  inputs = model_lib.shift_right(labels, segments)
  return model.logits(_tiny_prompt(len(labels)), inputs, segments)


def _distribution(decoding: decoding_lib.Decoding) -> np.ndarray:
  """float64[N]: P(output) by the target; of outputs that end early, with zeros
  after their end.
  """
  outputs = _all_outputs()
  warped = warping.warp(_all_logits(*_TINY_TARGET), decoding.sampling)
  p = np.asarray(jax.nn.softmax(warped), np.float64)
  chosen = np.take_along_axis(p, outputs[..., None], axis=2)[..., 0]
  is_end = np.isin(outputs, decoding.eos_ids)
  is_after = np.cumsum(is_end, axis=1) - is_end > 0
  probabilities = np.where(is_after, 1.0, chosen).prod(axis=1)
  # Sequences that are the same up to their end are one output.
  distribution = np.zeros(len(outputs))
  distribution[_number(np.where(is_after, 0, outputs))] = probabilities
  return distribution


@functools.partial(jax.jit, static_argnames='in_log_probabilities')
def _both_logits(
    model: model_lib.Model,
    prompt: types.Prompt,
    samples: samples_lib.Samples,
    in_log_probabilities: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Teacher-forced logits [B, L, V], and the difference of cached ones."""
  tokens = samples.tokens
  ones, length = jnp.ones_like(tokens), tokens.shape[1]
  forced = model.logits(prompt, model_lib.shift_right(tokens, ones), ones)
  model = model.for_decoding()  # as the samplers hold it
  state, context = model.prefill(prompt, length)
  last = rows_lib.window(context.tokens, context.length - 1, 1)

  def step(carry, token):
    state, last = carry
    hidden, state = model.extend(state, last)
    logits = model.all_logits(hidden)[:, 0]
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
  size = target.config.vocab_size
  prompt = model_lib.with_shared_encoding(prompt, target, draft)

  def distribution(model, prompt, tokens):
    ones = jnp.ones_like(tokens)
    shifted = model_lib.shift_right(tokens, ones)
    logits = model.logits(prompt, shifted, ones)[..., :size]
    p = jax.nn.softmax(warping.warp(logits, sampling))
    return jnp.pad(p, ((0, 0), (0, 0), (0, size - p.shape[-1])))

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
