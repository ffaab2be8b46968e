"""Columns and tokens: there and back, and what has no column."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import trimmed_vocabulary

TOKENS = (0, 1, 4, 6)
V = 8
CUT = trimmed_vocabulary.Columns(TOKENS, V)
ALL = trimmed_vocabulary.Columns(None, V)


def logits(size, seed=0):
  return jnp.asarray(
      np.random.default_rng(seed).normal(size=(2, 3, size)), jnp.float32
  )


def test_spread_puts_each_column_at_its_token():
  compact = logits(4)
  full = np.asarray(CUT.spread(compact))
  assert full.shape == (2, 3, V)
  np.testing.assert_array_equal(full[..., list(TOKENS)], compact)
  others = [token for token in range(V) if token not in TOKENS]
  assert (full[..., others] == -np.inf).all()
  np.testing.assert_array_equal(CUT.gather(CUT.spread(compact)), compact)


def test_tokens_and_columns_are_inverse():
  numbers = jnp.arange(4)
  np.testing.assert_array_equal(CUT.tokens(numbers), TOKENS)
  columns, known = CUT.of(jnp.arange(V))
  np.testing.assert_array_equal(np.flatnonzero(known), TOKENS)
  np.testing.assert_array_equal(columns[known], numbers)
  assert (columns[~known] == 0).all()
  assert CUT.tokens(numbers).dtype == columns.dtype == jnp.int32


def test_what_has_no_column_is_put_together():
  full = logits(V).at[0, 0, 5].set(-jnp.inf)
  p = np.asarray(jax.nn.softmax(full))
  together = np.asarray(jax.nn.softmax(CUT.gather_and_rest(full)))
  inside = list(TOKENS)
  np.testing.assert_allclose(together[..., :-1], p[..., inside], rtol=1e-5)
  rest = np.delete(p, inside, axis=-1).sum(-1)
  np.testing.assert_allclose(together[..., -1], rest, rtol=1e-5)


def test_nothing_is_left_where_every_token_has_a_column():
  every = trimmed_vocabulary.Columns(tuple(range(V)), V)
  full = logits(V)
  together = np.asarray(every.gather_and_rest(full))
  np.testing.assert_array_equal(together[..., :-1], full)
  assert (together[..., -1] == -np.inf).all()


@pytest.mark.parametrize('vocabulary, count', [(8, 4), (6, 3), (5, 3), (4, 2)])
def test_tokens_from_the_vocabulary_on_are_left_out(vocabulary, count):
  columns = trimmed_vocabulary.Columns(TOKENS, vocabulary)
  compact = logits(4)
  np.testing.assert_array_equal(columns.cut(compact), compact[..., :count])
  full = columns.spread(columns.cut(compact))
  assert full.shape == (2, 3, vocabulary)
  finite = np.flatnonzero(np.isfinite(full[0, 0]))
  np.testing.assert_array_equal(finite, TOKENS[:count])


def test_a_whole_layer_is_left_as_it_is():
  full = logits(V)
  for same in (ALL.spread, ALL.gather, ALL.cut):
    assert same(full) is full or (same(full) == full).all()
  np.testing.assert_array_equal(ALL.tokens(jnp.arange(V)), np.arange(V))
  columns, known = ALL.of(jnp.arange(V))
  np.testing.assert_array_equal(columns, np.arange(V))
  assert known.all()
  shorter = trimmed_vocabulary.Columns(None, 5)
  np.testing.assert_array_equal(shorter.cut(full), full[..., :5])
