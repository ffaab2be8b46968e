import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import rollouts
from tests import tiny


@pytest.fixture(scope='module')
def pair():
  draft = tiny.model(tiny.BYTES)
  return draft, tiny.model(tiny.BYTES, seed=1, num_decoder_layers=2)


@pytest.fixture(scope='module')
def batch():
  inputs = jax.random.randint(jax.random.key(2), (6, 5), 3, 90)
  labels = jax.random.randint(jax.random.key(3), (6, 7), 3, 90)
  # The last row fills up the batch: it has no tokens.
  segments = jnp.ones((6, 7), jnp.int32).at[-1].set(0)
  return types.Batch(
      inputs, jnp.ones_like(inputs), labels, segments, segments > 0
  )


def labelled(batch, pair, key=0, **method):
  return rollouts.with_labels(
      batch,
      batch.prompt,
      jax.random.key(key),
      method_lib.Method(**method),
      *pair,
  )


def test_fixed_labels_are_those_of_the_dataset(batch, pair):
  relabelled, source = labelled(batch, pair)
  np.testing.assert_array_equal(relabelled.labels, batch.labels)
  assert source == rollouts.DATASET


@pytest.mark.parametrize('draft_fraction', [0.0, 1.0])
def test_sampled_labels_are_masked_after_their_end(batch, pair, draft_fraction):
  relabelled, source = labelled(
      batch, pair, fixed_fraction=0.0, draft_fraction=draft_fraction
  )
  assert source == (rollouts.DRAFT if draft_fraction else rollouts.TARGET)
  labels, mask = np.asarray(relabelled.labels), np.asarray(relabelled.mask)
  assert not np.array_equal(labels, batch.labels)
  assert not mask[-1].any()
  for row, on in zip(labels[:-1], mask[:-1]):
    length = on.sum()
    assert length >= 1
    assert on[:length].all()
    assert (row[length:] == 0).all()
    ended = np.flatnonzero(row[:length] == 1)
    # EOS counts in the loss, and only its first stands.
    assert list(ended) in ([], [length - 1])
    if length < len(row):
      assert list(ended) == [length - 1]


def test_sampling_depends_on_the_key_alone(batch, pair):
  one, _ = labelled(batch, pair, fixed_fraction=0.0)
  again, _ = labelled(batch, pair, fixed_fraction=0.0)
  other, _ = labelled(batch, pair, key=1, fixed_fraction=0.0)
  np.testing.assert_array_equal(one.labels, again.labels)
  assert not np.array_equal(one.labels, other.labels)


def test_labels_are_sampled_at_the_methods_temperature(batch, pair):
  # At 0 they are the draft's greedy tokens, whatever the key.
  greedy = autoregressive.generate(
      pair[0],
      batch.prompt,
      randomness.row_keys(jax.random.key(9), 6),
      decoding_lib.Decoding(max_new_tokens=7),
  )
  for key in range(2):
    relabelled, _ = labelled(
        batch, pair, key=key, fixed_fraction=0.0, temperature=0.0
    )
    np.testing.assert_array_equal(relabelled.labels[:-1], greedy.tokens[:-1])


def test_sources_are_drawn_at_their_fractions():
  method = method_lib.Method(fixed_fraction=0.3, draft_fraction=0.6)
  keys = jax.random.split(jax.random.key(0), 20_000)
  drawn = jax.vmap(lambda key: rollouts.draw_source(key, method))(keys)
  counts = np.bincount(drawn, minlength=3) / len(keys)
  # Six standard errors: 2e-9 a source that correct code fails.
  expected = np.array([0.3, 0.7 * 0.6, 0.7 * 0.4])
  error = np.sqrt(expected * (1 - expected) / len(keys))
  assert (np.abs(counts - expected) < 6 * error).all()
  assert not (np.abs(counts - expected[::-1]) < 6 * error).all()


def test_a_mixture_takes_each_source(batch, pair):
  seen = set()
  for key in range(12):
    relabelled, source = labelled(
        batch, pair, key=key, fixed_fraction=0.5, draft_fraction=0.5
    )
    same = np.array_equal(relabelled.labels[:-1], batch.labels[:-1])
    assert same == (source == rollouts.DATASET)
    seen.add(int(source))
  assert len(seen) >= 2  # all twelve alike: 3 in a million
