"""Chunked objectives: the plain formula in at most a quarter of its memory."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.losses import divergences
from distillspec_jax.losses import objective

B, T, V, DP, DQ = 3, 11, 13, 6, 4
ALL = {
    'forward_kl': divergences.forward_kl,
    'reverse_kl': divergences.reverse_kl,
    'jsd': functools.partial(divergences.jsd, beta=0.3),
    'total_variation': divergences.total_variation,
}


def identity(logits):
  return logits


def value_and_grad(function, of=0):
  return jax.jit(jax.value_and_grad(function, of))


def normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  lengths = np.array([T, 7, 1])
  return {
      'p_hidden': normal(rng, B, T, DP),
      'q_hidden': normal(rng, B, T, DQ),
      'p_head': normal(rng, DP, V),
      'q_head': normal(rng, DQ, V),
      'labels': jnp.asarray(rng.integers(V, size=(B, T)), jnp.int32),
      'mask': jnp.asarray(np.arange(T)[None] < lengths[:, None]),
  }


def plain(divergence, p_logits, q_logits, mask):
  """The formula as one writes it down; holds everything at once."""
  p_logits = jax.lax.stop_gradient(p_logits)
  return jnp.sum(divergence(p_logits, q_logits), where=mask)


def distil(divergence, p_logits, q_logits, mask, chunk=8):
  labels = jnp.zeros(mask.shape, jnp.int32)
  return objective.distillation(
      identity, identity, p_logits, q_logits, labels, mask, divergence, chunk
  )


def chunked(*inputs, **options):
  return distil(*inputs, **options)['loss'].total


def plain_with_head(divergence, p_hidden, p_head, q_hidden, q_head, mask):
  return plain(divergence, p_hidden @ p_head, q_hidden @ q_head, mask)


def distil_with_head(
    divergence, p_hidden, p_head, q_hidden, q_head, mask, chunk=8
):
  return objective.distillation(
      lambda hidden: hidden @ p_head,
      lambda hidden: hidden @ q_head,
      p_hidden,
      q_hidden,
      jnp.zeros(mask.shape, jnp.int32),
      mask,
      divergence,
      chunk,
  )


def chunked_with_head(*inputs, **options):
  return distil_with_head(*inputs, **options)['loss'].total


def assert_close(actual, expected):
  """To 1e-5 of the largest entry, each leaf."""
  for one, other in zip(
      jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(
        one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max()
    )


@pytest.mark.parametrize('chunk', [1, 4, 16])
@pytest.mark.parametrize('name', ALL)
def test_chunks_of_logits_give_the_plain_value_and_gradient(name, chunk):
  batch = make_batch()
  p_logits = batch['p_hidden'] @ batch['p_head']
  q_logits = batch['q_hidden'] @ batch['q_head']
  actual = value_and_grad(
      lambda q: chunked(ALL[name], p_logits, q, batch['mask'], chunk=chunk)
  )(q_logits)
  expected = value_and_grad(
      lambda q: plain(ALL[name], p_logits, q, batch['mask'])
  )(q_logits)
  assert_close(actual, expected)


@pytest.mark.parametrize('chunk', [4, 11])
@pytest.mark.parametrize('name', ALL)
def test_chunks_of_hidden_states_give_the_gradients_of_the_head(name, chunk):
  batch = make_batch()

  def value_and_gradients(function):
    def loss(hidden, head):
      return function(
          ALL[name],
          batch['p_hidden'],
          batch['p_head'],
          hidden,
          head,
          batch['mask'],
      )

    return value_and_grad(loss, (0, 1))(batch['q_hidden'], batch['q_head'])

  assert_close(
      value_and_gradients(functools.partial(chunked_with_head, chunk=chunk)),
      value_and_gradients(plain_with_head),
  )


def test_value_and_gradient_agree_with_a_large_vocabulary():
  rng = np.random.default_rng(1)
  vocabulary, mask = 2003, jnp.ones((2, 21), bool)
  p_hidden, q_hidden = normal(rng, 2, 2, 21, 32)
  p_head, q_head = normal(rng, 2, 32, vocabulary)

  def value_and_gradients(function):
    return value_and_grad(
        lambda hidden, head: function(
            divergences.forward_kl, p_hidden, p_head, hidden, head, mask
        ),
        (0, 1),
    )(q_hidden, q_head)

  assert_close(
      value_and_gradients(chunked_with_head),
      value_and_gradients(plain_with_head),
  )


@pytest.mark.parametrize(
    'sizes, chunk',
    [
        ((128, 8, 32128), 32),
        ((128, 8, 32128, 2), 64),
        ((100, 8, 32128), 25),  # four equal parts
        ((128, 1, 1000), 128),
        ((128, 4096, 32128), 8),  # at least
        ((5, 4096, 32128), 5),
        ((30, 1, 1000, 1, 'cpu'), 8),
    ],
)
def test_a_chunk_has_as_many_positions_as_memory_allows(sizes, chunk):
  assert objective.chunk_length(*sizes) == chunk


def test_by_default_chunks_give_the_plain_value_and_gradient(monkeypatch):
  batch, seen = make_batch(), []
  monkeypatch.setattr(mesh_lib, 'platform', lambda: 'tpu')
  monkeypatch.setattr(objective, '_MIN_CHUNK', 1)
  monkeypatch.setattr(objective, '_MAX_LOGITS', 5 * B * V)

  def divergence(p, q):
    seen.append(p.shape)
    return divergences.jsd(p, q)

  p_logits = batch['p_hidden'] @ batch['p_head']
  q_logits = batch['q_hidden'] @ batch['q_head']
  assert_close(
      value_and_grad(
          lambda q: chunked(divergence, p_logits, q, batch['mask'], chunk=None)
      )(q_logits),
      value_and_grad(
          lambda q: plain(divergences.jsd, p_logits, q, batch['mask'])
      )(q_logits),
  )
  assert set(seen) == {(B, 4, V)}  # T = 11 in three parts


def test_by_default_temporary_memory_does_not_grow_with_the_length(monkeypatch):
  monkeypatch.setattr(mesh_lib, 'platform', lambda: 'tpu')
  struct = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

  def temporary(length):
    head, hidden = struct((64, 32128)), struct((8, length, 64))
    inputs = hidden, head, hidden, head, jnp.ones((8, length), bool)

    def loss(*inputs):
      means = distil_with_head(divergences.jsd, *inputs, chunk=None)
      return means['loss'].total

    function = jax.jit(jax.grad(loss, (2, 3)))
    analysis = function.lower(*inputs).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  chunk = 4 * 8 * 32 * 32128  # bytes of one array
  short, long = temporary(64), temporary(256)
  assert chunk < short < 8 * chunk
  assert long - short < chunk


@pytest.mark.parametrize('form', ['logits', 'head'])
@pytest.mark.parametrize('name', ALL)
def test_temporary_memory_is_at_most_a_quarter_of_the_plain_formula(name, form):
  b, t, v, d = 8, 128, 32128, 512
  struct = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  mask = jax.ShapeDtypeStruct((b, t), bool)
  hidden, head, logits = struct((b, t, d)), struct((d, v)), struct((b, t, v))
  if form == 'logits':
    chunks, formula = distil, plain
    inputs, of = (logits, logits, mask), 1
  else:
    chunks, formula = distil_with_head, plain_with_head
    inputs, of = (hidden, head, hidden, head, mask), (2, 3)

  def loss_and_means(*inputs):  # all that training asks for
    means = chunks(ALL[name], *inputs)
    return means['loss'].total, means

  def temporary(function, **options):
    function = jax.jit(jax.value_and_grad(function, of, **options))
    analysis = function.lower(*inputs).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  small = temporary(loss_and_means, has_aux=True)
  large = temporary(functools.partial(formula, ALL[name]))
  print(f'{name}, {form}: {small >> 20} of {large >> 20} MiB')
  assert 0 < small <= large / 4, f'{small} bytes against {large}'


def test_means_are_those_of_the_tokens_under_the_mask():
  batch = make_batch()
  p_logits = batch['p_hidden'] @ batch['p_head']
  q_logits = batch['q_hidden'] @ batch['q_head']
  means = objective.distillation(
      lambda hidden: hidden @ batch['p_head'],
      lambda hidden: hidden @ batch['q_head'],
      batch['p_hidden'],
      batch['q_hidden'],
      batch['labels'],
      batch['mask'],
      divergences.total_variation,
      chunk=4,
  )
  at = np.asarray(batch['mask'])
  p_label, q_label = (
      np.take_along_axis(
          np.asarray(jax.nn.log_softmax(logits)),
          np.asarray(batch['labels'])[..., None],
          axis=-1,
      )[..., 0]
      for logits in (p_logits, q_logits)
  )
  agree = np.argmax(p_logits, -1) == np.argmax(q_logits, -1)
  distance = np.asarray(divergences.total_variation(p_logits, q_logits))
  expected = {
      'loss': distance[at].mean(),
      'expected_acceptance': 1 - distance[at].mean(),
      'cross_entropy': -q_label[at].mean(),
      'target_cross_entropy': -p_label[at].mean(),
      'agreement': agree[at].mean(),
  }
  assert means.keys() == expected.keys()
  for name, mean in means.items():
    assert mean.total.dtype == mean.count.dtype == jnp.float32
    assert mean.count == at.sum() == 19
    np.testing.assert_allclose(mean.value(), expected[name], rtol=1e-5)


def test_only_the_loss_carries_a_gradient_and_never_to_the_target():
  batch = make_batch()

  def total(name, p_head, q_head):
    return objective.distillation(
        lambda hidden: hidden @ p_head,
        lambda hidden: hidden @ q_head,
        batch['p_hidden'],
        batch['q_hidden'],
        batch['labels'],
        batch['mask'],
        divergences.reverse_kl,
    )[name].total

  for name in (
      'loss',
      'expected_acceptance',
      'cross_entropy',
      'target_cross_entropy',
  ):
    _, (p_gradient, q_gradient) = value_and_grad(
        functools.partial(total, name), (0, 1)
    )(batch['p_head'], batch['q_head'])
    assert not np.any(p_gradient)
    assert np.any(q_gradient) == (name == 'loss')


@pytest.mark.parametrize('bad', [np.nan, -np.inf])
@pytest.mark.parametrize('name', [*ALL, 'supervised'])
def test_garbage_outside_the_mask_leaves_no_trace(name, bad):
  batch = make_batch()

  def value_and_gradients(p_hidden, q_hidden):
    def loss(hidden, head):
      shared_arguments = (
          lambda hidden: hidden @ head,
          hidden,
          batch['labels'],
          batch['mask'],
      )
      if name == 'supervised':
        return objective.supervised(*shared_arguments, z_loss=1e-2, chunk=4)
      q_logits_fn, hidden, labels, mask = shared_arguments
      return objective.distillation(
          lambda hidden: hidden @ batch['p_head'],
          q_logits_fn,
          p_hidden,
          hidden,
          labels,
          mask,
          ALL[name],
          chunk=4,
      )

    return value_and_grad(
        lambda hidden, head: loss(hidden, head)['loss'].total, (0, 1)
    )(q_hidden, batch['q_head'])

  def with_garbage(hidden):
    return jnp.where(batch['mask'][..., None], hidden, bad)

  clean = value_and_gradients(batch['p_hidden'], batch['q_hidden'])
  garbage = value_and_gradients(
      with_garbage(batch['p_hidden']), with_garbage(batch['q_hidden'])
  )
  jax.tree.map(np.testing.assert_array_equal, garbage, clean)
  hidden_gradient = np.asarray(garbage[1][0])
  np.testing.assert_array_equal(hidden_gradient[~np.asarray(batch['mask'])], 0)


def test_a_head_that_fails_outside_the_mask_leaves_no_trace():
  batch = make_batch()
  p_logits = batch['p_hidden'] @ batch['p_head']
  q_logits = batch['q_hidden'] @ batch['q_head']

  def head(logits, scale):
    blank = jnp.all(logits == 0, axis=-1, keepdims=True)
    return logits * scale + jnp.where(blank, jnp.nan, 0.0)

  def loss(scale):
    return objective.distillation(
        lambda logits: head(logits, 1.0),
        lambda logits: head(logits, scale),
        p_logits,
        q_logits,
        batch['labels'],
        batch['mask'],
        divergences.forward_kl,
        chunk=4,
    )['loss'].total

  def expected(scale):
    return plain(
        divergences.forward_kl, p_logits, q_logits * scale, batch['mask']
    )

  scale = jnp.float32(0.5)
  assert_close(value_and_grad(loss)(scale), value_and_grad(expected)(scale))


@pytest.mark.parametrize('name', ALL)
def test_padding_of_the_vocabulary_changes_nothing(name):
  batch = make_batch()
  p_logits = batch['p_hidden'] @ batch['p_head']
  q_logits = batch['q_hidden'] @ batch['q_head']

  def pad(logits):
    pads = ((0, 0), (0, 0), (0, 3))
    return jnp.pad(logits, pads, constant_values=-jnp.inf)

  value, gradient = value_and_grad(
      lambda q: chunked(ALL[name], pad(p_logits), q, batch['mask'], chunk=4)
  )(pad(q_logits))
  expected = value_and_grad(
      lambda q: plain(ALL[name], p_logits, q, batch['mask'])
  )(q_logits)
  assert_close((value, gradient[..., :V]), expected)
  np.testing.assert_array_equal(gradient[..., V:], 0)


def test_an_empty_mask_gives_zero_and_no_gradient():
  batch = make_batch()
  q_logits = batch['q_hidden'] @ batch['q_head']
  value, gradient = value_and_grad(
      lambda q: chunked(divergences.jsd, q + 1, q, jnp.zeros((B, T), bool))
  )(q_logits)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize('name', ALL)
def test_bfloat16_hidden_states_keep_the_loss_and_head_gradient_float32(name):
  batch = make_batch()
  p_hidden = batch['p_hidden'].astype(jnp.bfloat16)
  q_hidden = batch['q_hidden'].astype(jnp.bfloat16)

  def loss(function, head):
    def logits(hidden, head):
      return hidden @ head.astype(jnp.bfloat16)

    if function is plain:
      return plain(
          ALL[name],
          logits(p_hidden, batch['p_head']),
          logits(q_hidden, head),
          batch['mask'],
      )
    return objective.distillation(
        lambda hidden: logits(hidden, batch['p_head']),
        lambda hidden: logits(hidden, head),
        p_hidden,
        q_hidden,
        batch['labels'],
        batch['mask'],
        ALL[name],
        chunk=4,
    )['loss'].total

  value, gradient = value_and_grad(functools.partial(loss, chunked))(
      batch['q_head']
  )
  expected = value_and_grad(functools.partial(loss, plain))(batch['q_head'])
  assert value.dtype == gradient.dtype == jnp.float32
  np.testing.assert_allclose(value, expected[0], rtol=1e-5)
  np.testing.assert_allclose(gradient, expected[1], rtol=0.02, atol=0.02)


def test_rows_stay_on_their_devices():
  mesh = mesh_lib.make_mesh()
  rng = np.random.default_rng(2)
  p_logits, q_logits = normal(rng, 2, 8, 20, V)
  mask = jnp.ones((8, 20), bool)
  function = value_and_grad(functools.partial(chunked, divergences.jsd), 1)
  expected = function(p_logits, q_logits, mask)

  rows = NamedSharding(mesh, PartitionSpec('data'))
  inputs = jax.device_put((p_logits, q_logits, mask), rows)
  compiled = function.lower(*inputs).compile()
  assert 'all-reduce' in compiled.as_text()  # of the scalars
  for moved in ('all-gather', 'all-to-all', 'collective-permute'):
    assert moved not in compiled.as_text()
  actual = compiled(*inputs)
  assert actual[1].sharding.is_equivalent_to(rows, 3)
  assert_close(jax.device_get(actual), expected)


@pytest.mark.parametrize('z_loss', [0.0, 0.0001, 0.01])
@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
def test_supervised_gradient_matches_t5x(shared, z_loss, label_smoothing):
  golden = np.load(shared / 'golden/t5x/losses.npz')
  mask = jnp.ones(golden['targets'].shape, bool)
  _, gradient = value_and_grad(
      lambda logits: objective.supervised(
          identity,
          logits,
          golden['targets'],
          mask,
          z_loss=z_loss,
          label_smoothing=label_smoothing,
          chunk=2,
      )['loss'].total
  )(golden['logits'])
  np.testing.assert_allclose(
      gradient * golden['weights'][..., None],
      golden[f'ls{label_smoothing}_z{z_loss}/grad'],
      atol=1e-5,
  )


def test_supervised_means():
  batch = make_batch()
  logits = batch['q_hidden'] @ batch['q_head']
  at = np.asarray(batch['mask'])
  means = objective.supervised(
      lambda hidden: hidden @ batch['q_head'],
      batch['q_hidden'],
      batch['labels'],
      batch['mask'],
      z_loss=1e-2,
      label_smoothing=0.1,
      chunk=4,
  )
  labels = batch['labels']
  loss = divergences.cross_entropy(logits, labels, 1e-2, 0.1)
  nll = divergences.cross_entropy(logits, labels)
  right = np.argmax(logits, -1) == np.asarray(labels)
  assert means.keys() == {'loss', 'cross_entropy', 'accuracy'}
  assert all(mean.count == at.sum() for mean in means.values())
  values = {name: mean.value() for name, mean in means.items()}
  np.testing.assert_allclose(values['loss'], loss[at].mean(), rtol=1e-5)
  np.testing.assert_allclose(values['cross_entropy'], nll[at].mean(), rtol=1e-5)
  np.testing.assert_allclose(values['accuracy'], right[at].mean(), rtol=1e-6)


def test_masked_sum_ignores_what_is_not_finite_outside_the_mask():
  values = jnp.array([[1.0, jnp.nan, jnp.inf], [2.0, 3.0, -jnp.inf]])
  mask = jnp.array([[True, False, False], [True, True, False]])
  mean = objective.masked_sum(values, mask)
  assert (mean.total, mean.count) == (6.0, 3.0)
  assert mean.total.dtype == mean.count.dtype == jnp.float32


def test_a_chunk_below_one_is_refused():
  logits, mask = jnp.zeros((B, T, V)), jnp.ones((B, T), bool)
  with pytest.raises(errors.UserError, match='chunk is 0 positions'):
    chunked(divergences.jsd, logits, logits, mask, chunk=0)


def test_shapes_that_do_not_fit_are_refused_by_name():
  logits, mask = jnp.zeros((B, T, V)), jnp.ones((B, T + 1), bool)
  with pytest.raises(ValueError, match='Axis T is 11 in `p_hidden` but 12'):
    chunked(divergences.jsd, logits, logits, mask)
  with pytest.raises(ValueError, match='Axis V is 13 in `p_logits` but 14'):
    chunked(
        divergences.jsd,
        logits,
        jnp.zeros((B, T, V + 1)),
        jnp.ones((B, T), bool),
    )
