"""Drafts without an encoder: they read their target's encoder output."""

import dataclasses
import functools

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.core import errors
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer
from distillspec_jax.sampling import generation
from distillspec_jax.training import shared_encoder
from tests import tiny

V, B, S, T = tiny.V, 4, 6, 8
KINDS = {
    'plain': {},
    'v1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
    'scanned': {'scan_layers': True},
    'remat': {'scan_layers': True, 'remat': 'full'},
    'bias_per_layer': {'relative_bias_per_layer': True},
}


def make(seed=0, name='model', **changes):
  return tiny.loaded(tiny.model(V, seed=seed, **changes), name)


@functools.cache
def ragged():
  """Inputs of several lengths, their segments, and decoder inputs."""
  rng = np.random.default_rng(1)
  segments = (np.arange(S) < np.array([S, 3, 1, 5])[:, None]).astype(np.int32)
  inputs = rng.integers(2, V, (B, S)).astype(np.int32) * segments
  tokens = rng.integers(2, V, (B, T)).astype(np.int32)
  tokens[:, 0] = 0
  return inputs, segments, tokens, np.ones_like(tokens)


def sharing(model, kernel):
  """The model without its encoder, reading one through the kernel [E, D]."""
  model = tiny.Model(model.transformer, model.params)
  return tiny.loaded(tiny.sharing(model, kernel), 'draft')


@functools.partial(jax.jit, static_argnums=0)
def cached_logits(model, params, encoded):
  """Logits float32[B, T, V] of the ragged batch, through the cache."""
  inputs, segments, tokens, _ = ragged()
  state, _ = model.prefill(params, inputs, segments, T, encoded=encoded)
  hidden, state = model.extend(params, state, tokens[:, :3])
  more, _ = model.extend(params, state, tokens[:, 3:])
  return model.unembed(params, jnp.concatenate([hidden, more], axis=1))


@functools.partial(jax.jit, static_argnums=0)
def encoder_output(model, params, inputs, segments):
  return model.encode(params, inputs, segments)


def encode(model, inputs=None, segments=None):
  if inputs is None:
    inputs, segments = ragged()[:2]
  return encoder_output(model.transformer, model.params, inputs, segments)


@pytest.mark.parametrize('kind', KINDS)
def test_the_same_encoder_output_gives_the_same_logits(kind):
  model = make(**KINDS[kind])
  draft = sharing(model, np.eye(16))
  inputs, _, tokens, _ = ragged()
  encoded = encode(model)
  expected = np.asarray(model.logits(inputs, tokens))
  assert expected.std() > 0.3  # the comparison compares something
  np.testing.assert_allclose(
      draft.logits(inputs, tokens, None, encoded), expected, atol=1e-5
  )
  np.testing.assert_allclose(
      cached_logits(draft.transformer, draft.params, encoded),
      expected,
      atol=1e-5,
  )
  other = draft.logits(inputs, tokens, None, encoded[::-1])
  assert np.abs(other - expected).max() > 0.1  # it is the output that is read


def test_a_model_reads_its_own_output_when_it_is_given():
  model = make()
  inputs, _, tokens, _ = ragged()
  encoded = encode(model)
  expected = model.logits(inputs, tokens)
  given = model.logits(inputs, tokens, None, encoded)
  np.testing.assert_allclose(given, expected, atol=1e-5)
  cached = cached_logits(model.transformer, model.params, encoded)
  np.testing.assert_allclose(cached, expected, atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_there_is_a_projection_and_no_encoder(scan):
  draft = make(encoded_dim=24, emb_dim=8, scan_layers=scan)
  assert set(draft.params) == {
      'token_embedder', 'decoder', 'encoder_projection',
  }  # fmt: skip
  new = draft.transformer.init(jax.random.key(0))
  assert jax.tree.structure(new) == jax.tree.structure(draft.params)
  kernel = new['encoder_projection']['kernel']
  assert kernel.shape == (24, 8)
  assert 0.7 < np.std(kernel) * 24**0.5 < 1.3
  assert draft.config.shares_encoder and not draft.config.is_decoder_only
  encoded = np.random.default_rng(0).standard_normal((B, S, 24), np.float32)
  forced = draft.logits(ragged()[0], ragged()[2], None, encoded)
  cached = cached_logits(draft.transformer, draft.params, encoded)
  np.testing.assert_allclose(cached, forced, atol=1e-5)


def test_the_projection_is_laid_out_on_a_mesh():
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  model = transformer.Transformer(make(encoded_dim=24, emb_dim=8).config)
  layout = model.shardings(mesh)['encoder_projection']['kernel']
  assert layout.spec == jax.sharding.PartitionSpec(None, 'fsdp')


def test_dropout_falls_on_what_is_read():
  model = make(encoded_dim=16, dropout_rate=0.5)
  inputs, segments, tokens, ones = ragged()
  encoded = jnp.ones((B, S, 16))

  @jax.jit
  def project(key):
    return model.transformer._attended(
        model.params, inputs, segments, encoded, key
    )

  one, two = project(jax.random.key(0)), project(jax.random.key(1))
  assert 0.2 < np.mean(np.asarray(one) == 0.0) < 0.8
  assert not np.array_equal(one, two)
  # The mask is shared over the length, as that of an encoder's output is.
  np.testing.assert_array_equal(one[:, :1] == 0.0, one[:, 1:2] == 0.0)
  hidden = jax.jit(
      lambda key: model.transformer.hidden(
          model.params, inputs, segments, tokens, ones, key, encoded
      )
  )
  assert np.abs(hidden(jax.random.key(0)) - hidden(jax.random.key(1))).max() > 0


def test_bfloat16_reads_float32_and_the_other_way_round():
  encoded = encode(make())
  exact = make(encoded_dim=16).logits(ragged()[0], ragged()[2], None, encoded)
  narrow = encoded.astype('bfloat16')
  for dtype, given in (('bfloat16', encoded), ('float32', narrow)):
    draft = make(encoded_dim=16, dtype=dtype)
    logits = draft.logits(ragged()[0], ragged()[2], None, given)
    np.testing.assert_allclose(logits, exact, atol=0.3)


# What is refused.


def test_a_draft_alone_is_refused():
  draft = make(encoded_dim=16)
  inputs, segments, tokens, ones = ragged()
  model, params = draft.transformer, draft.params
  for call in (
      lambda: draft.logits(inputs, tokens),
      lambda: model.hidden(params, inputs, segments, tokens, ones),
      lambda: model.prefill(params, inputs, segments, 4),
      lambda: generation.generate(draft, inputs, max_new_tokens=4),
  ):
    with pytest.raises(errors.UserError, match='it cannot be used alone'):
      call()
  with pytest.raises(errors.UserError, match='without an encoder'):
    model.encode(params, inputs, segments)


def test_an_output_of_another_width_or_batch_is_refused():
  draft = make(encoded_dim=16)
  inputs, _, tokens, _ = ragged()
  with pytest.raises(errors.UserError, match='24 wide, but .* width 16'):
    draft.logits(inputs, tokens, None, jnp.zeros((B, S, 24)))
  with pytest.raises(ValueError, match='Axis S is 6'):
    draft.logits(inputs, tokens, None, jnp.zeros((B, S + 1, 16)))


@pytest.mark.parametrize(
    'target, draft, message',
    [
        ({'emb_dim': 24}, {'encoded_dim': 16}, 'width 16, .* is 24 wide'),
        ({'num_encoder_layers': 0}, {'encoded_dim': 16}, 'is decoder-only'),
        ({'encoded_dim': 16}, {'encoded_dim': 16}, 'has no encoder of its own'),
        ({'encoded_dim': 16}, {}, 'has no encoder of its own'),
        ({}, {'num_encoder_layers': 0}, 'One of target and draft'),
    ],
)
def test_pairs_that_do_not_fit_are_refused(target, draft, message):
  pair = make(name='target', **target), make(name='draft', **draft)
  with pytest.raises(errors.UserError, match=message):
    loading.check_pair(*pair)


def test_pairs_that_fit_are_taken():
  loading.check_pair(make(), make(encoded_dim=16, emb_dim=8))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'encoded_dim': -1}, 'encoded_dim is -1'),
        (
            {'encoded_dim': 16, 'num_encoder_layers': 2},
            'encoded_dim is 16, but num_encoder_layers is 2',
        ),
        ({'encoded_dim': 16.0}, 'must be of type int'),
    ],
)
def test_configurations_without_meaning_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    config_lib.published('test', **changes)


# Checkpoints.


def test_a_folder_and_a_conversion_keep_it(tmp_path):
  draft = make(encoded_dim=24, scan_layers=True)
  model_folder.save_model(
      tmp_path / 'draft', draft.config.to_dict(), draft.params, step=1
  )
  loaded = loading.load(tmp_path / 'draft')
  assert loaded.config == draft.config
  jax.tree.map(np.testing.assert_array_equal, loaded.params, draft.params)
  conversion.convert(
      str(tmp_path / 'draft'), str(tmp_path / 'narrow'), dtype='bfloat16'
  )
  narrow = loading.load(tmp_path / 'narrow')
  assert narrow.config == dataclasses.replace(draft.config, scan_layers=False)
  kernel = narrow.params['encoder_projection']['kernel']
  assert kernel.dtype == jnp.bfloat16


@pytest.mark.parametrize('to', ['hugging_face', 't5x'])
def test_other_formats_refuse_it(tmp_path, to):
  draft = make(encoded_dim=24)
  model_folder.save_model(
      tmp_path / 'draft', draft.config.to_dict(), draft.params, step=1
  )
  with pytest.raises(errors.UserError, match='Write it with to=distillspec'):
    conversion.convert(str(tmp_path / 'draft'), str(tmp_path / 'out'), to=to)
  assert [path.name for path in epath.Path(tmp_path).iterdir()] == ['draft']


# Out of an ordinary draft.


def some_inputs(batches=3, rows=32):
  rng = np.random.default_rng(3)
  segments = (np.arange(S) < rng.integers(1, S + 1, (rows, 1))).astype(np.int32)
  for _ in range(batches):
    yield rng.integers(2, V, (rows, S)).astype(np.int32) * segments, segments


def test_the_targets_own_encoder_is_found_again():
  # The map from a model's encoder output to itself is the identity, so that
  # the draft without an encoder says what it said with it.
  model = make()
  draft = shared_encoder.from_draft(model, model, some_inputs())
  inputs, _, tokens, _ = ragged()
  expected = model.logits(inputs, tokens)
  found = draft.logits(inputs, tokens, None, encode(model))
  np.testing.assert_allclose(found, expected, atol=0.02)
  assert np.std(expected) > 0.3


def test_the_projection_is_the_least_squares_fit():
  target, draft = make(), make(seed=1, emb_dim=8, name='draft')
  made = shared_encoder.from_draft(draft, target, some_inputs())
  loading.check_pair(target, made)
  assert made.config.encoded_dim == 16 and made.name == 'draft'
  assert made.params['decoder'] is draft.params['decoder']
  xs, ys = [], []
  for inputs, segments in some_inputs():
    for model, into in ((target, xs), (draft, ys)):
      out = np.asarray(encode(model, inputs, segments), np.float64)
      into.append(out[segments > 0])
  x, y = np.concatenate(xs), np.concatenate(ys)
  best, *_ = np.linalg.lstsq(x, y)
  kernel = np.asarray(made.params['encoder_projection']['kernel'])
  np.testing.assert_allclose(kernel, best, atol=0.01)
  # And it explains something, which a new projection does not.
  unexplained = np.mean((x @ kernel - y) ** 2) / np.mean(y**2)
  fresh = np.random.default_rng(5).standard_normal((16, 8)) / 4
  assert unexplained < 0.9
  assert np.mean((x @ fresh - y) ** 2) / np.mean(y**2) > 1.0


def test_it_is_laid_out_on_a_mesh():
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  made = shared_encoder.from_draft(make(), make(), some_inputs(1), mesh)
  kernel = made.params['encoder_projection']['kernel']
  assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, 'fsdp')


@pytest.mark.parametrize('which', ['draft', 'target'])
def test_models_without_an_encoder_are_refused(which):
  models = {'draft': make(), 'target': make()}
  models[which] = make(name=which, num_encoder_layers=0)
  with pytest.raises(errors.UserError, match=f'{which} has no encoder of its'):
    shared_encoder.from_draft(inputs=some_inputs(), **models)


def test_nothing_to_fit_on_is_refused():
  with pytest.raises(errors.UserError, match='no input to fit'):
    shared_encoder.from_draft(make(), make(), ())
