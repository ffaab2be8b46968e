"""The network against t5x itself, on recorded parameters and outputs."""

import functools
import json

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import types
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import t5
from distillspec_jax.models import transformer
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from tests import meshes

NAMES = ['t5v11_tiny', 't5v11_mid']
compute_logits = jax.jit(lambda model, *batch: model.logits(*batch))


@functools.cache
def golden(folder, name):
  """The model, and a function that loads its recorded arrays."""
  folder = folder / 'golden/t5x'
  values = json.loads((folder / 'configs.json').read_text())[name]
  with np.load(folder / f'{name}.params.npz') as arrays:
    flat = {tuple(key.split('/')): arrays[key] for key in arrays}
  params = flax.traverse_util.unflatten_dict(flat)
  network = transformer.Transformer(config_lib.T5Config.from_dict(values))
  return (
      model_lib.Model(params, network),
      lambda part: np.load(folder / f'{name}.{part}.npz'),
  )


def arguments(forward, part):
  """Prompt, decoder inputs and segments, of a batch in t5x's form."""
  inputs = forward[f'{part}/encoder_input_tokens']
  if part == 'packed':
    input_segments = forward['packed/encoder_segment_ids']
    segments = forward['packed/decoder_segment_ids']
  else:
    input_segments = (inputs > 0).astype(np.int32)
    segments = forward['batch/decoder_target_tokens'] > 0
    segments = segments.astype(np.int32)
  return (
      types.Prompt(inputs, input_segments),
      forward[f'{part}/decoder_input_tokens'],
      segments,
  )


@pytest.mark.parametrize('part', ['batch', 'packed'])
@pytest.mark.parametrize('name', NAMES)
def test_logits_are_those_of_t5x(shared, name, part):
  model, load = golden(shared, name)
  forward = load('forward')
  batch = arguments(forward, part)
  logits = compute_logits(model, *batch)
  real = batch[-1] > 0
  expected = forward['logits' if part == 'batch' else 'logits_packed']
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits[real], expected[real], atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_logits_are_near_those_of_t5x(shared, name):
  model, load = golden(shared, name)
  values = {**model.config.to_dict(), 'dtype': 'bfloat16'}
  network = transformer.Transformer(config_lib.T5Config.from_dict(values))
  model = model_lib.Model(model.params, network)
  forward = load('forward')
  batch = arguments(forward, 'batch')
  logits = compute_logits(model, *batch)
  assert logits.dtype == jnp.float32
  real = batch[-1] > 0
  logits, theirs, exact = (
      np.asarray(values, np.float32)[real]
      for values in (
          logits,
          forward['logits_bf16_as_f32'],
          forward['logits'],
      )
  )
  # t5x rounds attention scores too, which are float32 here: the two roundings
  # differ from each other, and ours is no worse than theirs.
  assert np.abs(logits - theirs).mean() < 0.03
  assert np.abs(logits - exact).max() < 1.1 * np.abs(theirs - exact).max()
  assert np.abs(logits - exact).max() > 1e-3  # really the smaller dtype


@pytest.mark.parametrize('name', NAMES)
def test_scores_of_sequences_are_those_of_t5x(shared, name):
  model, load = golden(shared, name)
  forward = load('forward')
  logits = compute_logits(model, *arguments(forward, 'batch'))
  log_p = np.asarray(jax.nn.log_softmax(logits))
  labels = forward['batch/decoder_target_tokens']
  picked = np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
  scores = (picked * forward['batch/decoder_loss_weights']).sum(1)
  np.testing.assert_allclose(scores, forward['score_batch'], atol=1e-3)


@pytest.mark.parametrize('name', NAMES)
def test_encoder_outputs_are_those_of_t5x(shared, name):
  model, load = golden(shared, name)
  forward = load('forward')
  prompt, *_ = arguments(forward, 'batch')
  encoded = jax.jit(lambda model, prompt: model.encode(prompt))(model, prompt)
  real = prompt.tokens > 0
  np.testing.assert_allclose(encoded[real], forward['encoded'][real], atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_greedy_decoding_gives_the_tokens_of_t5x(shared, name):
  model, load = golden(shared, name)
  decode = load('decode')
  inputs = decode['batch/encoder_input_tokens']
  expected = decode['greedy/tokens']
  samples = autoregressive.generate(
      model,
      types.Prompt(inputs, (inputs > 0).astype(np.int32)),
      jax.random.split(jax.random.key(0), len(inputs)),
      decoding_lib.Decoding(max_new_tokens=expected.shape[1]),
  )
  np.testing.assert_array_equal(samples.tokens, expected)


@pytest.mark.parametrize('name', NAMES)
def test_parameters_have_the_paths_and_shapes_of_t5x(shared, name):
  model, _ = golden(shared, name)

  def shapes(tree):
    flat = flax.traverse_util.flatten_dict(tree, sep='/')
    return {path: (leaf.shape, leaf.dtype) for path, leaf in flat.items()}

  assert shapes(model.network.abstract()) == shapes(model.params)


@pytest.mark.parametrize('name', NAMES)
def test_parameters_have_the_logical_axes_of_t5x(shared, name):
  model, _ = golden(shared, name)
  path = shared / f'golden/t5x/{name}.param_axes.json'
  axes = flax.traverse_util.flatten_dict(model.network.logical_axes(), sep='/')
  assert {path: list(spec) for path, spec in axes.items()} == json.loads(
      path.read_text()
  )


def test_gradients_are_those_of_t5x(shared):
  model, load = golden(shared, 't5v11_tiny')
  batch = arguments(load('forward'), 'batch')
  labels = load('forward')['batch/decoder_target_tokens']
  weights = (labels > 0).astype(np.float32)

  def loss(model):  # t5x's default: a sum over tokens, with z-loss
    logits = model.logits(*batch)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return jnp.sum(weights * (log_z - picked + 1e-4 * log_z**2))

  gradients = flax.traverse_util.flatten_dict(
      jax.jit(jax.grad(loss))(model).params, sep='/'
  )
  with load('grads_z1e-4') as expected:
    names = {key.removeprefix('grads/'): key for key in expected}
    assert set(gradients) == set(names)
    for name, key in names.items():
      np.testing.assert_allclose(
          gradients[name], expected[key], atol=1e-4, err_msg=name
      )


@pytest.mark.parametrize('new', [1, 4])
def test_appending_row_by_row_is_appending(new):
  rng = np.random.default_rng(new)
  cache = rng.standard_normal((3, 2, 9, 4)).astype(np.float32)
  block = rng.standard_normal((3, 2, new, 4)).astype(np.float32)
  start = np.array([0, 3, 9 - new], np.int32)
  expected = cache.copy()
  for row, place in enumerate(start):
    expected[row, :, place : place + new] = block[row]
  for append in (t5.append, t5.append_slices, t5.append_one_by_one):
    np.testing.assert_array_equal(append(cache, block, start), expected)
  # Rows in step are updated at once.
  np.testing.assert_array_equal(
      t5.append(cache, block, jnp.int32(2)),
      t5.append_slices(cache, block, np.full(3, 2, np.int32)),
  )


@pytest.mark.parametrize('shape', [(2, 1, 4), (1, 4, 2)])
def test_each_device_appends_to_its_own_rows(shape):
  mesh = meshes.make(shape)
  rng = np.random.default_rng(0)
  cache = rng.standard_normal((8, 4, 9, 4)).astype(np.float32)
  block = rng.standard_normal((8, 4, 2, 4)).astype(np.float32)
  start = rng.integers(0, 7, 8).astype(np.int32)
  heads = jax.sharding.PartitionSpec(mesh_lib.ROWS, 'tensor')
  placed = *(
      jax.device_put(x, jax.sharding.NamedSharding(mesh, heads))
      for x in (cache, block)
  ), meshes.put(mesh, start)
  with jax.set_mesh(mesh):
    program = jax.jit(t5.append_one_by_one).lower(*placed).compile()
  assert not meshes.exchanges(program)
  np.testing.assert_array_equal(
      program(*placed), t5.append_slices(cache, block, start)
  )
