"""Pairs for the tests of this folder, and what must hold of their samples.

A draft that is the target with noise added makes rejections at every place of
a block. A second, tiny pair has so few outputs that the law of all of them is
known.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import warping
from tests import tiny

V, B, S, L = tiny.V, 8, 6, 24
KINDS = tiny.KINDS
SAMPLED = decoding_lib.Decoding(
    temperature=1.0, block_length=3, max_new_tokens=L
)
Origin = samples_lib.Origin


def make(kind='encoder_decoder', vocabulary=V, seed=0, **changes):
  return tiny.model(vocabulary, seed=seed, **{**KINDS[kind], **changes})


perturbed = tiny.with_noise


@functools.cache
def ragged_inputs(rows=B):
  """Inputs of several lengths; the third row has none."""
  rng = np.random.default_rng(3)
  lengths = np.array([S, 2, 0, 5, 1, 3, S, 4])[:rows, None]
  segments = (np.arange(S) < lengths).astype(np.int32)
  inputs = rng.integers(2, V, (B, S))[:rows].astype(np.int32) * segments
  return jnp.asarray(inputs), jnp.asarray(segments)


def keys_of(rows=B, seed=0):
  return randomness.row_keys(jax.random.key(seed), rows)


def check_statistics(samples, decoding, limit=None, may_stop=False):
  """What must hold of any speculative generation.

  Args:
    samples: what was generated.
    decoding: how.
    limit: int32[B] new tokens at most; default: that of `decoding`.
    may_stop: rows may end by something else than EOS and their limit.
  """
  tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
  origins = np.asarray(samples.origins)
  counts = jax.tree.map(np.asarray, samples.statistics)
  place = np.arange(decoding.max_new_tokens)[None]
  real = place < lengths[:, None]
  last = place == lengths[:, None] - 1
  is_eos = np.isin(tokens, decoding.eos_ids)
  most = counts.blocks * decoding.num_drafts * decoding.block_length
  limit = decoding.max_new_tokens if limit is None else np.asarray(limit)

  assert ((lengths >= 1) & (lengths <= limit)).all()
  assert (tokens[~real] == 0).all()
  assert not (is_eos & real & ~last).any()  # nothing is said after EOS
  assert may_stop or ((is_eos & last).any(1) | (lengths == limit)).all()

  assert (counts.emitted == lengths).all()
  if decoding.draft_stop is None:
    assert (counts.drafted == most).all()
  assert (counts.drafted <= most).all()
  assert (counts.drafted >= counts.blocks * decoding.num_drafts).all()
  assert (counts.reached_at.sum(1) <= counts.drafted).all()
  assert (counts.accepted == counts.accepted_at.sum(1)).all()
  assert (counts.accepted_at <= counts.reached_at).all()
  assert (counts.reached_at[:, 0] == counts.blocks).all()
  assert (counts.reached_at[:, 1:] <= counts.accepted_at[:, :-1]).all()

  assert (origins[~real] == Origin.PADDING).all()
  own = [Origin.ACCEPTED, Origin.CORRECTED, Origin.BONUS]
  assert np.isin(origins[real], own).all()
  accepted, corrected, bonus = ((origins == kind).sum(1) for kind in own)
  assert (accepted == counts.accepted).all()
  assert (corrected == (counts.reached_at - counts.accepted_at).sum(1)).all()
  if decoding.draft_stop is None:
    assert (bonus <= counts.accepted_at[:, -1]).all()
  # Only the last block of a row can end without the target's own token.
  assert (corrected + bonus <= counts.blocks).all()
  assert (corrected + bonus >= counts.blocks - 1).all()


def accepted_histogram(statistics):
  """How many blocks accepted exactly 0, 1, ... G tokens and then went on."""
  reached = np.asarray(statistics.reached_at).sum(0)
  accepted = np.asarray(statistics.accepted_at).sum(0)
  return np.array([*(reached - accepted), accepted[-1]])


@functools.cache
def greedy_reference(kind, rows, length=L, eos_id=1):
  model, params = make(kind)
  decoding = decoding_lib.Decoding(
      max_new_tokens=length, block_length=1, eos_ids=(eos_id,)
  )
  return autoregressive.generate(
      model, params, *ragged_inputs(rows), keys_of(rows), decoding
  )


def fresh():
  """`generate` compiled anew: what was compiled before holds no mutation."""
  return jax.jit(
      lambda *args: speculative.generate.__wrapped__(*args),
      static_argnums=(0, 2, 7),
  )


# The tiny pair: the law of all its outputs.

LAW_V, LAW_L, ROWS = 8, 3, 20_000
SETTINGS = {
    'plain': {},
    'top_k': {'top_k': 3},
    'top_p': {'top_p': 0.7, 'temperature': 1.5},
}


@functools.cache
def law_models():
  """A tiny target and a draft that is accepted about half of the time."""
  model, params = make('encoder_decoder', LAW_V, seed=1, emb_dim=8)
  _, draft_params = make('encoder_decoder', LAW_V, seed=2, emb_dim=8)
  return model, params, draft_params


def law_inputs(rows):
  return (
      jnp.broadcast_to(jnp.array([[5, 3, 1]], jnp.int32), (rows, 3)),
      jnp.ones((rows, 3), jnp.int32),
  )


def all_outputs(model, params, size=LAW_L):
  """All outputs int[N, size], and their teacher-forced logits [N, size, V]."""
  outputs = np.array(list(itertools.product(range(LAW_V), repeat=size)))
  labels = jnp.asarray(outputs, jnp.int32)
  segments = jnp.ones_like(labels)
  logits = jax.jit(model.logits)(
      params,
      *law_inputs(len(outputs)),
      transformer.shift_right(labels, segments),
      segments,
  )
  return outputs, logits


@functools.cache
def exact_law(decoding):
  """P(tokens) of all outputs, from teacher-forced logits of all prefixes."""
  model, params, _ = law_models()
  size = decoding.max_new_tokens
  outputs, logits = all_outputs(model, params, size)
  p = np.asarray(jax.nn.softmax(warping.warp(logits, decoding)), np.float64)
  law = {}
  for row, tokens in enumerate(outputs):
    ends = np.flatnonzero(np.isin(tokens, decoding.eos_ids))
    length = ends[0] + 1 if len(ends) else size
    key = (*tokens[:length], *[0] * (size - length))
    chance = np.prod([p[row, i, tokens[i]] for i in range(length)])
    law[tuple(map(int, key))] = chance  # equal for all that continue it
  return law


def law_p_value(tokens, law):
  """Chi-squared fit of rows to the law of whole outputs.

  Outputs that are expected less than five times share one cell. Zero if an
  impossible output occurs.
  """
  observed = dict.fromkeys(law, 0)
  for row in map(tuple, np.asarray(tokens).tolist()):
    observed[row] += 1
  chances = np.array(list(law.values()))
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


def law_decoding(name, block):
  return decoding_lib.Decoding(
      **{'temperature': 1.0, **SETTINGS[name]},
      block_length=block,
      max_new_tokens=LAW_L,
  )


def speculate(decoding, generate=speculative.generate):
  """Rows of the tiny pair."""
  model, params, draft_params = law_models()
  return generate(
      model,
      params,
      model,
      draft_params,
      *law_inputs(ROWS),
      keys_of(ROWS, 11),
      decoding,
  )
