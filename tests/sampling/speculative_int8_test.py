"""int8 drafts change no token and no law; an int8 target has its own."""

import dataclasses
import functools

import numpy as np
import pytest

from distillspec_jax.models import int8
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from tests import tiny
from tests.sampling import laws
from tests.sampling import pairs

pytest.importorskip('qwix', reason="needs qwix: pip install -e '.[int8]'")
B, L = pairs.B, pairs.L
QUANTIZED = int8.KINDS[1:]


def quantized(model, params, weights='int8'):
  return tiny.quantized(tiny.Model(model, params), weights)


@pytest.mark.parametrize('weights', QUANTIZED)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_the_targets_whatever_the_draft(kind, weights):
  model, params = pairs.make(kind)
  expected = pairs.greedy_reference(kind, B)
  decoding = decoding_lib.Decoding(block_length=3, max_new_tokens=L)
  accepted = 0
  for scale in (0.0, 0.2):
    draft = quantized(model, pairs.perturbed(params, scale), weights)
    samples = speculative.generate(
        model, params, *draft, *pairs.ragged_inputs(), pairs.keys_of(B),
        decoding,
    )  # fmt: skip
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    pairs.check_statistics(samples, decoding)
    accepted += int(samples.statistics.accepted.sum())
  assert accepted > 0


@pytest.mark.parametrize(
    'kind, num_drafts', [('encoder_decoder', 1), ('decoder_only', 2)]
)
def test_greedy_tokens_are_those_of_an_int8_target(kind, num_drafts):
  model, params = pairs.make(kind)
  target = quantized(model, params, 'int8_weight_only')
  decoding = decoding_lib.Decoding(max_new_tokens=L, block_length=1)
  expected = autoregressive.generate(
      *target, *pairs.ragged_inputs(), pairs.keys_of(B), decoding
  )
  # It is another target than the float one.
  of_float = pairs.greedy_reference(kind, B)
  assert (np.asarray(expected.tokens) != np.asarray(of_float.tokens)).any()
  decoding = dataclasses.replace(
      decoding, block_length=3, num_drafts=num_drafts
  )
  for draft in ((model, params), quantized(model, params)):
    samples = speculative.generate(
        *target, *draft, *pairs.ragged_inputs(), pairs.keys_of(B), decoding
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)


@functools.cache
def law_draft(weights):
  model, _, draft_params = pairs.law_models()
  return quantized(model, draft_params, weights)


def speculate(decoding, weights='int8', generate=speculative.generate):
  model, params, _ = pairs.law_models()
  return generate(
      model,
      params,
      *law_draft(weights),
      *pairs.law_inputs(pairs.ROWS),
      pairs.keys_of(pairs.ROWS, 31),
      decoding,
  )


@pytest.mark.parametrize('weights', QUANTIZED)
@pytest.mark.parametrize('rule', ['token', 'block'])
def test_samples_have_the_targets_law(rule, weights):
  decoding = dataclasses.replace(
      pairs.law_decoding('plain', 2), verification=rule
  )
  samples = speculate(decoding, weights)
  pairs.check_statistics(samples, decoding)
  histogram = pairs.accepted_histogram(samples.statistics)
  assert (histogram > pairs.ROWS / 20).all()
  law = pairs.exact_law(decoding)
  assert pairs.law_p_value(samples.tokens, law) > laws.FALSE_ALARM


def test_a_verifier_that_resamples_the_target_is_caught(monkeypatch):
  monkeypatch.setattr(verification, 'token', laws.resamples_target)
  decoding = pairs.law_decoding('plain', 2)
  samples = speculate(decoding, generate=pairs.fresh())
  law = pairs.exact_law(decoding)
  assert pairs.law_p_value(samples.tokens, law) < laws.FALSE_ALARM
