import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distillspec_jax.core import errors
from distillspec_jax.training import optimizers


@pytest.mark.parametrize(
    'model, kind, size',
    [
        ('t5v11_tiny', 'default', 128),
        ('t5v11_tiny', 'mindim16', 16),
        ('t5v11_mid', 'default', 128),
    ],
)
def test_adafactor_steps_as_t5x_does(shared, model, kind, size, monkeypatch):
  folder = shared / 'golden' / 't5x'
  expected = np.load(folder / f'{model}.adafactor_{kind}.npz')
  gradients = np.load(folder / f'{model}.adafactor_default.npz')
  rates = jnp.asarray(expected['lrs'])
  monkeypatch.setattr(
      optimizers.Optimizer, 'schedule', lambda *_: lambda step: rates[step]
  )
  transform = optimizers.Optimizer(min_dim_size_to_factor=size).build(10)

  def named(arrays, prefix):
    return {
        name.removeprefix(prefix): jnp.asarray(arrays[name])
        for name in arrays
        if name.startswith(prefix)
    }

  params = named(np.load(folder / f'{model}.params.npz'), '')
  state = transform.init(params)
  steps = 0
  for number in range(len(rates)):
    gradient = named(gradients, f'grad{number}/')
    if not gradient:
      break
    updates, state = transform.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
        params,
        named(expected, f'params{number + 1}/'),
    )
    steps += 1
  assert steps >= 1


def test_the_schedule_warms_up_stays_and_cools_down():
  schedule = optimizers.Optimizer(
      learning_rate=1.0, warmup_steps=10, cooldown_from=0.5, final_fraction=0.1
  ).schedule(100)
  rates = np.array([schedule(step) for step in range(101)])
  np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
  np.testing.assert_allclose(rates[10:50], 1.0)
  assert (np.diff(rates[50:]) < 0).all()
  np.testing.assert_allclose(rates[75], 0.55, rtol=1e-6)
  np.testing.assert_allclose(rates[100], 0.1, rtol=1e-6)


def test_without_warm_up_the_first_step_is_full():
  schedule = optimizers.Optimizer(learning_rate=0.5).schedule(4)
  assert schedule(0) == 0.5


@pytest.mark.parametrize('name', ['adafactor', 'adamw'])
def test_each_optimizer_descends(name):
  transform = optimizers.Optimizer(
      name=name, learning_rate=0.1, max_gradient_norm=1.0
  ).build(50)
  params = {'x': jnp.full((4,), 3.0)}
  state = transform.init(params)
  for _ in range(50):
    gradient = jax.grad(lambda p: jnp.sum(p['x'] ** 2))(params)
    updates, state = transform.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  assert float(jnp.abs(params['x']).max()) < 2.0


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'name': 'sgd'}, "'sgd'"),
        ({'learning_rate': 0.0}, 'learning_rate is 0.0'),
        ({'learning_rate': float('nan')}, 'learning_rate is nan'),
        ({'warmup_steps': -1}, 'warmup_steps is -1'),
        ({'cooldown_from': 1.5}, 'cooldown_from is 1.5'),
        ({'final_fraction': -0.1}, 'final_fraction is -0.1'),
    ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    optimizers.Optimizer(**changes)


def test_a_warm_up_longer_than_the_run_is_refused():
  with pytest.raises(errors.UserError, match='warmup_steps is 20, more than'):
    optimizers.Optimizer(warmup_steps=20).build(10)
