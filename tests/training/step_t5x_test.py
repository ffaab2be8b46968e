"""Losses, gradients and twenty steps of training, against those of t5x.

t5x minimises the sum over tokens, ours is the mean unless told otherwise.
Adafactor does not care about the scale of gradients, but about how it changes
from step to step, so the steps here are of the sum.
"""

import dataclasses
import json

from etils import epath
import jax
import numpy as np
import optax
import pytest

from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import types
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import schedules
from distillspec_jax.training import step as step_lib

NAME = 't5v11_tiny'
METHOD = method_lib.Method(z_loss=1e-4)
STEPS = 20


@pytest.fixture(scope='module')
def golden(shared):
  return shared / 'golden/t5x'


@pytest.fixture(scope='module')
def model(golden):
  values = json.loads((golden / 'configs.json').read_text())[NAME]
  config = config_lib.T5Config.from_dict({**values, 'dropout_rate': 0.0})
  with np.load(golden / f'{NAME}.params.npz') as arrays:
    params = tensors_lib.unflatten({path: arrays[path] for path in arrays})
  return model_lib.Model(params, transformer.Transformer(config))


def as_batch(arrays):
  """Our batch, of t5x's features."""
  inputs = arrays['encoder_input_tokens']
  labels = arrays['decoder_target_tokens']
  return types.Batch(
      inputs,
      arrays.get('encoder_segment_ids', (inputs > 0).astype(np.int32)),
      labels,
      arrays.get('decoder_segment_ids', (labels > 0).astype(np.int32)),
      arrays['decoder_loss_weights'] > 0,
  )


def features(arrays, prefix):
  return {
      path.removeprefix(prefix): arrays[path]
      for path in arrays
      if path.startswith(prefix)
  }


@pytest.mark.parametrize('part', ['batch', 'packed'])
@pytest.mark.parametrize(
    'case, settings',
    [
        ('z1e-4', {'z_loss': 1e-4}),
        ('z0', {}),
        ('z1e-4_ls0.1', {'z_loss': 1e-4, 'label_smoothing': 0.1}),
        ('z1e-4_lnf_real_tokens', {'z_loss': 1e-4}),
        ('z1e-4_lnf_233472', {'z_loss': 1e-4}),
    ],
)
def test_losses_and_norms_of_gradients_are_those_of_t5x(
    golden, model, part, case, settings
):
  expected = json.loads((golden / f'{NAME}.loss.json').read_text())
  expected = expected[f'{case}/{part}']
  with np.load(golden / f'{NAME}.forward.npz') as arrays:
    batch = as_batch(features(arrays, f'{part}/'))
  loss = step_lib.make_loss(method_lib.Method(**settings), model.network)
  gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (total, metrics), gradients = gradient(
      model.params, None, batch, batch.prompt, None
  )
  if case == 'z1e-4_lnf_real_tokens':
    divisor = float(metrics['loss'].count)  # the mean, as in our steps
  else:
    divisor = 233472.0 if case == 'z1e-4_lnf_233472' else 1.0
  np.testing.assert_allclose(total / divisor, expected['loss'], rtol=1e-5)
  np.testing.assert_allclose(
      optax.tree.norm(gradients) / divisor,
      expected['grad_global_norm'],
      rtol=1e-5,
  )
  norms = {
      path: np.linalg.norm(x) / divisor
      for path, x in tensors_lib.flatten(gradients).items()
  }
  assert set(norms) == set(expected['grad_l2'])
  for path, norm in norms.items():
    np.testing.assert_allclose(
        norm, expected['grad_l2'][path], rtol=1e-4, err_msg=path
    )


def test_gradients_of_the_loss_are_those_of_t5x(golden, model):
  with np.load(golden / f'{NAME}.forward.npz') as arrays:
    batch = as_batch(features(arrays, 'batch/'))
  loss = step_lib.make_loss(METHOD, model.network)
  gradients, _ = jax.jit(jax.grad(loss, has_aux=True))(
      model.params, None, batch, batch.prompt, None
  )
  with np.load(golden / f'{NAME}.grads_z1e-4.npz') as arrays:
    expected = features(arrays, '')
  flat = tensors_lib.flatten(gradients)
  assert set(flat) == set(expected)
  for path, value in expected.items():
    np.testing.assert_allclose(flat[path], value, atol=1e-4, err_msg=path)


def make_trainer(model, reduction='sum'):
  """(state, transform, step) with the settings of the recording."""
  rate = schedules.Factors(
      factors='constant * rsqrt_decay', base_learning_rate=1.0
  )
  transform = optimizers.Optimizer(learning_rate=rate).build(STEPS)
  method = dataclasses.replace(METHOD, reduction=reduction)
  state = step_lib.initial_state(model.params, transform, jax.random.key(0))
  step = step_lib.make_step(method, transform, model.network)
  return state, transform, jax.jit(step)


@pytest.mark.parametrize('interrupted_after', [None, 10])
def test_twenty_steps_are_those_of_t5x(
    golden, model, tmp_path, interrupted_after
):
  """Also where the run resumes from a t5x checkpoint in the middle."""
  with np.load(golden / f'{NAME}.train20.npz') as arrays:
    batches = features(arrays, 'batches/')
    expected = features(arrays, 'params_after_20/')
  recorded = json.loads((golden / f'{NAME}.train20.json').read_text())
  state, transform, step = make_trainer(model)
  for number in range(STEPS):
    if number == interrupted_after:
      state = through_t5x(tmp_path, state, transform)
    batch = as_batch({path: x[number] for path, x in batches.items()})
    state, metrics = step(state, None, batch)
    theirs = recorded['per_step'][number]
    loss, entropy = metrics['loss'], metrics['cross_entropy']
    for value, name in [
        (loss.total, 'loss'),
        (loss.value(), 'loss_per_nonpadding_target_token'),
        (entropy.total, 'cross_ent_loss'),
        (metrics['accuracy'].value(), 'accuracy'),
    ]:
      np.testing.assert_allclose(
          value, theirs[name], rtol=1e-5, err_msg=f'{name}, step {number}'
      )
  params = tensors_lib.flatten(state.params)
  assert set(params) == set(expected)
  for path, value in expected.items():
    np.testing.assert_allclose(params[path], value, atol=2e-6, err_msg=path)


def through_t5x(folder, state, transform):
  """The state after it was written and read as a checkpoint of t5x."""
  flat = tensors_lib.flatten(state.params)
  checkpoint = t5x.write(
      epath.Path(folder),
      {path: tensors_lib.from_array(x) for path, x in flat.items()},
      *optimizers.adafactor_moments(state.optimizer),
  )
  tensors = t5x.read(checkpoint).tensors
  params = tensors_lib.unflatten(tensors_lib.place(tensors))
  moments = optimizers.Moments(*t5x.read_adafactor(checkpoint))
  like = jax.eval_shape(transform.init, params)
  return state.replace(
      params=params, optimizer=optimizers.with_adafactor_moments(like, moments)
  )


def test_steps_of_the_mean_are_others(golden, model):
  """The twin of the test above: the mean, with all else alike, is not it."""
  with np.load(golden / f'{NAME}.train20.npz') as arrays:
    batches = features(arrays, 'batches/')
  recorded = json.loads((golden / f'{NAME}.train20.json').read_text())
  state, _, step = make_trainer(model, reduction='mean')
  for number in range(STEPS):
    batch = as_batch({path: x[number] for path, x in batches.items()})
    state, metrics = step(state, None, batch)
  apart = metrics['loss'].total / recorded['per_step'][-1]['loss'] - 1
  assert abs(apart) > 1e-3
