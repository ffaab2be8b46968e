"""Rules that end a block where the draft is unsure: the target's distribution.

That it is kept is shown by enumeration: whatever ends a block, as long as it is
a function of the draft's own distributions.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import decoding as decoding_lib
from tests.sampling import enumeration

Confidence, Entropy = adaptive_length.Confidence, adaptive_length.Entropy
OF_VERDICTS = {
    'token': enumeration.token_distribution,
    'block': enumeration.block_distribution,
}


# By enumeration.


def chosen(seed, vocabulary=3, length=4):
  """context -> bool: the draft stops after some of its prefixes."""
  rng = np.random.default_rng(seed + 20)
  stops = {
      prefix: bool(rng.random() < 0.5)
      for size in range(length)
      for prefix in itertools.product(range(vocabulary), repeat=size)
  }
  return lambda context: stops.get(context, False)


def difference(seed, block, of_verdicts, sparse=False):
  """Of the distribution of sequences, from the target's."""
  p = enumeration.random_tables(seed, 3, 4, sparse)
  q = enumeration.random_tables(seed + 10, 3, 4, sparse)
  distribution = enumeration.speculative_distribution(
      p, q, 3, 4, block, of_verdicts, chosen(seed)
  )
  assert abs(sum(distribution.values()) - 1.0) < 1e-12
  expected = enumeration.sequence_distribution(p, 3, 4)
  return enumeration.largest_difference(distribution, expected)


@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('block', [2, 3])
@pytest.mark.parametrize('verifier', OF_VERDICTS)
@pytest.mark.parametrize('seed', [0, 1])
def test_the_distribution_of_all_blocks_is_the_targets(
    seed, verifier, block, sparse
):
  assert difference(seed, block, OF_VERDICTS[verifier], sparse) < 1e-12


def bonus_from_residual(verifier):
  """q of the position after the last drafted token is not taken for zero."""

  def of_verdicts(p, q, drafted):
    right, length = OF_VERDICTS[verifier](p, q, drafted), len(drafted)
    if length < len(q):
      residual = enumeration.exact_residual(p[length], q[length])
      right[length] = right[length].sum() * residual
    return right

  return of_verdicts


def looks_beyond_the_end(p, q, drafted):
  """Block verification that does not know which token is the last.

  It passes the block with the chance that looks ahead, to a position where
  nothing was drafted.
  """
  length = len(drafted)
  right = enumeration.block_distribution(p, q, drafted)
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
  return enumeration.token_distribution(p, q, drafted)


@pytest.mark.parametrize(
    'wrong',
    [
        bonus_from_residual('token'),
        bonus_from_residual('block'),
        looks_beyond_the_end,
        unwanted_token_is_dropped,
    ],
)
def test_a_wrong_rule_has_another_distribution(wrong):
  assert difference(0, 3, wrong) > 1e-3


# The rules.


@pytest.mark.parametrize(
    'rule, expected',
    [
        (Confidence(0.0), [1, 1, 1]),
        (Confidence(0.49), [1, 1, 0]),
        (Confidence(0.51), [1, 0, 0]),
        (Confidence(1.0), [0, 0, 0]),
        (Entropy(0.0), [0, 0, 0]),
        (Entropy(0.69), [1, 0, 0]),
        (Entropy(0.7), [1, 1, 0]),
        (Entropy(2.0), [1, 1, 1]),
    ],
    ids=lambda value: getattr(value, 'describe', lambda: None)(),
)
def test_a_block_continues_where_the_draft_is_sure(rule, expected):
  q = jnp.asarray([[0.97, 0.01, 0.01, 0.01], [0.5, 0.5, 0.0, 0.0], [0.25] * 4])
  continues = rule.continues(jnp.log(q) + 3.0)
  np.testing.assert_array_equal(continues, np.asarray(expected, bool))


@pytest.mark.parametrize(
    'text, rule',
    [
        ('confidence(0.4)', Confidence(0.4)),
        ('confidence(1)', Confidence(1.0)),
        ('entropy(2)', Entropy(2.0)),
        ('entropy(0.25)', Entropy(0.25)),
        ('entropy(inf)', Entropy(float('inf'))),
    ],
)
def test_rules_are_parsed_and_describe_themselves(text, rule):
  parsed = adaptive_length.parse(text)
  assert parsed == rule and type(parsed) is type(rule)
  assert parsed.describe() == text


@pytest.mark.parametrize(
    'text, message',
    [
        ('', "The adaptive draft length is ''; write NAME or NAME.VALUE"),
        ('0.5', "no adaptive draft length called '0.5'; use one of confidence"),
        ('confidence', "do not fit: .*missing .*'threshold'"),
        ('surprise(1)', 'use one of confidence, entropy, or MODULE:NAME'),
        (
            'confidence(1.5)',
            r'Confidence.threshold is 1.5; it must lie in \[0,',
        ),
        ('confidence(None)', 'Confidence.threshold is None'),
        ("confidence('0.5')", "Confidence.threshold is '0.5'"),
        ('entropy(-0.1)', r'Entropy.threshold is -0.1; .* lie in \[0, inf\]'),
        ('entropy(nan)', "Entropy.threshold is 'nan'"),
        ('entropy(True)', 'Entropy.threshold is True'),
        ('entropy(1, 2)', 'has arguments that do not fit'),
    ],
)
def test_texts_that_are_no_rule_are_refused(text, message):
  with pytest.raises(errors.UserError, match=message):
    adaptive_length.parse(text)


@pytest.mark.parametrize('rule', [Confidence, Entropy])
def test_thresholds_that_are_not_numbers_are_refused(rule):
  with pytest.raises(errors.UserError, match='threshold is nan'):
    rule(float('nan'))


def test_equal_numbers_of_several_types_are_one_setting():
  one, two = (
      decoding_lib.Decoding().replace(adaptive=Entropy(value))
      for value in (np.float32(2), 2)
  )
  assert one == two and hash(one) == hash(two)
  described = one.describe(speculative=True, batch_size=1)
  assert described['adaptive'] == 'entropy(2)'
  assert one.describe(speculative=False, batch_size=1)['adaptive'] is None
