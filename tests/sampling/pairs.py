"""Pairs for the tests of this folder, and what must hold of their samples.

A draft that is the target with noise added causes rejections at every position
of a block. A second pair is so small that the distribution of all its outputs
is known.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import warping
from tests import tiny

V, B, S, L = tiny.V, 8, 6, 24
KINDS = tiny.KINDS
Origin = samples_lib.Origin


def decoding(**settings):
  """Up to L tokens; settings are flat, as of `Decoding.replace`."""
  return decoding_lib.Decoding(max_new_tokens=L).replace(**settings)


SAMPLED = decoding(temperature=1.0, length=3)


def make(kind='encoder_decoder', vocabulary=V, seed=0, **changes):
  return tiny.model(vocabulary, seed=seed, **{**KINDS[kind], **changes})


@functools.cache
def noisy(kind='encoder_decoder', scale=0.3):
  """A draft: the model of this kind with noise."""
  return tiny.noisy(make(kind), scale)


@functools.cache
def prompt(rows=B):
  """Prompts of several lengths; the third is empty."""
  rng = np.random.default_rng(3)
  lengths = np.array([S, 2, 0, 5, 1, 3, S, 4])[:rows, None]
  segments = (np.arange(S) < lengths).astype(np.int32)
  tokens = rng.integers(2, V, (B, S))[:rows].astype(np.int32) * segments
  return types.Prompt(tokens, segments)


def take(tree, rows):
  """The rows with these numbers, of every array."""
  return jax.tree.map(lambda array: array[rows], tree)


def keys_of(rows=B, seed=0):
  return randomness.row_keys(jax.random.key(seed), rows)


def check_statistics(samples, decoding, limit=None, may_stop=False):
  """What must hold of any speculative generation.

  Args:
    samples: what was generated.
    decoding: how.
    limit: int32[B] maximum number of new tokens; default: that of `decoding`.
    may_stop: sequences may end otherwise than by EOS and their limit.
  """
  tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
  origins = np.asarray(samples.origins)
  counts = jax.tree.map(np.asarray, samples.statistics)
  position = np.arange(decoding.output_length)[None]
  is_real = position < lengths[:, None]
  is_last = position == lengths[:, None] - 1
  is_eos = np.isin(tokens, decoding.eos_ids)
  drafting = decoding.drafting
  max_drafted = counts.blocks * drafting.paths * drafting.length
  limit = decoding.output_length if limit is None else np.asarray(limit)

  assert ((lengths >= 1) & (lengths <= limit)).all()
  assert (tokens[~is_real] == 0).all()
  assert not (is_eos & is_real & ~is_last).any()  # nothing follows EOS
  assert may_stop or ((is_eos & is_last).any(1) | (lengths == limit)).all()

  assert (counts.emitted == lengths).all()
  if drafting.adaptive is None:
    assert (counts.drafted == max_drafted).all()
  assert (counts.drafted <= max_drafted).all()
  assert (counts.drafted >= counts.blocks * drafting.paths).all()
  assert (counts.reached_at.sum(1) <= counts.drafted).all()
  assert (counts.accepted == counts.accepted_at.sum(1)).all()
  assert (counts.accepted_at <= counts.reached_at).all()
  assert (counts.reached_at[:, 0] == counts.blocks).all()
  assert (counts.reached_at[:, 1:] <= counts.accepted_at[:, :-1]).all()

  assert (origins[~is_real] == Origin.PADDING).all()
  possible = [Origin.ACCEPTED, Origin.CORRECTED, Origin.BONUS]
  assert np.isin(origins[is_real], possible).all()
  accepted, corrected, bonus = ((origins == kind).sum(1) for kind in possible)
  assert (accepted == counts.accepted).all()
  assert (corrected == (counts.reached_at - counts.accepted_at).sum(1)).all()
  if drafting.adaptive is None:
    assert (bonus <= counts.accepted_at[:, -1]).all()
  # Only the last block of a sequence can end without the target's own token.
  assert (corrected + bonus <= counts.blocks).all()
  assert (corrected + bonus >= counts.blocks - 1).all()


def accepted_histogram(statistics):
  """How many blocks accepted exactly 0, 1, ... G tokens and then continued."""
  reached = np.asarray(statistics.reached_at).sum(0)
  accepted = np.asarray(statistics.accepted_at).sum(0)
  return np.array([*(reached - accepted), accepted[-1]])


@functools.cache
def greedy_reference(kind, rows=B, eos_id=1):
  """The target's own greedy tokens."""
  return autoregressive.generate(
      make(kind), prompt(rows), keys_of(rows), decoding(eos_ids=(eos_id,))
  )


def fresh():
  """`generate` compiled anew: programs compiled before hold no mutation."""

  def generate(target, draft, prompt, keys, decoding, **settings):
    return speculative.generate.__wrapped__(
        target, draft, prompt, keys, decoding, **settings
    )

  return jax.jit(generate, static_argnames='decoding')


# The small pair: the distribution of all its outputs.

SMALL_V, SMALL_L, ROWS = 8, 3, 20_000
SETTINGS = {
    'plain': {'temperature': 1.0},
    'top_k': {'temperature': 1.0, 'top_k': 3},
    'top_p': {'temperature': 1.5, 'top_p': 0.7},
}


def small_decoding(name='plain', **settings):
  return decoding(**{'max_new_tokens': SMALL_L, **SETTINGS[name], **settings})


@functools.cache
def small_pair():
  """A small target, and a draft that is accepted about half of the time."""
  return tuple(
      make('encoder_decoder', SMALL_V, seed=seed, emb_dim=8) for seed in (1, 2)
  )


def small_prompt(rows=ROWS):
  tokens = jnp.broadcast_to(jnp.array([[5, 3, 1]], jnp.int32), (rows, 3))
  return types.Prompt(tokens, jnp.ones_like(tokens))


@jax.jit
def _forced_logits(model, labels):
  segments = jnp.ones_like(labels)
  return model.logits(
      small_prompt(len(labels)),
      model_lib.shift_right(labels, segments),
      segments,
  )


def all_outputs(model, size=SMALL_L):
  """All outputs int[N, size], and their teacher-forced logits [N, size, V]."""
  outputs = np.array(list(itertools.product(range(SMALL_V), repeat=size)))
  return outputs, _forced_logits(model, jnp.asarray(outputs, jnp.int32))


@functools.cache
def exact_distribution(decoding):
  """P(tokens) of all outputs, from teacher-forced logits of all prefixes."""
  target, _ = small_pair()
  size = decoding.output_length
  outputs, logits = all_outputs(target, size)
  warped = warping.warp(logits, decoding.sampling)
  p = np.asarray(jax.nn.softmax(warped), np.float64)
  distribution = {}
  for row, tokens in enumerate(outputs):
    ends = np.flatnonzero(np.isin(tokens, decoding.eos_ids))
    length = ends[0] + 1 if len(ends) else size
    key = (*tokens[:length], *[0] * (size - length))
    chance = np.prod([p[row, i, tokens[i]] for i in range(length)])
    # Equal for all outputs that continue it.
    distribution[tuple(map(int, key))] = chance
  return distribution


def p_value(tokens, distribution):
  """Chi-squared fit of rows to the distribution of whole outputs.

  Outputs that are expected less than five times share one cell. Zero if an
  impossible output occurs.
  """
  observed = dict.fromkeys(distribution, 0)
  for row in map(tuple, np.asarray(tokens).tolist()):
    observed[row] += 1
  chances = np.array(list(distribution.values()))
  counts = np.array(list(observed.values()))
  if counts[chances < 1e-12].any():
    return 0.0
  expected = chances * len(tokens)
  common = expected >= 5.0
  expected = np.append(expected[common], expected[~common].sum())
  counts = np.append(counts[common], counts[~common].sum())
  if expected[-1] < 5.0:
    expected[-2] += expected[-1]
    counts[-2] += counts[-1]
    expected, counts = expected[:-1], counts[:-1]
  # Chances come from float32 and miss 1 by rounding.
  return stats.chisquare(
      counts, expected * counts.sum() / expected.sum()
  ).pvalue


def speculate(decoding, generate=speculative.generate, draft=None, **settings):
  """Samples of the small pair, or of its target and another draft."""
  target, own_draft = small_pair()
  return generate(
      target,
      own_draft if draft is None else draft,
      small_prompt(),
      keys_of(ROWS, 11),
      decoding,
      **settings,
  )
