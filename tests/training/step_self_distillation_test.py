"""A model distilled from itself has nothing to learn, whatever it came from.

The loss is 0, the acceptance 1 and the gradient 0, for every shipped method
that compares distributions: fine-tuning and SeqKD learn from labels.
"""

import ast
import dataclasses
import functools
import pathlib
import re

from etils import epath
import jax
import optax
import pytest

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import step as step_lib
from tests import tiny

FILES = pathlib.Path(__file__).parents[2] / 'gin_configs' / 'methods'
LABELS = {'fine_tune', 'seqkd'}  # the methods without the property


def shipped(name):
  """The method of a gin file."""
  text = (FILES / f'{name}.gin').read_text()
  bound = re.findall(r'^method\.Method\.(\w+) = (.+)$', text, re.MULTILINE)
  return method_lib.Method(**{k: ast.literal_eval(v) for k, v in bound})


METHODS = {path.stem: shipped(path.stem) for path in FILES.glob('*.gin')}
DISTILLED = sorted(METHODS.keys() - LABELS)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Format -> a folder of the same model, which was trained with dropout."""
  model = tiny.model(gain=2.0, dropout_rate=0.1)
  folders = {
      name: tmp_path_factory.mktemp(name)
      for name in ('own', 'hugging_face', 't5x')
  }
  arrays = {
      path: tensors.from_array(x)
      for path, x in tensors.flatten(model.params).items()
  }
  tiny.save(folders['own'] / 'model', model)
  hugging_face.write(epath.Path(folders['hugging_face']), model.config, arrays)
  t5x.write(epath.Path(folders['t5x']), arrays, 0)
  folders['own'] = folders['own'] / 'model'
  return folders


@functools.cache
def compiled(method, network):
  return jax.jit(step_lib.make_step(method, optax.sgd(1.0), network))


def distilled_from_itself(folder, method, **changes):
  """The metrics of a step, and the dropout in the model's configuration."""
  target = loading.load(folder).model
  draft = tiny.changed(target, target.params, **changes)
  state = step_lib.initial_state(
      draft.params, optax.sgd(1.0), jax.random.key(0)
  )
  step = compiled(method, draft.network)
  _, metrics = step(state, target, tiny.batch(6, empty=1))
  values = {name: float(mean.value()) for name, mean in metrics.items()}
  return values, draft.config.dropout_rate


def assert_identity(values, method):
  assert abs(values['loss']) < 1e-6
  assert values['expected_acceptance'] == pytest.approx(1.0, abs=1e-6)
  # Of total variation it is a sum of signs, which rounding alone may give.
  if method.divergence != 'total_variation':
    assert values['gradient_norm'] < 1e-5


@pytest.mark.parametrize('name', DISTILLED)
def test_a_model_has_nothing_to_learn_from_itself(folders, name):
  values, rate = distilled_from_itself(folders['hugging_face'], METHODS[name])
  assert rate == 0.1
  assert_identity(values, METHODS[name])


@pytest.mark.parametrize('form', ['own', 't5x'])
def test_nor_from_other_formats(folders, form):
  method = METHODS['supervised_kd']
  values, rate = distilled_from_itself(folders[form], method)
  assert rate == (0.0 if form == 't5x' else 0.1)  # t5x does not record it
  assert_identity(values, method)


@pytest.mark.parametrize('name', ['supervised_kd', 'on_policy_jsd'])
def test_with_dropout_it_would_learn_noise(folders, name):
  method = dataclasses.replace(METHODS[name], dropout_rate=0.1)
  values, _ = distilled_from_itself(folders['hugging_face'], method)
  assert values['loss'] > 1e-3
  assert values['gradient_norm'] > 1e-2


def test_every_divergence_is_distilled_with():
  assert {METHODS[name].divergence for name in DISTILLED} == {
      'forward_kl', 'reverse_kl', 'jsd', 'total_variation',
  }  # fmt: skip
