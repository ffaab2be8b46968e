"""The attention kernel against the plain formula, `layers.mix`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import attention_kernel
from distillspec_jax.models import layers
from tests import meshes
from tests import tiny

NAMES = 'values', 'queries', 'keys', 'attended', 'bias'


def formula(*read):
  return layers.mix(*read, layers.Dropout(0.0, None))


def kernel(*read, layout=()):
  return attention_kernel.attend(*read, formula, layout, interpret=True)


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes of one attention, what is visible, and the rows of the bias."""

  visible: str
  bias_rows: int | None
  rows: int = 2
  heads: int = 2
  queries: int = 37
  keys: int = 37
  size: int = 64
  dtype: Any = 'float32'

  def arguments(self):
    rng = np.random.default_rng(0)
    shape = lambda length: (self.rows, self.heads, length, self.size)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), self.dtype)
    queries, keys, values, gradient = (
        draw(*shape(n)) * self.size**-0.25
        for n in (self.queries, self.keys, self.keys, self.queries)
    )
    bias = None
    if self.bias_rows:
      square = self.bias_rows, self.heads, self.queries, self.keys
      bias = draw(*square).astype(jnp.float32)
    return (queries, keys, values, self.visible_keys(), bias), gradient

  def visible_keys(self):
    if self.visible == 'padded':  # the last row altogether
      length = jnp.linspace(self.keys, 0, self.rows).astype(jnp.int32)
      seen = jnp.arange(self.keys)[None, None] < length[:, None, None]
      return jnp.broadcast_to(seen, (self.rows, self.queries, self.keys))
    # Two examples in each row, then padding.
    segments = jnp.asarray([1] * 10 + [2] * 20 + [0] * (self.keys - 30))
    same = (segments[:, None] == segments[None]) & (segments > 0)[None]
    if self.visible == 'causal':
      same &= jnp.tril(jnp.ones_like(same))
    return jnp.broadcast_to(same, (self.rows, *same.shape))


def outputs(function, case):
  """What a function gives, and the gradients of all that it reads."""

  @jax.jit
  def run(arguments, gradient):
    queries, keys, values, visible, bias = arguments
    read = lambda q, k, v, bias: function(q, k, v, visible, bias)
    out, backward = jax.vjp(read, queries, keys, values, bias)
    return out, *backward(gradient)

  return run(*case.arguments())


def differences(ones, others):
  """The largest difference in each array, in parts of its largest number."""
  found = {}
  for name, one, other in zip(NAMES, ones, others, strict=True):
    if one is None:
      assert other is None
      continue
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    one, other = np.float32(one), np.float32(other)
    found[name] = np.abs(one - other).max() / np.abs(one).max()
  return found


CASES = {
    'encoder': Case('padded', 1, rows=3),
    'packed': Case('packed', 1),
    'causal, own bias, heads of 8': Case('causal', 2, size=8),
    # Three heads of 48 share a step, which has no room for a fourth.
    'cross': Case('padded', None, heads=3, queries=9, keys=140, size=48),
    'large heads': Case('packed', 1, rows=1, size=128),
    'bfloat16': Case('packed', 1, dtype='bfloat16'),
}


@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_are_those_of_the_formula(name):
  case = CASES[name]
  tolerance = 1e-5 if case.dtype == 'float32' else 2e-2
  found = differences(outputs(formula, case), outputs(kernel, case))
  assert max(found.values()) < tolerance, found


def test_several_blocks_of_queries_add_up(monkeypatch):
  monkeypatch.setattr(attention_kernel, '_SCORES', 128 * 128)
  case = Case('padded', 1, heads=1, queries=150, keys=40)
  found = differences(outputs(formula, case), outputs(kernel, case))
  assert max(found.values()) < 1e-5, found


def test_one_more_visible_key_is_seen():
  case = CASES['packed']

  def otherwise(queries, keys, values, visible, bias):
    return formula(queries, keys, values, visible.at[0, 3, 12].set(True), bias)

  found = differences(outputs(otherwise, case), outputs(kernel, case))
  assert min(found.values()) > 1e-3, found


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2)], ids=str)
def test_devices_have_their_own_rows_and_heads(shape):
  case = Case('padded', 1, rows=8, queries=8, keys=8, size=8)
  one_device = outputs(kernel, case)
  sharded = functools.partial(kernel, layout=layouts.SHARDED)
  with jax.set_mesh(meshes.make(shape)):
    found = differences(one_device, outputs(sharded, case))
  assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 4, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize('axes', [mesh_lib.ROWS, mesh_lib.AXES], ids=str)
def test_a_loop_over_rows_may_have_the_kernel_in_it(shape, axes):
  read = [jnp.zeros((8, 4, 128, 64))] * 3 + [jnp.ones((8, 128, 128), bool)]

  def rows(_, read):
    return attention_kernel.attend(*read, None, formula, layouts.SHARDED)

  program = jax.jit(
      lambda *read: mesh_lib.shard_over_batch(rows, None, read, axes)
  )
  with jax.set_mesh(meshes.make(shape)):
    # A TPU's program can be made anywhere.
    lowered = program.trace(*read).lower(lowering_platforms=('tpu',))
  assert 'tpu_custom_call' in lowered.as_text()


# In a model.


def encode(length, rows=2, dropout_key=None, **changes):
  """A function of parameters, and these: a sum over the encoder's output."""
  model = tiny.model(**changes)
  tokens = jnp.asarray(np.arange(rows * length).reshape(rows, length) % 30 + 2)
  prompt = types.Prompt(tokens, jnp.ones_like(tokens))

  def run(params):
    encoded = model.replace(params=params).encode(prompt, dropout_key)
    return jnp.sum(jnp.square(encoded))

  return run, model.params


def one_device(platform):
  """A context with a mesh of a device that need not be there."""
  kind = {'tpu': 'TPU v5 lite', 'cpu': 'cpu'}[platform]
  device = jax.sharding.AbstractDevice(kind, 1, platform=platform)
  mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


def test_a_model_with_the_kernel_has_the_same_gradients_elsewhere():
  run, params = encode(12, attention='fused')
  plain, _ = encode(12)
  gradients = (jax.jit(jax.grad(f))(params) for f in (run, plain))
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5), *gradients
  )
  kept = jax.eval_shape(lambda params: jax.vjp(run, params)[1], params)
  assert (2, 2, 12, 12) not in [x.shape for x in jax.tree.leaves(kept)]


@pytest.mark.parametrize(
    'platform, length, changes, is_fused',
    [
        ('tpu', 128, {}, True),
        ('tpu', 128, {'attention': 'xla'}, False),
        ('tpu', 128, {'dropout_rate': 0.1}, False),
        ('tpu', 127, {}, False),
        ('tpu', attention_kernel.MAX_KEYS + 1, {}, False),
        ('cpu', 128, {}, False),
    ],
)
def test_the_kernel_is_taken_where_it_is_faster(
    platform, length, changes, is_fused
):
  run, params = encode(
      length, rows=1, dropout_key=jax.random.key(0), num_decoder_layers=1,
      **changes,
  )  # fmt: skip
  with one_device(platform):
    lowered = (
        jax.jit(jax.grad(run))
        .trace(params)
        .lower(
            lowering_platforms=('tpu',)  # a TPU's program can be made anywhere
        )
    )
  text = lowered.as_text()
  # Forward and backward.
  assert text.count('custom_call @tpu_custom_call') == 2 * is_fused


@pytest.mark.parametrize(
    'length, changes, message',
    [
        (12, {'dropout_rate': 0.1}, "is 'fused', but dropout_rate is 0.1"),
        (attention_kernel.MAX_KEYS + 1, {}, 'but 1025 tokens'),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(length, changes, message):
  run, params = encode(
      length, 1, jax.random.key(0), attention='fused', **changes
  )
  with pytest.raises(errors.UserError, match=message):
    jax.eval_shape(run, params)


def test_the_platform_is_that_of_the_mesh():
  assert mesh_lib.platform() == 'cpu'
  with one_device('tpu'):
    assert mesh_lib.platform() == 'tpu'
