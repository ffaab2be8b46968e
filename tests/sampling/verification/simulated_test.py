"""Simulated acceptance: tokens pass with the chosen chance, independently."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.sampling import verification
from tests.sampling import enumeration

Simulated = verification.Simulated


def of_counts(p, q, drafted, rate):
  """P(num_accepted); the tokens after them are the token verifier's."""
  del q
  length = len(drafted)
  distribution = np.zeros(p.shape)
  for i in range(length + 1):
    distribution[i, 0] = rate**i * (1.0 - rate if i < length else 1.0)
  return distribution


class CountsOnly(Simulated):
  """Without the token, to test the counts alone."""

  def sampled(self, *args):
    verdict = super().sampled(*args)
    return verdict._replace(next_token=jnp.zeros_like(verdict.next_token))


@pytest.mark.parametrize('lengths', [None, enumeration.LENGTHS])
@pytest.mark.parametrize('rate', [0.3, 0.9])
def test_tokens_pass_with_the_chosen_chance(rate, lengths):
  p_values = functools.partial(
      enumeration.verdict_p_values, 0, CountsOnly(rate), lengths=lengths
  )
  chosen = functools.partial(of_counts, rate=rate)
  assert p_values(chosen).min() > enumeration.FALSE_ALARM
  other = functools.partial(of_counts, rate=rate - 0.05)
  assert p_values(other).min() < enumeration.FALSE_ALARM


@pytest.mark.parametrize('rate, accepted', [(0.0, 0), (1.0, 4)])
def test_the_next_token_is_that_of_token_verification(rate, accepted):
  keys, drafted, q_logits, p_logits = enumeration.random_block()
  simulated, exact = (
      enumeration.compiled(verifier)(keys, drafted, q_logits, p_logits)
      for verifier in (Simulated(rate), verification.Token())
  )
  assert (simulated.num_accepted == accepted).all()
  np.testing.assert_array_equal(simulated.next_token, exact.next_token)
  simulated, exact = (
      verifier.greedy(keys, drafted, p_logits)
      for verifier in (Simulated(rate), verification.Token())
  )
  assert (simulated.num_accepted == accepted).all()
  np.testing.assert_array_equal(simulated.next_token, exact.next_token)


def test_what_is_not_drafted_does_not_pass():
  keys, drafted, _, p_logits = enumeration.random_block()
  lengths = jnp.tile(jnp.asarray([1, 2, 3, 4]), len(keys) // 4)
  verdict = Simulated(1.0).greedy(keys, drafted, p_logits, lengths)
  np.testing.assert_array_equal(verdict.num_accepted, lengths)


def test_verification_is_not_optimised_away():
  keys, drafted, _, p_logits = enumeration.random_block()

  @jax.jit
  def count(keys, drafted, p_logits):
    return Simulated(0.5).greedy(keys, drafted, p_logits).num_accepted

  text = count.lower(keys, drafted, p_logits).compile().as_text()
  assert 'f32[200,5,5]' in text  # the target's logits are read
