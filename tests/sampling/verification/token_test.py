"""The law of verification: proved by enumeration, then measured on the code.

The first part writes down the law of a speculative generation as a sum over
all drafts and verdicts, for small random tables, and shows that it is the
target's. The second compares the code's verdicts with that law: decision by
decision with chance replaced, and by chi-squared with chance as it is. Each
has a twin that proves it can fail.
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
from tests.sampling import laws

FALSE_ALARM = laws.FALSE_ALARM
V, G = laws.V, laws.G


# The law, by enumeration.


@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('block', [1, 2, 3])
@pytest.mark.parametrize('seed', [0, 1])
def test_the_law_of_all_blocks_is_the_targets(seed, block, sparse):
  p = laws.random_tables(seed, 3, 4, sparse)
  q = laws.random_tables(seed + 10, 3, 4, sparse)
  law = laws.speculative_law(p, q, 3, 4, block)
  assert abs(sum(law.values()) - 1.0) < 1e-12
  assert laws.largest_difference(law, laws.sequence_law(p, 3, 4)) < 1e-12


@pytest.mark.parametrize('block', [1, 2, 3])
@pytest.mark.parametrize('wrong', [lambda p, q: p, lambda p, q: q])
def test_another_residual_has_another_law(wrong, block):
  p, q = laws.random_tables(0, 3, 4), laws.random_tables(10, 3, 4)
  law = laws.speculative_law(
      p, q, 3, 4, block, functools.partial(laws.token_law, residual=wrong)
  )
  assert abs(sum(law.values()) - 1.0) < 1e-12
  assert laws.largest_difference(law, laws.sequence_law(p, 3, 4)) > 1e-3


# The code against the law, decision by decision.


@pytest.mark.parametrize('seed', range(3))
def test_each_decision_is_the_one_of_the_law(seed, monkeypatch):
  """Chance is taken out: uniforms are given, weights come back as tokens."""
  p, q = laws.small_tables(seed)
  monkeypatch.setattr(
      randomness, 'categorical', lambda _, logits: jax.nn.softmax(logits)
  )

  @jax.jit
  def verify(uniforms, drafted):
    with monkeypatch.context() as patch:
      patch.setattr(randomness, 'uniform', lambda *_: uniforms)
      rows = len(uniforms)
      return verification.token(
          randomness.row_keys(jax.random.key(0), rows),
          jnp.broadcast_to(drafted[None], (rows, G)),
          laws.logits_of(q, rows),
          laws.logits_of(p, rows),
      )

  for drafted in laws.DRAFTS:
    passes = np.minimum(1.0, p[range(G), drafted] / q[range(G), drafted])
    near = zip(np.maximum(passes - 1e-5, 0.0), passes + 1e-5)
    uniforms = np.array(list(itertools.product(*near)), np.float32)
    verdict = verify(uniforms, drafted)
    accepted = np.cumprod(uniforms < passes, axis=1).sum(axis=1)
    for row in range(len(uniforms)):
      if uniforms[row].max() >= 1.0:
        continue  # where a token always passes, nothing above can be drawn
      i = accepted[row]
      expected = p[G] if i == G else laws.exact_residual(p[i], q[i])
      assert verdict.num_accepted[row] == i
      np.testing.assert_allclose(verdict.next_token[row], expected, atol=1e-5)


def test_what_the_target_cannot_say_never_passes(monkeypatch):
  monkeypatch.setattr(
      randomness, 'uniform', lambda keys, shape: jnp.zeros((len(keys), *shape))
  )
  p = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
  q = np.full((G, V), 1 / 3)
  drafted = jnp.array([[0, 0], [1, 1], [1, 0]])
  keys = randomness.row_keys(jax.random.key(0), 3)
  verify = jax.jit(lambda *args: verification.token(*args))
  verdict = verify(keys, drafted, laws.logits_of(q, 3), laws.logits_of(p, 3))
  np.testing.assert_array_equal(verdict.num_accepted, [0, 1, 2])
  np.testing.assert_array_equal(verdict.next_token, [1, 0, 2])


def test_an_empty_residual_falls_back_to_the_target(monkeypatch):
  # Rounding alone can reject where p equals q; 1.0 stands for such a draw.
  monkeypatch.setattr(
      randomness, 'uniform', lambda keys, shape: jnp.ones((len(keys), *shape))
  )
  rows = 2_000
  p, _ = laws.small_tables(0)
  verify = jax.jit(lambda *args: verification.token(*args))
  verdict = verify(
      randomness.row_keys(jax.random.key(0), rows),
      jnp.ones((rows, G), jnp.int32),
      laws.logits_of(p[:G], rows),
      laws.logits_of(p, rows),
  )
  assert (verdict.num_accepted == 0).all()
  observed = np.bincount(verdict.next_token, minlength=V)
  assert stats.chisquare(observed, rows * p[0]).pvalue > FALSE_ALARM


# The code against the law, by frequency.


@pytest.mark.parametrize('seed', range(3))
def test_verdicts_have_the_enumerated_frequencies(seed):
  # Nine assertions: 1e-5 is nine times the chance of one.
  assert laws.verdict_p_values(seed, verification.token).min() > FALSE_ALARM


def resamples_draft(keys, drafted, q_logits, p_logits):
  """The correction comes from q; the bonus is right."""
  verdict = verification.token(keys, drafted, q_logits, p_logits)
  rows = jnp.arange(len(drafted))
  weights = jnp.concatenate([q_logits, p_logits[:, -1:]], axis=1)
  weights = weights[rows, verdict.num_accepted]
  again = randomness.categorical(randomness.streams(keys, 'next'), weights)
  return verdict._replace(next_token=again)


def always_first(keys, drafted, q_logits, p_logits):
  """The residual is that of the first place, wherever the rejection was."""
  verdict = verification.token(keys, drafted, q_logits, p_logits)
  residual = jnp.maximum(
      jax.nn.softmax(p_logits[:, 0]) - jax.nn.softmax(q_logits[:, 0]), 0.0
  )
  again = randomness.categorical(
      randomness.streams(keys, 'next'), jnp.log(residual)
  )
  wrong = verdict.num_accepted < drafted.shape[1]
  return verdict._replace(
      next_token=jnp.where(wrong, again, verdict.next_token)
  )


WRONG_RESIDUALS = [laws.resamples_target, resamples_draft, always_first]


@pytest.mark.parametrize('wrong', WRONG_RESIDUALS)
def test_a_wrong_residual_has_other_frequencies(wrong):
  assert laws.verdict_p_values(0, wrong).min() < FALSE_ALARM


def one_key_for_all(monkeypatch):
  """Draft, acceptance and correction draw from one key."""
  monkeypatch.setattr(randomness, 'streams', lambda keys, name: keys)


def no_prefix_rule(monkeypatch):
  """Passes are counted, also after the first that failed."""
  monkeypatch.setattr(
      verification,
      'prefix_length',
      lambda passes, lengths=None: passes.sum(axis=1),
  )


def one_uniform_for_all_places(monkeypatch):
  """One draw decides about the whole block."""
  uniform = randomness.uniform
  monkeypatch.setattr(
      randomness,
      'uniform',
      lambda keys, shape: jnp.broadcast_to(
          uniform(keys, (1,)), (len(keys), *shape)
      ),
  )


MUTATIONS = [one_key_for_all, no_prefix_rule, one_uniform_for_all_places]


@pytest.mark.parametrize('mutate', MUTATIONS)
def test_a_mutated_verifier_has_other_frequencies(mutate, monkeypatch):
  mutate(monkeypatch)
  # A function of its own, so that nothing compiled before is used again.
  mutant = lambda *args: verification.token(*args)
  assert laws.verdict_p_values(0, mutant).min() < FALSE_ALARM


# Emitted tokens against the target, on a larger vocabulary.

LARGE_V = 6
BLOCKS = 200_000  # a 0.5 % shift of probability mass fails 98 % of runs


def run_blocks(seed, verify=None):
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.ones(LARGE_V), G + 1)
  q = rng.dirichlet(np.ones(LARGE_V), G)

  @jax.jit
  def run(keys):
    p_logits, q_logits = laws.logits_of(p, BLOCKS), laws.logits_of(q, BLOCKS)
    draft_keys = randomness.streams(keys, 'draft')
    drafted = jnp.stack(
        [
            randomness.categorical(
                randomness.events(draft_keys, place), q_logits[:, place]
            )
            for place in range(G)
        ],
        axis=1,
    )
    verdict = (verify or verification.token)(keys, drafted, q_logits, p_logits)
    return drafted, verdict

  keys = randomness.row_keys(jax.random.key(seed), BLOCKS)
  drafted, verdict = jax.tree.map(np.asarray, run(keys))
  return p, q, drafted, verdict


def p_value(position, p, q, drafted, verdict):
  """Chi-squared fit to p of the tokens emitted at `position` in the block."""
  reached = verdict.num_accepted >= position
  kept = verdict.num_accepted > position
  drafted_here = drafted[:, min(position, G - 1)]
  token = np.where(kept, drafted_here, verdict.next_token)[reached]
  observed = np.bincount(token, minlength=LARGE_V)
  return stats.chisquare(observed, observed.sum() * p[position]).pvalue


@pytest.mark.parametrize('seed', range(3))
def test_emitted_tokens_follow_the_target(seed):
  blocks = run_blocks(seed)
  for position in range(G + 1):
    assert p_value(position, *blocks) > FALSE_ALARM, position


@pytest.mark.parametrize('wrong', WRONG_RESIDUALS)
def test_a_biased_verifier_is_caught(wrong):
  blocks = run_blocks(0, wrong)
  assert min(p_value(i, *blocks) for i in range(G + 1)) < FALSE_ALARM


def test_acceptance_rate_is_one_minus_total_variation():
  p, q, _, verdict = run_blocks(0)
  expected = np.minimum(p[0], q[0]).sum()
  standard_error = np.sqrt(expected * (1 - expected) / BLOCKS)
  tolerance = stats.norm.isf(FALSE_ALARM / 2) * standard_error  # 4.9 sigma
  assert abs(np.mean(verdict.num_accepted > 0) - expected) < tolerance


# Greedy, and what is refused.


def test_greedy_accepts_what_the_target_would_say():
  p_logits = jax.nn.one_hot(jnp.array([[4, 2, 3], [4, 2, 3], [4, 2, 3]]), 6)
  drafted = jnp.array([[4, 2], [4, 5], [0, 2]])
  verdict = verification.greedy(drafted, p_logits)
  np.testing.assert_array_equal(verdict.num_accepted, [2, 1, 0])
  np.testing.assert_array_equal(verdict.next_token, [3, 2, 4])


def test_greedy_is_the_limit_of_token_verification():
  rows, block, vocabulary = 200, 4, 5
  limit = decoding_lib.Decoding(temperature=0.0)
  key_p, key_q = jax.random.split(jax.random.key(0))
  p_logits = jax.random.normal(key_p, (rows, block + 1, vocabulary))
  noise = jax.random.normal(key_q, (rows, block, vocabulary))
  q_logits = p_logits[:, :-1] + 0.5 * noise
  drafted = jnp.argmax(q_logits, axis=-1).astype(jnp.int32)
  greedy = verification.greedy(drafted, p_logits)
  token = jax.jit(verification.token)(
      randomness.row_keys(jax.random.key(1), rows),
      drafted,
      warping.warp(q_logits, limit),
      warping.warp(p_logits, limit),
  )
  assert set(np.unique(greedy.num_accepted)) == set(range(block + 1))
  np.testing.assert_array_equal(token.num_accepted, greedy.num_accepted)
  np.testing.assert_array_equal(token.next_token, greedy.next_token)


def test_vocabularies_that_differ_are_named():
  keys = randomness.row_keys(jax.random.key(0), 2)
  drafted = jnp.zeros((2, 3), jnp.int32)
  with pytest.raises(ValueError) as error:
    verification.token(
        keys, drafted, jnp.zeros((2, 3, 100)), jnp.zeros((2, 4, 128))
    )
  assert str(error.value) == (
      'Axis V is 100 in `q_logits` but 128 in `p_logits`, which has shape'
      ' (2, 3, 128) for [B, G, V].'
  )
  with pytest.raises(ValueError, match='Axis G is 3 in `drafted` but 2'):
    verification.greedy(drafted, jnp.zeros((2, 3, 100)))
