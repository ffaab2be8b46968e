"""Warping against a plain reference, on logits of every kind."""

import functools

import hypothesis
from hypothesis import strategies
from hypothesis.extra import numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import warping

V = 7
LOGITS = arrays.arrays(
    np.float32,
    (V,),
    # XLA takes subnormal numbers for 0.
    elements=strategies.floats(-20, 20, width=32, allow_subnormal=False),
)
warp = jax.jit(warping.warp, static_argnums=1)
# A few settings, so that each is compiled once.
TEMPERATURES = (0.25, 1.0, 2.0)
TOP_KS = (0, 1, 3, V, V + 5)
TOP_PS = (1.0, 0.9, 0.3, 1e-6, 1e-45)
many = functools.partial(hypothesis.settings, derandomize=True, database=None)


def softmax(logits):
  weights = np.exp(logits.astype(np.float64) - logits.max())
  return weights / weights.sum()


def sampling(**settings):
  return decoding_lib.Sampling(**{'temperature': 1.0, **settings})


@many(max_examples=60)
@hypothesis.given(LOGITS, strategies.sampled_from(TEMPERATURES))
def test_temperature_divides(logits, temperature):
  warped = warp(logits, sampling(temperature=temperature))
  np.testing.assert_allclose(
      warped, logits / temperature, rtol=1e-6, atol=1e-30
  )


@many(max_examples=60)
@hypothesis.given(LOGITS)
def test_temperature_zero_puts_all_mass_on_the_first_of_the_best(logits):
  warped = np.asarray(warp(logits, sampling(temperature=0.0)))
  assert np.isneginf(warped).sum() == V - 1
  assert warped[np.argmax(logits)] == 0.0


@many(max_examples=60)
@hypothesis.given(LOGITS, strategies.sampled_from(TOP_KS))
def test_top_k_keeps_the_k_best_and_their_equals(logits, top_k):
  warped = np.asarray(warp(logits, sampling(top_k=top_k)))
  kept = np.isfinite(warped)
  if top_k == 0 or top_k >= V:
    assert kept.all()
  else:
    np.testing.assert_array_equal(kept, logits >= np.sort(logits)[-top_k])
  np.testing.assert_array_equal(warped[kept], logits[kept])


@many(max_examples=100)
@hypothesis.given(LOGITS, strategies.sampled_from(TOP_PS))
@hypothesis.example(np.float32([-2.5e-12, 0, 0, 0, 0, 0, 0]), 0.3)
def test_top_p_keeps_the_fewest_that_reach_it_and_their_equals(logits, top_p):
  warped = np.asarray(warp(logits, sampling(top_p=top_p)))
  kept = np.isfinite(warped)
  p = softmax(logits)
  assert kept[np.argmax(logits)]
  if top_p == 1.0:
    assert kept.all()
    return
  tolerance = 1e-6
  # Nothing that was dropped is likelier than anything that was kept.
  least = p[kept].min()
  assert least >= p[~kept].max(initial=0.0) * (1 - tolerance)
  assert p[kept].sum() >= top_p - tolerance
  # The last ones are equals, in float32.
  likelier = p[p > least * (1 + tolerance)].sum()
  assert likelier < top_p + tolerance
  np.testing.assert_array_equal(warped[kept], logits[kept])


@many(max_examples=60)
@hypothesis.given(LOGITS)
def test_top_p_counts_the_mass_that_temperature_and_top_k_left(logits):
  together = warp(logits, sampling(temperature=2.0, top_k=3, top_p=0.9))
  step = warp(logits, sampling(temperature=2.0, top_k=3))
  step = warp(np.asarray(step), sampling(top_p=0.9))
  np.testing.assert_array_equal(together, step)


@pytest.mark.parametrize(
    'settings', [{}, {'temperature': 0.0}, {'top_k': 2}, {'top_p': 0.5}]
)
def test_leading_axes_are_independent_and_the_result_is_float32(settings):
  logits = jax.random.normal(jax.random.key(0), (2, 3, V), jnp.bfloat16)
  together = warp(logits, sampling(**settings))
  assert together.dtype == jnp.float32
  for i in range(2):
    for j in range(3):
      np.testing.assert_array_equal(
          warp(logits[i, j], sampling(**settings)), together[i, j]
      )


def test_a_token_that_could_not_be_sampled_stays_so():
  logits = np.array([0.0, -np.inf, 1.0, -np.inf, -1.0, 0.5, 0.0], np.float32)
  for settings in ({'top_k': 6}, {'top_p': 0.999999}, {'temperature': 3.0}):
    warped = np.asarray(warp(logits, sampling(**settings)))
    assert np.isneginf(warped[[1, 3]]).all()
    assert not np.isnan(warped).any()


def test_rows_may_have_temperatures_of_their_own():
  logits = jax.random.normal(jax.random.key(1), (4, 2, V))
  temperature = jnp.array([0.0, 0.25, 1.0, 2.0])
  settings = {'top_k': 5, 'top_p': 0.9}
  together = jax.jit(warping.warp, static_argnums=1)(
      logits, sampling(**settings, temperature=3.0), temperature
  )
  for row, value in enumerate(temperature.tolist()):
    alone = warp(logits[row], sampling(**settings, temperature=value))
    np.testing.assert_allclose(together[row], alone, rtol=1e-6)
