import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distillspec_jax.core import types
from distillspec_jax.models import transformer
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import step as step_lib
from tests import tiny


def ragged_batch(rows=8):
  inputs = jax.random.randint(jax.random.key(2), (rows, 6), 3, 90)
  labels = jax.random.randint(jax.random.key(3), (rows, 9), 3, 90)
  lengths = jnp.arange(rows) % 9 + 1  # parts of unequal numbers of tokens
  segments = (jnp.arange(9)[None] < lengths[:, None]).astype(jnp.int32)
  return types.Batch(
      inputs, jnp.ones_like(inputs), labels * segments, segments, segments > 0
  )


TARGET = {'num_decoder_layers': 2}  # the draft has one


@pytest.fixture(scope='module')
def pair():
  draft = tiny.model(tiny.BYTES)
  return draft.network, *tiny.model(tiny.BYTES, seed=1, **TARGET)


def initial(network):
  return tiny.random_params(network.config)


def one_step(pair, method, optimizer, micro_batches):
  draft, target, target_params = pair
  state = step_lib.initial_state(initial(draft), optimizer, jax.random.key(4))
  step = step_lib.make_step(method, optimizer, draft, target, micro_batches)
  return jax.jit(step)(state, target_params, ragged_batch())


@pytest.mark.parametrize(
    'method',
    [
        method_lib.Method(),
        method_lib.Method(divergence='jsd', fixed_fraction=0.0),
    ],
    ids=['fine-tuning', 'on-policy'],
)
@pytest.mark.parametrize('micro_batches', [2, 4])
def test_micro_batches_give_the_update_of_the_whole(
    pair, method, micro_batches
):
  optimizer = optax.sgd(1.0)
  whole, metrics = one_step(pair, method, optimizer, 1)
  parts, metrics_of_parts = one_step(pair, method, optimizer, micro_batches)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      whole.params,
      parts.params,
  )
  for name, mean in metrics.items():
    np.testing.assert_allclose(
        mean.value(), metrics_of_parts[name].value(), rtol=1e-4, err_msg=name
    )


def test_a_mean_of_means_would_not_pass(pair):
  # The twin: weighing parts alike, not by tokens, moves parameters by more.
  draft, target, target_params = pair
  gradient = jax.grad(
      lambda *args: step_lib.make_loss(method_lib.Method(), draft, target)(
          *args
      )[0]
  )
  params = initial(draft)
  batch = ragged_batch()
  halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]

  def mean_gradient(batch):
    count = batch.mask.sum()
    summed = gradient(params, None, batch, None)
    return jax.tree.map(lambda g: g / count, summed)

  whole, *parts = map(mean_gradient, [batch, *halves])
  wrong = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
  difference = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), whole, wrong)
  assert max(jax.tree.leaves(difference)) > 1e-4


def test_nothing_is_differentiated_through_the_target(pair):
  draft, target, target_params = pair
  loss = step_lib.make_loss(
      method_lib.Method(divergence='forward_kl'), draft, target
  )
  params = initial(draft)
  gradient = jax.grad(lambda p: loss(params, p, ragged_batch(), None)[0])(
      target_params
  )
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_steps_lower_the_divergence(pair):
  draft, target, target_params = pair
  optimizer = optax.adam(3e-3)
  method = method_lib.Method(divergence='forward_kl', fixed_fraction=0.0)
  step = jax.jit(step_lib.make_step(method, optimizer, draft, target))
  state = step_lib.initial_state(initial(draft), optimizer, jax.random.key(4))
  losses = []
  for _ in range(30):
    state, metrics = step(state, target_params, ragged_batch())
    losses.append(float(metrics['loss'].value()))
  assert losses[-1] < 0.7 * losses[0]
  assert int(state.step) == 30


def test_dropout_changes_the_loss_and_only_where_it_is_on(pair):
  _, target, target_params = pair
  batch = ragged_batch()
  for rate, differ in ((0.5, True), (0.0, False)):
    model = tiny.network(tiny.config(tiny.BYTES, **TARGET, dropout_rate=rate))
    loss = step_lib.make_loss(method_lib.Method(), model, None)
    values = [
        float(loss(target_params, None, batch, jax.random.key(i))[0])
        for i in range(2)
    ]
    assert (values[0] != values[1]) == differ


# A draft that shares the target's encoder.


@pytest.fixture(scope='module')
def sharing(pair):
  _, target, target_params = pair
  draft = transformer.Transformer(tiny.config(tiny.BYTES, encoded_dim=16))
  return draft, target, target_params


ON_POLICY = method_lib.Method(divergence='forward_kl', fixed_fraction=0.0)


def test_a_shared_encoder_is_read_and_not_trained(sharing):
  draft, target, target_params = sharing
  params = initial(draft)
  loss = step_lib.make_loss(
      method_lib.Method(divergence='forward_kl'), draft, target
  )
  gradients = jax.jit(
      jax.grad(
          lambda *both: loss(*both, ragged_batch(), None)[0], argnums=(0, 1)
      )
  )(params, target_params)
  of_draft, of_target = gradients
  assert np.abs(of_draft['encoder_projection']['kernel']).max() > 1e-3
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(of_target))


def test_it_gets_the_gradient_of_a_draft_with_the_same_encoder(pair):
  # The draft is the target: one with its own encoder, one reading it.
  _, model, params = pair
  other = tiny.random_params(model.config, seed=7)
  own = {**other, 'encoder': params['encoder']}
  own['token_embedder'] = params['token_embedder']
  draft, shared = tiny.sharing(tiny.Model(model, own))

  @jax.jit
  def gradients():
    method = method_lib.Method(divergence='forward_kl')
    return [
        jax.grad(
            lambda p, m=m: step_lib.make_loss(method, m, model)(
                p, params, ragged_batch(), None
            )[0]
        )(p)['decoder']
        for m, p in ((model, own), (draft, shared))
    ]

  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
      *gradients(),
  )


def test_a_shared_encoder_runs_once_a_step(sharing, monkeypatch):
  draft, target, target_params = sharing
  runs = []
  encode = transformer.Transformer.encode

  def counted(self, *args):
    runs.append(self)
    return encode(self, *args)

  monkeypatch.setattr(transformer.Transformer, 'encode', counted)
  optimizer = optax.sgd(1.0)
  state = jax.eval_shape(
      lambda: step_lib.initial_state(
          initial(draft), optimizer, jax.random.key(4)
      )
  )
  step = step_lib.make_step(ON_POLICY, optimizer, draft, target)
  batch = ragged_batch(5)  # a shape that nothing has cached
  jax.eval_shape(step, state, target_params, batch)
  assert runs == [target]


@pytest.mark.parametrize('fixed_fraction', [0.0, 1.0])
def test_micro_batches_share_the_encoder_row_by_row(sharing, fixed_fraction):
  method = method_lib.Method(divergence='jsd', fixed_fraction=fixed_fraction)
  optimizer = optax.sgd(1.0)
  whole, _ = one_step(sharing, method, optimizer, 1)
  parts, _ = one_step(sharing, method, optimizer, 4)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      whole.params,
      parts.params,
  )


@pytest.mark.parametrize('divergence', ['forward_kl', 'cross_entropy'])
def test_steps_lower_the_loss_of_a_draft_that_shares(sharing, divergence):
  draft, target, target_params = sharing
  optimizer = optax.adam(3e-3)
  method = method_lib.Method(
      divergence=divergence,
      fixed_fraction=1.0 if divergence == 'cross_entropy' else 0.0,
  )
  step = jax.jit(step_lib.make_step(method, optimizer, draft, target))
  params = initial(draft)
  state = step_lib.initial_state(params, optimizer, jax.random.key(4))
  losses = []
  for _ in range(30):
    state, metrics = step(state, target_params, ragged_batch())
    losses.append(float(metrics['loss'].value()))
  assert losses[-1] < 0.7 * losses[0]
  kernels = [p['encoder_projection']['kernel'] for p in (params, state.params)]
  assert np.abs(kernels[0] - kernels[1]).max() > 0.01


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
def test_a_draft_of_some_tokens_learns_by_every_method(pair, options):
  _, target, target_params = pair
  tokens = (0, 1, *range(2, 384, 2))
  draft = tiny.network(tiny.config(tiny.BYTES, output_tokens=tokens))
  optimizer = optax.adam(1e-2)
  step = jax.jit(
      step_lib.make_step(
          method_lib.Method(**options), optimizer, draft, target, 2
      )
  )
  state = step_lib.initial_state(initial(draft), optimizer, jax.random.key(4))
  losses = []
  for _ in range(6):
    state, metrics = step(state, target_params, ragged_batch())
    losses.append(float(metrics['loss'].value()))
    uncovered = float(metrics['uncovered'].value())
    assert all(
        np.isfinite(leaf).all()
        for leaf in jax.tree.leaves((state.params, metrics))
    )
  assert losses[-1] < losses[0]
  # Of the draft's own tokens all have a column, of others about half.
  own = options['divergence'] == 'forward_kl'
  assert uncovered == 0 if own else 0.2 < uncovered < 0.8
