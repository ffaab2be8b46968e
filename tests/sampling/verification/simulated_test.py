"""Simulated acceptance: tokens pass with the chosen chance, independently."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.sampling import simulated
from distillspec_jax.sampling import verification
from tests.sampling import laws


def passes_law(p, q, drafted, rate):
  """P(num_accepted): the tokens after them are the token verifier's."""
  del q, drafted
  law = np.zeros(p.shape)
  for i in range(len(p)):
    law[i, 0] = rate**i * (1.0 - rate if i < len(p) - 1 else 1.0)
  return law


def counts_only(keys, *judged, rate):
  verdict = simulated.token(keys, *judged, simulated.Simulated(rate))
  return verdict._replace(next_token=jnp.zeros_like(verdict.next_token))


@pytest.mark.parametrize('rate', [0.3, 0.9])
def test_tokens_pass_with_the_chosen_chance(rate):
  verify = functools.partial(counts_only, rate=rate)
  law = functools.partial(passes_law, rate=rate)
  assert laws.verdict_p_values(0, verify, law).min() > laws.FALSE_ALARM
  other = functools.partial(passes_law, rate=rate - 0.05)
  assert laws.verdict_p_values(0, verify, other).min() < laws.FALSE_ALARM


def judged(rows=200, size=5, length=4):
  p_logits = jax.random.normal(jax.random.key(1), (rows, length + 1, size))
  q_logits = jax.random.normal(jax.random.key(2), (rows, length, size))
  drafted = jax.random.categorical(jax.random.key(3), q_logits)
  return drafted.astype(jnp.int32), q_logits, p_logits


@pytest.mark.parametrize('rate, accepted', [(0.0, 0), (1.0, 4)])
def test_the_token_is_the_verifiers_own(rate, accepted):
  keys = randomness.row_keys(jax.random.key(0), 200)
  rule = simulated.Simulated(rate)
  drafted, q_logits, p_logits = judged()
  found = jax.jit(simulated.token, static_argnums=4)(
      keys, drafted, q_logits, p_logits, rule
  )
  exact = jax.jit(verification.token)(keys, drafted, q_logits, p_logits)
  assert (found.num_accepted == accepted).all()
  np.testing.assert_array_equal(found.next_token, exact.next_token)
  found = simulated.greedy(keys, drafted, p_logits, rule)
  exact = verification.greedy(drafted, p_logits)
  assert (found.num_accepted == accepted).all()
  np.testing.assert_array_equal(found.next_token, exact.next_token)


def test_what_is_not_drafted_does_not_pass():
  drafted, _, p_logits = judged()
  lengths = jnp.tile(jnp.asarray([1, 2, 3, 4]), 50)
  keys = randomness.row_keys(jax.random.key(0), 200)
  found = simulated.greedy(
      keys, drafted, p_logits, simulated.Simulated(1.0), lengths
  )
  np.testing.assert_array_equal(found.num_accepted, lengths)


def test_the_verifier_is_not_optimised_away():
  drafted, q_logits, p_logits = judged()
  keys = randomness.row_keys(jax.random.key(0), 200)
  rule = simulated.Simulated(0.5)

  @jax.jit
  def count(keys, drafted, p_logits):
    return simulated.greedy(keys, drafted, p_logits, rule).num_accepted

  text = count.lower(keys, drafted, p_logits).compile().as_text()
  assert 'f32[200,5,5]' in text  # the target's logits are read
