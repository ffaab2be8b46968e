"""A draft that shares the target's encoder: the output is the target's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from tests import tiny
from tests.sampling import enumeration
from tests.sampling import pairs


@functools.cache
def draft(noise):
  """The model reading its own encoder's output as a draft, with noise."""
  return tiny.noisy(tiny.sharing(pairs.make()), noise)


def generate(draft, decoding, **settings):
  return speculative.generate(
      pairs.make(), draft, pairs.prompt(), pairs.keys_of(), decoding, **settings
  )


@pytest.mark.parametrize('block', [1, 4])
def test_greedy_tokens_are_the_targets(block):
  decoding = pairs.decoding(length=block)
  expected = pairs.greedy_reference('encoder_decoder').tokens
  rates = []
  for noise in (0.0, 0.1, 2.0):
    samples = generate(draft(noise), decoding)
    np.testing.assert_array_equal(samples.tokens, expected)
    pairs.check_statistics(samples, decoding)
    rates.append(float(samples.statistics.acceptance_rate))
  assert rates[0] == 1.0 and 0.1 < rates[1] < 1.0


@pytest.mark.parametrize('scan', [False, True])
def test_a_draft_of_another_width_changes_no_greedy_token(scan):
  draft = pairs.make(
      'encoder_decoder', seed=5, encoded_dim=16, emb_dim=8,
      num_decoder_layers=2, scan_layers=scan,
  )  # fmt: skip
  decoding = pairs.decoding(length=3)
  samples = generate(draft, decoding)
  expected = pairs.greedy_reference('encoder_decoder').tokens
  np.testing.assert_array_equal(samples.tokens, expected)
  pairs.check_statistics(samples, decoding)


def test_both_begin_with_a_prefix():
  decoding = pairs.decoding(length=3, max_new_tokens=12)
  tokens = jnp.array([[5, 9, 7, 0]] * 4 + [[8, 0, 0, 0]] * 4, jnp.int32)
  prefix = types.Prompt(tokens, (tokens > 0).astype(jnp.int32))
  expected, without = (
      autoregressive.generate(
          pairs.make(), pairs.prompt(), pairs.keys_of(), decoding,
          controls=controls_lib.Controls(prefix=prefix),
      )
      for prefix in (prefix, None)
  )  # fmt: skip
  assert not np.array_equal(expected.tokens, without.tokens)
  controls = controls_lib.Controls(prefix=prefix)
  for noise in (0.0, 0.1):
    samples = generate(draft(noise), decoding, controls=controls)
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    rate = float(samples.statistics.acceptance_rate)
    assert rate == 1.0 if noise == 0.0 else rate < 1.0


@pytest.mark.parametrize('verifier', ['token', 'block'])
def test_samples_have_the_targets_distribution(verifier):
  # The target's encoder, behind the decoder of another model.
  draft = tiny.noisy(tiny.sharing(pairs.small_pair()[1]), 0.1)
  decoding = pairs.small_decoding(
      'top_p', length=2, verifier=verification.parse(verifier)
  )
  samples = pairs.speculate(decoding, draft=draft)
  pairs.check_statistics(samples, decoding)
  histogram = pairs.accepted_histogram(samples.statistics)
  assert (histogram > pairs.ROWS / 50).all()
  distribution = pairs.exact_distribution(decoding)
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value > enumeration.FALSE_ALARM


def test_the_encoder_runs_once(monkeypatch):
  runs = []
  encode = model_lib.Model.encode

  def counted(self, *args):
    runs.append(self.network)
    return encode(self, *args)

  monkeypatch.setattr(model_lib.Model, 'encode', counted)
  tokens = jnp.ones((3, 11), jnp.int32)  # a shape that nothing has cached
  jax.eval_shape(
      lambda: speculative.generate(
          pairs.make(), draft(0.1), types.Prompt(tokens, tokens),
          pairs.keys_of(3), pairs.decoding(length=2, max_new_tokens=5),
      )
  )  # fmt: skip
  assert runs == [pairs.make().network]
