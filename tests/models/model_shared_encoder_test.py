"""Models without an encoder: they read their target's encoder output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import model as model_lib
from tests import tiny

B, S, T = 4, 6, 8
KINDS = {
    'plain': {},
    'v1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
    'scanned': {'scan_layers': True},
    'remat': {'scan_layers': True, 'remat': 'full'},
    'bias_per_layer': {'relative_bias_per_layer': True},
}


@functools.cache
def ragged():
  """A prompt of several lengths, and decoder inputs."""
  rng = np.random.default_rng(1)
  segments = (np.arange(S) < np.array([S, 3, 1, 5])[:, None]).astype(np.int32)
  inputs = rng.integers(2, tiny.V, (B, S)).astype(np.int32) * segments
  tokens = rng.integers(2, tiny.V, (B, T)).astype(np.int32)
  tokens[:, 0] = 0
  return types.Prompt(inputs, segments), tokens


def reading(encoded):
  return ragged()[0]._replace(encoded=encoded)


@jax.jit
def forced_logits(model, encoded=None):
  """Logits float32[B, T, V] of the ragged batch, teacher-forced."""
  tokens = ragged()[1]
  return model.logits(reading(encoded), tokens, jnp.ones_like(tokens))


@jax.jit
def cached_logits(model, encoded):
  """The same, through the cache."""
  tokens = ragged()[1]
  state, _ = model.prefill(reading(encoded), T)
  hidden, state = model.extend(state, tokens[:, :3])
  more, _ = model.extend(state, tokens[:, 3:])
  return model.unembed(jnp.concatenate([hidden, more], axis=1))


@jax.jit
def encode(model):
  return model.encode(ragged()[0])


@pytest.mark.parametrize('kind', KINDS)
def test_the_same_encoder_output_gives_the_same_logits(kind):
  model = tiny.model(**KINDS[kind])
  draft = tiny.sharing(model)
  encoded = encode(model)
  expected = np.asarray(forced_logits(model))
  assert expected.std() > 0.3  # the comparison compares something
  for logits in (forced_logits, cached_logits):
    np.testing.assert_allclose(logits(draft, encoded), expected, atol=1e-5)
  other = forced_logits(draft, encoded[::-1])
  assert np.abs(other - expected).max() > 0.1  # it is the output that is read


def test_a_model_reads_its_own_output_when_it_is_given():
  model = tiny.model()
  expected = forced_logits(model)
  for logits in (forced_logits, cached_logits):
    actual = logits(model, encode(model))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_the_output_is_computed_for_models_that_read_it_alone():
  target, prompt = tiny.model(), ragged()[0]
  shared = model_lib.with_shared_encoding(prompt, target, tiny.sharing(target))
  np.testing.assert_allclose(shared.encoded, encode(target), atol=1e-6)
  assert model_lib.with_shared_encoding(prompt, target, target).encoded is None


@pytest.mark.parametrize('scan', [False, True])
def test_there_is_a_projection_and_no_encoder(scan):
  draft = tiny.model(encoded_dim=24, emb_dim=8, scan_layers=scan)
  assert set(draft.params) == {
      'token_embedder', 'decoder', 'encoder_projection',
  }  # fmt: skip
  new = draft.network.init(jax.random.key(0))
  assert jax.tree.structure(new) == jax.tree.structure(draft.params)
  kernel = new['encoder_projection']['kernel']
  assert kernel.shape == (24, 8)
  assert 0.7 < np.std(kernel) * 24**0.5 < 1.3
  assert draft.config.shares_encoder and not draft.config.is_decoder_only
  encoded = np.random.default_rng(0).standard_normal((B, S, 24), np.float32)
  np.testing.assert_allclose(
      cached_logits(draft, encoded), forced_logits(draft, encoded), atol=1e-5
  )


def test_the_projection_is_laid_out_on_a_mesh():
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  network = tiny.network(tiny.config(encoded_dim=24, emb_dim=8))
  layout = network.shardings(mesh)['encoder_projection']['kernel']
  assert layout.spec == jax.sharding.PartitionSpec(None, 'fsdp')


def test_dropout_falls_on_what_is_read():
  model = tiny.model(encoded_dim=16, dropout_rate=0.5)
  prompt, tokens = reading(jnp.ones((B, S, 16))), ragged()[1]

  @jax.jit
  def project(key):
    return model._cross_input(prompt, key)

  one, two = project(jax.random.key(0)), project(jax.random.key(1))
  assert 0.2 < np.mean(np.asarray(one) == 0.0) < 0.8
  assert not np.array_equal(one, two)
  # The mask is shared over the length, as that of an encoder's output is.
  np.testing.assert_array_equal(one[:, :1] == 0.0, one[:, 1:2] == 0.0)
  hidden = jax.jit(
      lambda key: model.hidden(prompt, tokens, jnp.ones_like(tokens), key)
  )
  assert np.abs(hidden(jax.random.key(0)) - hidden(jax.random.key(1))).max() > 0


def test_bfloat16_reads_float32_and_the_other_way_round():
  encoded = encode(tiny.model())
  exact = forced_logits(tiny.model(encoded_dim=16), encoded)
  narrow = encoded.astype('bfloat16')
  for dtype, given in (('bfloat16', encoded), ('float32', narrow)):
    draft = tiny.model(encoded_dim=16, dtype=dtype)
    np.testing.assert_allclose(forced_logits(draft, given), exact, atol=0.3)


def test_a_draft_alone_is_refused():
  draft = tiny.model(encoded_dim=16)
  prompt, tokens = ragged()
  for call in (
      lambda: draft.logits(prompt, tokens, jnp.ones_like(tokens)),
      lambda: draft.hidden(prompt, tokens, jnp.ones_like(tokens)),
      lambda: draft.prefill(prompt, 4),
  ):
    with pytest.raises(errors.UserError, match='it cannot be used alone'):
      call()
  with pytest.raises(errors.UserError, match='without an encoder'):
    draft.encode(prompt)


def test_an_output_of_another_width_or_batch_is_refused():
  draft = tiny.model(encoded_dim=16)
  with pytest.raises(errors.UserError, match='24 wide, but .* width 16'):
    forced_logits(draft, jnp.zeros((B, S, 24)))
  with pytest.raises(ValueError, match='Axis S is 6'):
    forced_logits(draft, jnp.zeros((B, S + 1, 16)))


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'encoded_dim': -1, 'num_encoder_layers': 0}, 'encoded_dim is -1'),
        (
            {'encoded_dim': 16, 'num_encoder_layers': 2},
            'encoded_dim is 16, but num_encoder_layers is 2',
        ),
        ({'encoded_dim': 16.0}, 'must be of type int'),
    ],
)
def test_configurations_without_meaning_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    tiny.config(**changes)
