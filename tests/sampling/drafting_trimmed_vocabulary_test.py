"""Drafts with a trimmed vocabulary: the target's tokens and distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from tests import tiny
from tests.sampling import enumeration
from tests.sampling import pairs

B, L, V = pairs.B, pairs.L, pairs.V
EVERY_THIRD = tuple(sorted({0, 1, *range(2, V, 3)}))


@functools.cache
def draft(kind='encoder_decoder', scale=0.0, tokens=EVERY_THIRD):
  return tiny.trimmed(pairs.noisy(kind, scale), tokens)


def generate(draft, decoding, kind='encoder_decoder', **settings):
  return speculative.generate(
      pairs.make(kind), draft, pairs.prompt(), pairs.keys_of(), decoding,
      **settings,
  )  # fmt: skip


def generate_alone(decoding, **settings):
  return autoregressive.generate(
      draft(), pairs.prompt(), pairs.keys_of(), decoding, **settings
  )


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_the_targets(kind):
  expected = pairs.greedy_reference(kind)
  decoding = pairs.decoding(length=3)
  accepted = 0
  for scale in (0.0, 0.1, 0.3):
    samples = generate(draft(kind, scale), decoding, kind)
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    pairs.check_statistics(samples, decoding)
    accepted += int(samples.statistics.accepted.sum())
  assert accepted > 0  # indices are not taken for tokens


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_all_accepted_tokens_are_in_the_trimmed_vocabulary(temperature):
  decoding = pairs.decoding(temperature=temperature, length=3)
  samples = generate(draft(), decoding)
  pairs.check_statistics(samples, decoding)
  tokens = np.asarray(samples.tokens)
  is_accepted = np.asarray(samples.origins) == pairs.Origin.ACCEPTED
  assert is_accepted.any()
  assert np.isin(tokens[is_accepted], EVERY_THIRD).all()
  assert not np.isin(tokens, EVERY_THIRD).all()  # the target emits others, too


@pytest.mark.parametrize(
    'settings', [{}, {'temperature': 0.0}, {'top_k': 3, 'top_p': 0.9}]
)
def test_alone_it_emits_only_what_is_in_it(settings):
  decoding = pairs.decoding(**{'temperature': 1.0, **settings})
  tokens = np.asarray(generate_alone(decoding).tokens)
  assert np.isin(tokens, EVERY_THIRD).all()
  assert len(np.unique(tokens)) > 3


def test_a_draft_trimmed_of_nothing_is_the_full_draft():
  full, trimmed = (
      generate(draft, pairs.SAMPLED)
      for draft in (pairs.noisy(), draft(scale=0.3, tokens=tuple(range(V))))
  )
  jax.tree.map(np.testing.assert_array_equal, full, trimmed)


def test_with_limits_and_log_probabilities_tokens_are_the_targets():
  decoding = pairs.decoding(
      length=4,
      eos_ids=(1, 5),  # both of which the draft can emit
      adaptive=adaptive_length.Entropy(2.0),
      log_probs=True,
  )
  controls = controls_lib.Controls(
      min_new_tokens=jnp.arange(B, dtype=jnp.int32),
      max_new_tokens=L - jnp.arange(B, dtype=jnp.int32),
  )
  expected = autoregressive.generate(
      pairs.make(), pairs.prompt(), pairs.keys_of(), decoding, controls=controls
  )
  samples = generate(draft(scale=0.1), decoding, controls=controls)
  np.testing.assert_array_equal(samples.tokens, expected.tokens)
  np.testing.assert_allclose(samples.log_probs, expected.log_probs, atol=1e-5)
  assert (np.asarray(samples.nonfinite_at) == -1).all()
  assert samples.statistics.accepted.sum() > 0


def test_alone_it_keeps_its_minimum_length_and_log_probabilities():
  eos = next(token for token in EVERY_THIRD if token > 20)
  assert EVERY_THIRD.index(eos) != eos  # nor is any other index a token
  decoding = pairs.decoding(temperature=1.0, eos_ids=(eos,), log_probs=True)
  free = generate_alone(decoding)
  controls = controls_lib.Controls(min_new_tokens=jnp.full(B, L, jnp.int32))
  held = generate_alone(decoding, controls=controls)
  assert (np.asarray(free.tokens) == eos).any()
  assert not (np.asarray(held.tokens)[:, :-1] == eos).any()
  ones = jnp.ones_like(held.tokens)
  logits = jax.jit(model_lib.Model.logits)(
      draft(), pairs.prompt(), model_lib.shift_right(held.tokens, ones), ones
  )
  log_q = np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)),
      np.asarray(held.tokens)[..., None],
      axis=-1,
  )[..., 0]
  is_real = np.arange(L) < np.asarray(held.lengths)[:, None]
  np.testing.assert_allclose(
      np.asarray(held.log_probs)[is_real], log_q[is_real], atol=1e-4
  )


# By enumeration: tables with q = 0 for trimmed tokens.


@pytest.mark.parametrize(
    'of_verdicts',
    [enumeration.token_distribution, enumeration.block_distribution],
)
def test_the_distribution_of_all_blocks_is_the_targets(of_verdicts):
  v, length, block = 3, 3, 2
  p = enumeration.random_tables(0, v, length)
  q = {}
  for prefix, table in enumeration.random_tables(1, v, length).items():
    trimmed = table * np.array([1.0, 1.0, 0.0])
    q[prefix] = trimmed / trimmed.sum()
  expected = enumeration.sequence_distribution(p, v, length)
  # Beyond the end the tables of `speculative_distribution` are uniform, which
  # has no effect.
  distribution = enumeration.speculative_distribution(
      p, q, v, length, block, of_verdicts
  )
  assert enumeration.largest_difference(distribution, expected) < 1e-12


# The small pair.


@functools.cache
def small_draft():
  return tiny.trimmed(pairs.small_pair()[1], (0, 1, 3, 4, 6))


@pytest.mark.parametrize('verifier', ['token', 'block'])
@pytest.mark.parametrize('name', ['plain', 'top_k', 'top_p'])
def test_samples_have_the_targets_distribution(name, verifier):
  decoding = pairs.small_decoding(
      name, length=2, verifier=verification.parse(verifier)
  )
  samples = pairs.speculate(decoding, draft=small_draft())
  pairs.check_statistics(samples, decoding)
  distribution = pairs.exact_distribution(decoding)
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value > enumeration.FALSE_ALARM
  histogram = pairs.accepted_histogram(samples.statistics)
  assert (histogram > pairs.ROWS / 100).all()


def test_so_have_samples_of_several_paths():
  decoding = pairs.small_decoding(length=2, paths=3)
  samples = pairs.speculate(decoding, draft=small_draft())
  distribution = pairs.exact_distribution(decoding)
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value > enumeration.FALSE_ALARM
  one = pairs.speculate(decoding.replace(paths=1), draft=small_draft())
  efficiency = samples.statistics.block_efficiency
  assert efficiency > one.statistics.block_efficiency


def test_expanding_to_wrong_tokens_is_caught(monkeypatch):
  decoding = pairs.small_decoding(length=2)
  distribution = pairs.exact_distribution(decoding)
  expand = trimmed_vocabulary.TrimmedVocabulary.expand

  def shifted(self, logits):  # q of the neighbours is what is verified
    full = expand(self, logits)
    return full if self.is_full else jnp.roll(full, 1, axis=-1)

  monkeypatch.setattr(trimmed_vocabulary.TrimmedVocabulary, 'expand', shifted)
  samples = pairs.speculate(decoding, pairs.fresh(), small_draft())
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value < enumeration.FALSE_ALARM


def test_alone_it_has_its_own_distribution():
  decoding = pairs.small_decoding(max_new_tokens=2)
  samples = autoregressive.generate(
      small_draft(), pairs.small_prompt(), pairs.keys_of(pairs.ROWS, 4),
      decoding,
  )  # fmt: skip
  outputs, logits = pairs.all_outputs(small_draft(), 2)
  q = np.asarray(jax.nn.softmax(logits), np.float64)
  distribution = {}
  for row, (a, b) in enumerate(outputs.tolist()):
    chance = q[row, 0, a]
    end = (a, 0) if a == 1 else (a, b)
    distribution[end] = chance * (a == 1 or q[row, 1, b])
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value > enumeration.FALSE_ALARM
