"""Logits and tokens of a trimmed vocabulary: there and back, and the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import trimmed_vocabulary

TOKENS = (0, 1, 4, 6)
V = 8
TRIMMED = trimmed_vocabulary.TrimmedVocabulary(TOKENS, V)
FULL = trimmed_vocabulary.TrimmedVocabulary(None, V)


def logits(size, seed=0):
  return jnp.asarray(
      np.random.default_rng(seed).normal(size=(2, 3, size)), jnp.float32
  )


def test_expanding_puts_each_logit_at_its_token():
  own = logits(4)
  expanded = np.asarray(TRIMMED.expand(own))
  assert expanded.shape == (2, 3, V)
  np.testing.assert_array_equal(expanded[..., list(TOKENS)], own)
  others = [token for token in range(V) if token not in TOKENS]
  assert (expanded[..., others] == -np.inf).all()
  np.testing.assert_array_equal(TRIMMED.gather(TRIMMED.expand(own)), own)


def test_tokens_and_indices_are_inverse():
  numbers = jnp.arange(4)
  np.testing.assert_array_equal(TRIMMED.to_tokens(numbers), TOKENS)
  index, is_kept = TRIMMED.to_indices(jnp.arange(V))
  np.testing.assert_array_equal(np.flatnonzero(is_kept), TOKENS)
  np.testing.assert_array_equal(index[is_kept], numbers)
  assert (index[~is_kept] == 0).all()
  assert TRIMMED.to_tokens(numbers).dtype == index.dtype == jnp.int32


def test_trimmed_tokens_are_merged_into_one():
  full = logits(V).at[0, 0, 5].set(-jnp.inf)
  p = np.asarray(jax.nn.softmax(full))
  merged = np.asarray(jax.nn.softmax(TRIMMED.gather_with_rest(full)))
  inside = list(TOKENS)
  np.testing.assert_allclose(merged[..., :-1], p[..., inside], rtol=1e-5)
  rest = np.delete(p, inside, axis=-1).sum(-1)
  np.testing.assert_allclose(merged[..., -1], rest, rtol=1e-5)


def test_there_is_no_rest_where_every_token_is_kept():
  every = trimmed_vocabulary.TrimmedVocabulary(tuple(range(V)), V)
  full = logits(V)
  merged = np.asarray(every.gather_with_rest(full))
  np.testing.assert_array_equal(merged[..., :-1], full)
  assert (merged[..., -1] == -np.inf).all()
  assert not every.is_full  # its output layer has parameters of its own


@pytest.mark.parametrize('size, count', [(8, 4), (6, 3), (5, 3), (4, 2)])
def test_tokens_from_the_size_on_do_not_exist(size, count):
  vocabulary = trimmed_vocabulary.TrimmedVocabulary(TOKENS, size)
  own = logits(4)
  np.testing.assert_array_equal(vocabulary.trim(own), own[..., :count])
  expanded = vocabulary.expand(vocabulary.trim(own))
  assert expanded.shape == (2, 3, size)
  finite = np.flatnonzero(np.isfinite(expanded[0, 0]))
  np.testing.assert_array_equal(finite, TOKENS[:count])
  np.testing.assert_array_equal(
      vocabulary.to_tokens(jnp.arange(count)), TOKENS[:count]
  )


def test_a_full_vocabulary_is_left_as_it_is():
  full = logits(V)
  assert FULL.is_full and not TRIMMED.is_full
  for same in (FULL.expand, FULL.gather, FULL.trim):
    assert same(full) is full or (same(full) == full).all()
  np.testing.assert_array_equal(FULL.to_tokens(jnp.arange(V)), np.arange(V))
  index, is_kept = FULL.to_indices(jnp.arange(V))
  np.testing.assert_array_equal(index, np.arange(V))
  assert is_kept.all()
  shorter = trimmed_vocabulary.TrimmedVocabulary(None, 5)
  np.testing.assert_array_equal(shorter.trim(full), full[..., :5])


def test_equal_vocabularies_are_one_key_of_the_compilation_cache():
  again = trimmed_vocabulary.TrimmedVocabulary(tuple(TOKENS), V)
  assert again._tokens is not TRIMMED._tokens  # cached in each, not compared
  assert again == TRIMMED and hash(again) == hash(TRIMMED)
  assert again != trimmed_vocabulary.TrimmedVocabulary(TOKENS, V - 1)
