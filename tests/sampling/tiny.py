"""One small pair for the tests of this folder that need no other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import randomness
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer
from distillspec_jax.sampling import samples as samples_lib

V, B, S = 50, 4, 6
KINDS = {
    'encoder_decoder': {'num_encoder_layers': 1, 'num_decoder_layers': 1},
    'decoder_only': {'num_encoder_layers': 0, 'num_decoder_layers': 1},
}
Origin = samples_lib.Origin


@functools.cache
def make(kind='encoder_decoder', vocabulary=V, seed=0, **changes):
  """A model and its parameters, of about the usual size."""
  config = config_lib.published('test', vocabulary, **KINDS[kind], **changes)
  model = transformer.Transformer(config)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'scale':
      return jnp.ones(leaf.shape)
    deviation = leaf.shape[-2] ** -0.5 if name == 'kernel' else 1.0
    values = deviation * rng.standard_normal(leaf.shape)
    return jnp.asarray(values, jnp.float32)

  return model, jax.tree_util.tree_map_with_path(draw, model.abstract())


@functools.cache
def perturbed(scale, kind='encoder_decoder', vocabulary=V):
  """The parameters with noise of `scale` times their own size."""
  rng = np.random.default_rng(7)

  def add_noise(leaf):
    leaf = np.asarray(leaf)
    noise = rng.standard_normal(leaf.shape) * scale * np.std(leaf)
    return jnp.asarray(leaf + noise, jnp.float32)

  return jax.tree.map(add_noise, make(kind, vocabulary)[1])


def inputs(rows=B):
  """Tokens and segments int32[B, S] of several lengths; the last is empty."""
  rng = np.random.default_rng(3)
  lengths = np.array([S, 2, 5, 0])[:rows, None]
  segments = (np.arange(S) < lengths).astype(np.int32)
  tokens = rng.integers(2, V, (B, S))[:rows].astype(np.int32) * segments
  return jnp.asarray(tokens), jnp.asarray(segments)


def keys(rows=B, seed=0):
  return randomness.row_keys(jax.random.key(seed), rows)


def check_statistics(samples, decoding, limit=None):
  """What must hold of any speculative generation.

  Args:
    samples: what was generated.
    decoding: how.
    limit: int32[B] new tokens at most; default: that of `decoding`.
  """
  tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
  origins = np.asarray(samples.origins)
  counts = jax.tree.map(np.asarray, samples.statistics)
  place = np.arange(decoding.max_new_tokens)[None]
  real = place < lengths[:, None]
  size = decoding.block_length
  limit = decoding.max_new_tokens if limit is None else np.asarray(limit)

  assert ((lengths >= 1) & (lengths <= limit)).all()
  assert (tokens[~real] == 0).all()
  assert (counts.emitted == lengths).all()
  if decoding.draft_stop is None:
    assert (counts.drafted == counts.blocks * size).all()
  assert (counts.drafted <= counts.blocks * size).all()
  assert (counts.drafted >= counts.blocks).all()
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
  # Only the last block of a row can end without the target's own token.
  assert (corrected + bonus <= counts.blocks).all()
  assert (corrected + bonus >= counts.blocks - 1).all()
