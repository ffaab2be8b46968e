"""A draft that shares the target's encoder: what comes out is the target's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from tests import tiny
from tests.sampling import laws
from tests.sampling import pairs

KIND = 'encoder_decoder'


def sharing(model, params, noise):
  """The model reading its own encoder's output as a draft, with noise."""
  return tiny.noisy(tiny.sharing(tiny.Model(model, params)), noise)


def generate(draft, decoding):
  return speculative.generate(
      *pairs.make(KIND),
      *draft,
      *pairs.ragged_inputs(),
      pairs.keys_of(8),
      decoding,
  )


@pytest.mark.parametrize('block', [1, 4])
def test_greedy_tokens_are_the_targets(block):
  decoding = decoding_lib.Decoding(block_length=block, max_new_tokens=pairs.L)
  expected = pairs.greedy_reference(KIND, 8).tokens
  rates = []
  for noise in (0.0, 0.1, 2.0):
    samples = generate(sharing(*pairs.make(KIND), noise), decoding)
    np.testing.assert_array_equal(samples.tokens, expected)
    pairs.check_statistics(samples, decoding)
    rates.append(float(samples.statistics.acceptance_rate))
  assert rates[0] == 1.0 and 0.1 < rates[1] < 1.0


@pytest.mark.parametrize('scan', [False, True])
def test_a_draft_of_another_width_changes_no_greedy_token(scan):
  draft = pairs.make(
      KIND, seed=5, num_encoder_layers=0, encoded_dim=16, emb_dim=8,
      num_decoder_layers=2, scan_layers=scan,
  )  # fmt: skip
  decoding = decoding_lib.Decoding(block_length=3, max_new_tokens=pairs.L)
  samples = generate(draft, decoding)
  np.testing.assert_array_equal(
      samples.tokens, pairs.greedy_reference(KIND, 8).tokens
  )
  pairs.check_statistics(samples, decoding)


def test_both_begin_with_a_prefix():
  model, params = pairs.make(KIND)
  decoding = decoding_lib.Decoding(block_length=3, max_new_tokens=12)
  prefix = jnp.array([[5, 9, 7, 0]] * 4 + [[8, 0, 0, 0]] * 4, jnp.int32)
  controls = controls_lib.Controls(
      prefix=prefix, prefix_segments=(prefix > 0).astype(jnp.int32)
  )
  rest = (*pairs.ragged_inputs(), pairs.keys_of(8), decoding)
  expected = autoregressive.generate(model, params, *rest, controls=controls)
  without = autoregressive.generate(model, params, *rest)
  assert not np.array_equal(expected.tokens, without.tokens)
  for noise in (0.0, 0.1):
    draft = sharing(model, params, noise)
    samples = speculative.generate(
        model, params, *draft, *rest, controls=controls
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    rate = float(samples.statistics.acceptance_rate)
    assert rate == 1.0 if noise == 0.0 else rate < 1.0


@pytest.mark.parametrize('rule', ['token', 'block'])
def test_samples_have_the_targets_law(rule):
  model, params, draft_params = pairs.law_models()
  # The target's encoder stands behind a decoder of another model.
  draft, draft_params = sharing(model, draft_params, 0.1)
  decoding = dataclasses.replace(
      pairs.law_decoding('top_p', 2), verification=rule
  )
  samples = speculative.generate(
      model, params, draft, draft_params, *pairs.law_inputs(pairs.ROWS),
      pairs.keys_of(pairs.ROWS, 11), decoding,
  )  # fmt: skip
  pairs.check_statistics(samples, decoding)
  histogram = pairs.accepted_histogram(samples.statistics)
  assert (histogram > pairs.ROWS / 50).all()
  law = pairs.exact_law(decoding)
  assert pairs.law_p_value(samples.tokens, law) > laws.FALSE_ALARM


def test_the_encoder_runs_once(monkeypatch):
  model, params = pairs.make(KIND)
  draft = sharing(model, params, 0.1)
  runs = []
  encode = transformer.Transformer.encode

  def counted(self, *args):
    runs.append(self)
    return encode(self, *args)

  monkeypatch.setattr(transformer.Transformer, 'encode', counted)
  decoding = decoding_lib.Decoding(block_length=2, max_new_tokens=5)
  inputs = jnp.ones((3, 11), jnp.int32)  # a shape that nothing has cached
  jax.eval_shape(
      lambda: speculative.generate(
          model, params, *draft, inputs, inputs, pairs.keys_of(3), decoding
      )
  )
  assert runs == [model]
