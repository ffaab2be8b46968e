"""Models held as int8: near the float ones, a quarter of the bytes."""

import dataclasses
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import errors
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import int8
from distillspec_jax.training import method
from distillspec_jax.training import shared_encoder
from distillspec_jax.training import step
from tests import tiny

needs_qwix = pytest.mark.skipif(
    importlib.util.find_spec('qwix') is None,
    reason="needs qwix: pip install -e '.[int8]'",
)
QUANTIZED = int8.KINDS[1:]
SHAPES = {
    'plain': {},
    'scanned': {'scan_layers': True},
    'by embedding': {'logits_via_embedding': True},
    'trimmed': {'trimmed_vocabulary': (0, 1, 5, 7, 9, 11)},
    'decoder-only': {'num_encoder_layers': 0},
    'in bfloat16': {'dtype': 'bfloat16'},
}
TOKENS = np.random.default_rng(0).integers(2, 256, (4, 9))
LABELS = np.random.default_rng(1).integers(2, 256, (4, 8))


def saved(folder, **changes):
  sizes = {'emb_dim': 64, 'mlp_dim': 128}
  return tiny.save(folder, tiny.model(256, **sizes, **changes))


def nbytes(loaded):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.model))


def shapes(params):
  return jax.tree.map(lambda x: (x.shape, x.dtype), params)


def spread_of_errors(a, b):
  """Standard deviation of b - a over that of a, where a is finite."""
  a, b = np.asarray(a), np.asarray(b)
  real = np.isfinite(a)
  np.testing.assert_array_equal(real, np.isfinite(b))
  return np.std(b[real] - a[real]) / np.std(a[real])


@needs_qwix
@pytest.mark.parametrize('weights', QUANTIZED)
@pytest.mark.parametrize('shape', SHAPES)
def test_logits_are_near_those_of_the_float_model(tmp_path, shape, weights):
  folder = saved(tmp_path / 'm', **SHAPES[shape])
  exact = loading.load(folder)
  approximate = loading.load(folder, weights=weights)
  model = approximate.model
  assert shapes(model.params) == shapes(model.network.abstract())
  # Each of some ten roundings is off by half a step of 127 at most, that is
  # 0.3 % of the largest of a channel and about 1 % of its spread.
  error = spread_of_errors(
      exact.logits(TOKENS, LABELS), approximate.logits(TOKENS, LABELS)
  )
  assert 1e-3 < error < 0.06


@needs_qwix
def test_kernels_and_the_embedding_are_int8_and_the_rest_is_not(tmp_path):
  folder = saved(tmp_path / 'm')
  exact = loading.load(folder)
  approximate = loading.load(folder, weights='int8')
  before = tensors.flatten(exact.model.params)
  after = tensors.flatten(approximate.model.params)
  quantized = {path for path, leaf in after.items() if leaf.dtype == jnp.int8}
  assert quantized == {
      path for path in before if path.endswith(('/kernel', '/embedding'))
  }
  for path, array in before.items():
    if path not in quantized:
      np.testing.assert_array_equal(after[path], array)
      continue
    axis = 1 if path.endswith('embedding') else 0
    scale = after[path + '_scale']
    assert scale.dtype == jnp.float32 and scale.shape[axis] == 1
    values = np.asarray(after[path], np.float32)
    assert (np.abs(values).max(axis) >= 127).all()  # of every channel
    apart = np.abs(values * scale - array)
    assert (apart <= 0.5001 * np.asarray(scale)).all()
  assert set(after) - set(before) == {path + '_scale' for path in quantized}
  assert nbytes(approximate) < 0.28 * nbytes(exact)


@needs_qwix
@pytest.mark.parametrize('weights', QUANTIZED)
def test_a_channel_of_zeros_stays_zero(weights):
  kernel = jnp.ones((8, 4)).at[:, 2].set(0.0)
  held = int8.quantize('a/kernel', kernel)
  x = jnp.ones((1, 2, 8)).at[0, 1].set(0.0)  # and a token of zeros
  product = int8.dot(x, held['a/kernel'], held['a/kernel_scale'], 0, weights)
  expected = [[[8.0, 8.0, 0.0, 8.0], [0.0] * 4]]
  np.testing.assert_allclose(product, expected, rtol=0.01)  # half a step each


@needs_qwix
@pytest.mark.parametrize('weights', QUANTIZED)
def test_non_finite_values_stay_in_their_row(weights):
  held = int8.quantize('a/kernel', jnp.ones((8, 4)))
  for bad in (np.nan, np.inf):
    x = jnp.ones((2, 1, 8)).at[0, 0, 3].set(bad)
    y = int8.dot(x, held['a/kernel'], held['a/kernel_scale'], 0, weights)
    assert not np.isfinite(y[0]).any() and np.isfinite(y[1]).all()


@needs_qwix
def test_few_rows_are_those_of_many():
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.standard_normal((16, 8)), jnp.float32)
  x = jnp.asarray(rng.standard_normal((2, 6, 16)), jnp.float32)
  held = int8.quantize('a/kernel', kernel)
  product = lambda x: int8.dot(
      x, held['a/kernel'], held['a/kernel_scale'], 0, 'int8'
  )
  of_all = product(x)
  for rows, tokens in ((1, 1), (1, 3), (2, 1), (2, 2), (1, 6)):
    np.testing.assert_array_equal(
        product(x[:rows, :tokens]), of_all[:rows, :tokens]
    )


@needs_qwix
@pytest.mark.parametrize('shape', ['plain', 'scanned'])
def test_parameters_are_laid_out_on_the_mesh(tmp_path, shape):
  folder = saved(tmp_path / 'm', **SHAPES[shape])
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  alone = loading.load(folder, weights='int8')
  loaded = loading.load(folder, weights='int8', mesh=mesh)
  jax.tree.map(np.testing.assert_array_equal, loaded.model, alone.model)
  assert [x.sharding for x in jax.tree.leaves(loaded.model)] == (
      jax.tree.leaves(loaded.model.network.shardings(mesh))
  )
  assert spread_of_errors(
      alone.logits(TOKENS, LABELS), loaded.logits(TOKENS, LABELS)
  ) < 0.02  # fmt: skip


@needs_qwix
def test_a_draft_that_shares_an_encoder(tmp_path):
  folder = saved(tmp_path / 'm', encoded_dim=32)
  encoded = np.random.default_rng(2).standard_normal((4, 9, 32))
  logits = [
      loading.load(folder, weights=weights).logits(
          TOKENS, LABELS, encoded=jnp.asarray(encoded, jnp.float32)
      )
      for weights in (None, 'int8')
  ]
  assert 1e-3 < spread_of_errors(*logits) < 0.06


@needs_qwix
def test_it_can_be_neither_saved_nor_trained(tmp_path):
  loaded = loading.load(saved(tmp_path / 'm'), weights='int8')
  with pytest.raises(errors.UserError, match='cannot be saved; load it withou'):
    loaded.config.to_dict()
  with pytest.raises(errors.UserError, match="='int8' cannot be trained"):
    step.make_step(method.Method(), optax.sgd(0.1), loaded.model.network)
  target = loading.load(tmp_path / 'm')
  with pytest.raises(errors.UserError, match="='int8' cannot be trained"):
    shared_encoder.from_draft(loaded, target, [])


def test_what_is_saved_does_not_name_weights():
  config = config_lib.published('test')
  assert 'weights' not in config.to_dict()
  other = dataclasses.replace(config, weights='int8')
  assert hash(other) != hash(config) and other != config


def test_unknown_weights_are_refused(tmp_path):
  folder = saved(tmp_path / 'm')
  with pytest.raises(errors.UserError, match="weights is 'int4'; it must be"):
    loading.load(folder, weights='int4')
  with pytest.raises(errors.UserError, match="weights is 'int4'; it must be"):
    config_lib.published('test', weights='int4')


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'qwix', None)
  folder = saved(tmp_path / 'm')
  with pytest.raises(errors.UserError, match=r"need qwix.*'\.\[int8\]'"):
    loading.load(folder, weights='int8')
  assert loading.load(folder).config.weights == 'float'
