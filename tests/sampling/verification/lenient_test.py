"""Lenient verification: its own distribution, bounded as it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.sampling import verification
from tests.sampling import enumeration

Lenient = verification.Lenient
FUNCTIONS = ('linear', 'square', 'exponential')
CASES = [
    Lenient(function, epsilon, residual)
    for function, epsilon in (
        ('linear', 0.5),
        ('square', 0.7),
        ('exponential', 0.5),
    )
    for residual in ('target', 'relaxed')
]


def relaxed(p, verifier):
  """f(p), written down a second time."""
  if verifier.function == 'linear':
    return p / verifier.epsilon
  if verifier.function == 'square':
    return p / verifier.epsilon / verifier.epsilon
  return np.power(p, verifier.epsilon)


def distribution_of(verifier):
  """P(num_accepted, next_token), given the drafted tokens."""

  def of_verdicts(p, q, drafted):
    distribution = np.zeros(p.shape)
    reached = 1.0
    for i, x in enumerate(drafted):
      passes = min(1.0, relaxed(p[i, x], verifier) / q[i, x])
      weights = p[i]
      if verifier.residual == 'relaxed':
        weights = relaxed(p[i], verifier)
      residual = np.maximum(weights - q[i], 0.0)
      residual = residual / residual.sum() if residual.sum() > 0 else p[i]
      distribution[i] = reached * (1.0 - passes) * residual
      reached *= passes
    distribution[len(drafted)] = reached * p[len(drafted)]
    return distribution

  return of_verdicts


@pytest.mark.parametrize('verifier', CASES, ids=Lenient.describe)
def test_verdicts_have_the_enumerated_frequencies(verifier):
  p_values = enumeration.verdict_p_values(
      0, verifier, distribution_of(verifier)
  )
  assert p_values.min() > enumeration.FALSE_ALARM


@pytest.mark.parametrize('residual', ['target', 'relaxed'])
def test_so_have_verdicts_on_drafts_of_several_lengths(residual):
  verifier = Lenient('linear', 0.5, residual)
  p_values = enumeration.verdict_p_values(
      0, verifier, distribution_of(verifier), enumeration.LENGTHS
  )
  assert p_values.min() > enumeration.FALSE_ALARM


@pytest.mark.parametrize(
    'other',
    [
        Lenient('linear', 0.9),
        Lenient('exponential', 0.5),
        Lenient('linear', 0.5, 'relaxed'),
        Lenient('linear', 1.0),
    ],
    ids=Lenient.describe,
)
def test_other_arguments_have_other_frequencies(other):
  p_values = enumeration.verdict_p_values(0, CASES[0], distribution_of(other))
  assert p_values.min() < enumeration.FALSE_ALARM


@pytest.mark.parametrize('function', FUNCTIONS)
def test_an_epsilon_of_one_is_lossless(function):
  keys, drafted, q_logits, p_logits = enumeration.random_block()
  lossy, exact = (
      enumeration.compiled(verifier)(keys, drafted, q_logits, p_logits)
      for verifier in (Lenient(function, 1.0), verification.Token())
  )
  np.testing.assert_array_equal(lossy.num_accepted, exact.num_accepted)
  np.testing.assert_array_equal(lossy.next_token, exact.next_token)
  drafted = np.argmax(q_logits, -1).astype(np.int32)
  lossy, exact = (
      verifier.greedy(keys, drafted, p_logits)
      for verifier in (Lenient(function, 1.0), verification.Token())
  )
  np.testing.assert_array_equal(lossy.num_accepted, exact.num_accepted)
  np.testing.assert_array_equal(lossy.next_token, exact.next_token)


def test_linear_gives_no_token_more_than_its_share_over_epsilon():
  for seed in range(5):
    p = enumeration.random_tables(seed, 3, 3)
    q = enumeration.random_tables(seed + 9, 3, 3)
    distribution = enumeration.speculative_distribution(
        p, q, 3, 1, 1, distribution_of(Lenient('linear', 0.5))
    )
    for (token,), chance in distribution.items():
      assert chance <= p[()][token] / 0.5 + 1e-12


@pytest.mark.parametrize('function', FUNCTIONS)
def test_less_epsilon_accepts_more_down_to_everything(function):
  p, q = enumeration.small_tables(0)
  accepted = []
  for epsilon in (1.0, 0.5, 0.1, 1e-6):
    of_verdicts = distribution_of(Lenient(function, epsilon))
    accepted.append(
        sum(
            np.prod(q[range(enumeration.G), drafted])
            * of_verdicts(p, q, drafted)[-1].sum()
            for drafted in enumeration.DRAFTS
        )
    )
  assert accepted == sorted(accepted)
  assert accepted[-1] > 1.0 - 1e-4 > accepted[0]


def test_greedy_accepts_what_is_nearly_the_best():
  p = np.array([[[0.5, 0.3, 0.2]] * 3])
  keys = randomness.row_keys(jax.random.key(0), 1)
  drafted = jnp.array([[1, 2]])
  for epsilon, expected in ((1.0, 0), (0.59, 1), (0.39, 2)):
    verifier = Lenient('linear', epsilon)
    verdict = verifier.greedy(keys, drafted, jnp.log(p))
    assert verdict.num_accepted[0] == expected
    assert verdict.next_token[0] == 0
  # What was not drafted does not pass.
  verdict = verifier.greedy(keys, drafted, jnp.log(p), jnp.array([1]))
  assert verdict.num_accepted[0] == 1
