"""Autoregressive generation: the model's own distribution, a call per token."""

import re

import numpy as np
import pytest

from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from tests.sampling import enumeration
from tests.sampling import pairs

B, L, ROWS = pairs.B, pairs.L, pairs.ROWS


def generate(decoding, seed=0):
  return autoregressive.generate(
      pairs.make('decoder_only'), pairs.prompt(), pairs.keys_of(B, seed),
      decoding,
  )  # fmt: skip


@pytest.mark.parametrize('name', ['plain', 'top_p'])
def test_samples_have_the_models_distribution(name):
  target, _ = pairs.small_pair()
  decoding = pairs.small_decoding(name)
  samples = autoregressive.generate(
      target, pairs.small_prompt(), pairs.keys_of(ROWS, 12), decoding
  )
  distribution = pairs.exact_distribution(decoding)
  assert sum(distribution.values()) == pytest.approx(1.0, abs=1e-5)
  p_value = pairs.p_value(samples.tokens, distribution)
  assert p_value > enumeration.FALSE_ALARM
  # The test can fail: the other settings have another distribution.
  other = pairs.small_decoding('top_k' if name == 'plain' else 'plain')
  p_value = pairs.p_value(samples.tokens, pairs.exact_distribution(other))
  assert p_value < enumeration.FALSE_ALARM


def test_another_key_gives_another_sample():
  one, two = (generate(pairs.SAMPLED, seed) for seed in (0, 1))
  assert (np.asarray(one.tokens) != np.asarray(two.tokens)).any(1).all()


def test_each_token_is_one_call_of_the_target():
  samples = generate(pairs.SAMPLED)
  lengths = np.asarray(samples.lengths)
  is_real = np.arange(L)[None] < lengths[:, None]
  np.testing.assert_array_equal(samples.statistics.blocks, lengths)
  np.testing.assert_array_equal(samples.statistics.emitted, lengths)
  assert (np.asarray(samples.statistics.drafted) == 0).all()
  assert samples.statistics.block_efficiency == 1.0
  assert samples.statistics.acceptance_rate == 0.0
  np.testing.assert_array_equal(
      np.asarray(samples.origins), np.where(is_real, pairs.Origin.TARGET, 0)
  )
  assert (np.asarray(samples.tokens)[~is_real] == 0).all()
  assert samples.log_probs is None


def test_tokens_beyond_a_vocabulary_size_are_never_emitted():
  tokens = autoregressive.generate(
      pairs.make('decoder_only'), pairs.prompt(), pairs.keys_of(),
      pairs.SAMPLED, vocabulary_size=pairs.V // 2,
  ).tokens  # fmt: skip
  assert np.asarray(generate(pairs.SAMPLED).tokens).max() >= pairs.V // 2
  assert np.asarray(tokens).max() < pairs.V // 2


def test_a_loop_over_one_row_copies_no_cache(monkeypatch):
  model = pairs.make('decoder_only')
  read = pairs.prompt(1), pairs.keys_of(1), pairs.SAMPLED

  def copies():
    autoregressive.generate.clear_cache()
    text = autoregressive.generate.lower(model, *read).compile().as_text()
    autoregressive.generate.clear_cache()
    cache = rf'f32\[1,{model.config.num_heads},\d+,{model.config.head_dim}\]'
    bodies = [part for part in text.split('\n\n') if 'while/body' in part]
    return sum(len(re.findall(cache + r'\S* copy\(', part)) for part in bodies)

  assert copies() == 0
  monkeypatch.setattr(model_lib.DecodeState, 'carried', lambda state: state)
  assert copies() > 0
