"""Layers: the norm, the gated feed-forward, and dropout's keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.models import config as config_lib
from distillspec_jax.models import layers

RATE = 0.25


def mask(dropout, place='mlp', shape=(4, 8, 64), **kwargs):
  return np.asarray(dropout(jnp.ones(shape), place, **kwargs)) > 0


def test_norm_is_over_the_root_mean_square_in_float32():
  config = config_lib.published('test', dtype='bfloat16')
  norm = layers.RMSNorm(config)
  x = 1e3 * jax.random.normal(jax.random.key(0), (2, 3, 16), jnp.bfloat16)
  scale = jnp.linspace(0.5, 2.0, 16)
  y = norm.apply({'params': {'scale': scale}}, x)
  wide = np.asarray(x, np.float64)
  expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(
      np.asarray(y, np.float32), expected * np.asarray(scale), rtol=2**-7
  )


def test_without_a_key_or_a_rate_nothing_is_dropped():
  x = jnp.ones((2, 3))
  assert layers.Dropout(RATE, None)(x, 'mlp') is x
  assert layers.Dropout(RATE, None).at(3)(x, 'mlp') is x
  assert layers.Dropout(0.0, jax.random.key(0))(x, 'mlp') is x


def test_dropout_keeps_the_mean_and_drops_at_its_rate():
  ones = jnp.ones((100, 1000))
  dropped = layers.Dropout(RATE, jax.random.key(0))(ones, 'mlp')
  kept = np.asarray(dropped) > 0
  error = np.sqrt(RATE * (1 - RATE) / kept.size)
  assert abs(kept.mean() - (1 - RATE)) < 4.9 * error  # fails one in a million
  np.testing.assert_allclose(dropped[kept], 1 / (1 - RATE), rtol=1e-6)


def test_places_layers_and_keys_have_masks_of_their_own():
  dropout = layers.Dropout(RATE, jax.random.key(0))
  masks = [
      mask(dropout),
      mask(dropout, 'attention'),
      mask(dropout.at(0)),
      mask(dropout.at(1)),
      mask(dropout.at(1 << 16)),
      mask(layers.Dropout(RATE, jax.random.key(1))),
  ]
  for i, one in enumerate(masks):
    for two in masks[:i]:
      assert (one != two).mean() > RATE  # independent masks: 2 r (1 - r)
  np.testing.assert_array_equal(masks[3], mask(dropout.at(jnp.int32(1))))


def test_a_broadcast_axis_shares_the_mask():
  shared = mask(layers.Dropout(RATE, jax.random.key(0)), broadcast_axis=-2)
  assert (shared == shared[:, :1]).all()
  assert not (shared == shared[:1]).all()


@pytest.mark.parametrize('activations', [('relu',), ('silu', 'linear')])
def test_feed_forward_multiplies_its_branches(activations):
  config = config_lib.published('test', 10, mlp_activations=activations)
  module = layers.FeedForward(config)
  x = jax.random.normal(jax.random.key(0), (2, 3, config.emb_dim))
  no_dropout = layers.Dropout(0.0, None)
  params = module.init(jax.random.key(1), x, no_dropout)['params']
  kernels = jax.tree.map(np.asarray, jax.tree.leaves(params))
  wide = np.asarray(x, np.float64)
  if len(activations) == 1:
    wi, wo = kernels
    hidden = np.maximum(wide @ wi, 0)
  else:
    wi_0, wi_1, wo = kernels
    gate = wide @ wi_0
    hidden = gate / (1 + np.exp(-gate)) * (wide @ wi_1)
  y = module.apply({'params': params}, x, no_dropout)
  np.testing.assert_allclose(y, hidden @ wo, atol=1e-5)


@pytest.mark.parametrize('few', [1, 2, 7])
@pytest.mark.parametrize('has_bias', [True, False])
@pytest.mark.parametrize('mix', [layers.mix_padded, layers.mix_by_query])
def test_few_queries_are_mixed_as_many_are(few, has_bias, mix):
  rng = np.random.default_rng(few)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  read = (
      normal(3, 2, few, 4),
      normal(3, 2, 9, 4),
      normal(3, 2, 9, 4),
      rng.random((3, few, 9)) < 0.5,
      normal(1, 2, few, 9) if has_bias else None,
  )
  expected = layers.mix(*read, layers.Dropout(0.0, None))
  actual = mix(*read)
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
