"""Which parameters a model has, and what is said of others."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from distillspec_jax.models import transformer
from tests.checkpoints import models


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'scan_layers': True},
        {'relative_bias_per_layer': True, 'num_decoder_layers': 11},
        {'num_encoder_layers': 0, 'mlp_activations': ('relu',)},
        {'num_encoder_layers': 0, 'encoded_dim': 4},
        {'num_encoder_layers': 0, 'trimmed_vocabulary': (0, 1)},
    ],
)
def test_shapes_are_those_of_the_network(changes):
  config = dataclasses.replace(models.CONFIG, **changes)
  network = transformer.Transformer(config)
  leaves = tensors_lib.flatten(network.abstract())
  expected = {path: leaf.shape for path, leaf in leaves.items()}
  assert parameters.shapes(config) == expected


def test_shapes_of_every_kind_of_parameter():
  shapes = parameters.shapes(
      dataclasses.replace(models.CONFIG, num_decoder_layers=1)
  )
  assert {p: s for p, s in shapes.items() if not p.startswith('encoder')} == {
      'token_embedder/embedding': (24, 6),
      **{
          f'decoder/layers_0/{attention}/{name}/kernel': shape
          for attention in ('self_attention', 'encoder_decoder_attention')
          for name, shape in (
              ('query', (6, 10)),
              ('key', (6, 10)),
              ('value', (6, 10)),
              ('out', (10, 6)),
          )
      },
      **{
          f'decoder/layers_0/pre_{name}_layer_norm/scale': (6,)
          for name in ('self_attention', 'cross_attention', 'mlp')
      },
      'decoder/layers_0/mlp/wi_0/kernel': (6, 8),
      'decoder/layers_0/mlp/wi_1/kernel': (6, 8),
      'decoder/layers_0/mlp/wo/kernel': (8, 6),
      'decoder/relpos_bias/rel_embedding': (2, 7),
      'decoder/decoder_norm/scale': (6,),
      'decoder/logits_dense/kernel': (6, 24),
  }


def test_mismatches_are_listed_up_to_a_limit():
  tensors = {f'more_{i:02}': np.zeros(1) for i in range(30)}
  text = parameters.mismatches(tensors, {'here': (2,)})
  assert text.startswith('here is missing; more_00 is left over')
  assert text.endswith('; and 11 more')
  tensors = {'x': np.zeros((2, 3))}
  assert parameters.mismatches(tensors, {'x': (2, 3)}) == ''
  assert parameters.mismatches(tensors, {'x': (3, 2)}) == (
      'x is (2, 3) but should be (3, 2)'
  )


@pytest.mark.parametrize(
    'stack, axis', [('decoder/layers', 0), ('decoder/decoder', 1)]
)
def test_stacked_layers_are_taken_apart(stack, axis):
  array = np.arange(12.0).reshape(3, 4)
  stacked = {f'{stack}/wo/kernel': array, 'decoder/decoder_norm/scale': array}
  assert [*map(parameters.is_stacked, stacked)] == [True, False]
  tensors = parameters.unstacked(models.as_tensors(stacked), axis)
  norm = tensors.pop('decoder/decoder_norm/scale')
  np.testing.assert_array_equal(norm.all(), array)
  assert len(tensors) == array.shape[axis]
  for i in range(array.shape[axis]):
    tensor = tensors[f'decoder/layers_{i}/wo/kernel']
    np.testing.assert_array_equal(tensor.all(), array.take(i, axis))


def test_a_checkpoint_without_scanned_layers():
  config = dataclasses.replace(models.CONFIG, scan_layers=True)
  stacked = models.as_tensors(models.random_arrays(config))
  checkpoint = parameters.Checkpoint(config, stacked, step=3)
  unscanned = checkpoint.unscanned()
  assert unscanned.config == models.CONFIG
  assert unscanned.step == 3
  expected = parameters.shapes(models.CONFIG)
  assert parameters.mismatches(unscanned.tensors, expected) == ''
  assert unscanned.unscanned() is unscanned


def test_layers_are_stacked_by_number_and_taken_apart_again():
  layers = {f'decoder/layers_{i}/wo': jnp.full(2, i) for i in range(11)}
  layers = dict(sorted(layers.items()))  # layers_10 comes before layers_2
  other = {'decoder/norm/scale': jnp.ones(2)}
  stacked = parameters.with_layers(layers | other, True)
  assert set(stacked) == {'decoder/layers/wo', *other}
  assert stacked['decoder/layers/wo'][:, 0].tolist() == [*range(11)]
  apart = parameters.with_layers(stacked, False)
  assert set(apart) == {*layers, *other}
  for path, array in layers.items():
    np.testing.assert_array_equal(apart[path], array)


def test_a_configuration_that_does_not_hold_is_named_with_its_place():
  values = {**models.CONFIG.to_dict(), 'emb_dim': 0}
  with pytest.raises(
      errors.UserError, match=r'x\.json: T5Config\.emb_dim is 0'
  ):
    parameters.parse_config(values, 'x.json')
