"""Lossy verification has the law that it says, and is bounded as it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.sampling import lenient
from distillspec_jax.sampling import verification
from tests.sampling import laws

CASES = [
    lenient.Lenience(function, epsilon, residual)
    for function, epsilon in (
        ('linear', 0.5),
        ('square', 0.7),
        ('exponential', 0.5),
    )
    for residual in lenient.RESIDUALS
]


def relax(p, lenience):
  if lenience.function == 'linear':
    return p / lenience.epsilon
  if lenience.function == 'square':
    return p / lenience.epsilon / lenience.epsilon
  return np.power(p, lenience.epsilon)


def lenient_law(p, q, drafted, lenience):
  """P(num_accepted, next_token), given the drafted tokens."""
  law = np.zeros(p.shape)
  reached = 1.0
  for i, x in enumerate(drafted):
    passes = min(1.0, relax(p[i, x], lenience) / q[i, x])
    kept = p[i]
    if lenience.residual == 'relaxed':
      kept = relax(p[i], lenience)
    residual = np.maximum(kept - q[i], 0.0)
    residual = residual / residual.sum() if residual.sum() > 0 else p[i]
    law[i] = reached * (1.0 - passes) * residual
    reached *= passes
  law[-1] = reached * p[-1]
  return law


@pytest.mark.parametrize('lenience', CASES)
def test_verdicts_have_the_enumerated_frequencies(lenience):
  rule = functools.partial(lenient.token, lenience=lenience)
  law = functools.partial(lenient_law, lenience=lenience)
  assert laws.verdict_p_values(0, rule, law).min() > laws.FALSE_ALARM


def test_another_lenience_has_other_frequencies():
  rule = functools.partial(lenient.token, lenience=CASES[0])
  for other in (
      lenient.Lenience('linear', 0.9),
      lenient.Lenience('exponential', 0.5),
      lenient.Lenience('linear', 0.5, 'relaxed'),
      lenient.Lenience('linear', 1.0),
  ):
    law = functools.partial(lenient_law, lenience=other)
    assert laws.verdict_p_values(0, rule, law).min() < laws.FALSE_ALARM


@pytest.mark.parametrize('function', lenient.FUNCTIONS)
def test_an_epsilon_of_one_is_lossless(function):
  rows, size = 300, 5
  keys = randomness.row_keys(jax.random.key(0), rows)
  p_logits = jax.random.normal(jax.random.key(1), (rows, 4, size))
  q_logits = jax.random.normal(jax.random.key(2), (rows, 3, size))
  drafted = jax.random.categorical(jax.random.key(3), q_logits)
  lenience = lenient.Lenience(function, 1.0)
  lossy = jax.jit(lenient.token, static_argnums=4)(
      keys, drafted, q_logits, p_logits, lenience
  )
  exact = jax.jit(verification.token)(keys, drafted, q_logits, p_logits)
  np.testing.assert_array_equal(lossy.num_accepted, exact.num_accepted)
  np.testing.assert_array_equal(lossy.next_token, exact.next_token)
  drafted = jnp.argmax(q_logits, -1).astype(jnp.int32)
  lossy = lenient.greedy(drafted, p_logits, lenience)
  exact = verification.greedy(drafted, p_logits)
  np.testing.assert_array_equal(lossy.num_accepted, exact.num_accepted)
  np.testing.assert_array_equal(lossy.next_token, exact.next_token)


def test_linear_gives_no_token_more_than_its_share_over_epsilon():
  for seed in range(5):
    p, q = laws.random_tables(seed, 3, 3), laws.random_tables(seed + 9, 3, 3)
    lenience = lenient.Lenience('linear', 0.5)
    rule = functools.partial(lenient_law, lenience=lenience)
    law = laws.speculative_law(p, q, 3, 1, 1, rule)
    for (token,), chance in law.items():
      assert chance <= p[()][token] / 0.5 + 1e-12


def test_less_epsilon_accepts_more_down_to_everything():
  p, q = laws.small_tables(0)
  for function in lenient.FUNCTIONS:
    accepted = []
    for epsilon in (1.0, 0.5, 0.1, 1e-6):
      lenience = lenient.Lenience(function, epsilon)
      accepted.append(
          sum(
              np.prod(q[range(laws.G), drafted])
              * lenient_law(p, q, drafted, lenience)[-1].sum()
              for drafted in laws.DRAFTS
          )
      )
    assert accepted == sorted(accepted)
    assert accepted[-1] > 1.0 - 1e-4 > accepted[0]


def test_greedy_accepts_what_is_nearly_the_best():
  p = np.array([[[0.5, 0.3, 0.2]] * 3])
  drafted = jnp.array([[1, 2]])
  for epsilon, expected in ((1.0, 0), (0.59, 1), (0.39, 2)):
    verdict = lenient.greedy(
        drafted, jnp.log(p), lenient.Lenience('linear', epsilon)
    )
    assert verdict.num_accepted[0] == expected
    assert verdict.next_token[0] == 0


def test_what_is_no_lenience_is_refused():
  with pytest.raises(errors.UserError, match='must be one of linear, square'):
    lenient.check(('cubic', 0.5))
  assert lenient.check(['linear', 0.5]) == lenient.Lenience('linear', 0.5)
