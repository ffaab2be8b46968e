"""An int8 draft changes no token and no distribution; an int8 target may."""

import functools

import numpy as np
import pytest

from distillspec_jax.models import int8
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from tests import tiny
from tests.sampling import enumeration
from tests.sampling import pairs

pytest.importorskip(
    'qwix', reason="needs qwix: pip install 'distillspec_jax[int8]'"
)
QUANTIZED = int8.KINDS[1:]


@pytest.mark.parametrize('weights', QUANTIZED)
@pytest.mark.parametrize('kind', pairs.KINDS)
def test_greedy_tokens_are_the_targets_whatever_the_draft(kind, weights):
  expected = pairs.greedy_reference(kind)
  decoding = pairs.decoding(length=3)
  accepted = 0
  for scale in (0.0, 0.2):
    draft = tiny.quantized(pairs.noisy(kind, scale), weights)
    samples = speculative.generate(
        pairs.make(kind), draft, pairs.prompt(), pairs.keys_of(), decoding
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    pairs.check_statistics(samples, decoding)
    accepted += int(samples.statistics.accepted.sum())
  assert accepted > 0


@pytest.mark.parametrize(
    'kind, paths', [('encoder_decoder', 1), ('decoder_only', 2)]
)
def test_greedy_tokens_are_those_of_an_int8_target(kind, paths):
  target = tiny.quantized(pairs.make(kind), 'int8_weight_only')
  expected = autoregressive.generate(
      target, pairs.prompt(), pairs.keys_of(), pairs.decoding()
  )
  # It is another target than the float one.
  of_float = pairs.greedy_reference(kind)
  assert (np.asarray(expected.tokens) != np.asarray(of_float.tokens)).any()
  decoding = pairs.decoding(length=3, paths=paths)
  for draft in (pairs.make(kind), tiny.quantized(pairs.make(kind))):
    samples = speculative.generate(
        target, draft, pairs.prompt(), pairs.keys_of(), decoding
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)


@functools.cache
def small_draft(weights):
  return tiny.quantized(pairs.small_pair()[1], weights)


@pytest.mark.parametrize('weights', QUANTIZED)
@pytest.mark.parametrize('verifier', ['token', 'block'])
def test_samples_have_the_targets_distribution(verifier, weights):
  decoding = pairs.small_decoding(
      length=2, verifier=verification.parse(verifier)
  )
  samples = pairs.speculate(decoding, draft=small_draft(weights))
  pairs.check_statistics(samples, decoding)
  histogram = pairs.accepted_histogram(samples.statistics)
  assert (histogram > pairs.ROWS / 20).all()
  distribution = pairs.exact_distribution(decoding)
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value > enumeration.FALSE_ALARM


def test_a_verifier_that_resamples_the_target_is_caught():
  decoding = pairs.small_decoding(
      length=2, verifier=enumeration.ResamplesTarget()
  )
  samples = pairs.speculate(decoding, draft=small_draft('int8'))
  distribution = pairs.exact_distribution(decoding)
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value < enumeration.FALSE_ALARM
