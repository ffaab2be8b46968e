"""Typical acceptance has the law that it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.sampling import typical
from tests.sampling import laws

LOOSE, STRICT = typical.Typical(0.2, 0.6), typical.Typical(0.3, 2.0)


def typical_law(p, q, drafted, rule):
  """P(num_accepted, next_token), given the drafted tokens: mostly certain."""
  del q
  law = np.zeros(p.shape)
  accepted = 0
  for i, token in enumerate(drafted):
    entropy = -np.sum(p[i] * np.log(p[i]))
    if p[i, token] <= min(rule.epsilon, rule.delta * np.exp(-entropy)):
      break
    accepted += 1
  law[accepted] = p[accepted]
  return law


@pytest.mark.parametrize('rule', [LOOSE, STRICT])
def test_verdicts_have_the_enumerated_frequencies(rule):
  verify = functools.partial(typical.token, typical=rule)
  law = functools.partial(typical_law, rule=rule)
  assert laws.verdict_p_values(0, verify, law).min() > laws.FALSE_ALARM
  p, q = laws.small_tables(0)
  reached = {law(p, q, drafted).any(1).argmax() for drafted in laws.DRAFTS}
  assert len(reached) > 1  # of this law some drafts pass, and some do not


def test_another_rule_has_other_frequencies():
  verify = functools.partial(typical.token, typical=LOOSE)
  law = functools.partial(typical_law, rule=STRICT)
  assert laws.verdict_p_values(0, verify, law).min() < laws.FALSE_ALARM


def test_it_is_not_the_targets_law():
  p, q = laws.random_tables(0, 3, 3), laws.random_tables(10, 3, 3)
  law = functools.partial(typical_law, rule=LOOSE)
  found = laws.speculative_law(p, q, 3, 3, 2, law)
  assert abs(sum(found.values()) - 1.0) < 1e-12
  assert laws.largest_difference(found, laws.sequence_law(p, 3, 3)) > 1e-2


def test_less_is_asked_where_the_target_is_unsure():
  flat, sharp = np.full(8, 1 / 8), np.array([0.93, *[0.01] * 7])
  rule = typical.Typical(0.09, 0.3)
  threshold = rule.threshold(jnp.log(jnp.asarray([flat, sharp])))
  np.testing.assert_allclose(threshold[0], 0.3 / 8, rtol=1e-5)
  assert threshold[1] == pytest.approx(0.09)
  # A token that cannot be sampled has no part in the entropy.
  cut = jnp.log(jnp.asarray([0.5, 0.5, 0.0, 0.0]))
  np.testing.assert_allclose(rule.threshold(cut), 0.09, rtol=1e-6)


def test_greedy_accepts_the_plausible_and_corrects_to_the_best():
  p = jnp.asarray([[[0.5, 0.3, 0.2]] * 3] * 4)
  drafted = jnp.asarray([[1, 2], [0, 1], [2, 0], [1, 1]])
  for epsilon, expected in (
      (0.25, [1, 2, 0, 2]),
      (0.1, [2, 2, 2, 2]),
      (0.6, [0, 1, 0, 0]),  # the best token always passes
  ):
    rule = typical.Typical(epsilon, 10.0)
    verdict = typical.greedy(drafted, jnp.log(p), rule)
    np.testing.assert_array_equal(verdict.num_accepted, expected)
    np.testing.assert_array_equal(verdict.next_token, 0)


def test_what_is_not_drafted_does_not_pass():
  rows = 6
  p, q = laws.small_tables(0)
  lengths = jnp.asarray([1, 2] * 3)
  everything = typical.Typical(1e-6, 1e-6)
  verdict = jax.jit(typical.token, static_argnums=4)(
      randomness.row_keys(jax.random.key(0), rows),
      jnp.ones((rows, laws.G), jnp.int32),
      laws.logits_of(q, rows),
      laws.logits_of(p, rows),
      everything,
      lengths,
  )
  np.testing.assert_array_equal(verdict.num_accepted, lengths)
