"""A draft that proposes from some tokens only: the target's tokens and law."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from tests import tiny
from tests.sampling import laws
from tests.sampling import pairs

B, L, V = pairs.B, pairs.L, pairs.V
EVERY_THIRD = tuple(sorted({0, 1, *range(2, V, 3)}))


def trimmed(model, params, tokens):
  return tiny.trimmed(tiny.Model(model, params), tokens)


@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_the_targets(kind):
  model, params = pairs.make(kind)
  expected = pairs.greedy_reference(kind, B)
  decoding = decoding_lib.Decoding(block_length=3, max_new_tokens=L)
  accepted = 0
  for scale in (0.0, 0.1, 0.3):
    draft = trimmed(model, pairs.perturbed(params, scale), EVERY_THIRD)
    samples = speculative.generate(
        model, params, *draft, *pairs.ragged_inputs(), pairs.keys_of(B),
        decoding,
    )  # fmt: skip
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    pairs.check_statistics(samples, decoding)
    accepted += int(samples.statistics.accepted.sum())
  assert accepted > 0  # column numbers are not taken for tokens


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_all_that_is_accepted_has_a_column(temperature):
  model, params = pairs.make('encoder_decoder')
  decoding = decoding_lib.Decoding(
      temperature=temperature, block_length=3, max_new_tokens=L
  )
  samples = speculative.generate(
      model, params, *trimmed(model, params, EVERY_THIRD),
      *pairs.ragged_inputs(), pairs.keys_of(B), decoding,
  )  # fmt: skip
  pairs.check_statistics(samples, decoding)
  tokens = np.asarray(samples.tokens)
  drafted = np.asarray(samples.origins) == pairs.Origin.ACCEPTED
  assert drafted.any()
  assert np.isin(tokens[drafted], EVERY_THIRD).all()
  assert not np.isin(tokens, EVERY_THIRD).all()  # the target says others, too


@pytest.mark.parametrize(
    'warping', [{}, {'temperature': 0.0}, {'top_k': 3, 'top_p': 0.9}]
)
def test_alone_it_says_only_what_it_has_columns_for(warping):
  draft = trimmed(*pairs.make('encoder_decoder'), EVERY_THIRD)
  decoding = decoding_lib.Decoding(
      **{'temperature': 1.0, **warping}, max_new_tokens=L
  )
  samples = autoregressive.generate(
      *draft, *pairs.ragged_inputs(), pairs.keys_of(B), decoding
  )
  tokens = np.asarray(samples.tokens)
  assert np.isin(tokens, EVERY_THIRD).all()
  assert len(np.unique(tokens)) > 3


def test_a_draft_with_columns_for_all_tokens_is_the_whole_draft():
  model, params = pairs.make('encoder_decoder')
  noisy = pairs.perturbed(params, 0.2)
  decoding = decoding_lib.Decoding(
      temperature=1.0, block_length=3, max_new_tokens=L
  )
  drafts = (model, noisy), trimmed(model, noisy, tuple(range(V)))
  found = [
      speculative.generate(
          model, params, *draft, *pairs.ragged_inputs(), pairs.keys_of(B),
          decoding,
      )
      for draft in drafts
  ]  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_with_lengths_limits_and_log_probabilities_it_is_the_targets():
  model, params = pairs.make('encoder_decoder')
  draft = trimmed(model, pairs.perturbed(params, 0.1), EVERY_THIRD)
  decoding = decoding_lib.Decoding(
      block_length=4,
      max_new_tokens=L,
      eos_ids=(1, 5),  # one that the draft can say
      draft_stop=('entropy', 2.5),
      log_probs=True,
  )
  controls = controls_lib.Controls(
      min_new_tokens=jnp.arange(B, dtype=jnp.int32),
      max_new_tokens=L - jnp.arange(B, dtype=jnp.int32),
  )
  arguments = (*pairs.ragged_inputs(), pairs.keys_of(B), decoding)
  expected = autoregressive.generate(
      model, params, *arguments, controls=controls
  )
  found = speculative.generate(
      model, params, *draft, *arguments, controls=controls
  )
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
  assert (np.asarray(found.nonfinite_at) == -1).all()
  assert found.statistics.accepted.sum() > 0


def test_alone_it_ends_no_sooner_than_it_may_and_knows_its_probabilities():
  draft, params = trimmed(*pairs.make('encoder_decoder'), EVERY_THIRD)
  eos = next(token for token in EVERY_THIRD if token > 20)
  decoding = decoding_lib.Decoding(
      temperature=1.0, max_new_tokens=L, eos_ids=(eos,), log_probs=True
  )
  inputs, segments = pairs.ragged_inputs()
  free, held = (
      autoregressive.generate(
          draft, params, inputs, segments, pairs.keys_of(B), decoding,
          controls=controls_lib.Controls(min_new_tokens=least),
      )
      for least in (None, jnp.full(B, L, jnp.int32))
  )  # fmt: skip
  assert (np.asarray(free.tokens) == eos).any()
  # A column has its token's number nowhere from the second on.
  assert not (np.asarray(held.tokens)[:, :-1] == eos).any()
  ones = jnp.ones_like(held.tokens)
  logits = draft.logits(
      params, inputs, segments, transformer.shift_right(held.tokens, ones), ones
  )
  log_q = np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)),
      np.asarray(held.tokens)[..., None],
      axis=-1,
  )[..., 0]
  real = np.arange(L) < np.asarray(held.lengths)[:, None]
  np.testing.assert_allclose(
      np.asarray(held.log_probs)[real], log_q[real], atol=1e-4
  )


# By enumeration: tables with q = 0 where there is no column.


@pytest.mark.parametrize(
    'verdict_law', [laws.token_law, laws.block_law], ids=['token', 'block']
)
def test_the_law_of_the_rules_is_the_targets(verdict_law):
  v, length, block = 3, 3, 2
  p = laws.random_tables(0, v, length)
  q = {}
  for prefix, law in laws.random_tables(1, v, length).items():
    kept = law * np.array([1.0, 1.0, 0.0])
    q[prefix] = kept / kept.sum()
  expected = laws.sequence_law(p, v, length)
  # Beyond the end the tables of `speculative_law` are uniform: no matter.
  found = laws.speculative_law(p, q, v, length, block, verdict_law)
  assert laws.largest_difference(found, expected) < 1e-12


LAW_TOKENS = (0, 1, 3, 4, 6)


@functools.cache
def law_draft():
  model, _, draft_params = pairs.law_models()
  return trimmed(model, draft_params, LAW_TOKENS)


def speculate(decoding, generate=speculative.generate):
  model, params, _ = pairs.law_models()
  return generate(
      model,
      params,
      *law_draft(),
      *pairs.law_inputs(pairs.ROWS),
      pairs.keys_of(pairs.ROWS, 21),
      decoding,
  )


@pytest.mark.parametrize('rule', ['token', 'block'])
@pytest.mark.parametrize('name', ['plain', 'top_k', 'top_p'])
def test_samples_have_the_targets_law(name, rule):
  decoding = dataclasses.replace(pairs.law_decoding(name, 2), verification=rule)
  samples = speculate(decoding)
  pairs.check_statistics(samples, decoding)
  law = pairs.exact_law(decoding)
  assert pairs.law_p_value(samples.tokens, law) > laws.FALSE_ALARM
  histogram = pairs.accepted_histogram(samples.statistics)
  assert (histogram > pairs.ROWS / 100).all()


def test_several_drafts_have_the_targets_law():
  decoding = dataclasses.replace(pairs.law_decoding('plain', 2), num_drafts=3)
  samples = speculate(decoding)
  law = pairs.exact_law(decoding)
  assert pairs.law_p_value(samples.tokens, law) > laws.FALSE_ALARM
  one = speculate(pairs.law_decoding('plain', 2)).statistics
  assert samples.statistics.block_efficiency > one.block_efficiency


def test_spreading_to_wrong_tokens_is_caught(monkeypatch):
  spread = trimmed_vocabulary.Columns.spread

  def shifted(self, logits):  # q of the neighbours is what is verified
    full = spread(self, logits)
    return full if self.are_all else jnp.roll(full, 1, axis=-1)

  monkeypatch.setattr(trimmed_vocabulary.Columns, 'spread', shifted)
  decoding = pairs.law_decoding('plain', 2)
  samples = speculate(decoding, pairs.fresh())
  law = pairs.exact_law(decoding)
  assert pairs.law_p_value(samples.tokens, law) < laws.FALSE_ALARM


def test_alone_it_has_its_own_law():
  draft, params = law_draft()
  decoding = dataclasses.replace(
      pairs.law_decoding('plain', 1), max_new_tokens=2
  )
  rows = pairs.ROWS
  samples = autoregressive.generate(
      draft, params, *pairs.law_inputs(rows), pairs.keys_of(rows, 4), decoding
  )
  outputs, logits = pairs.all_outputs(draft, params, 2)
  q = np.asarray(jax.nn.softmax(logits), np.float64)
  law = {}
  for row, (a, b) in enumerate(outputs.tolist()):
    chance = q[row, 0, a]
    law[(a, 0) if a == 1 else (a, b)] = chance * (a == 1 or q[row, 1, b])
  assert pairs.law_p_value(samples.tokens, law) > laws.FALSE_ALARM
