"""Perplexity against its formula."""

import jax
import numpy as np
import pytest

from distillspec_jax.evaluation import perplexity
from distillspec_jax.models import model as model_lib
from tests import tiny


def by_hand(model, batch):
  """Nats and tokens of each row, position by position."""
  tokens = model_lib.shift_right(batch.labels, batch.segments)
  logits = model.logits(batch.prompt, tokens, batch.segments)
  log_p = np.asarray(jax.nn.log_softmax(logits))
  nats, counts = [], []
  for row, labels in enumerate(np.asarray(batch.labels)):
    length = int(np.sum(batch.segments[row] > 0))
    nats.append(-sum(log_p[row, t, labels[t]] for t in range(length)))
    counts.append(length)
  return np.array(nats), np.array(counts)


def test_nats_and_tokens_of_every_label():
  batch, target = tiny.batch(4), tiny.target()
  nats, counts = perplexity.measure(target, [batch, batch])
  expected, lengths = by_hand(target.model, jax.device_put(batch))
  np.testing.assert_allclose(nats, np.tile(expected, 2), rtol=1e-4)
  np.testing.assert_array_equal(counts, np.tile(lengths, 2))


def test_the_mean_of_contributions_is_the_perplexity():
  rng = np.random.default_rng(0)
  counts = rng.integers(1, 60, 2000)
  nats = counts * rng.uniform(2.0, 4.0, 2000)
  values = perplexity.contributions(nats, counts)
  assert values.mean() == pytest.approx(np.exp(nats.sum() / counts.sum()))
  drawn = rng.integers(0, 2000, (400, 2000))
  again = np.exp(nats[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
  error = values.std() / np.sqrt(len(values))
  assert error == pytest.approx(again.std(), rel=0.2)  # 5.6 standard errors
