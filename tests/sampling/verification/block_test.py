"""Block verification is exact, and accepts no fewer tokens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.sampling import verification
from distillspec_jax.sampling.verification import verifier as verifier_lib
from tests.sampling import enumeration

Block = verification.Block
of_block = enumeration.block_distribution


# By enumeration.


@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('block', [1, 2, 3])
@pytest.mark.parametrize('seed', [0, 1])
def test_the_distribution_of_all_blocks_is_the_targets(seed, block, sparse):
  p = enumeration.random_tables(seed, 3, 4, sparse)
  q = enumeration.random_tables(seed + 10, 3, 4, sparse)
  distribution = enumeration.speculative_distribution(
      p, q, 3, 4, block, of_block
  )
  assert abs(sum(distribution.values()) - 1.0) < 1e-12
  expected = enumeration.sequence_distribution(p, 3, 4)
  assert enumeration.largest_difference(distribution, expected) < 1e-12


def unweighted(p, q, drafted):
  """The residual of token verification: the mistake that was seen elsewhere."""
  return of_block(
      p, q, drafted, lambda wp, q: enumeration.exact_residual(wp / wp.sum(), q)
  )


def without_lookahead(p, q, drafted):
  """Every prefix passes with its own weight."""
  weights = [1.0]
  for i, x in enumerate(drafted):
    weights.append(min(1.0, weights[-1] * p[i, x] / q[i, x]))
  distribution, later = np.zeros(p.shape), 1.0
  for i in range(len(drafted), -1, -1):
    residual = p[i]
    if i < len(drafted):
      residual = enumeration.exact_residual(weights[i] * p[i], q[i])
    distribution[i] = later * weights[i] * residual
    later *= 1.0 - weights[i]
  return distribution


@pytest.mark.parametrize('wrong', [unweighted, without_lookahead])
def test_a_wrong_verifier_has_another_distribution(wrong):
  p = enumeration.random_tables(0, 3, 4)
  q = enumeration.random_tables(10, 3, 4)
  distribution = enumeration.speculative_distribution(p, q, 3, 4, 3, wrong)
  assert abs(sum(distribution.values()) - 1.0) < 1e-12
  expected = enumeration.sequence_distribution(p, 3, 4)
  assert enumeration.largest_difference(distribution, expected) > 1e-3


def expected_accepted(p, q, of_verdicts, length):
  """Accepted tokens of a block, over all drafts."""
  total = 0.0
  for drafted in itertools.product(range(3), repeat=length):
    contexts = [drafted[:i] for i in range(length + 1)]
    p_rows = np.stack([p[context] for context in contexts])
    q_rows = np.stack([q[context] for context in contexts[:-1]])
    chance = np.prod(q_rows[range(length), drafted])
    by_count = of_verdicts(p_rows, q_rows, drafted).sum(axis=1)
    total += chance * (by_count * np.arange(length + 1)).sum()
  return total


@pytest.mark.parametrize('seed', range(5))
def test_no_fewer_tokens_are_accepted_than_by_token(seed):
  p = enumeration.random_tables(seed, 3, 4)
  q = enumeration.random_tables(seed + 10, 3, 4)
  block, token = (
      [expected_accepted(p, q, of_verdicts, length) for length in (1, 2, 3)]
      for of_verdicts in (of_block, enumeration.token_distribution)
  )
  np.testing.assert_allclose(block[0], token[0], rtol=1e-12)  # the same rule
  assert block[1] > token[1] and block[2] > token[2]


# The code, by frequency.


@pytest.mark.parametrize('seed', range(3))
def test_verdicts_have_the_enumerated_frequencies(seed):
  p_values = enumeration.verdict_p_values(seed, Block(), of_block)
  assert p_values.min() > enumeration.FALSE_ALARM


class ResidualOfToken(Block):
  """Accepts as it should; the correction forgets the weight of the prefix."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    p, q = jax.nn.softmax(p_logits), jax.nn.softmax(q_logits)
    p_at = verifier_lib.at(p, verdict.num_accepted)
    q_at = verifier_lib.proposal_at(q, verdict.num_accepted)
    rest = jnp.maximum(p_at - q_at, 0.0)
    return verdict._replace(next_token=verifier_lib.sample_next(keys, rest))


class PrefixRule(Block):
  """A later prefix does not pass where an earlier one failed."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    block = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    token = verification.Token().sampled(keys, drafted, q_logits, p_logits)
    fewer = jnp.minimum(block.num_accepted, token.num_accepted)
    return block._replace(num_accepted=fewer)


@pytest.mark.parametrize(
    'wrong', [verification.Token, ResidualOfToken, PrefixRule]
)
def test_a_wrong_verifier_has_other_frequencies(wrong):
  p_values = enumeration.verdict_p_values(0, wrong(), of_block)
  assert p_values.min() < enumeration.FALSE_ALARM


# Drafts that end early.


def test_verdicts_on_drafts_of_several_lengths_have_theirs():
  p_values = enumeration.verdict_p_values(
      0, Block(), of_block, enumeration.LENGTHS
  )
  assert p_values.min() > enumeration.FALSE_ALARM


class WithoutLengths(Block):
  """What was not drafted is judged, too."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    return super().sampled(keys, drafted, q_logits, p_logits)


class CutOff(Block):
  """The chances are those of the full block, cut off at its length."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    full = super().sampled(keys, drafted, q_logits, p_logits)
    right = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    num_accepted = jnp.minimum(full.num_accepted, lengths)
    return right._replace(num_accepted=num_accepted)


@pytest.mark.parametrize('wrong', [WithoutLengths, CutOff])
def test_a_verifier_that_mistakes_lengths_has_other_frequencies(wrong):
  p_values = enumeration.verdict_p_values(
      0, wrong(), of_block, enumeration.LENGTHS
  )
  assert p_values.min() < enumeration.FALSE_ALARM


# Special cases.


def test_one_drafted_token_is_judged_as_by_token():
  rows = 500
  judged = enumeration.random_block(rows, length=1)
  block, token = (
      enumeration.compiled(verifier)(*judged)
      for verifier in (Block(), verification.Token())
  )
  np.testing.assert_array_equal(block.num_accepted, token.num_accepted)
  np.testing.assert_array_equal(block.next_token, token.next_token)
  assert 0 < block.num_accepted.sum() < rows


def test_a_draft_that_is_the_target_is_accepted_in_full():
  keys, drafted, _, logits = enumeration.random_block()
  verdict = enumeration.compiled(Block())(keys, drafted, logits[:, :-1], logits)
  assert (verdict.num_accepted == drafted.shape[1]).all()


def test_greedy_is_token_verification():
  p_logits = jax.nn.one_hot(jnp.array([[4, 2, 3]] * 3), 6)
  drafted = jnp.array([[4, 2], [4, 5], [0, 2]])
  keys = randomness.row_keys(jax.random.key(0), 3)
  for lengths, expected in ((None, [2, 1, 0]), ([1, 1, 1], [1, 1, 0])):
    lengths = None if lengths is None else jnp.array(lengths)
    block, token = (
        verifier.greedy(keys, drafted, p_logits, lengths)
        for verifier in (Block(), verification.Token())
    )
    np.testing.assert_array_equal(block.num_accepted, expected)
    np.testing.assert_array_equal(token.num_accepted, expected)
    np.testing.assert_array_equal(block.next_token, token.next_token)
