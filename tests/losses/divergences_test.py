"""Values, gradients and edges of the divergences, against float64 formulas."""

import functools

from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distillspec_jax.core import errors
from distillspec_jax.losses import divergences

BETA = 0.3
ALL = {
    'forward_kl': jax.jit(divergences.forward_kl),
    'reverse_kl': jax.jit(divergences.reverse_kl),
    'jsd': jax.jit(functools.partial(divergences.jsd, beta=BETA)),
    'total_variation': jax.jit(divergences.total_variation),
}


def minus_log_acceptance(p_logits, q_logits):
  return -jnp.log(divergences.acceptance(p_logits, q_logits))


def kl(p, q):
  return np.sum(special.rel_entr(p, q), axis=-1, keepdims=True)


def expected_value(name, p, q):
  m = BETA * p + (1 - BETA) * q
  return {
      'forward_kl': kl(p, q),
      'reverse_kl': kl(q, p),
      'jsd': BETA * kl(p, m) + (1 - BETA) * kl(q, m),
      'total_variation': np.abs(p - q).sum(-1, keepdims=True) / 2,
  }[name][..., 0]


def expected_gradient(name, p, q):
  """In the draft's logits, as derived by hand."""
  m = BETA * p + (1 - BETA) * q
  sign = np.sign(q - p)
  tvd = q * (sign - np.sum(q * sign, -1, keepdims=True)) / 2
  accepted = np.minimum(p, q).sum(-1, keepdims=True)
  return {
      'forward_kl': q - p,
      'reverse_kl': q * (np.log(q / p) - kl(q, p)),
      'jsd': (1 - BETA) * q * (np.log(q / m) - kl(q, m)),
      'total_variation': tvd,
      'minus_log_acceptance': tvd / accepted,
  }[name]


@functools.cache
def compiled_gradient(function, argument):
  def total(p_logits, q_logits):
    return jnp.sum(function(p_logits, q_logits))

  return jax.jit(jax.grad(total, argument))


def gradient(function, p_logits, q_logits, argument=1):
  return compiled_gradient(function, argument)(p_logits, q_logits)


def softmax(logits):
  return special.softmax(np.asarray(logits, np.float64), axis=-1)


# Two sizes, each compiled once.
pairs = st.sampled_from([2, 5]).flatmap(
    lambda v: hnp.arrays(
        np.float32, (2, 4, v), elements=st.floats(-8, 8, width=32)
    )
)
quick = settings(max_examples=25)


@pytest.mark.parametrize('name', ALL)
@given(pairs)
@quick
def test_values_match_float64(name, logits):
  actual = ALL[name](*jnp.asarray(logits))
  expected = expected_value(name, *softmax(logits))
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=3e-6)
  assert actual.dtype == jnp.float32


@pytest.mark.parametrize('name', [*ALL, 'minus_log_acceptance'])
@given(pairs)
@quick
def test_gradients_match_the_closed_forms(name, logits):
  p, q = softmax(logits)
  assume(np.abs(p - q).min() > 1e-5)  # total variation has a kink at p = q
  function = ALL.get(name, minus_log_acceptance)
  actual = gradient(function, *logits)
  np.testing.assert_allclose(
      actual, expected_gradient(name, p, q), rtol=2e-5, atol=5e-6
  )


@pytest.mark.parametrize(
    'function, mirrored',
    [
        (ALL['forward_kl'], ALL['reverse_kl']),
        (ALL['reverse_kl'], ALL['forward_kl']),
        (ALL['jsd'], functools.partial(divergences.jsd, beta=1 - BETA)),
        (ALL['total_variation'], ALL['total_variation']),
    ],
)
def test_gradient_in_the_target_is_that_of_the_mirrored_divergence(
    function, mirrored
):
  p, q = np.random.default_rng(0).normal(size=(2, 6, 7)).astype(np.float32)
  np.testing.assert_allclose(
      gradient(function, p, q, argument=0),
      gradient(mirrored, q, p, argument=1),
      atol=1e-6,
  )


def test_jsd_has_the_two_kl_as_limits():
  p, q = np.random.default_rng(1).normal(size=(2, 6, 7)).astype(np.float32)
  near_0 = divergences.jsd(p, q, beta=1e-3) / 1e-3
  near_1 = divergences.jsd(p, q, beta=1 - 1e-3) / 1e-3
  np.testing.assert_allclose(near_0, divergences.forward_kl(p, q), rtol=1e-2)
  np.testing.assert_allclose(near_1, divergences.reverse_kl(p, q), rtol=1e-2)


@pytest.mark.parametrize('name', ALL)
def test_equal_distributions_have_divergence_and_gradient_zero(name):
  logits = np.random.default_rng(2).normal(size=(6, 7)).astype(np.float32)
  np.testing.assert_allclose(ALL[name](logits, logits), 0, atol=1e-6)
  if name != 'total_variation':  # at its kink rounding decides the sign
    actual = gradient(ALL[name], logits, logits)
    np.testing.assert_allclose(actual, 0, atol=1e-6)


def test_acceptance_is_one_minus_total_variation():
  p, q = np.random.default_rng(3).normal(size=(2, 6, 7)).astype(np.float32)
  np.testing.assert_allclose(
      divergences.acceptance(p, q),
      1 - divergences.total_variation(p, q),
      atol=1e-6,
  )


@pytest.mark.parametrize('name', [*ALL, 'minus_log_acceptance'])
def test_tokens_of_minus_infinity_in_both_are_absent(name):
  function = ALL.get(name, minus_log_acceptance)
  p, q = np.random.default_rng(4).normal(size=(2, 6, 7)).astype(np.float32)
  padded = np.full((2, 6, 10), -np.inf, np.float32)
  padded[..., :7] = p, q
  np.testing.assert_allclose(function(*padded), function(p, q), atol=1e-6)
  for argument in (0, 1):
    actual = gradient(function, *padded, argument)
    np.testing.assert_allclose(
        actual[:, :7], gradient(function, p, q, argument), atol=1e-6
    )
    np.testing.assert_array_equal(actual[:, 7:], 0)


@pytest.mark.parametrize(
    'name, absent_in, finite',
    [
        ('forward_kl', 'p', True),
        ('forward_kl', 'q', False),
        ('reverse_kl', 'p', False),
        ('reverse_kl', 'q', True),
        ('jsd', 'p', True),
        ('jsd', 'q', True),
        ('total_variation', 'p', True),
        ('total_variation', 'q', True),
    ],
)
def test_a_token_that_only_one_of_them_can_say(name, absent_in, finite):
  p, q = np.random.default_rng(5).normal(size=(2, 6, 7)).astype(np.float32)
  (p if absent_in == 'p' else q)[:, 2] = -np.inf
  actual = ALL[name](p, q)
  expected = expected_value(name, softmax(p), softmax(q))
  assert np.isfinite(expected).all() == finite
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  if finite or name == 'forward_kl':  # q - p is finite even where KL is not
    assert np.isfinite(gradient(ALL[name], p, q)).all()


@pytest.mark.parametrize('name', ALL)
def test_far_apart_logits_do_not_overflow(name):
  p = np.float32([[1e4, 0.0, -1e4]])
  q = np.float32([[-1e4, 0.0, 1e4]])
  assert np.isfinite(ALL[name](p, q)).all()
  assert np.isfinite(gradient(ALL[name], p, q)).all()


@pytest.mark.parametrize('name', ALL)
def test_bfloat16_logits_are_computed_in_float32(name):
  p, q = np.random.default_rng(6).normal(size=(2, 6, 7)).astype(np.float32)
  p, q = jnp.asarray(p, jnp.bfloat16), jnp.asarray(q, jnp.bfloat16)
  actual = ALL[name](p, q)
  assert actual.dtype == jnp.float32
  np.testing.assert_array_equal(
      actual, ALL[name](p.astype(jnp.float32), q.astype(jnp.float32))
  )


@pytest.mark.parametrize('z_loss', [0.0, 0.0001, 0.01])
@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
def test_cross_entropy_matches_t5x(shared, z_loss, label_smoothing):
  golden = np.load(shared / 'golden/t5x/losses.npz')
  name = f'ls{label_smoothing}_z{z_loss}'

  def loss(logits):
    values = divergences.cross_entropy(
        logits, golden['targets'], z_loss, label_smoothing
    )
    return jnp.sum(values * golden['weights'])

  value, actual = jax.jit(jax.value_and_grad(loss))(golden['logits'])
  expected = golden[f'{name}/loss_zloss_wsum'][0]
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(actual, golden[f'{name}/grad'], atol=1e-5)


@pytest.mark.parametrize('z_loss', [0.0, 0.01])
@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
def test_cross_entropy_matches_float64(z_loss, label_smoothing):
  logits = np.random.default_rng(7).normal(size=(4, 7))
  labels = np.array([0, 3, 6, 2])
  log_z = np.log(np.exp(logits).sum(axis=1, keepdims=True))
  # The distribution to be learnt: six other tokens share the smoothing.
  p = np.full((4, 7), label_smoothing / 6)
  p[range(4), labels] = 1.0 - label_smoothing
  entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)))
  total = -np.sum(p * (logits - log_z)) - entropy
  total += z_loss * np.sum(log_z**2)
  q = np.exp(logits - log_z)
  gradient = q - p + 2 * z_loss * log_z * q

  def loss(logits):
    return jnp.sum(
        divergences.cross_entropy(logits, labels, z_loss, label_smoothing)
    )

  value, actual = jax.jit(jax.value_and_grad(loss))(jnp.float32(logits))
  np.testing.assert_allclose(value, total, rtol=1e-5)
  np.testing.assert_allclose(actual, gradient, atol=1e-6)


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
def test_cross_entropy_leaves_out_tokens_of_minus_infinity(label_smoothing):
  logits = np.random.default_rng(7).normal(size=(4, 7)).astype(np.float32)
  padded = np.pad(logits, ((0, 0), (0, 3)), constant_values=-np.inf)
  labels = np.int32([0, 3, 6, 2])

  def value_and_gradient(logits):
    def total(logits):
      return jnp.sum(
          divergences.cross_entropy(logits, labels, 1e-2, label_smoothing)
      )

    return jax.jit(jax.value_and_grad(total))(logits)

  value, actual = value_and_gradient(padded)
  expected_loss, expected = value_and_gradient(logits)
  np.testing.assert_allclose(value, expected_loss, rtol=1e-6)
  np.testing.assert_allclose(actual[:, :7], expected, atol=1e-6)
  np.testing.assert_array_equal(actual[:, 7:], 0)


@pytest.mark.parametrize('name', ALL)
def test_divergences_are_found_by_name(name):
  p, q = np.random.default_rng(8).normal(size=(2, 6, 7)).astype(np.float32)
  beta = BETA if name == 'jsd' else None
  actual = divergences.named(name, beta)(p, q)
  np.testing.assert_allclose(actual, ALL[name](p, q), rtol=1e-5)


def test_named_jsd_without_beta_is_the_symmetric_one():
  assert divergences.named('jsd') is divergences.jsd


def test_an_unknown_divergence_is_refused_with_the_known_ones():
  with pytest.raises(errors.UserError) as error:
    divergences.named('kl')
  for name in ("'kl'", *ALL):
    assert name in str(error.value)


def test_beta_for_another_divergence_is_refused():
  with pytest.raises(errors.UserError, match="'forward_kl' has no beta"):
    divergences.named('forward_kl', beta=0.5)


@pytest.mark.parametrize('beta', [0.0, 1.0, -0.1, 1.5, float('nan')])
def test_beta_outside_the_open_interval_is_refused(beta):
  logits = np.zeros((2, 3), np.float32)
  with pytest.raises(errors.UserError, match=f'beta {beta}.*forward_kl'):
    divergences.jsd(logits, logits, beta=beta)
  with pytest.raises(errors.UserError, match=f'beta {beta}.*forward_kl'):
    divergences.named('jsd', beta=beta)


def test_cross_entropy_refuses_options_out_of_range():
  logits, labels = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)
  with pytest.raises(errors.UserError, match='z_loss is -1.0'):
    divergences.cross_entropy(logits, labels, z_loss=-1.0)
  with pytest.raises(errors.UserError, match='label_smoothing is 1.0'):
    divergences.cross_entropy(logits, labels, label_smoothing=1.0)


def test_vocabularies_of_two_sizes_are_refused():
  with pytest.raises(ValueError, match='Axis V is 7 in `p_logits` but 8'):
    divergences.forward_kl(np.zeros((2, 7)), np.zeros((2, 8)))
