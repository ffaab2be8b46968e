from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from distillspec_jax.training import optimizers
from distillspec_jax.training import schedules

FACTORS = schedules.Factors(factors='constant * rsqrt_decay')


def named(arrays, prefix):
  return {
      name.removeprefix(prefix): jnp.asarray(arrays[name])
      for name in arrays
      if name.startswith(prefix)
  }


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
        ({'learning_rate': float('inf')}, 'learning_rate is inf'),
        ({'learning_rate': '1'}, "learning_rate is '1'"),
        ({'max_gradient_norm': 0.0}, 'max_gradient_norm is 0.0'),
        ({'weight_decay': -1.0}, 'weight_decay is -1.0'),
        ({'b1': 1.0}, 'b1 is 1.0'),
        ({'min_dim_size_to_factor': 0}, 'min_dim_size_to_factor is 0'),
        ({'warmup_steps': -1}, 'warmup_steps is -1'),
        ({'warmup_steps': 1.5}, 'warmup_steps is 1.5'),
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


def test_a_schedule_of_t5x_stands_instead_of_ours():
  optimizer = optimizers.Optimizer(learning_rate=FACTORS)
  assert optimizer.schedule(10) is FACTORS  # a warm-up longer than the run
  params = {'x': jnp.ones((4,))}
  transform = optimizer.build(10)
  updates, _ = transform.update(params, transform.init(params), params)
  np.testing.assert_allclose(updates['x'], -0.5 / np.sqrt(1000), rtol=1e-6)


@pytest.mark.parametrize(
    'field, value',
    [('warmup_steps', 5), ('cooldown_from', 0.2), ('final_fraction', 0.2)],
)
def test_two_schedules_at_once_are_refused(field, value):
  with pytest.raises(errors.UserError, match=f'Optimizer.{field} is {value}'):
    optimizers.Optimizer(learning_rate=FACTORS, **{field: value})


# Adafactor's state, to and from t5x.


@pytest.mark.parametrize('kind, size', [('default', 128), ('mindim16', 16)])
def test_a_run_goes_on_through_a_checkpoint_of_t5x(
    shared, tmp_path, kind, size
):
  folder = shared / 'golden' / 't5x'
  expected = np.load(folder / f't5v11_tiny.adafactor_{kind}.npz')
  gradients = np.load(folder / 't5v11_tiny.adafactor_default.npz')
  params = named(np.load(folder / 't5v11_tiny.params.npz'), '')
  checkpoint = None
  for number, rate in enumerate(expected['lrs']):
    optimizer = optimizers.Optimizer(
        learning_rate=schedules.Factors(
            factors='constant', base_learning_rate=float(rate)
        ),
        min_dim_size_to_factor=size,
    )
    transform = optimizer.build(10)
    state = transform.init(params)  # forgets the first step
    if checkpoint is not None:
      state = optimizers.with_adafactor_moments(
          state, optimizers.Moments(*t5x.read_adafactor(checkpoint))
      )
    updates, state = transform.update(
        named(gradients, f'grad{number}/'), state, params
    )
    params = optax.apply_updates(params, updates)
    checkpoint = t5x.write(
        epath.Path(tmp_path),
        {path: tensors_lib.from_array(x) for path, x in params.items()},
        *optimizers.adafactor_moments(state),
    )
  assert checkpoint.name == 'checkpoint_2'
  for path, value in named(expected, 'params2/').items():
    np.testing.assert_allclose(params[path], value, atol=2e-6)
  step, moments = t5x.read_adafactor(checkpoint)
  assert step == expected['state2/state/step']
  for path, value in named(expected, 'state2/state/param_states/').items():
    parameter, name = path.rsplit('/', 1)
    found = moments[parameter][name]
    assert found.shape == value.shape
    np.testing.assert_allclose(found, value, rtol=1e-6, atol=2e-6)


def t5x_update(param, gradient, state, step, rate):
  """What t5x's adafactor.py subtracts from a parameter, in float64."""
  decay = 1 - (step + 1.0) ** -0.8
  square = gradient**2 + 1e-30
  if state['v'].shape == param.shape:
    y = gradient / np.sqrt(decay * state['v'] + (1 - decay) * square)
  else:
    small, large = np.argsort(param.shape)
    row = decay * state['v_row'] + (1 - decay) * square.mean(large)
    column = decay * state['v_col'] + (1 - decay) * square.mean(small)
    y = gradient * np.expand_dims((row / row.mean()) ** -0.5, large)
    y *= np.expand_dims(column**-0.5, small)
  y /= max(1.0, np.sqrt((y**2).mean()))
  return rate * max(np.sqrt((param**2).mean()), 1e-3) * y


@pytest.mark.parametrize(
    'name, steps',
    [
        ('t5v11_tiny_adafactor_unfactored_native', 2),
        ('t5v11_mid_adafactor_factored_native', 1),
        ('t5v11_mid_adafactor_factored_orbax', 1),
    ],
)
def test_the_step_after_a_checkpoint_of_t5x_is_its_next(shared, name, steps):
  folder = t5x.find(epath.Path(shared / 'golden/t5x/ckpt' / name))
  params = {path: x.all() for path, x in t5x.read(folder).tensors.items()}
  moments = optimizers.Moments(*t5x.read_adafactor(folder))
  rng = np.random.default_rng(0)
  gradient = {
      path: rng.standard_normal(x.shape).astype(np.float32)
      for path, x in params.items()
  }
  factors = schedules.Factors(
      factors='constant * rsqrt_decay', base_learning_rate=0.1, warmup_steps=1
  )
  transform = optimizers.Optimizer(learning_rate=factors).build(10)
  abstract = jax.eval_shape(transform.init, params)
  state = optimizers.with_adafactor_moments(abstract, moments)
  updates, state = jax.jit(transform.update)(gradient, state, params)
  for path, param in params.items():
    update = t5x_update(
        np.float64(param),
        np.float64(gradient[path]),
        moments.by_path[path],
        steps,
        0.1 / np.sqrt(steps),
    )
    np.testing.assert_allclose(updates[path], -update, atol=2e-6)
  assert optimizers.adafactor_moments(state).step == steps + 1


def test_moments_are_laid_out_as_the_state_is():
  params = {'a': {'kernel': jnp.ones((8, 4))}, 'b': jnp.ones((4,))}
  optimizer = optimizers.Optimizer(max_gradient_norm=1.0)  # one level deeper
  state = optimizer.build(10).init(params)
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  alike = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def place(x):
    return jax.device_put(x, spread if x.shape == (8, 4) else alike)

  state = jax.tree.map(place, state)
  step, by_path = optimizers.adafactor_moments(state)
  assert step == 0 and set(by_path) == {'a/kernel', 'b'}
  by_path['a/kernel']['v'] = np.arange(32, dtype=np.float32).reshape(8, 4)
  moments = optimizers.Moments(5, by_path)
  filled = optimizers.with_adafactor_moments(state, moments)
  assert jax.tree.structure(filled) == jax.tree.structure(state)
  jax.tree.map(
      lambda a, b: a.sharding == b.sharding or pytest.fail(), filled, state
  )
  again = optimizers.adafactor_moments(filled)
  assert again.step == 5
  np.testing.assert_equal(again.by_path, by_path)


def changed(path='b', **arrays):
  def change(by_path):
    return {**by_path, path: {**by_path[path], **arrays}}

  return change


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda by_path: {'b': by_path['b']}, 'a/kernel has none'),
        (lambda by_path: {**by_path, 'c': {}}, 'c is not in the model'),
        (changed(m=np.ones((4,))), 'b has momentum'),
        (
            changed(v=np.zeros(1)),
            r'v of b is \(1,\) but should be \(4,\)',
        ),
        (changed(v_row=np.zeros(3)), r'min_dim_size_to_factor'),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, message):
  params = {'a': {'kernel': jnp.ones((8, 4))}, 'b': jnp.ones((4,))}
  state = optimizers.Optimizer().build(10).init(params)
  step, by_path = optimizers.adafactor_moments(state)
  with pytest.raises(errors.UserError, match=message):
    optimizers.with_adafactor_moments(
        state, optimizers.Moments(step, change(by_path))
    )


def test_many_mismatches_are_counted():
  params = {f'{i:02}': jnp.ones((4,)) for i in range(13)}
  state = optimizers.Optimizer().build(10).init(params)
  with pytest.raises(errors.UserError, match='09 has none; and 3 more'):
    optimizers.with_adafactor_moments(state, optimizers.Moments(1, {}))


def test_only_adafactor_is_exchanged_with_t5x():
  params = {'x': jnp.ones((4,))}
  state = optimizers.Optimizer(name='adamw').build(10).init(params)
  with pytest.raises(errors.UserError, match='is not Adafactor'):
    optimizers.adafactor_moments(state)
  with pytest.raises(errors.UserError, match='is not Adafactor'):
    optimizers.with_adafactor_moments(state, optimizers.Moments(0, {}))
