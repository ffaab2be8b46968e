import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.losses import divergences
from distillspec_jax.models import model as model_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import step as step_lib
from tests import tiny

FORWARD_KL = method_lib.Method(divergence='forward_kl')
ON_POLICY = method_lib.Method(divergence='forward_kl', fixed_fraction=0.0)
DRAFT = tiny.config(tiny.BYTES)
SHARING = tiny.config(tiny.BYTES, encoded_dim=16)
TARGET = tiny.config(tiny.BYTES, num_decoder_layers=2)


def make(config, seed=0):
  return model_lib.Model(tiny.random_params(config, seed), tiny.network(config))


@functools.cache
def target():
  return make(TARGET, seed=1)


@functools.cache
def ragged_batch(rows=8):
  inputs = jax.random.randint(jax.random.key(2), (rows, 6), 3, 90)
  labels = jax.random.randint(jax.random.key(3), (rows, 9), 3, 90)
  lengths = jnp.arange(rows) % 9 + 1  # parts of unequal numbers of tokens
  segments = (jnp.arange(9)[None] < lengths[:, None]).astype(jnp.int32)
  return types.Batch(
      inputs, jnp.ones_like(inputs), labels * segments, segments, segments > 0
  )


def loss_of(method, draft, target, batch=None, dropout_key=None):
  """The summed loss; `draft` and `target` are models."""
  batch = ragged_batch() if batch is None else batch
  loss = step_lib.make_loss(method, draft.network)
  return loss(draft.params, target, batch, batch.prompt, dropout_key)[0]


@functools.cache
def one_step(config, method, micro_batches=1):
  """The state after a step, whose update is the gradient, and its metrics."""
  draft, optimizer = make(config), optax.sgd(1.0)
  state = step_lib.initial_state(draft.params, optimizer, jax.random.key(4))
  step = step_lib.make_step(method, optimizer, draft.network, micro_batches)
  return jax.jit(step)(state, target(), ragged_batch())


def train(config, method, steps, learning_rate=3e-3, micro_batches=1):
  """The state after the steps, and the metrics of each."""
  draft, optimizer = make(config), optax.adam(learning_rate)
  step = jax.jit(
      step_lib.make_step(method, optimizer, draft.network, micro_batches)
  )
  state = step_lib.initial_state(draft.params, optimizer, jax.random.key(4))
  history = []
  for _ in range(steps):
    state, metrics = step(state, target(), ragged_batch())
    history.append(metrics)
  return state, history


def losses_of(history):
  return [float(metrics['loss'].value()) for metrics in history]


def assert_same_params(actual, expected):
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected
  )


@pytest.mark.parametrize(
    'method',
    [
        method_lib.Method(),
        method_lib.Method(divergence='jsd', fixed_fraction=0.0),
    ],
    ids=['fine-tuning', 'on-policy'],
)
@pytest.mark.parametrize('micro_batches', [2, 4])
def test_micro_batches_give_the_update_of_the_whole_batch(
    method, micro_batches
):
  whole, metrics = one_step(DRAFT, method)
  parts, metrics_of_parts = one_step(DRAFT, method, micro_batches)
  assert_same_params(parts.params, whole.params)
  for name, mean in metrics.items():
    np.testing.assert_allclose(
        mean.value(), metrics_of_parts[name].value(), rtol=1e-4, err_msg=name
    )


def test_a_mean_of_means_would_not_pass():
  # The twin: weighing parts alike, not by tokens, moves parameters by more.
  draft = make(DRAFT)
  batch = ragged_batch()
  halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]

  @jax.jit
  def mean_gradient(batch):
    loss = lambda draft: loss_of(method_lib.Method(), draft, None, batch)
    count = batch.mask.sum()
    return jax.tree.map(lambda g: g / count, jax.grad(loss)(draft))

  whole, *parts = map(mean_gradient, [batch, *halves])
  wrong = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
  difference = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), whole, wrong)
  assert max(jax.tree.leaves(difference)) > 1e-4


@pytest.mark.parametrize(
    'divergence, micro_batches', [('cross_entropy', 1), ('forward_kl', 4)]
)
def test_sequences_may_weigh_alike_however_long_they_are(
    divergence, micro_batches
):
  method = method_lib.Method(divergence=divergence, reduction='sequence_mean')
  draft, optimizer, batch = make(DRAFT), optax.sgd(1.0), ragged_batch()
  keep = jnp.arange(8)[:, None] != 5  # one row only fills up the batch
  batch = batch.replace(
      labels=batch.labels * keep,
      segments=batch.segments * keep,
      mask=batch.mask & keep,
  )
  step = step_lib.make_step(method, optimizer, draft.network, micro_batches)
  state = step_lib.initial_state(draft.params, optimizer, jax.random.key(4))
  state, metrics = jax.jit(step)(state, target(), batch)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def directly(draft):
    read = (
        batch.prompt,
        model_lib.shift_right(batch.labels, batch.segments),
        batch.segments,
    )
    losses = divergences.cross_entropy(draft.logits(*read), batch.labels)
    if divergence == 'forward_kl':
      losses = divergences.forward_kl(
          target().logits(*read), draft.logits(*read)
      )
    losses = jnp.where(batch.mask, losses, 0.0)
    lengths = batch.mask.sum(1)
    means = losses.sum(1) / jnp.maximum(lengths, 1)
    return means.sum() / (lengths > 0).sum(), losses.sum() / lengths.sum()

  (expected, of_tokens), gradient = directly(draft)
  np.testing.assert_allclose(metrics['loss'].value(), expected, rtol=1e-5)
  assert metrics['loss'].count == 7
  assert abs(expected - of_tokens) > 1e-4  # the twin: it is another mean
  assert_same_params(
      state.params, jax.tree.map(jnp.subtract, draft, gradient).params
  )


def test_nothing_is_differentiated_through_the_target():
  draft = make(DRAFT)
  loss = lambda target: loss_of(FORWARD_KL, draft, target)
  gradient = jax.jit(jax.grad(loss))(target())
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_steps_lower_the_divergence():
  state, history = train(DRAFT, ON_POLICY, steps=30)
  losses = losses_of(history)
  assert losses[-1] < 0.7 * losses[0]
  assert int(state.step) == 30


def test_every_step_samples_with_keys_of_its_own():
  draft, optimizer = make(DRAFT), optax.sgd(0.0)  # the model stays as it is
  step = jax.jit(step_lib.make_step(ON_POLICY, optimizer, draft.network))
  first = step_lib.initial_state(draft.params, optimizer, jax.random.key(4))
  second, metrics = step(first, target(), ragged_batch())
  _, later_metrics = step(second, target(), ragged_batch())
  _, again_metrics = step(first, target(), ragged_batch())
  loss, later, again = (
      float(m['loss'].value()) for m in (metrics, later_metrics, again_metrics)
  )
  assert loss == again != later


def test_dropout_changes_the_loss_and_only_where_it_is_on():
  for rate, differ in ((0.5, True), (0.0, False)):
    network = tiny.network(
        tiny.config(tiny.BYTES, num_decoder_layers=2, dropout_rate=rate)
    )
    model = target().replace(network=network)
    loss = jax.jit(
        lambda key, model=model: loss_of(
            method_lib.Method(), model, None, dropout_key=key
        )
    )
    values = [loss(jax.random.key(i)) for i in range(2)]
    assert (values[0] != values[1]) == differ


def test_a_divergence_of_ones_own_is_minimised():
  own = lambda p, q: 0.5 * divergences.forward_kl(p, q)
  method = method_lib.Method(divergence=own)
  whole, metrics = one_step(DRAFT, FORWARD_KL)
  half, half_metrics = one_step(DRAFT, method)
  np.testing.assert_allclose(
      half_metrics['loss'].value(), 0.5 * metrics['loss'].value(), rtol=1e-5
  )
  # Updates are gradients: those of half the divergence are half as large.
  moved = lambda state: jax.tree.map(
      jnp.subtract, state.params, make(DRAFT).params
  )
  assert_same_params(moved(half), jax.tree.map(lambda x: x / 2, moved(whole)))


def test_int8_weights_are_not_trained():
  network = tiny.network(tiny.config(tiny.BYTES, weights='int8_weight_only'))
  with pytest.raises(errors.UserError, match='trained'):
    step_lib.make_step(FORWARD_KL, optax.sgd(1.0), network)


# A draft that shares the target's encoder.


def test_a_shared_encoder_is_read_and_not_trained():
  draft = make(SHARING)
  of_draft, of_target = jax.jit(
      jax.grad(
          lambda draft, target: loss_of(FORWARD_KL, draft, target),
          argnums=(0, 1),
      )
  )(draft, target())
  kernel = of_draft.params['encoder_projection']['kernel']
  assert np.abs(kernel).max() > 1e-3
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(of_target))


def test_its_gradient_is_that_of_a_draft_with_the_same_encoder():
  # The draft is the target: one with its own encoder, one reading the target's.
  other = tiny.random_params(TARGET, seed=7)
  own = {**other, 'encoder': target().params['encoder']}
  own['token_embedder'] = target().params['token_embedder']
  own = target().replace(params=own)
  gradient = jax.jit(
      jax.grad(lambda draft, target: loss_of(FORWARD_KL, draft, target))
  )
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
      *(
          gradient(draft, target()).params['decoder']
          for draft in (own, tiny.sharing(own))
      ),
  )


@pytest.mark.parametrize(
    'config, options, rows',
    [
        (SHARING, {}, 5),
        # The target samples and judges; the draft has an encoder of its own.
        (DRAFT, {'draft_fraction': 0.0}, 6),
        (DRAFT, {'draft_fraction': 0.5}, 7),
    ],
)
def test_the_targets_encoder_runs_once_per_step(
    monkeypatch, config, options, rows
):
  method = dataclasses.replace(ON_POLICY, **options)
  networks = []
  encode = model_lib.Model.encode

  def counted(self, *args):
    networks.append(self.network)
    return encode(self, *args)

  monkeypatch.setattr(model_lib.Model, 'encode', counted)
  draft, optimizer = make(config), optax.sgd(1.0)
  state = jax.eval_shape(
      lambda: step_lib.initial_state(draft.params, optimizer, jax.random.key(4))
  )
  step = step_lib.make_step(method, optimizer, draft.network)
  batch = ragged_batch(rows)  # a shape that nothing has cached
  jax.eval_shape(step, state, target(), batch)
  assert networks.count(target().network) == 1
  assert (draft.network in networks) == (config is DRAFT)


def test_a_draft_does_not_read_the_encoding_of_its_target():
  draft, batch = make(DRAFT), ragged_batch()
  loss = step_lib.make_loss(FORWARD_KL, draft.network)
  encoded = model_lib.with_encoding(batch.prompt, target())
  assert encoded.encoded is not None
  np.testing.assert_allclose(
      loss(draft.params, target(), batch, encoded, None)[0],
      loss_of(FORWARD_KL, draft, target()),
      rtol=1e-5,
  )


@pytest.mark.parametrize('fixed_fraction', [0.0, 1.0])
def test_micro_batches_share_the_encoder_row_by_row(fixed_fraction):
  method = method_lib.Method(divergence='jsd', fixed_fraction=fixed_fraction)
  whole, parts = (one_step(SHARING, method, size)[0] for size in (1, 4))
  assert_same_params(parts.params, whole.params)


@pytest.mark.parametrize('method', [ON_POLICY, method_lib.Method()], ids=str)
def test_steps_lower_the_loss_of_a_draft_that_shares(method):
  state, history = train(SHARING, method, steps=30)
  losses = losses_of(history)
  assert losses[-1] < 0.7 * losses[0]
  kernels = [
      params['encoder_projection']['kernel']
      for params in (make(SHARING).params, state.params)
  ]
  assert np.abs(kernels[0] - kernels[1]).max() > 0.01


# A draft with a trimmed vocabulary.


@pytest.mark.parametrize(
    'options',
    [
        {'divergence': 'cross_entropy'},
        {'divergence': 'forward_kl', 'fixed_fraction': 0.0},
        {'divergence': 'total_variation'},
        {
            'divergence': 'jsd',
            'fixed_fraction': 0.0,
            'draft_fraction': 0.0,
        },
    ],
    ids=lambda options: options['divergence'],
)
def test_a_trimmed_vocabulary_learns_by_every_method(options):
  tokens = (0, 1, *range(2, 384, 2))
  config = tiny.config(tiny.BYTES, trimmed_vocabulary=tokens)
  state, history = train(
      config, method_lib.Method(**options), 6, 1e-2, micro_batches=2
  )
  losses = losses_of(history)
  assert all(
      np.isfinite(leaf).all()
      for leaf in jax.tree.leaves((state.params, history))
  )
  uncovered = float(history[-1]['uncovered'].value())
  assert losses[-1] < losses[0]
  # All of the draft's own tokens are in its vocabulary, of others about half.
  own = options['divergence'] == 'forward_kl'
  assert uncovered == 0 if own else 0.2 < uncovered < 0.8
