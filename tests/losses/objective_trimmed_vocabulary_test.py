"""Objectives of a draft with a trimmed vocabulary: those of the full one.

The reference expands q to all tokens, 0 where they are trimmed, and writes the
formulas down in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import trimmed_vocabulary
from distillspec_jax.losses import divergences
from distillspec_jax.losses import objective

B, T, V = 3, 7, 13
TOKENS = (0, 1, 4, 5, 9, 12)
INSIDE = np.array(TOKENS)
TRIMMED = trimmed_vocabulary.TrimmedVocabulary(TOKENS, V)
NAMES = {
    'forward_kl': None,
    'reverse_kl': None,
    'jsd': 0.3,
    'total_variation': None,
}


def identity(logits):
  return logits


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(2 * rng.normal(size=shape), jnp.float32)
  mask = np.arange(T)[None] < np.array([T, 5, 1])[:, None]
  labels = rng.integers(V, size=(B, T))
  return {
      'p_logits': normal(B, T, V),
      'q_logits': normal(B, T, len(TOKENS)),
      'labels': jnp.asarray(labels, jnp.int32),
      'mask': jnp.asarray(mask),
  }


def distil(name, batch, q_logits, chunk=3, vocabulary=TRIMMED):
  return objective.distillation(
      identity,
      identity,
      batch['p_logits'],
      q_logits,
      batch['labels'],
      batch['mask'],
      divergences.named(name, NAMES[name], covered=True),
      chunk,
      vocabulary,
  )


def softmax(logits):
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def tables(batch):
  """p and q float64[B, T, V], q of all tokens."""
  p = softmax(np.asarray(batch['p_logits'], np.float64))
  q = np.zeros_like(p)
  q[..., INSIDE] = softmax(np.asarray(batch['q_logits'], np.float64))
  return p, q


def sum_of_ratios(a, b):
  """sum_v a log(a / b), where a is 0 nothing."""
  safe = lambda x: np.where(a > 0, x, 1.0)
  return np.sum(np.where(a > 0, a * np.log(safe(a) / safe(b)), 0.0), -1)


def covered(p):
  kept = np.zeros_like(p)
  kept[..., INSIDE] = p[..., INSIDE]
  return kept / kept.sum(-1, keepdims=True)


def value_of(name, p, q):
  """The formula over all tokens."""
  m = NAMES['jsd'] * p + (1 - NAMES['jsd']) * q
  return {
      'forward_kl': sum_of_ratios(covered(p), q),
      'reverse_kl': sum_of_ratios(q, p),
      'jsd': NAMES['jsd'] * sum_of_ratios(p, m)
      + (1 - NAMES['jsd']) * sum_of_ratios(q, m),
      'total_variation': 0.5 * np.abs(p - q).sum(-1),
  }[name]


def gradient_of(name, p, q):
  """In the logits of q, with q as a table of all tokens; 0 where q is 0."""
  if name == 'forward_kl':
    return q - covered(p)
  if name == 'total_variation':
    sign = np.sign(q - p)
    return 0.5 * q * (sign - (q * sign).sum(-1, keepdims=True))
  other, weight = p, 1.0
  if name == 'jsd':
    weight = 1 - NAMES['jsd']
    other = NAMES['jsd'] * p + weight * q
  ratio = np.log(np.where(q > 0, q, 1.0) / np.where(q > 0, other, 1.0))
  return weight * q * (ratio - sum_of_ratios(q, other)[..., None])


@pytest.mark.parametrize('chunk', [3, 8])
@pytest.mark.parametrize('name', NAMES)
def test_value_and_gradient_are_those_of_all_tokens(name, chunk):
  batch = make_batch()
  value, gradient = jax.jit(
      jax.value_and_grad(
          lambda q: distil(name, batch, q, chunk=chunk)['loss'].total
      )
  )(batch['q_logits'])
  p, q = tables(batch)
  mask = np.asarray(batch['mask'])
  np.testing.assert_allclose(value, value_of(name, p, q)[mask].sum(), rtol=2e-6)
  expected = np.where(mask[..., None], gradient_of(name, p, q), 0.0)
  np.testing.assert_allclose(gradient, expected[..., INSIDE], atol=1e-6)
  assert np.abs(np.delete(expected, INSIDE, -1)).max() == 0.0


def test_leaving_out_what_q_cannot_emit_is_caught():
  # The twin: p renormalised over q's tokens is another distance.
  batch = make_batch()
  value = distil('total_variation', batch, batch['q_logits'])['loss'].total
  p, q = tables(batch)
  wrong = value_of('total_variation', covered(p), q)
  assert abs(value - wrong[np.asarray(batch['mask'])].sum()) > 0.1


def test_metrics_are_those_of_all_tokens():
  batch = make_batch()
  means = distil('total_variation', batch, batch['q_logits'])
  p, q = tables(batch)
  mask = np.asarray(batch['mask'])
  labels = np.asarray(batch['labels'])[..., None]
  p_label = np.take_along_axis(p, labels, -1)[..., 0]
  q_label = np.take_along_axis(q, labels, -1)[..., 0]
  known = mask & (q_label > 0)
  assert 0 < known.sum() < mask.sum()
  expected = {
      'loss': value_of('total_variation', p, q)[mask].mean(),
      'expected_acceptance': np.minimum(p, q).sum(-1)[mask].mean(),
      'cross_entropy': -np.log(q_label[known]).mean(),
      'target_cross_entropy': -np.log(p_label[mask]).mean(),
      'agreement': (p.argmax(-1) == q.argmax(-1))[mask].mean(),
      'uncovered': 1 - known.sum() / mask.sum(),
  }
  assert means.keys() == expected.keys()
  for name, mean in means.items():
    np.testing.assert_allclose(
        mean.value(), expected[name], rtol=2e-6, err_msg=name
    )


@pytest.mark.parametrize('name', NAMES)
def test_a_vocabulary_trimmed_of_nothing_is_the_full_one(name):
  batch = make_batch()
  q_logits = jnp.roll(batch['p_logits'], 1, axis=-1)
  every = trimmed_vocabulary.TrimmedVocabulary(tuple(range(V)), V)

  def value_and_grad(vocabulary):
    def loss(q_logits):
      means = distil(name, batch, q_logits, vocabulary=vocabulary)
      return means['loss'].total

    return jax.jit(jax.value_and_grad(loss))(q_logits)

  value, gradient = value_and_grad(every)
  expected_value, expected_gradient = value_and_grad(None)
  np.testing.assert_allclose(value, expected_value, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_nothing_is_nan_where_p_has_next_to_nothing_of_q(name):
  batch = make_batch()
  # All of p is on a trimmed token; or p rules tokens out.
  sharp = np.full((B, T, V), -200.0, np.float32)
  sharp[..., 2] = 200.0
  for p_logits in (sharp, np.where(np.arange(V) % 3 == 0, -1e30, 0.0)):
    p_logits = jnp.broadcast_to(jnp.asarray(p_logits, jnp.float32), (B, T, V))
    changed = {**batch, 'p_logits': p_logits}
    found = jax.value_and_grad(
        lambda q, changed=changed: distil(name, changed, q)['loss'].total
    )(batch['q_logits'])
    assert all(np.isfinite(leaf).all() for leaf in found)


def supervise(batch, q_logits, labels, chunk=3, **options):
  return objective.supervised(
      identity,
      q_logits,
      labels,
      batch['mask'],
      chunk=chunk,
      vocabulary=TRIMMED,
      **options,
  )


def test_trimmed_labels_are_left_out_and_counted():
  batch = make_batch()
  labels = batch['labels']
  options = {'z_loss': 1e-2, 'label_smoothing': 0.1}
  means = supervise(batch, batch['q_logits'], labels, **options)
  index, is_kept = TRIMMED.to_indices(labels)
  kept = np.asarray(is_kept & batch['mask'])
  plain = functools.partial(divergences.cross_entropy, batch['q_logits'], index)
  right = np.argmax(batch['q_logits'], -1) == np.asarray(index)
  expected = {
      'loss': (np.asarray(plain(1e-2, 0.1))[kept].mean(), kept.sum()),
      'cross_entropy': (np.asarray(plain())[kept].mean(), kept.sum()),
      'accuracy': ((right & kept).sum() / 13, 13),
      'uncovered': (1 - kept.sum() / 13, 13),
  }
  assert means.keys() == expected.keys()
  assert 0 < kept.sum() < 13 == np.asarray(batch['mask']).sum()
  for name, (value, count) in expected.items():
    np.testing.assert_allclose(means[name].value(), value, rtol=1e-6)
    assert means[name].count == count


def test_only_known_labels_have_a_gradient():
  batch = make_batch()
  gradient = jax.grad(
      lambda q: supervise(batch, q, batch['labels'])['loss'].total
  )(batch['q_logits'])
  index, is_kept = TRIMMED.to_indices(batch['labels'])
  kept = np.asarray(is_kept & batch['mask'])
  q = softmax(np.asarray(batch['q_logits'], np.float64))
  expected = q - np.eye(len(TOKENS))[np.asarray(index)]
  np.testing.assert_allclose(gradient[kept], expected[kept], atol=1e-6)
  assert (np.asarray(gradient)[~kept] == 0).all()


def test_labels_that_are_all_unknown_cost_nothing():
  batch = make_batch()
  labels = jnp.full((B, T), 2)
  value, gradient = jax.value_and_grad(
      lambda q: supervise(batch, q, labels)['loss'].total
  )(batch['q_logits'])
  assert value == 0 and (np.asarray(gradient) == 0).all()
  means = supervise(batch, batch['q_logits'], labels)
  assert means['uncovered'].value() == 1 and means['accuracy'].value() == 0


def test_no_array_of_the_full_vocabulary_is_allocated_for_the_draft():
  # Beside p's logits, their gather and the target's head: of V, nothing more.
  b, t, v, kept = 4, 32, 8192, 1024
  trimmed = trimmed_vocabulary.TrimmedVocabulary(tuple(range(kept)), v)
  struct = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

  def temporary(vocabulary, width):
    def loss(q, p, labels, mask):
      return objective.distillation(
          identity,
          identity,
          p,
          q,
          labels,
          mask,
          divergences.jsd,
          8,
          vocabulary,
      )['loss'].total

    compiled = (
        jax.jit(jax.value_and_grad(loss))
        .lower(
            struct((b, t, width)),
            struct((b, t, v)),
            jax.ShapeDtypeStruct((b, t), jnp.int32),
            jax.ShapeDtypeStruct((b, t), bool),
        )
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(trimmed, kept) < 0.6 * temporary(None, v)
