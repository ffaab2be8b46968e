"""Which tokens are kept, and that the logits of those that are stay."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import trim_vocabulary
from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib
from tests.checkpoints import models

# Letters are tokens from 3 on: 'a' is 3, 'b' 4, ...
LETTERS = types.SimpleNamespace(
    encode=lambda text: [ord(letter) - ord('a') + 3 for letter in text],
    unk_id=2,
)


def choose(texts, size, vocabulary=LETTERS, vocab_size=16):
  return trim_vocabulary.choose_tokens(texts, vocabulary, vocab_size, size)


def test_the_most_frequent_are_chosen_and_what_they_cover_is_counted():
  # 'h' three times, 'c' twice, 'b' and 'e' once; EOS ends both texts.
  chosen = choose(['hch', 'hceb'], 5)
  assert chosen == ((0, 1, 2, 5, 10), 2 + 3 + 2, 9)


def test_of_equally_frequent_tokens_the_lower_are_taken():
  assert choose(['hceb'], 5).tokens == (0, 1, 2, 4, 5)


def test_tokens_that_do_not_occur_fill_up_in_order():
  assert choose(['h'], 7).tokens == (0, 1, 2, 3, 4, 5, 10)
  everything = choose(['h'], 16)
  assert everything.tokens == tuple(range(16))
  assert everything.num_covered == everything.num_total == 2


def test_special_tokens_stay_however_rare_they_are():
  assert choose(['hhhhhcccc'], 3).tokens == (0, 1, 2)
  without = types.SimpleNamespace(encode=LETTERS.encode)
  assert choose(['hh'], 3, without).tokens == (0, 1, 10)


@pytest.mark.parametrize('size', [2, 17, -1])
def test_a_size_out_of_range_is_refused(size):
  with pytest.raises(errors.UserError, match=rf'is {size}; .* in \[3, 16\]'):
    choose(['h'], size)


def test_no_text_is_refused():
  with pytest.raises(errors.UserError, match='no text'):
    choose([], 5)


def checkpoint(**changes):
  config = config_lib.published('test', vocab_size=32, **changes)
  arrays = models.random_arrays(config)
  return parameters.Checkpoint(config, models.as_tensors(arrays))


def logits(checkpoint):
  model = loading.place(checkpoint, 'model')
  tokens = jnp.arange(2, 14).reshape(2, 6)
  return np.asarray(model.logits(tokens, tokens))


TOKENS = (0, 1, 7, 8, 30)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'logits_via_embedding': True},
        {'logits_via_embedding': True, 'scale_logits': False},
        {'num_encoder_layers': 0},
        {'scan_layers': True},
    ],
)
def test_the_logits_that_stay_are_those_of_the_whole_layer(changes):
  whole = checkpoint(**changes)
  trimmed = trim_vocabulary.trim(whole, TOKENS)
  assert trimmed.tensors['decoder/logits_dense/kernel'].shape == (16, 5)
  before, after = logits(whole), logits(trimmed)
  inside = list(TOKENS)
  np.testing.assert_allclose(
      after[..., inside], before[..., inside], rtol=1e-5, atol=1e-6
  )
  others = np.setdiff1d(np.arange(32), inside)
  assert (after[..., others] == -np.inf).all()


def test_a_layer_that_is_trimmed_already_is_refused():
  trimmed = trim_vocabulary.trim(checkpoint(), TOKENS)
  with pytest.raises(errors.UserError, match='5 of 32 tokens already'):
    trim_vocabulary.trim(trimmed, (0, 1))
