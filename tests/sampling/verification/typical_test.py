"""Typical acceptance has the distribution that it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.sampling import verification
from tests.sampling import enumeration

Typical = verification.Typical
LOOSE, STRICT = Typical(0.2, 0.6), Typical(0.3, 2.0)


def distribution_of(verifier):
  """P(num_accepted, next_token), given the drafted tokens: mostly certain."""

  def of_verdicts(p, q, drafted):
    del q
    distribution = np.zeros(p.shape)
    accepted = 0
    for i, token in enumerate(drafted):
      entropy = -np.sum(p[i] * np.log(p[i]))
      limit = min(verifier.epsilon, verifier.delta * np.exp(-entropy))
      if p[i, token] <= limit:
        break
      accepted += 1
    distribution[accepted] = p[accepted]
    return distribution

  return of_verdicts


@pytest.mark.parametrize('lengths', [None, enumeration.LENGTHS])
@pytest.mark.parametrize('verifier', [LOOSE, STRICT])
def test_verdicts_have_the_enumerated_frequencies(verifier, lengths):
  of_verdicts = distribution_of(verifier)
  p_values = enumeration.verdict_p_values(0, verifier, of_verdicts, lengths)
  assert p_values.min() > enumeration.FALSE_ALARM
  p, q = enumeration.small_tables(0)
  reached = {
      of_verdicts(p, q, drafted).any(1).argmax()
      for drafted in enumeration.DRAFTS
  }
  assert len(reached) > 1  # some drafts pass, and some do not


def test_other_arguments_have_other_frequencies():
  p_values = enumeration.verdict_p_values(0, LOOSE, distribution_of(STRICT))
  assert p_values.min() < enumeration.FALSE_ALARM


def test_it_is_not_the_targets_distribution():
  p = enumeration.random_tables(0, 3, 3)
  q = enumeration.random_tables(10, 3, 3)
  distribution = enumeration.speculative_distribution(
      p, q, 3, 3, 2, distribution_of(LOOSE)
  )
  assert abs(sum(distribution.values()) - 1.0) < 1e-12
  expected = enumeration.sequence_distribution(p, 3, 3)
  assert enumeration.largest_difference(distribution, expected) > 1e-2


def test_less_is_asked_where_the_target_is_unsure():
  flat, sharp = np.full(8, 1 / 8), np.array([0.93, *[0.01] * 7])
  verifier = Typical(0.09, 0.3)
  threshold = verifier.threshold(jnp.log(jnp.asarray([flat, sharp])))
  np.testing.assert_allclose(threshold[0], 0.3 / 8, rtol=1e-5)
  assert threshold[1] == pytest.approx(0.09)
  # A token that cannot be sampled has no part in the entropy.
  zeros = jnp.log(jnp.asarray([0.5, 0.5, 0.0, 0.0]))
  np.testing.assert_allclose(verifier.threshold(zeros), 0.09, rtol=1e-6)


def test_greedy_accepts_the_plausible_and_corrects_to_the_best():
  p = jnp.asarray([[[0.5, 0.3, 0.2]] * 3] * 4)
  drafted = jnp.asarray([[1, 2], [0, 1], [2, 0], [1, 1]])
  keys = randomness.row_keys(jax.random.key(0), 4)
  for epsilon, expected in (
      (0.25, [1, 2, 0, 2]),
      (0.1, [2, 2, 2, 2]),
      (0.6, [0, 1, 0, 0]),  # the best token always passes
  ):
    verifier = Typical(epsilon, 10.0)
    verdict = verifier.greedy(keys, drafted, jnp.log(p))
    np.testing.assert_array_equal(verdict.num_accepted, expected)
    np.testing.assert_array_equal(verdict.next_token, 0)


def test_what_is_not_drafted_does_not_pass():
  rows = 6
  p, q = enumeration.small_tables(0)
  keys = randomness.row_keys(jax.random.key(0), rows)
  drafted = jnp.ones((rows, enumeration.G), jnp.int32)
  p_logits = enumeration.logits_of(p, rows)
  lengths = jnp.asarray([1, 2] * 3)
  anything = Typical(1e-6, 1e-6)
  verdict = enumeration.compiled(anything)(
      keys, drafted, enumeration.logits_of(q, rows), p_logits, lengths
  )
  np.testing.assert_array_equal(verdict.num_accepted, lengths)
  verdict = anything.greedy(keys, drafted, p_logits, lengths)
  np.testing.assert_array_equal(verdict.num_accepted, lengths)
