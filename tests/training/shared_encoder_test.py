"""A draft that shares its target's encoder, made from an ordinary one."""

import jax
import numpy as np
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.training import shared_encoder
from tests import tiny

S = 6


def make(seed=0, name='model', **changes):
  return tiny.loaded(tiny.model(seed=seed, **changes), name)


def prompts(batches=3, rows=32):
  rng = np.random.default_rng(3)
  segments = (np.arange(S) < rng.integers(1, S + 1, (rows, 1))).astype(np.int32)
  for _ in range(batches):
    tokens = rng.integers(2, tiny.V, (rows, S)).astype(np.int32) * segments
    yield types.Prompt(tokens, segments)


@jax.jit
def encode(model, prompt):
  return model.encode(prompt)


def test_the_targets_own_encoder_is_recovered():
  # The map from a model's encoder output to itself is the identity, so that
  # the draft without an encoder predicts what it did with it.
  model = make()
  draft = shared_encoder.from_draft(model, model, prompts())
  (prompt,) = prompts(1, rows=4)
  tokens = np.random.default_rng(1).integers(2, tiny.V, (4, 8))
  tokens[:, 0] = 0
  inputs = prompt.tokens, tokens, prompt.segments > 0
  expected = model.logits(*inputs)
  actual = draft.logits(*inputs, encode(model.model, prompt))
  np.testing.assert_allclose(actual, expected, atol=0.02)
  assert np.std(expected) > 0.3


def test_the_projection_is_the_least_squares_fit():
  target, draft = make(), make(seed=1, emb_dim=8, name='draft')
  fitted = shared_encoder.from_draft(draft, target, prompts())
  loading.check_pair(target, fitted)
  assert fitted.config.encoded_dim == 16 and fitted.name == 'draft'
  params = fitted.model.params
  assert params['decoder'] is draft.model.params['decoder']
  xs, ys = [], []
  for prompt in prompts():
    for one, outputs in ((target, xs), (draft, ys)):
      out = np.asarray(encode(one.model, prompt), np.float64)
      outputs.append(out[prompt.segments > 0])
  x, y = np.concatenate(xs), np.concatenate(ys)
  best, *_ = np.linalg.lstsq(x, y)
  kernel = np.asarray(params['encoder_projection']['kernel'])
  np.testing.assert_allclose(kernel, best, atol=0.01)
  # And it explains something, which a new projection does not.
  unexplained = np.mean((x @ kernel - y) ** 2) / np.mean(y**2)
  fresh = np.random.default_rng(5).standard_normal((16, 8)) / 4
  assert unexplained < 0.9
  assert np.mean((x @ fresh - y) ** 2) / np.mean(y**2) > 1.0


def test_the_projection_is_laid_out_on_a_mesh():
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  fitted = shared_encoder.from_draft(make(), make(), prompts(1), mesh)
  kernel = fitted.model.params['encoder_projection']['kernel']
  assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, 'fsdp')


@pytest.mark.parametrize('which', ['draft', 'target'])
def test_models_without_an_encoder_are_refused(which):
  models = {'draft': make(), 'target': make()}
  models[which] = make(name=which, num_encoder_layers=0)
  with pytest.raises(errors.UserError, match=f'{which} has no encoder of its'):
    shared_encoder.from_draft(prompts=prompts(), **models)


def test_nothing_to_fit_on_is_refused():
  with pytest.raises(errors.UserError, match='no input to fit'):
    shared_encoder.from_draft(make(), make(), ())
