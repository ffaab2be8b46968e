"""Teacher forcing and incremental decoding: caches, packing, gradients."""

import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import types
from distillspec_jax.models import layers
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from tests import tiny

V, B, S = tiny.V, 5, 7
BLOCKS = (1, 2, 3, 4, 5, 6, 7, 8)
LONG = 144  # tokens, past the largest distance, 128

CONFIGS = {
    'encoder_decoder': {},
    'decoder_only': {'num_encoder_layers': 0},
    'v1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
    'scanned': {'scan_layers': True},
    'scanned_decoder_only': {'scan_layers': True, 'num_encoder_layers': 0},
    'unequal_depths': {'num_encoder_layers': 1, 'num_decoder_layers': 3},
}


def make(name, **changes):
  """A model; `changes` do not change its parameters."""
  sizes = {'num_encoder_layers': 2, 'num_decoder_layers': 2}
  return tiny.model(V, **sizes | CONFIGS[name] | changes)


@functools.cache
def ragged_batch(length):
  """Prompts of different lengths, the last empty; labels; their segments."""
  rng = np.random.default_rng(1)
  input_segments = np.arange(S) < np.array([S, 3, 1, 5, 0])[:, None]
  inputs = rng.integers(2, V, (B, S)) * input_segments
  labels = rng.integers(2, V, (B, length))
  inputs, input_segments, labels, segments = (
      jnp.asarray(array, jnp.int32)
      for array in (inputs, input_segments, labels, np.ones_like(labels))
  )
  return types.Prompt(inputs, input_segments), labels, segments


@jax.jit
def teacher_forced(model, prompt, labels, segments, dropout_key=None):
  decoder_inputs = model_lib.shift_right(labels, segments)
  return model.logits(prompt, decoder_inputs, segments, dropout_key)


@functools.partial(jax.jit, static_argnames='blocks')
def incremental(model, prompt, labels, blocks):
  """Logits of all positions through the cache, in blocks of these sizes."""
  rows, length = labels.shape
  state, context = model.prefill(prompt, length)
  last = jnp.take_along_axis(context.tokens, context.length[:, None] - 1, 1)
  tokens = jnp.concatenate([last, labels[:, :-1]], axis=1)

  def cycle(state, tokens):
    logits, start = [], 0
    for block in blocks:
      hidden, state = model.extend(state, tokens[:, start : start + block])
      logits.append(model.unembed(hidden))
      start += block
    return state, jnp.concatenate(logits, axis=1)

  tokens = tokens.reshape(rows, -1, sum(blocks)).swapaxes(0, 1)
  state, logits = jax.lax.scan(cycle, state, tokens)
  return logits.swapaxes(0, 1).reshape(rows, length, -1), state


@pytest.mark.parametrize('name', CONFIGS)
def test_incremental_logits_are_the_teacher_forced_ones(name):
  model = make(name)
  prompt, labels, segments = ragged_batch(LONG)
  expected = teacher_forced(model, prompt, labels, segments)
  logits, state = incremental(model, prompt, labels, (1, 8, 3))
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  before = np.sum(prompt.segments, 1) if model.config.is_decoder_only else 0
  np.testing.assert_array_equal(state.length, LONG + before)
  assert np.asarray(expected).std() > 0.3  # the comparison compares something


@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize('name', ['scanned', 'scanned_decoder_only'])
def test_every_block_size_agrees_at_every_position(name, block):
  model = make(name)
  prompt, labels, segments = ragged_batch(80)
  expected = teacher_forced(model, prompt, labels, segments)
  length = 10 * block
  logits, _ = incremental(model, prompt, labels[:, :length], (block,))
  np.testing.assert_allclose(logits, expected[:, :length], atol=1e-4)


def test_a_prompt_of_width_zero_is_no_prompt():
  model = make('decoder_only')
  prompt, labels, segments = ragged_batch(40)
  nothing = types.Prompt(prompt.tokens[:, :0], prompt.segments[:, :0])
  without = teacher_forced(model, nothing, labels, segments)
  with_prompt = teacher_forced(model, prompt, labels, segments)
  np.testing.assert_allclose(with_prompt[-1], without[-1], atol=1e-5)
  assert np.abs(with_prompt[0] - without[0]).max() > 0.1
  logits, _ = incremental(model, nothing, labels, (8,))
  np.testing.assert_allclose(logits, without, atol=1e-4)


@pytest.mark.parametrize('name', ['encoder_decoder', 'decoder_only', 'scanned'])
def test_a_rollback_after_garbage_leaves_no_trace(name):
  model = make(name)
  prompt, labels, segments = ragged_batch(24)
  expected = teacher_forced(model, prompt, labels, segments)
  kept_of_block = jnp.array([0, 1, 3, 5, 2])  # each row keeps its own number

  @jax.jit
  def run(model, garbage):
    state, context = model.prefill(prompt, 24 + 6)
    last = jnp.take_along_axis(context.tokens, context.length[:, None] - 1, 1)
    tokens = jnp.pad(
        jnp.concatenate([last, labels[:, :-1]], axis=1), ((0, 0), (0, 6))
    )
    consumed = jnp.zeros(B, jnp.int32)
    seen = jnp.zeros((B, 24 + 6, V))
    for _ in range(4):
      index = consumed[:, None] + jnp.arange(6)[None]
      block = jnp.take_along_axis(tokens, index, 1)
      wrong = jnp.arange(6)[None] > kept_of_block[:, None]
      block = jnp.where(wrong, garbage, block)
      before = state.length
      hidden, state = model.extend(state, block)
      logits = model.unembed(hidden)
      seen = seen.at[jnp.arange(B)[:, None], index].set(logits)
      state = model.rollback(state, before + kept_of_block + 1)
      consumed = consumed + kept_of_block + 1
    return seen, consumed

  seen, consumed = run(model, 7)
  other, _ = run(model, 23)
  for row in range(B):
    used = consumed[row]
    np.testing.assert_allclose(
        seen[row, :used], expected[row, :used], atol=1e-4
    )
    np.testing.assert_array_equal(seen[row, :used], other[row, :used])


@pytest.mark.parametrize('name', ['encoder_decoder', 'decoder_only'])
def test_packed_examples_are_as_if_alone(name):
  model = make(name)
  rng = np.random.default_rng(2)
  sizes = [(3, 4), (2, 6), (4, 1)]  # (inputs, labels) of three examples
  examples = [(rng.integers(2, V, s), rng.integers(2, V, t)) for s, t in sizes]
  width, length = (11, 14)  # the row's end is padding

  def pad(parts, to):
    row = np.concatenate(parts)
    return np.pad(row, (0, to - len(row))).astype(np.int32)[None]

  def batch(inputs, input_segments, labels, segments):
    if model.config.is_decoder_only:
      inputs, input_segments = inputs[:, :0], input_segments[:, :0]
    return types.Prompt(inputs, input_segments), labels, segments

  numbers = range(1, 4)
  packed = batch(
      pad([x for x, _ in examples], width),
      pad([np.full(len(x), n) for n, (x, _) in zip(numbers, examples)], width),
      pad([y for _, y in examples], length),
      pad([np.full(len(y), n) for n, (_, y) in zip(numbers, examples)], length),
  )
  together = teacher_forced(model, *packed)
  start = 0
  for x, y in examples:
    alone = teacher_forced(
        model,
        *batch(
            pad([x], width),
            pad([np.ones_like(x)], width),
            pad([y], length),
            pad([np.ones_like(y)], length),
        ),
    )
    np.testing.assert_allclose(
        together[0, start : start + len(y)], alone[0, : len(y)], atol=1e-5
    )
    start += len(y)


def test_shift_right_starts_every_segment_with_zero():
  labels = jnp.array([[5, 6, 1, 7, 1, 0], [8, 1, 9, 1, 3, 1]])
  segments = jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 3, 3]])
  np.testing.assert_array_equal(
      model_lib.shift_right(labels, segments),
      [[0, 5, 6, 0, 7, 0], [0, 8, 0, 9, 0, 3]],
  )


def test_dropout_needs_a_key_and_repeats_with_it():
  model = make('encoder_decoder', dropout_rate=0.3)
  plain_model = make('encoder_decoder')
  batch = ragged_batch(8)
  run = functools.partial(teacher_forced, model, *batch)
  plain = teacher_forced(plain_model, *batch)
  np.testing.assert_array_equal(run(), plain)
  one, two = run(jax.random.key(1)), run(jax.random.key(2))
  np.testing.assert_array_equal(one, run(jax.random.key(1)))
  assert np.abs(one - plain).max() > 0.1
  assert np.abs(one - two).max() > 0.1


@pytest.mark.parametrize('name', ['encoder_decoder', 'decoder_only'])
def test_no_two_places_share_a_dropout_key(name, monkeypatch):
  model = make(name, dropout_rate=0.3)
  prompt, labels, segments = ragged_batch(8)
  stream = layers.randomness.stream

  @jax.jit
  def run(key):
    keys = []

    def recorded(key, place):
      keys.append(stream(key, place))
      return keys[-1]

    monkeypatch.setattr(layers.randomness, 'stream', recorded)
    model.hidden(prompt, labels, segments, dropout_key=key)
    return jnp.stack([jax.random.key_data(key) for key in keys])

  keys = np.asarray(run(jax.random.key(0)))
  config = model.config
  # Each attention drops weights and output, each feed-forward hidden units and
  # output, each stack what goes in and out.
  expected = 6 * config.num_decoder_layers + 2
  if config.is_decoder_only:
    expected -= 2 * config.num_decoder_layers
  else:
    expected += 4 * config.num_encoder_layers + 2
  assert len(keys) == expected
  assert len({tuple(key) for key in keys}) == expected


def stacked(params):
  """Parameters of unrolled layers, as the scanned model names them."""
  stacks = {}
  for side, tree in params.items():
    numbers = sorted(
        int(name.removeprefix('layers_'))
        for name in tree
        if name.startswith('layers_')
    )
    stacks[side] = {
        name: value
        for name, value in tree.items()
        if not name.startswith('layers_')
    }
    if numbers:
      stacks[side]['layers'] = jax.tree.map(
          lambda *leaves: jnp.stack(leaves),
          *(tree[f'layers_{number}'] for number in numbers),
      )
  return stacks


@pytest.mark.parametrize('name', ['encoder_decoder', 'decoder_only'])
def test_scanned_layers_give_the_logits_of_unrolled_ones(name):
  model = make(name, dropout_rate=0.3)
  scanned = make(name, dropout_rate=0.3, scan_layers=True)
  batch = ragged_batch(12)
  converted = stacked(model.params)
  assert jax.tree.structure(converted) == jax.tree.structure(scanned.params)
  key = jax.random.key(4)
  np.testing.assert_allclose(
      teacher_forced(scanned.replace(params=converted), *batch, key),
      teacher_forced(model, *batch, key),
      atol=1e-5,
  )


@jax.jit
def loss_and_gradient(model, batch, key):
  prompt, labels, segments = batch

  def loss(model):
    decoder_inputs = model_lib.shift_right(labels, segments)
    logits = model.logits(prompt, decoder_inputs, segments, key)
    log_p = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    return -jnp.sum(picked, where=segments > 0)

  value, gradient = jax.value_and_grad(loss)(model)
  return value, gradient.params


@pytest.mark.parametrize(
    'name, remat',
    [('decoder_only', 'full'), ('scanned', 'dots'), ('scanned', 'attention')],
)
def test_rematerialisation_changes_no_gradient(name, remat):
  model = make(name, dropout_rate=0.1)
  again = make(name, dropout_rate=0.1, remat=remat)
  batch, key = ragged_batch(12), jax.random.key(0)
  value, gradient = loss_and_gradient(model, batch, key)
  value_again, gradient_again = loss_and_gradient(again, batch, key)
  np.testing.assert_allclose(value, value_again, rtol=1e-6)
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-4),
      gradient,
      gradient_again,
  )


@pytest.mark.parametrize('name', ['unequal_depths', 'scanned'])
def test_attention_alone_can_be_recomputed(name):
  rows, heads, length = 3, 2, 37  # a length that no other axis has

  def kept(remat):
    """The arrays that the backward pass reads."""
    model = make(name, remat=remat)
    tokens = jnp.ones((rows, length), jnp.int32)

    def backward(model):
      loss = lambda model: jnp.sum(
          model.logits(types.Prompt(tokens, tokens), tokens, tokens)
      )
      return jax.vjp(loss, model)[1]

    return jax.tree.leaves(jax.eval_shape(backward, model))

  def weights(arrays):
    return [x for x in arrays if x.shape[-3:] == (heads, length, length)]

  def rest(arrays):
    return sum(x.size for x in arrays if x.shape[-2:] != (length, length))

  plain, attention = kept('none'), kept('attention')
  layers_each = 3 if name == 'unequal_depths' else 1  # scanned: in one array
  assert len(weights(plain)) > 3 * layers_each
  assert all(x.shape[-4] == 1 for x in weights(attention))  # the bias
  # Nor are matrix products recomputed.
  assert 0.9 * rest(plain) < rest(attention) < 1.2 * rest(plain)


@pytest.mark.parametrize('name', ['encoder_decoder', 'decoder_only'])
def test_gradients_are_finite_and_reach_every_parameter(name):
  model = make(name)
  prompt, labels, segments = ragged_batch(12)
  # A row of padding only, and rows with a padded end.
  lengths = np.array([12, 5, 0, 1, 9])[:, None]
  segments = jnp.asarray(np.arange(12) < lengths, jnp.int32)
  batch = prompt, labels * segments, segments
  value, gradient = loss_and_gradient(model, batch, None)
  assert np.isfinite(value)
  for path, leaf in flax.traverse_util.flatten_dict(gradient, sep='/').items():
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 0, path


def test_padding_is_not_read():
  for name in ('encoder_decoder', 'decoder_only'):
    model = make(name)
    prompt, labels, segments = ragged_batch(12)
    logits = teacher_forced(model, prompt, labels, segments)
    garbage = jnp.where(prompt.segments > 0, prompt.tokens, 9)
    wider = types.Prompt(
        jnp.pad(garbage, ((0, 0), (0, 4)), constant_values=9),
        jnp.pad(prompt.segments, ((0, 0), (0, 4))),
    )
    wider = teacher_forced(model, wider, labels, segments)
    # The last row has no input at all.
    np.testing.assert_allclose(wider[:-1], logits[:-1], atol=1e-5)


def test_bfloat16_computes_and_caches_in_bfloat16_with_float32_parameters():
  model = make('encoder_decoder', dtype='bfloat16')
  prompt, labels, segments = ragged_batch(8)
  logits, state = incremental(model, prompt, labels, (8,))
  assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {
      jnp.dtype('float32')
  }
  assert {leaf.dtype for leaf in jax.tree.leaves(state.cache)} == {
      jnp.dtype('bfloat16')
  }
  expected = teacher_forced(model, prompt, labels, segments)
  np.testing.assert_allclose(
      np.asarray(logits, np.float32), np.asarray(expected, np.float32), atol=0.1
  )


def test_arrays_that_disagree_are_named():
  model = make('encoder_decoder')
  prompt, labels, segments = ragged_batch(8)
  with pytest.raises(ValueError, match='Axis T is 8 in `decoder_inputs` but 7'):
    model.hidden(prompt, labels, segments[:, :7])
  fewer = prompt._replace(segments=prompt.segments[:4])
  with pytest.raises(ValueError, match='Axis B is 5 in `tokens` but 4'):
    model.prefill(fewer, 8)
  begin = functools.partial(model.prefill, max_new_tokens=8)
  state, _ = jax.eval_shape(begin, prompt)
  with pytest.raises(ValueError, match='Axis B is 2 in `tokens` but 5'):
    model.extend(state, labels[:2])


@pytest.mark.parametrize('name', ['decoder_only', 'scanned'])
def test_a_block_without_room_is_refused(name):
  model = make(name)
  prompt, *_ = ragged_batch(8)
  begin = functools.partial(model.prefill, max_new_tokens=3)
  state, context = jax.eval_shape(begin, prompt)
  slots = context.tokens.shape[1] - 1 + 3
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
  state = state.replace(length=jnp.full(B, slots - 4).at[2].set(slots - 3))

  def extend(size, state=state):
    tokens = jnp.zeros((B, size), jnp.int32)
    return jax.eval_shape(lambda: model.extend(state, tokens))

  extend(3)
  used = f'cache has {slots} slots for each row, of which {slots - 3} are in'
  with pytest.raises(ValueError, match=f'of 4 tokens does not fit.*{used}'):
    extend(4)
  # As far as is known while a program is traced.
  with pytest.raises(ValueError, match=f'block of {slots + 1} tokens'):
    jax.eval_shape(lambda state: extend(slots + 1, state), state)


def test_tokens_of_the_larger_vocabulary_alone_are_not_common():
  models = [tiny.model(size) for size in (V, V + 8)]
  assert model_lib.common_vocabulary(*models) == V
  assert model_lib.common_vocabulary(*models[::-1]) == V


# The output layer.


def test_logits_of_a_trimmed_vocabulary_are_those_of_the_full_one():
  model, kept = make('decoder_only'), (0, 1, 5, V - 1)
  trimmed = tiny.trimmed(model, kept)
  hidden = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 16)))
  full = np.asarray(model.all_logits(hidden))
  np.testing.assert_array_equal(full, model.unembed(hidden))
  expanded = np.asarray(trimmed.all_logits(hidden))
  np.testing.assert_allclose(expanded[..., kept], full[..., kept], rtol=1e-5)
  assert np.isneginf(np.delete(expanded, kept, axis=-1)).all()
  # Without the tokens of the larger model of a pair.
  few = trimmed.trimmed_logits(hidden, V - 1)
  np.testing.assert_allclose(few, full[..., kept[:-1]], rtol=1e-5)
  assert trimmed.all_logits(hidden, V - 1).shape == (1, 3, V - 1)


@pytest.mark.parametrize('name', ['decoder_only', 'v1_0'])
def test_a_head_is_all_that_the_output_layer_reads(name):
  model, hidden = make(name), jnp.ones((1, 2, 16))
  head = model.head()
  assert len(jax.tree.leaves(head)) == 1
  np.testing.assert_array_equal(head.unembed(hidden), model.unembed(hidden))


def test_kernels_are_held_in_the_dtype_of_the_computation():
  model = make('decoder_only', dtype='bfloat16')
  held = flax.traverse_util.flatten_dict(model.for_decoding().params)
  for path, leaf in held.items():
    is_cast = path[-1] in ('kernel', 'embedding')
    assert leaf.dtype == (jnp.bfloat16 if is_cast else jnp.float32), path
  same = make('decoder_only').for_decoding()
  jax.tree.map(np.testing.assert_array_equal, same, make('decoder_only'))


@pytest.mark.parametrize('changes', [{}, {'relative_bias_per_layer': True}])
def test_a_loop_over_tokens_does_not_scan_layers(changes):
  model = make('scanned', **changes)
  decoding = model.for_decoding()
  prompt, labels, segments = ragged_batch(8)
  expected = teacher_forced(model, prompt, labels, segments)
  logits, state = incremental(decoding, prompt, labels, (1, 3))
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  assert len(state.cache) == len(state.cross) == 2  # one a layer
  assert decoding.network != model.network
  # The encoder, which runs once, compiles as fast as before.
  assert set(decoding.params['encoder']) == set(model.params['encoder'])
  # It has the network's own names and axes.
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(decoding.params) == shapes(decoding.network.abstract())


# A pytree of parameters; the rest is static.


def test_equal_networks_share_a_program_whatever_their_parameters():
  traced = []

  @jax.jit
  def unembed(model, hidden):
    traced.append(model.network)
    return model.unembed(hidden)

  hidden = jnp.ones((1, 2, 16))
  model = make('decoder_only')
  again = model_lib.Model(
      tiny.random_params(model.config, seed=1),
      transformer.Transformer(dataclasses.replace(model.config)),
  )
  assert again.network is not model.network
  one, two = unembed(model, hidden), unembed(again, hidden)
  assert len(traced) == 1 and unembed._cache_size() == 1
  assert np.abs(one - two).max() > 0.1
  np.testing.assert_array_equal(two, again.unembed(hidden))
  # Another network compiles another program, though its parameters fit.
  changed = tiny.changed(model, model.params, scale_logits=True)
  np.testing.assert_allclose(unembed(changed, hidden), one / 4.0, rtol=1e-6)
  assert len(traced) == 2


def test_a_gradient_is_a_model_and_parameters_are_its_leaves():
  model = make('decoder_only')
  assert len(jax.tree.leaves(model)) == len(jax.tree.leaves(model.params))
  gradient = jax.grad(lambda model: model.unembed(jnp.ones((1, 1, 16))).sum())(
      model
  )
  assert gradient.network == model.network
  with pytest.raises(AttributeError):
    model.params = {}
  assert repr(model).startswith('Model(6,544 parameters, T5Config(')
