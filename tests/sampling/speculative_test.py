"""Speculative generation against the target's own.

Greedy the tokens are equal, sampled the distributions are. A draft that is the
target with noise added causes rejections at every position of a block, so that
a cache that is wrong after any of them shows as a wrong token.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from distillspec_jax.sampling import warping
from distillspec_jax.sampling.verification import verifier as verifier_lib
from tests import tiny
from tests.sampling import enumeration
from tests.sampling import pairs

FALSE_ALARM = enumeration.FALSE_ALARM
B, L, V = pairs.B, pairs.L, pairs.V
ROWS = pairs.ROWS


def generate(kind, scale, decoding, rows=B):
  """Samples with a draft that is the target with noise."""
  return speculative.generate(
      pairs.make(kind),
      pairs.noisy(kind, scale),
      pairs.prompt(rows),
      pairs.keys_of(rows),
      decoding,
  )


def assert_same_tokens(samples, expected):
  np.testing.assert_array_equal(samples.tokens, expected.tokens)
  np.testing.assert_array_equal(samples.lengths, expected.lengths)


# Greedy: the target's own tokens.


@pytest.mark.parametrize(
    'block, rows', [(1, 8), (3, 8), (5, 8), (3, 1), (5, 3)]
)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_the_targets_whatever_the_draft(kind, block, rows):
  expected = pairs.greedy_reference(kind, rows)
  decoding = pairs.decoding(length=block)
  histogram = np.zeros(block + 1, int)
  for scale in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 2.0):
    samples = generate(kind, scale, decoding, rows)
    assert_same_tokens(samples, expected)
    pairs.check_statistics(samples, decoding)
    histogram += pairs.accepted_histogram(samples.statistics)
  if rows == B:
    # Rejection at every position, and full acceptance, have occurred.
    assert (histogram > 0).all(), histogram


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_draft_of_another_shape_changes_no_greedy_token(kind):
  shape = {'num_decoder_layers': 2, 'emb_dim': 8, 'scan_layers': True}
  draft = pairs.make(kind, seed=5, **shape)
  decoding = pairs.decoding(length=4)
  samples = speculative.generate(
      pairs.make(kind), draft, pairs.prompt(), pairs.keys_of(), decoding
  )
  assert_same_tokens(samples, pairs.greedy_reference(kind))
  pairs.check_statistics(samples, decoding)


@pytest.mark.parametrize('length, block', [(1, 1), (4, 4), (7, 3)])
def test_a_full_row_is_cut_where_it_is_full(length, block):
  decoding = pairs.decoding(length=block, max_new_tokens=length)
  expected = pairs.greedy_reference('decoder_only').tokens[:, :length]
  for scale in (0.0, 0.2):
    samples = generate('decoder_only', scale, decoding)
    np.testing.assert_array_equal(samples.tokens, expected)
    pairs.check_statistics(samples, decoding)


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_sequences_end_at_eos_wherever_it_is_in_a_block(kind):
  free = np.asarray(pairs.greedy_reference(kind).tokens)
  # The EOS is a token that most sequences emit, each at a position of its own.
  positions = [len(np.unique(np.argmax(free == v, 1))) for v in range(V)]
  eos_id = int(np.argmax(positions[2:])) + 2
  decoding = pairs.decoding(length=3, eos_ids=(eos_id,))
  expected = pairs.greedy_reference(kind, eos_id=eos_id)
  ended = set()
  for scale in (0.0, 0.1, 0.3, 2.0):
    samples = generate(kind, scale, decoding)
    assert_same_tokens(samples, expected)
    pairs.check_statistics(samples, decoding)
    last = np.take_along_axis(
        np.asarray(samples.origins), np.asarray(samples.lengths)[:, None] - 1, 1
    )[:, 0]
    ended |= set(last[np.asarray(samples.lengths) < L])
  assert len(set(np.asarray(expected.lengths))) > 1
  # EOS has been drafted and accepted, and it has been the target's own token.
  assert pairs.Origin.ACCEPTED in ended
  assert ended & {pairs.Origin.CORRECTED, pairs.Origin.BONUS}


def test_a_block_longer_than_the_output_is_refused():
  with pytest.raises(errors.UserError, match='block_length is 25; it must lie'):
    generate('decoder_only', 0.0, pairs.decoding(length=L + 1))


# The draft is the target: everything is accepted.


@pytest.mark.parametrize('temperature', [0.0, 1.0])
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_a_draft_that_is_the_target_is_always_accepted(kind, temperature):
  decoding = pairs.decoding(temperature=temperature, length=3)
  samples = generate(kind, 0.0, decoding)
  counts = jax.tree.map(np.asarray, samples.statistics)
  pairs.check_statistics(samples, decoding)
  assert samples.statistics.acceptance_rate == 1.0
  np.testing.assert_array_equal(counts.accepted_at, counts.reached_at)
  np.testing.assert_array_equal(
      counts.blocks, np.ceil(np.asarray(samples.lengths) / 4)
  )
  is_full = np.asarray(samples.lengths) == L
  assert is_full.any()  # so that caches are used after full acceptance, often
  efficiency = counts.emitted.sum() / counts.blocks.sum()
  assert samples.statistics.block_efficiency == pytest.approx(efficiency)


# Sampled: the target's own distribution.


@pytest.mark.parametrize('verifier', ['token', 'block'])
@pytest.mark.parametrize(
    'name, block', [('plain', 1), ('plain', 2), ('top_k', 2), ('top_p', 2)]
)
def test_samples_have_the_targets_distribution(name, block, verifier):
  decoding = pairs.small_decoding(
      name, length=block, verifier=verification.parse(verifier)
  )
  samples = pairs.speculate(decoding)
  pairs.check_statistics(samples, decoding)
  assert (pairs.accepted_histogram(samples.statistics) > ROWS / 20).all()
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) > FALSE_ALARM


@pytest.mark.parametrize(
    'verifier, adaptive',
    [('token', 'confidence(0.395)'), ('block', 'entropy(1.85)')],
)
def test_so_have_samples_of_adaptive_draft_length(verifier, adaptive):
  decoding = pairs.small_decoding(
      length=2,
      verifier=verification.parse(verifier),
      adaptive=adaptive_length.parse(adaptive),
  )
  samples = pairs.speculate(decoding)
  pairs.check_statistics(samples, decoding)
  counts = samples.statistics
  share = counts.drafted.sum() / counts.blocks.sum() / 2
  assert 0.6 < share < 0.95  # some blocks are short, and some are not
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) > FALSE_ALARM


@pytest.mark.parametrize('epsilon, is_exact', [(0.5, False), (1.0, True)])
def test_lenient_samples_have_another_distribution(epsilon, is_exact):
  decoding = pairs.small_decoding(
      length=2, verifier=verification.Lenient('linear', epsilon)
  )
  samples = pairs.speculate(decoding)
  distribution = pairs.exact_distribution(decoding)
  p_value = pairs.p_value(samples.tokens, distribution)
  assert (p_value > FALSE_ALARM) == is_exact


# A verifier of the user's own.


@dataclasses.dataclass(frozen=True)
class Nothing(verification.Verifier):
  """Accepts nothing, which is exact: every token is the target's own."""

  offset: int = 0  # added to its tokens

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    none = jnp.zeros(len(drafted), jnp.int32)
    p = jax.nn.softmax(p_logits[:, 0])
    token = verifier_lib.sample_next(keys, p)
    return verification.Verdict(none, token + self.offset)

  def greedy(self, keys, drafted, p_logits, lengths=None):
    none = jnp.zeros(len(drafted), jnp.int32)
    token = jnp.argmax(p_logits[:, 0], axis=-1).astype(jnp.int32)
    return verification.Verdict(none, token + self.offset)


def test_a_users_own_verifier_judges_sampled_tokens():
  decoding = pairs.small_decoding(length=2, verifier=Nothing())
  samples = pairs.speculate(decoding)
  assert (samples.statistics.accepted == 0).all()
  assert samples.statistics.block_efficiency == 1.0
  distribution = pairs.exact_distribution(decoding)
  assert pairs.p_value(samples.tokens, distribution) > FALSE_ALARM


def test_a_users_own_verifier_judges_greedy_tokens():
  samples = generate('decoder_only', 0.0, pairs.decoding(verifier=Nothing()))
  assert_same_tokens(samples, pairs.greedy_reference('decoder_only'))
  assert (samples.statistics.blocks == samples.lengths).all()
  # Another value of its field is another program.
  shifted = pairs.decoding(verifier=Nothing(1))
  tokens = generate('decoder_only', 0.0, shifted).tokens
  first = np.asarray(pairs.greedy_reference('decoder_only').tokens[:, 0])
  np.testing.assert_array_equal(tokens[:, 0], first + 1)


# What would be wrong is caught.


@pytest.fixture(scope='module', name='distribution')
def _distribution():
  """Of whole outputs, computed before anything is patched."""
  return pairs.exact_distribution(pairs.small_decoding(length=1))


def is_caught(distribution, decoding, generate=speculative.generate):
  samples = pairs.speculate(decoding, generate)
  return pairs.p_value(samples.tokens, distribution) < FALSE_ALARM


def test_a_verifier_that_resamples_the_target_is_caught(distribution):
  decoding = pairs.small_decoding(
      length=1, verifier=enumeration.ResamplesTarget()
  )
  assert is_caught(distribution, decoding)


def test_a_key_used_in_two_blocks_is_caught(monkeypatch, distribution):
  events = randomness.events
  monkeypatch.setattr(
      randomness, 'events', lambda keys, number: events(keys, 0)
  )
  decoding = pairs.small_decoding(length=1)
  assert is_caught(distribution, decoding, pairs.fresh())


class DraftIsFlatter(verification.Token):
  """What is verified is not what was drafted."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    return super().sampled(keys, drafted, q_logits / 2.0, p_logits, lengths)


def test_a_draft_that_is_warped_otherwise_is_caught(monkeypatch, distribution):
  warp = warping.warp
  calls = []

  def uneven(logits, sampling, temperature):
    calls.append(logits.shape)
    is_target = logits.shape[1] > 1  # of a block of one, the draft has one
    return warp(logits if is_target else 2.0 * logits, sampling, temperature)

  monkeypatch.setattr(warping, 'warp', uneven)
  decoding = pairs.small_decoding(length=1, verifier=DraftIsFlatter())
  assert is_caught(distribution, decoding, pairs.fresh())
  assert {shape[1] for shape in calls} == {1, 2}


# Vocabularies that differ by padding rows.


@pytest.mark.parametrize(
    'target_size, draft_size, temperature',
    [(50, 52, 0.0), (52, 50, 0.0), (52, 50, 1.0)],
)
def test_padding_rows_of_the_larger_vocabulary_are_never_emitted(
    target_size, draft_size, temperature
):
  def loud(size):  # the padding rows would win if they were read
    model = pairs.make('decoder_only', size)
    kernel = model.params['decoder']['logits_dense']['kernel']
    kernel = jnp.concatenate([kernel[:, :50], 50.0 * kernel[:, 50:]], axis=1)
    assert kernel.shape[1] == size
    decoder = {**model.params['decoder'], 'logits_dense': {'kernel': kernel}}
    return model.replace(params={**model.params, 'decoder': decoder})

  decoding = pairs.decoding(temperature=temperature, length=3)
  target, draft = loud(target_size), loud(draft_size)
  samples = speculative.generate(
      target, draft, pairs.prompt(), pairs.keys_of(), decoding
  )
  pairs.check_statistics(samples, decoding)
  assert np.asarray(samples.tokens).max() < 50
  if decoding.is_greedy:
    expected = autoregressive.generate(
        target, pairs.prompt(), pairs.keys_of(), decoding, vocabulary_size=50
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)


def test_statistics_hold_in_bfloat16():
  target = pairs.make('encoder_decoder', dtype='bfloat16')
  samples = speculative.generate(
      target,
      tiny.noisy(target, 0.1),
      pairs.prompt(),
      pairs.keys_of(),
      pairs.SAMPLED,
  )
  pairs.check_statistics(samples, pairs.SAMPLED)
