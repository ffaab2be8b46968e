"""Block verification has the target's law, and accepts no fewer tokens."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.sampling import block_verification
from distillspec_jax.sampling import verification
from tests.sampling import laws


@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('block', [1, 2, 3])
@pytest.mark.parametrize('seed', [0, 1])
def test_the_law_of_all_blocks_is_the_targets(seed, block, sparse):
  p = laws.random_tables(seed, 3, 4, sparse)
  q = laws.random_tables(seed + 10, 3, 4, sparse)
  law = laws.speculative_law(p, q, 3, 4, block, laws.block_law)
  assert abs(sum(law.values()) - 1.0) < 1e-12
  assert laws.largest_difference(law, laws.sequence_law(p, 3, 4)) < 1e-12


def unweighted(p, q, drafted):
  """The residual of token verification: the mistake that was seen elsewhere."""
  return laws.block_law(
      p, q, drafted, lambda wp, q: laws.exact_residual(wp / wp.sum(), q)
  )


def without_lookahead(p, q, drafted):
  """Every prefix passes with its own weight."""
  weights = [1.0]
  for i, x in enumerate(drafted):
    weights.append(min(1.0, weights[-1] * p[i, x] / q[i, x]))
  law, later = np.zeros(p.shape), 1.0
  for i in range(len(drafted), -1, -1):
    residual = p[i]
    if i < len(drafted):
      residual = laws.exact_residual(weights[i] * p[i], q[i])
    law[i] = later * weights[i] * residual
    later *= 1.0 - weights[i]
  return law


@pytest.mark.parametrize('wrong', [unweighted, without_lookahead])
def test_a_wrong_rule_has_another_law(wrong):
  p, q = laws.random_tables(0, 3, 4), laws.random_tables(10, 3, 4)
  law = laws.speculative_law(p, q, 3, 4, 3, wrong)
  assert abs(sum(law.values()) - 1.0) < 1e-12
  assert laws.largest_difference(law, laws.sequence_law(p, 3, 4)) > 1e-3


def expected_accepted(p, q, verdict_law, length):
  """Accepted tokens of a block, over all drafts."""
  total = 0.0
  for drafted in itertools.product(range(3), repeat=length):
    contexts = [drafted[:i] for i in range(length + 1)]
    p_rows = np.stack([p[context] for context in contexts])
    q_rows = np.stack([q[context] for context in contexts[:-1]])
    chance = np.prod(q_rows[range(length), drafted])
    by_count = verdict_law(p_rows, q_rows, drafted).sum(axis=1)
    total += chance * (by_count * np.arange(length + 1)).sum()
  return total


@pytest.mark.parametrize('seed', range(5))
def test_no_fewer_tokens_are_accepted_than_by_token(seed):
  p, q = laws.random_tables(seed, 3, 4), laws.random_tables(seed + 10, 3, 4)
  block, token = (
      [expected_accepted(p, q, law, length) for length in (1, 2, 3)]
      for law in (laws.block_law, laws.token_law)
  )
  np.testing.assert_allclose(block[0], token[0], rtol=1e-12)  # the same rule
  assert block[1] > token[1] and block[2] > token[2]


# The code against the law.


@pytest.mark.parametrize('seed', range(3))
def test_verdicts_have_the_enumerated_frequencies(seed):
  p_values = laws.verdict_p_values(
      seed, block_verification.block, laws.block_law
  )
  assert p_values.min() > laws.FALSE_ALARM


def as_by_token(keys, drafted, q_logits, p_logits):
  return verification.token(keys, drafted, q_logits, p_logits)


def residual_of_token(keys, drafted, q_logits, p_logits):
  """Accepts as it should; the correction forgets the weight of the prefix."""
  verdict = block_verification.block(keys, drafted, q_logits, p_logits)
  p = verification.at(jax.nn.softmax(p_logits), verdict.num_accepted)
  q = jnp.pad(jax.nn.softmax(q_logits), ((0, 0), (0, 1), (0, 0)))
  residual = jnp.maximum(p - verification.at(q, verdict.num_accepted), 0.0)
  again = randomness.categorical(
      randomness.streams(keys, 'next'), jnp.log(residual)
  )
  return verdict._replace(next_token=again)


def prefix_rule(keys, drafted, q_logits, p_logits):
  """A later prefix does not pass where an earlier one failed."""
  verdict = block_verification.block(keys, drafted, q_logits, p_logits)
  token = verification.token(keys, drafted, q_logits, p_logits)
  fewer = jnp.minimum(verdict.num_accepted, token.num_accepted)
  return verdict._replace(num_accepted=fewer)


@pytest.mark.parametrize('wrong', [as_by_token, residual_of_token, prefix_rule])
def test_a_wrong_verifier_has_other_frequencies(wrong):
  p_values = laws.verdict_p_values(0, wrong, laws.block_law)
  assert p_values.min() < laws.FALSE_ALARM


def test_one_drafted_token_is_judged_as_by_token():
  rows, size = 500, 7
  keys = randomness.row_keys(jax.random.key(0), rows)
  p_logits = jax.random.normal(jax.random.key(1), (rows, 2, size))
  q_logits = jax.random.normal(jax.random.key(2), (rows, 1, size))
  drafted = randomness.categorical(
      randomness.streams(keys, 'draft'), q_logits[:, 0]
  )[:, None]
  block, token = (
      jax.jit(functools.partial(rule))(keys, drafted, q_logits, p_logits)
      for rule in (block_verification.block, verification.token)
  )
  np.testing.assert_array_equal(block.num_accepted, token.num_accepted)
  np.testing.assert_array_equal(block.next_token, token.next_token)
  assert 0 < block.num_accepted.sum() < rows


def test_a_draft_that_is_the_target_is_accepted_whole():
  rows, length, size = 200, 5, 6
  keys = randomness.row_keys(jax.random.key(0), rows)
  logits = jax.random.normal(jax.random.key(1), (rows, length + 1, size))
  drafted = jax.random.randint(jax.random.key(2), (rows, length), 0, size)
  verdict = jax.jit(block_verification.block)(
      keys, drafted, logits[:, :-1], logits
  )
  assert (verdict.num_accepted == length).all()
