"""Losses at masks against a direct computation, one call for each cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.losses import divergences
from distillspec_jax.models import mask_chains
from distillspec_jax.models import model as model_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import parallel
from distillspec_jax.training import settings as settings_lib
from distillspec_jax.training import step as step_lib
from tests import tiny

G, T, MASK = 4, 7, 2
ALL = parallel.Parallel(block_length=G, chains=T, min_reach=0.01, weight=0.7)
KL = method_lib.Method(divergence='forward_kl', parallel=ALL)
BATCH = tiny.batch(6, empty=1, labels=T, seed=3)
TARGET = tiny.model(gain=2.0, num_decoder_layers=2, seed=1)
FALSE_ALARM = 1e-6


def with_reach(reach, **changes):
  changes = {'divergence': 'forward_kl', **changes}
  new = parallel.Parallel(
      block_length=G, chains=T, min_reach=0.01, weight=0.7, reach=reach
  )
  return method_lib.Method(parallel=new, **changes)


def metrics_of(method, draft, batch=BATCH, key=0):
  loss = step_lib.make_loss(method, draft.network)
  cuts = method.parallel.draw(jax.random.key(key), batch.segments)
  return loss(draft.params, TARGET, batch, batch.prompt, None, cuts)


def directly(method, draft):
  """The total loss, and that of the masks: every cut of every row in turn."""
  batch, settings = BATCH, method.parallel
  inputs = model_lib.shift_right(batch.labels, batch.segments)
  inputs = jnp.pad(inputs, ((0, 0), (0, G)))
  labels = jnp.pad(jnp.asarray(batch.labels), ((0, 0), (0, G)))
  counts = jnp.pad(jnp.asarray(batch.mask), ((0, 0), (0, G)))
  prompt = model_lib.with_shared_encoding(batch.prompt, TARGET, draft)

  def measured(model, inputs):
    return model.logits(prompt, inputs, jnp.ones_like(inputs))

  def nats(logits, labels):
    return divergences.cross_entropy(logits, labels)

  p_all = jax.lax.stop_gradient(measured(TARGET, inputs))
  q_all = measured(draft, inputs)

  def losses(p, q, labels):
    if method.divergence == 'cross_entropy':
      return nats(q, labels)
    return divergences.forward_kl(p, q)

  ordinary = jnp.sum(losses(p_all, q_all, labels), where=counts)

  @jax.vmap
  def after(cut):
    block = functools.partial(
        jax.lax.dynamic_slice_in_dim, start_index=cut, slice_size=G, axis=1
    )
    at = jnp.full((len(inputs), 1), cut)
    q = block(draft.unembed(tiny.hidden_at_masks(draft, prompt, inputs, at)))
    p, of_block = block(p_all), block(labels)
    p_nats, q_nats = nats(p, of_block), nats(q, of_block)
    if method.divergence == 'cross_entropy':
      p_nats = jnp.zeros_like(p_nats)
    accepted = {
        'target': jnp.exp(-p_nats),
        'acceptance': jnp.minimum(1, jnp.exp(p_nats - q_nats)),
        'none': jnp.ones_like(p_nats),
    }[settings.reach]
    reach = jnp.maximum(jnp.cumprod(accepted, axis=1)[:, :-1], 0.01)
    reach = jax.lax.stop_gradient(reach) * block(counts)[:, 1:]
    return types.Mean(
        jnp.sum(reach * losses(p, q, of_block)[:, 1:]), reach.sum()
    )

  masked = jax.tree.map(jnp.sum, after(jnp.arange(T - 1)))
  return ordinary + settings.weight * masked.total, masked


def assert_same_as_directly(method, draft):
  def computed(draft):
    total, metrics = metrics_of(method, draft)
    return total, metrics['parallel_loss']

  (value, mean), gradient = jax.jit(jax.value_and_grad(computed, has_aux=True))(
      draft
  )
  (expected, expected_mean), expected_gradient = jax.jit(
      jax.value_and_grad(functools.partial(directly, method), has_aux=True)
  )(draft)
  assert expected_mean.total > 1.0
  np.testing.assert_allclose(value, expected, rtol=1e-4)
  np.testing.assert_allclose(mean, expected_mean, rtol=1e-4)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
      gradient,
      expected_gradient,
  )


@pytest.mark.parametrize(
    'method',
    [
        KL,
        with_reach('acceptance', divergence='cross_entropy'),
    ],
    ids=['distillation', 'fine-tuning'],
)
def test_value_and_gradient_are_those_of_all_cuts_in_turn(method):
  assert_same_as_directly(method, tiny.model(mask_token=MASK))


def test_the_same_for_a_decoder_only_draft():
  # With a target of another kind; each reads the prompt in its own way.
  draft = tiny.model(mask_token=MASK, num_encoder_layers=0)
  assert_same_as_directly(with_reach('none'), draft)


def test_the_same_for_a_draft_that_shares_its_encoder():
  draft = tiny.sharing(tiny.model(mask_token=MASK, seed=4))
  assert_same_as_directly(with_reach('acceptance'), draft)


# Which masks are drawn.


def test_fewer_chains_reach_far():
  settings = parallel.Parallel(block_length=6, chains=100, keep=0.7)
  assert settings.sizes(128) == (100, 70, 49, 35, 25)
  assert settings.sizes(11) == (10, 7, 5, 4, 3)
  settings = parallel.Parallel(block_length=6, chains=10, keep=0.5)
  assert settings.sizes(128) == (10, 5, 3, 2, 2)
  assert parallel.Parallel(block_length=3, chains=5).sizes(9) == (5, 5)


def segments_of(*lengths, length=12):
  return jnp.asarray(np.arange(length) < np.array(lengths)[:, None], jnp.int32)


def test_cuts_are_different_and_leave_a_token():
  settings = parallel.Parallel(block_length=3, chains=6)
  segments = segments_of(12, 7, 3)
  draws = [settings.draw(jax.random.key(i), segments) for i in range(20)]
  for cuts in draws:
    assert cuts.shape == (3, 6)
    for row, valid in zip(np.asarray(cuts), (11, 6, 2)):
      assert len(set(row)) == 6
      inside = min(valid, 6)
      assert (row[:inside] < valid).all() and (row[inside:] >= valid).all()
  assert len({tuple(np.asarray(cuts)[0]) for cuts in draws}) > 15


def test_cuts_depend_on_the_key_and_the_row_alone():
  settings = parallel.Parallel(block_length=3, chains=4)
  draw = lambda *lengths: np.asarray(
      settings.draw(jax.random.key(3), segments_of(*lengths))
  )
  few, more = draw(12, 9), draw(12, 9, 4, 12)
  np.testing.assert_array_equal(few, more[:2])
  assert (more[0] != more[3]).any()


@pytest.mark.parametrize('is_twin', [False, True])
def test_a_part_of_the_masks_estimates_the_sum_over_all(is_twin):
  # z-tests at FALSE_ALARM each; the twin leaves out the inverse chances.
  rng = np.random.default_rng(0)
  settings = parallel.Parallel(block_length=4, chains=5, keep=0.5, reach='none')
  segments = segments_of(12, 8, 3, 1)
  losses = jnp.asarray(rng.uniform(size=segments.shape) * segments, jnp.float32)
  sizes = settings.sizes(12)
  assert sizes == (5, 3, 2)

  @jax.vmap
  def total(key):
    cuts = settings.draw(key, segments)
    chains = mask_chains.MaskChains(cuts, sizes)
    count = segments.astype(jnp.float32)
    means = {
        name: types.Mean(losses, count) for name in ('loss', 'cross_entropy')
    }
    of_masks = jax.tree.map(chains.at_masks, means)
    if is_twin:
      return of_masks['loss'].total.sum(1)
    return settings.loss(means, of_masks, chains, segments)[
        'parallel_loss'
    ].total

  totals = jax.jit(total)(jax.random.split(jax.random.key(5), 4000))
  totals = np.asarray(totals, np.float64)  # sums of float32 would round
  expected = sum(np.asarray(losses)[:, depth:].sum(1) for depth in (1, 2, 3))
  error = totals.std(0) / np.sqrt(len(totals))
  z = np.abs(totals.mean(0) - expected) / np.maximum(error, 1e-5)
  limit = stats.norm.isf(FALSE_ALARM / 2)
  assert (z[:2] > limit).all() if is_twin else (z < limit).all()


# Steps.


@functools.cache
def one_step(method, micro_batches=1):
  draft, optimizer = tiny.model(mask_token=MASK), optax.sgd(1.0)
  state = step_lib.initial_state(draft.params, optimizer, jax.random.key(4))
  step = step_lib.make_step(method, optimizer, draft.network, micro_batches)
  return jax.jit(step)(state, TARGET, BATCH)


def assert_same_params(actual, expected):
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected
  )


def test_masks_of_no_weight_change_nothing():
  some = parallel.Parallel(block_length=3, chains=2, keep=0.5, weight=0.0)
  changed, metrics = one_step(
      method_lib.Method(divergence='forward_kl', parallel=some)
  )
  ordinary, expected = one_step(method_lib.Method(divergence='forward_kl'))
  assert_same_params(changed.params, ordinary.params)
  for name in expected:
    np.testing.assert_allclose(
        metrics[name], expected[name], rtol=1e-5, err_msg=name
    )
  assert metrics['parallel_loss'].value() > 0.1
  assert 0.0 < metrics['parallel_acceptance'].value() < 1.0


@pytest.mark.parametrize('reduction', ['mean', 'sequence_mean'])
def test_micro_batches_give_the_update_of_the_whole_batch(reduction):
  method = method_lib.Method(
      divergence='jsd', reduction=reduction, parallel=ALL
  )
  (whole, metrics), (parts, of_parts) = one_step(method), one_step(method, 3)
  assert_same_params(parts.params, whole.params)
  for name in ('parallel_loss', 'loss', 'draft_tokens'):
    np.testing.assert_allclose(
        metrics[name].value(), of_parts[name].value(), rtol=1e-4
    )


def train(draft, method, steps=30):
  optimizer = optax.adam(3e-3)
  step = jax.jit(step_lib.make_step(method, optimizer, draft.network))
  state = step_lib.initial_state(draft.params, optimizer, jax.random.key(4))
  history = []
  for _ in range(steps):
    state, metrics = step(state, TARGET, BATCH)
    history.append(metrics)
  return history


def test_steps_lower_the_loss_at_the_masks_of_a_trimmed_vocabulary():
  tokens = (0, 1, *range(2, tiny.V, 2))
  draft = tiny.trimmed(tiny.model(mask_token=MASK), tokens)
  settings = parallel.Parallel(
      block_length=G, chains=3, keep=0.7, reach='acceptance'
  )
  method = method_lib.Method(
      divergence='total_variation', fixed_fraction=0.0, parallel=settings
  )
  history = train(draft, method)
  losses = [float(metrics['parallel_loss'].value()) for metrics in history]
  assert np.isfinite(losses).all()
  # The mass of the tokens that it lacks remains.
  assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


# Settings.


@pytest.mark.parametrize(
    'changes',
    [
        {'block_length': 1}, {'chains': 0}, {'keep': 0.0}, {'min_keep': 1.5},
        {'reach': 'draft'}, {'min_reach': -1.0}, {'weight': -0.1},
        {'mask_token': -1},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_impossible_values_are_refused_by_name(changes):
  with pytest.raises(errors.UserError, match=f'Parallel.{next(iter(changes))}'):
    parallel.Parallel(**changes)


def test_blocks_longer_than_the_labels_are_refused():
  with pytest.raises(errors.UserError, match='at most the label length, 4'):
    parallel.Parallel(block_length=5).sizes(4)


def test_packed_rows_and_other_objects_are_refused():
  training = settings_lib.Training(
      start=settings_lib.Start(checkpoint='x'),
      steps=settings_lib.Steps(num_steps=1, pack=True),
      method=method_lib.Method(parallel=ALL),
  )
  with pytest.raises(errors.UserError, match='Method.parallel needs one'):
    training.check()
  with pytest.raises(errors.UserError, match='give a Parallel, or None'):
    method_lib.Method(parallel=5)


def test_the_mask_token_is_the_models_own_unless_another_is_given():
  config = tiny.config()
  assert parallel.Parallel().configure(config).mask_token == 2
  config = tiny.config(mask_token=7)
  assert parallel.Parallel().configure(config).mask_token == 7
  assert parallel.Parallel(mask_token=9).configure(config).mask_token == 9
  with pytest.raises(errors.UserError, match='mask_token is 99'):
    parallel.Parallel(mask_token=99).configure(config)
