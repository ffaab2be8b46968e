"""Blocks whose length the draft chooses: still the target's law."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import block_verification
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import drafting
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from tests.sampling import laws
from tests.sampling import pairs

LAWS = {'token': laws.token_law, 'block': laws.block_law}
RULES = {'token': verification.token, 'block': block_verification.block}


# The law, by enumeration.


def chosen(seed, vocabulary=3, length=4):
  """context -> bool: the draft stops after some of its prefixes."""
  rng = np.random.default_rng(seed + 20)
  stops = {
      prefix: bool(rng.random() < 0.5)
      for size in range(length)
      for prefix in itertools.product(range(vocabulary), repeat=size)
  }
  return lambda context: stops.get(context, False)


def of_all_blocks(seed, block, law, sparse=False, stops=None):
  p = laws.random_tables(seed, 3, 4, sparse)
  q = laws.random_tables(seed + 10, 3, 4, sparse)
  stops = stops or chosen(seed)
  found = laws.speculative_law(p, q, 3, 4, block, law, stops)
  assert abs(sum(found.values()) - 1.0) < 1e-12
  return laws.largest_difference(found, laws.sequence_law(p, 3, 4))


@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('block', [2, 3])
@pytest.mark.parametrize('rule', LAWS)
@pytest.mark.parametrize('seed', [0, 1])
def test_the_law_of_all_blocks_is_the_targets(seed, rule, block, sparse):
  assert of_all_blocks(seed, block, LAWS[rule], sparse) < 1e-12


def bonus_from_residual(rule):
  """The q of the place after the last drafted token is not taken for zero."""

  def law(p, q, drafted):
    found, length = LAWS[rule](p, q, drafted), len(drafted)
    if length < len(q):
      mass = found[length].sum()
      found[length] = mass * laws.exact_residual(p[length], q[length])
    return found

  return law


def inner_at_the_last_place(p, q, drafted):
  """Block verification that does not know which token is the last.

  It passes the whole block with the chance that looks ahead, to a place where
  nothing was drafted.
  """
  length = len(drafted)
  right = laws.block_law(p, q, drafted)
  if length == len(q):
    return right
  weight = 1.0
  for i, x in enumerate(drafted):
    weight = min(1.0, weight * p[i, x] / q[i, x])
  mass = np.maximum(weight * p[length] - q[length], 0.0).sum()
  wrong = mass / (mass + 1.0 - weight) if mass + 1.0 - weight > 0.0 else 1.0
  if weight < 1.0:
    right[:length] *= (1.0 - wrong) / (1.0 - weight)
  right[length] = wrong * p[length]
  return right / right.sum()


def unwanted_token_is_dropped(p, q, drafted):
  """The length depends on the last token that was drawn, not only on q."""
  if len(drafted) > 1 and drafted[-1] == 0:
    drafted = drafted[:-1]
  return laws.token_law(p, q, drafted)


@pytest.mark.parametrize(
    'wrong',
    [
        bonus_from_residual('token'),
        bonus_from_residual('block'),
        inner_at_the_last_place,
        unwanted_token_is_dropped,
    ],
)
def test_a_wrong_rule_has_another_law(wrong):
  assert of_all_blocks(0, 3, wrong) > 1e-3


# The code against the law.

LENGTHS = [1, 2, 1, 2, 1, 1, 2, 1, 2]


@pytest.mark.parametrize('rule', RULES)
def test_verdicts_have_the_enumerated_frequencies(rule):
  p_values = laws.verdict_p_values(0, RULES[rule], LAWS[rule], LENGTHS)
  assert p_values.min() > laws.FALSE_ALARM


def without_lengths(rule):
  return lambda *judged, lengths: RULES[rule](*judged)


def bonus_is_corrected(keys, drafted, q_logits, p_logits, lengths):
  """Of as many tokens as it should, with a residual where nothing was said."""
  verdict = verification.token(keys, drafted, q_logits, p_logits, lengths)
  p = verification.at(jax.nn.softmax(p_logits), verdict.num_accepted)
  q = verification.proposal_at(jax.nn.softmax(q_logits), verdict.num_accepted)
  again = randomness.categorical(
      randomness.streams(keys, 'next'), jnp.log(jnp.maximum(p - q, 0.0))
  )
  return verdict._replace(next_token=again)


def whole_block_rule(keys, drafted, q_logits, p_logits, lengths):
  """The chances of the whole block, cut off at the length."""
  verdict = block_verification.block(keys, drafted, q_logits, p_logits)
  right = block_verification.block(keys, drafted, q_logits, p_logits, lengths)
  cut = jnp.minimum(verdict.num_accepted, lengths)
  return right._replace(num_accepted=cut)


@pytest.mark.parametrize(
    'wrong, rule',
    [
        (without_lengths('token'), 'token'),
        (without_lengths('block'), 'block'),
        (bonus_is_corrected, 'token'),
        (whole_block_rule, 'block'),
    ],
)
def test_a_wrong_verifier_has_other_frequencies(wrong, rule):
  p_values = laws.verdict_p_values(0, wrong, LAWS[rule], LENGTHS)
  assert p_values.min() < laws.FALSE_ALARM


def test_greedy_accepts_no_more_than_was_drafted():
  p_logits = jax.nn.one_hot(jnp.array([[4, 2, 3]] * 3), 6)
  drafted = jnp.array([[4, 2], [4, 2], [0, 2]])
  lengths = jnp.array([1, 2, 1])
  verdict = verification.greedy(drafted, p_logits, lengths)
  np.testing.assert_array_equal(verdict.num_accepted, [1, 2, 0])
  np.testing.assert_array_equal(verdict.next_token, [2, 3, 4])


# The draft's own choice.


@pytest.mark.parametrize(
    'draft_stop, expected',
    [
        (('confidence', 0.0), [1, 1, 1]),
        (('confidence', 0.49), [1, 1, 0]),
        (('confidence', 0.51), [1, 0, 0]),
        (('confidence', 1.0), [0, 0, 0]),
        (('entropy', 0.0), [0, 0, 0]),
        (('entropy', 0.69), [1, 0, 0]),
        (('entropy', 0.7), [1, 1, 0]),
        (('entropy', 2.0), [1, 1, 1]),
        (None, [1, 1, 1]),
    ],
)
def test_the_draft_goes_on_where_it_is_sure(draft_stop, expected):
  q = jnp.asarray([[0.97, 0.01, 0.01, 0.01], [0.5, 0.5, 0.0, 0.0], [0.25] * 4])
  decoding = decoding_lib.Decoding(draft_stop=draft_stop)
  found = drafting._goes_on(jnp.log(q) + 3.0, decoding)
  np.testing.assert_array_equal(found, np.asarray(expected, bool))


@pytest.mark.parametrize(
    'value, message',
    [
        ('confidence', "draft_stop is 'confidence'; give"),
        (0.5, 'draft_stop is 0.5; give'),
        (('confidence',), r"draft_stop is \('confidence',\); give"),
        (('surprise', 1.0), r"\('entropy', h\), or None"),
        (('confidence', 1.5), r'confidence is 1.5; it must lie in \[0, 1\]'),
        (('confidence', None), 'confidence is None'),
        (('confidence', '0.5'), "confidence is '0.5'"),
        (('entropy', -0.1), r'entropy is -0.1; it must lie in \[0, inf\]'),
        (('entropy', float('nan')), 'entropy is nan'),
        (('entropy', True), 'entropy is True'),
    ],
)
def test_what_is_no_rule_is_named(value, message):
  with pytest.raises(errors.UserError, match=message):
    decoding_lib.Decoding(draft_stop=value)


def test_numbers_of_every_kind_are_one_setting():
  one = decoding_lib.Decoding(draft_stop=['entropy', np.float32(2)])
  assert one == decoding_lib.Decoding(draft_stop=('entropy', 2))
  described = one.describe(speculative=True, batch_size=1)
  assert described['draft_stop'] == ['entropy', 2.0]
  assert 'draft_stop' not in one.describe(speculative=False, batch_size=1)


# In the loop.

L, BLOCK = 20, 4


@functools.cache
def plain():
  """The target's own greedy tokens."""
  model, params = pairs.make()
  decoding = decoding_lib.Decoding(max_new_tokens=L, block_length=BLOCK)
  return autoregressive.generate(
      model, params, *pairs.ragged_inputs(4), pairs.keys_of(4), decoding
  )


@pytest.mark.parametrize('draft_stop', [('confidence', 0.2), ('entropy', 3.5)])
def test_greedy_tokens_are_the_targets(draft_stop):
  model, params = pairs.make()
  decoding = decoding_lib.Decoding(
      max_new_tokens=L, block_length=BLOCK, draft_stop=draft_stop
  )
  for scale in (0.0, 0.1, 0.3):
    samples = speculative.generate(
        model, params, model, pairs.perturbed(params, scale),
        *pairs.ragged_inputs(4), pairs.keys_of(4), decoding,
    )  # fmt: skip
    np.testing.assert_array_equal(samples.tokens, plain().tokens)
    np.testing.assert_array_equal(samples.lengths, plain().lengths)
    counts = jax.tree.map(np.asarray, samples.statistics)
    pairs.check_statistics(samples, decoding)
    # Some blocks are short, and some are not.
    assert (counts.drafted > counts.blocks).any()
    assert (counts.drafted < BLOCK * counts.blocks).any()
    if not scale:  # all that is drafted is accepted
      np.testing.assert_array_equal(counts.accepted_at, counts.reached_at)


class Counting(transformer_lib.Transformer):
  """A transformer that notes its calls."""

  def __init__(self, config):
    super().__init__(config)
    self.calls = []

  def extend(self, params, state, tokens, fork=None):
    jax.debug.callback(lambda: self.calls.append(1))
    return super().extend(params, state, tokens, fork)


def draft_steps(draft_stop):
  """Calls of the draft, and the counters, of a greedy run."""
  model, params = pairs.make()
  draft = Counting(model.config)
  decoding = decoding_lib.Decoding(
      max_new_tokens=L, block_length=BLOCK, draft_stop=draft_stop
  )
  generate = pairs.fresh()  # a draft that counts equals one that does not
  samples = generate(
      model, params, draft, pairs.perturbed(params, 0.1),
      *pairs.ragged_inputs(1), pairs.keys_of(1), decoding,
  )  # fmt: skip
  jax.effects_barrier()
  return len(draft.calls), samples.statistics


def test_no_step_is_made_for_what_is_not_drafted():
  steps, counts = draft_steps(('confidence', 0.2))
  assert steps == int(counts.drafted[0])  # of one row
  blocks = int(counts.blocks[0])
  assert blocks < steps < BLOCK * blocks
  steps, counts = draft_steps(('confidence', 1.0))
  assert steps == int(counts.blocks[0]) == int(counts.drafted[0])
