"""A network without parameters: names, axes, initialisation, equality."""

import functools

import jax
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.distributed import layouts
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer
from tests import meshes
from tests import tiny

CONFIGS = {'unrolled': {}, 'scanned': {'scan_layers': True}}


@functools.cache
def network(name, **changes):
  sizes = {'num_encoder_layers': 2, 'num_decoder_layers': 2}
  return tiny.network(tiny.config(**sizes | CONFIGS[name] | changes))


@functools.cache
def initial(name):
  return network(name).init(jax.random.key(0))


def test_equal_configurations_and_layouts_make_equal_networks():
  one, two = (config_lib.published('test', 50) for _ in range(2))
  first, second = transformer.Transformer(one), transformer.Transformer(two)
  assert first == second and hash(first) == hash(second)
  assert first != transformer.Transformer(config_lib.published('test', 51))
  assert first != transformer.Transformer(one, layouts.rules('replicated'))
  assert first != one


@pytest.mark.parametrize('name', CONFIGS)
def test_new_parameters_have_the_shapes_that_are_foretold(name):
  shape = lambda leaf: (leaf.shape, leaf.dtype)
  assert jax.tree.map(shape, initial(name)) == jax.tree.map(
      shape, network(name).abstract()
  )


def test_scanned_layers_begin_different_and_name_their_axis():
  kernel = initial('scanned')['decoder']['layers']['mlp']['wo']['kernel']
  assert np.abs(kernel[0] - kernel[1]).max() > 0.01
  axes = network('scanned').logical_axes()
  axes = axes['decoder']['layers']['mlp']['wo']['kernel']
  assert tuple(axes) == ('layers', 'mlp', 'embed')


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('remat', ['full', 'dots', 'attention'])
def test_parameters_keep_their_names_under_rematerialisation(name, remat):
  assert network(name, remat=remat).abstract() == network(name).abstract()


def test_parameters_are_created_on_the_mesh():
  mesh = meshes.make((2, 2, 2))
  own = network('unrolled')
  params = own.init(jax.random.key(0), mesh)
  jax.tree.map(
      lambda leaf, sharding: np.testing.assert_equal(leaf.sharding, sharding),
      params,
      own.shardings(mesh),
  )
  # The same numbers as on one device.
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
      params,
      initial('unrolled'),
  )


def test_a_head_is_not_split_over_devices():
  # There are two heads for eight devices; other axes are sharded all the same.
  specs = network('unrolled').shardings(meshes.make((1, 1, 8)))
  layer = specs['decoder']['layers_0']
  assert 'tensor' not in layer['self_attention']['query']['kernel'].spec
  assert 'tensor' in layer['mlp']['wo']['kernel'].spec


def test_int8_parameters_are_not_initialised():
  int8 = network('unrolled', weights='int8_weight_only')
  with pytest.raises(errors.UserError, match='cannot be trained or initial'):
    int8.init(jax.random.key(0))
