"""Named streams: reproducible, different by name, row and event."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from distillspec_jax.core import randomness

FALSE_ALARM = 1e-6  # chance that correct code fails one assertion
V = 5
N = 50_000


def data(keys):
  return [tuple(row) for row in np.atleast_2d(jax.random.key_data(keys))]


def test_streams_differ_by_name_and_repeat_by_name():
  key = jax.random.key(0)
  names = ['accept', 'draft', 'dropout', 'next', 'data', 'init']
  derived = [data(randomness.stream(key, name))[0] for name in names]
  assert len({*derived, data(key)[0]}) == len(names) + 1
  assert data(randomness.stream(key, 'draft'))[0] == derived[1]


def test_a_stream_is_the_same_in_every_process():
  # Python's own hash of a string changes from process to process.
  value = jax.random.key_data(randomness.stream(jax.random.key(0), 'draft'))
  expected = jax.random.fold_in(jax.random.key(0), 1_182_570_132)
  np.testing.assert_array_equal(value, jax.random.key_data(expected))


def test_every_row_has_a_key_of_its_own_whatever_the_batch():
  key = jax.random.key(3)
  eight = data(randomness.row_keys(key, 8))
  assert len(set(eight)) == 8
  assert data(randomness.row_keys(key, 3)) == eight[:3]
  numbers = jnp.array([5, 2])
  assert data(randomness.row_keys(key, numbers)) == [eight[5], eight[2]]


def test_streams_and_events_of_rows_never_meet():
  keys = randomness.row_keys(jax.random.key(0), 4)
  seen = data(keys)
  for number in range(3):
    keys_now = randomness.events(keys, number)
    seen += data(keys_now)
    for name in ('draft', 'accept', 'next'):
      seen += data(randomness.streams(keys_now, name))
  assert len(set(seen)) == len(seen) == 4 * (1 + 3 * 4)


def test_an_event_number_may_be_traced():
  keys = randomness.row_keys(jax.random.key(0), 2)
  traced = jax.jit(randomness.events)(keys, jnp.int32(7))
  assert data(traced) == data(randomness.events(keys, 7))


def test_rows_draw_the_same_alone_and_together():
  keys = randomness.row_keys(jax.random.key(1), 6)
  logits = jax.random.normal(jax.random.key(2), (6, V))
  together = randomness.categorical(keys, logits)
  assert together.dtype == jnp.int32
  for i in range(6):
    alone = randomness.categorical(keys[i : i + 1], logits[i : i + 1])
    assert alone[0] == together[i]
  uniform = randomness.uniform(keys, (3,))
  assert uniform.shape == (6, 3)
  np.testing.assert_array_equal(randomness.uniform(keys[4:], (3,)), uniform[4:])


def test_categorical_follows_its_logits_over_rows():
  p = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
  logits = jnp.log(jnp.broadcast_to(jnp.array(p), (N, V)))
  keys = randomness.row_keys(jax.random.key(5), N)
  observed = np.bincount(randomness.categorical(keys, logits), minlength=V)
  assert observed[-1] == 0  # -inf is never drawn
  p_value = stats.chisquare(observed[:-1], N * p[:-1]).pvalue
  assert p_value > FALSE_ALARM


def test_uniform_is_uniform_over_rows():
  keys = randomness.row_keys(jax.random.key(6), N)
  values = np.asarray(randomness.uniform(keys))
  assert values.min() >= 0.0 and values.max() < 1.0
  assert stats.kstest(values, 'uniform').pvalue > FALSE_ALARM
