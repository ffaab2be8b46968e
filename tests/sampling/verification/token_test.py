"""Token verification: proved by enumeration, then measured on the code.

The first part writes down the distribution of a speculative generation as a sum
over all drafts and verdicts, for small random tables, and shows that it is the
target's. The second compares the code's verdicts with it: decision by decision
with chance replaced, and by chi-squared with chance as it is. Each has a twin
that proves it can fail.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification
from distillspec_jax.sampling import warping
from distillspec_jax.sampling.verification import token as token_lib
from distillspec_jax.sampling.verification import verifier as verifier_lib
from tests.sampling import enumeration

FALSE_ALARM = enumeration.FALSE_ALARM
V, G = enumeration.V, enumeration.G
Token = verification.Token


# By enumeration.


@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('block', [1, 2, 3])
@pytest.mark.parametrize('seed', [0, 1])
def test_the_distribution_of_all_blocks_is_the_targets(seed, block, sparse):
  p = enumeration.random_tables(seed, 3, 4, sparse)
  q = enumeration.random_tables(seed + 10, 3, 4, sparse)
  distribution = enumeration.speculative_distribution(p, q, 3, 4, block)
  assert abs(sum(distribution.values()) - 1.0) < 1e-12
  expected = enumeration.sequence_distribution(p, 3, 4)
  assert enumeration.largest_difference(distribution, expected) < 1e-12


@pytest.mark.parametrize('block', [1, 2, 3])
@pytest.mark.parametrize('wrong', [lambda p, q: p, lambda p, q: q])
def test_another_residual_has_another_distribution(wrong, block):
  p = enumeration.random_tables(0, 3, 4)
  q = enumeration.random_tables(10, 3, 4)
  distribution = enumeration.speculative_distribution(
      p, q, 3, 4, block,
      functools.partial(enumeration.token_distribution, residual=wrong),
  )  # fmt: skip
  assert abs(sum(distribution.values()) - 1.0) < 1e-12
  expected = enumeration.sequence_distribution(p, 3, 4)
  assert enumeration.largest_difference(distribution, expected) > 1e-3


# The code, decision by decision.


@pytest.fixture(name='decide')
def _decide(monkeypatch):
  """The verifier without chance: weights of the next token are returned.

  Uniforms are an argument, so that all tests of a shape share a program.
  """
  monkeypatch.setattr(
      randomness, 'categorical', lambda _, logits: jax.nn.softmax(logits)
  )

  @jax.jit
  def decide(uniforms, drafted, p, q):
    with monkeypatch.context() as patch:
      patch.setattr(randomness, 'uniform', lambda *_: uniforms)
      rows = len(uniforms)
      return Token().sampled(
          randomness.row_keys(jax.random.key(0), rows),
          jnp.broadcast_to(drafted[None], (rows, G)),
          jnp.broadcast_to(jnp.log(q), (rows, G, V)),
          jnp.broadcast_to(jnp.log(p), (rows, G + 1, V)),
      )

  return decide


def test_each_decision_is_the_enumerated_one(decide):
  for seed, drafted in itertools.product(range(3), enumeration.DRAFTS):
    p, q = enumeration.small_tables(seed)
    passes = np.minimum(1.0, p[range(G), drafted] / q[range(G), drafted])
    near = zip(np.maximum(passes - 1e-5, 0.0), passes + 1e-5)
    uniforms = np.array(list(itertools.product(*near)), np.float32)
    verdict = decide(uniforms, drafted, np.float32(p), np.float32(q))
    accepted = np.cumprod(uniforms < passes, axis=1).sum(axis=1)
    for row in range(len(uniforms)):
      if uniforms[row].max() >= 1.0:
        continue  # where a token always passes, nothing above can be drawn
      i = accepted[row]
      expected = p[G] if i == G else enumeration.exact_residual(p[i], q[i])
      assert verdict.num_accepted[row] == i
      np.testing.assert_allclose(verdict.next_token[row], expected, atol=1e-5)


def test_what_the_target_cannot_emit_never_passes(monkeypatch):
  monkeypatch.setattr(
      randomness, 'uniform', lambda keys, shape: jnp.zeros((len(keys), *shape))
  )
  p = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
  q = np.full((G, V), 1 / 3)
  verdict = jax.jit(lambda *args: Token().sampled(*args))(
      randomness.row_keys(jax.random.key(0), 3),
      jnp.array([[0, 0], [1, 1], [1, 0]]),
      enumeration.logits_of(q, 3),
      enumeration.logits_of(p, 3),
  )
  np.testing.assert_array_equal(verdict.num_accepted, [0, 1, 2])
  np.testing.assert_array_equal(verdict.next_token, [1, 0, 2])


# The code, by frequency.


@pytest.mark.parametrize('seed', range(3))
def test_verdicts_have_the_enumerated_frequencies(seed):
  # Nine assertions: 1e-5 is nine times the chance of one.
  assert enumeration.verdict_p_values(seed, Token()).min() > FALSE_ALARM


class ResamplesDraft(Token):
  """The correction comes from q; the bonus is right."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    weights = jnp.concatenate([q_logits, p_logits[:, -1:]], axis=1)
    again = randomness.categorical(
        randomness.streams(keys, 'next'),
        verifier_lib.at(weights, verdict.num_accepted),
    )
    return verdict._replace(next_token=again)


class AlwaysFirst(Token):
  """The residual is that of the first position, wherever the rejection was."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    p, q = (jax.nn.softmax(logits[:, 0]) for logits in (p_logits, q_logits))
    again = verifier_lib.sample_next(keys, jnp.maximum(p - q, 0.0))
    was_rejected = verdict.num_accepted < drafted.shape[1]
    return verdict._replace(
        next_token=jnp.where(was_rejected, again, verdict.next_token)
    )


WRONG = [enumeration.ResamplesTarget, ResamplesDraft, AlwaysFirst]


@pytest.mark.parametrize('wrong', WRONG)
def test_a_wrong_residual_has_other_frequencies(wrong):
  assert enumeration.verdict_p_values(0, wrong()).min() < FALSE_ALARM


def one_key_for_all(monkeypatch):
  """Draft, acceptance and correction draw from one key."""
  monkeypatch.setattr(randomness, 'streams', lambda keys, name: keys)


def no_prefix_rule(monkeypatch):
  """Passes are counted, also after the first that failed."""
  monkeypatch.setattr(
      verifier_lib,
      'prefix_length',
      lambda passes, lengths=None: passes.sum(axis=1),
  )


def one_uniform_for_all_positions(monkeypatch):
  """One draw decides about the whole block."""
  uniform = randomness.uniform
  monkeypatch.setattr(
      randomness,
      'uniform',
      lambda keys, shape: jnp.broadcast_to(
          uniform(keys, (1,)), (len(keys), *shape)
      ),
  )


MUTATIONS = [one_key_for_all, no_prefix_rule, one_uniform_for_all_positions]


@pytest.mark.parametrize('mutate', MUTATIONS)
def test_a_mutated_verifier_has_other_frequencies(mutate, monkeypatch):
  mutate(monkeypatch)

  class Mutant(Token):  # a class of its own is compiled anew
    pass

  assert enumeration.verdict_p_values(0, Mutant()).min() < FALSE_ALARM


# Drafts that end early.


def test_verdicts_on_drafts_of_several_lengths_have_theirs():
  p_values = enumeration.verdict_p_values(
      0, Token(), lengths=enumeration.LENGTHS
  )
  assert p_values.min() > FALSE_ALARM


class WithoutLengths(Token):
  """What was not drafted is judged, too."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    return super().sampled(keys, drafted, q_logits, p_logits)


class BonusIsCorrected(Token):
  """Accepts what it should; where nothing was drafted it takes a residual."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    p, q = jax.nn.softmax(p_logits), jax.nn.softmax(q_logits)
    p_at = verifier_lib.at(p, verdict.num_accepted)
    q_at = verifier_lib.proposal_at(q, verdict.num_accepted)
    rest = jnp.maximum(p_at - q_at, 0.0)
    return verdict._replace(next_token=verifier_lib.sample_next(keys, rest))


@pytest.mark.parametrize('wrong', [WithoutLengths, BonusIsCorrected])
def test_a_verifier_that_mistakes_lengths_has_other_frequencies(wrong):
  p_values = enumeration.verdict_p_values(
      0, wrong(), lengths=enumeration.LENGTHS
  )
  assert p_values.min() < FALSE_ALARM


# Emitted tokens against the target, on a larger vocabulary.

LARGE_V = 6
BLOCKS = 200_000  # a 0.5 % shift of probability mass fails 98 % of runs


@functools.partial(jax.jit, static_argnums=0)
def judge_blocks(verifier, keys, p, q):
  p_logits = jnp.broadcast_to(jnp.log(p), (BLOCKS, G + 1, LARGE_V))
  q_logits = jnp.broadcast_to(jnp.log(q), (BLOCKS, G, LARGE_V))
  draft_keys = randomness.streams(keys, 'draft')
  drafted = [
      randomness.categorical(
          randomness.events(draft_keys, position), q_logits[:, position]
      )
      for position in range(G)
  ]
  drafted = jnp.stack(drafted, axis=1)
  return drafted, verifier.sampled(keys, drafted, q_logits, p_logits)


def run_blocks(seed, verifier):
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.ones(LARGE_V), G + 1)
  q = rng.dirichlet(np.ones(LARGE_V), G)
  keys = randomness.row_keys(jax.random.key(seed), BLOCKS)
  blocks = judge_blocks(verifier, keys, np.float32(p), np.float32(q))
  return p, q, *jax.tree.map(np.asarray, blocks)


def p_value(position, p, q, drafted, verdict):
  """Chi-squared fit to p of the tokens emitted at `position` in the block."""
  is_reached = verdict.num_accepted >= position
  is_accepted = verdict.num_accepted > position
  drafted_here = drafted[:, min(position, G - 1)]
  token = np.where(is_accepted, drafted_here, verdict.next_token)[is_reached]
  observed = np.bincount(token, minlength=LARGE_V)
  return stats.chisquare(observed, observed.sum() * p[position]).pvalue


@pytest.mark.parametrize('seed', range(3))
def test_emitted_tokens_follow_the_target(seed):
  blocks = run_blocks(seed, Token())
  for position in range(G + 1):
    assert p_value(position, *blocks) > FALSE_ALARM, position


@pytest.mark.parametrize('wrong', WRONG)
def test_a_biased_verifier_is_caught(wrong):
  blocks = run_blocks(0, wrong())
  assert min(p_value(i, *blocks) for i in range(G + 1)) < FALSE_ALARM


def test_expected_acceptance_is_one_minus_total_variation():
  p, q, _, verdict = run_blocks(0, Token())
  expected = np.minimum(p[0], q[0]).sum()
  standard_error = np.sqrt(expected * (1 - expected) / BLOCKS)
  tolerance = stats.norm.isf(FALSE_ALARM / 2) * standard_error  # 4.9 sigma
  assert abs(np.mean(verdict.num_accepted > 0) - expected) < tolerance


# Greedy, and what is refused.


def test_greedy_accepts_what_the_target_would_emit():
  p_logits = jax.nn.one_hot(jnp.array([[4, 2, 3], [4, 2, 3], [4, 2, 3]]), 6)
  drafted = jnp.array([[4, 2], [4, 5], [0, 2]])
  keys = randomness.row_keys(jax.random.key(0), 3)
  for verdict in (
      token_lib.greedy(drafted, p_logits),
      Token().greedy(keys, drafted, p_logits),
  ):
    np.testing.assert_array_equal(verdict.num_accepted, [2, 1, 0])
    np.testing.assert_array_equal(verdict.next_token, [3, 2, 4])


def test_greedy_accepts_no_more_than_was_drafted():
  p_logits = jax.nn.one_hot(jnp.array([[4, 2, 3]] * 3), 6)
  drafted = jnp.array([[4, 2], [4, 2], [0, 2]])
  verdict = token_lib.greedy(drafted, p_logits, jnp.array([1, 2, 1]))
  np.testing.assert_array_equal(verdict.num_accepted, [1, 2, 0])
  np.testing.assert_array_equal(verdict.next_token, [2, 3, 4])


def test_greedy_is_the_limit_of_sampling():
  limit = decoding_lib.Sampling(temperature=0.0)
  keys, _, q_logits, p_logits = enumeration.random_block(noise=0.5)
  drafted = np.argmax(q_logits, axis=-1).astype(np.int32)
  greedy = Token().greedy(keys, drafted, p_logits)
  sampled = enumeration.compiled(Token())(
      keys,
      drafted,
      *(warping.warp(logits, limit) for logits in (q_logits, p_logits)),
  )
  assert set(np.unique(greedy.num_accepted)) == set(range(5))
  np.testing.assert_array_equal(sampled.num_accepted, greedy.num_accepted)
  np.testing.assert_array_equal(sampled.next_token, greedy.next_token)


def test_vocabularies_that_differ_are_named():
  keys = randomness.row_keys(jax.random.key(0), 2)
  drafted = jnp.zeros((2, 3), jnp.int32)
  with pytest.raises(ValueError) as error:
    Token().sampled(
        keys, drafted, jnp.zeros((2, 3, 100)), jnp.zeros((2, 4, 128))
    )
  assert str(error.value) == (
      'Axis V is 100 in `q_logits` but 128 in `p_logits`, which has shape'
      ' (2, 3, 128) for [B, G, V].'
  )
  with pytest.raises(ValueError, match='Axis G is 3 in `drafted` but 2'):
    Token().greedy(keys, drafted, jnp.zeros((2, 3, 100)))
