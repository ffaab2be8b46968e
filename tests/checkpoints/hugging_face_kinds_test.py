"""Every kind of T5 that transformers has, against T5 written out in NumPy.

The reference reads what lies in the folder by the names and in the layout of
transformers, and knows nothing of ours. In float64 it equals transformers 5.23
to 1e-12, but for umT5 that says its embedding is not tied: 5.23 scales its
logits all the same, here and in 4.57 they are not scaled.
"""

import json
import math

from etils import epath
import numpy as np
import pytest

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import safetensors
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib

BASE = config_lib.T5Config(
    vocab_size=37, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24,
    num_encoder_layers=2, num_decoder_layers=2, relative_buckets=8,
    relative_max_distance=20,
).to_dict()  # fmt: skip
TIED = {'logits_via_embedding': True, 'scale_logits': True}

KINDS = {
    'v1.0': {**TIED, 'mlp_activations': ('relu',)},
    'v1.1': {},
    'gated relu': {'mlp_activations': ('relu', 'linear')},
    'gated silu': {'mlp_activations': ('silu', 'linear')},
    'gated linear': {'mlp_activations': ('linear', 'linear')},
    'plain exact gelu': {**TIED, 'mlp_activations': ('gelu_exact',)},
    'plain tanh gelu': {**TIED, 'mlp_activations': ('gelu',)},
    'plain silu': {**TIED, 'mlp_activations': ('silu',)},
    'untied and scaled': {'scale_logits': True},
    'tied and not scaled': {'logits_via_embedding': True},
    'umT5, tied': {**TIED, 'relative_bias_per_layer': True},
    'umT5, untied': {'relative_bias_per_layer': True},
    'one layer': {'num_encoder_layers': 1, 'num_decoder_layers': 1},
    'deep encoder': {'num_encoder_layers': 3, 'num_decoder_layers': 1},
    'deep decoder': {'num_encoder_layers': 1, 'num_decoder_layers': 3},
    'narrow heads': {'num_heads': 3, 'head_dim': 5},
    'wide heads': {'num_heads': 3, 'head_dim': 12},
    'few buckets': {'relative_buckets': 4, 'relative_max_distance': 6},
    'odd buckets': {'relative_buckets': 7, 'relative_max_distance': 11},
    'many buckets': {'relative_buckets': 32, 'relative_max_distance': 128},
    'large epsilon': {'norm_epsilon': 0.1},
}

_ACTIVATIONS = {
    'relu': lambda x: np.maximum(x, 0),
    'silu': lambda x: x / (1 + np.exp(-x)),
    'linear': lambda x: x,
    'gelu': lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    'gelu_new': lambda x: (
        x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}


class Reference:
  """T5 in float64, one example a call, from their tensors and config."""

  def __init__(self, folder):
    tensors = safetensors.read(epath.Path(folder / 'model.safetensors'))
    self.tensors = {
        name: tensor.all().astype(np.float64)
        for name, tensor in tensors.items()
    }
    self.config = json.loads((folder / 'config.json').read_text())
    kind = self.config['model_type']
    is_tied = self.config.get('tie_word_embeddings') is not False
    scale = self.config.get('scale_decoder_outputs', is_tied)
    self.is_scaled = {'t5': scale, 'umt5': is_tied, 'mt5': False}[kind]
    self.is_per_layer = kind == 'umt5'

  def norm(self, x, name):
    mean_square = np.mean(x**2, axis=-1, keepdims=True)
    x = x / np.sqrt(mean_square + self.config['layer_norm_epsilon'])
    return x * self.tensors[f'{name}.weight']

  def bucket(self, distance, is_decoder):
    """Of one distance: key position minus query position."""
    count, first = self.config['relative_attention_num_buckets'], 0
    if is_decoder:
      steps = max(-distance, 0)
    else:
      count //= 2
      first, steps = (count if distance > 0 else 0), abs(distance)
    near = count // 2
    if steps < near:
      return first + steps
    max_distance = self.config['relative_attention_max_distance']
    share = math.log(steps / near) / math.log(max_distance / near)
    # A hair more: where the share is a whole number, float64 may be below it.
    return first + min(near + int(share * (count - near) + 1e-9), count - 1)

  def bias(self, name, length, is_decoder):
    table = self.tensors[f'{name}.relative_attention_bias.weight']
    rows = [
        [table[self.bucket(k - q, is_decoder)] for k in range(length)]
        for q in range(length)
    ]
    return np.moveaxis(np.array(rows), -1, 0)

  def attention(self, x, keys, name, bias):
    heads = self.config['num_heads']

    def split(of, letter):
      y = of @ self.tensors[f'{name}.{letter}.weight'].T
      return y.reshape(len(of), heads, -1).swapaxes(0, 1)

    scores = split(x, 'q') @ split(keys, 'k').swapaxes(1, 2) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = (weights @ split(keys, 'v')).swapaxes(0, 1).reshape(len(x), -1)
    return mixed @ self.tensors[f'{name}.o.weight'].T

  def feed_forward(self, x, name):
    feed_forward = self.config['feed_forward_proj']
    activation = (
        'gelu_new'
        if feed_forward == 'gated-gelu'
        else feed_forward.split('-')[-1]
    )
    activation = _ACTIVATIONS[activation]
    if feed_forward.startswith('gated-'):
      y = activation(x @ self.tensors[f'{name}.wi_0.weight'].T)
      y = y * (x @ self.tensors[f'{name}.wi_1.weight'].T)
    else:
      y = activation(x @ self.tensors[f'{name}.wi.weight'].T)
    return y @ self.tensors[f'{name}.wo.weight'].T

  def stack(self, side, tokens, encoded=None):
    is_decoder, length = encoded is not None, len(tokens)
    x = self.tensors['shared.weight'][tokens]
    future = np.triu(np.full((length, length), -np.inf), 1)
    layers = 'num_decoder_layers' if is_decoder else 'num_layers'
    for i in range(self.config[layers]):
      at = f'{side}.block.{i}.layer'
      if i == 0 or self.is_per_layer:
        bias = self.bias(f'{at}.0.SelfAttention', length, is_decoder)
        bias = bias + future if is_decoder else bias
      y = self.norm(x, f'{at}.0.layer_norm')
      x = x + self.attention(y, y, f'{at}.0.SelfAttention', bias)
      if is_decoder:
        y = self.norm(x, f'{at}.1.layer_norm')
        x = x + self.attention(y, encoded, f'{at}.1.EncDecAttention', 0)
      last = f'{at}.{1 + is_decoder}'
      y = self.norm(x, f'{last}.layer_norm')
      x = x + self.feed_forward(y, f'{last}.DenseReluDense')
    return self.norm(x, f'{side}.final_layer_norm')

  def logits(self, inputs, decoder_inputs):
    """float64[T, V] of inputs int[S], without padding."""
    encoded = self.stack('encoder', inputs)
    hidden = self.stack('decoder', decoder_inputs, encoded)
    if self.is_scaled:
      hidden = hidden / math.sqrt(self.config['d_model'])
    shared = self.tensors['shared.weight']
    return hidden @ self.tensors.get('lm_head.weight', shared).T


def random_params(config):
  """Scores of a few units, so that rounding does not decide who attends."""
  rng = np.random.default_rng(0)
  transformer = transformer_lib.Transformer(config)
  params = {}
  for path, leaf in tensors_lib.flatten(transformer.abstract()).items():
    array = rng.normal(size=leaf.shape)
    if path.endswith('scale'):
      array = 1 + 0.2 * array
    elif path.endswith('kernel'):
      array *= leaf.shape[0] ** -0.5
    if 'query' in path:
      array *= config.head_dim**-0.5
    params[path] = array.astype(np.float32)
  return params


def save(folder, **changes):
  folder.mkdir()
  config = config_lib.T5Config.from_dict({**BASE, **changes})
  params = random_params(config)
  hugging_face.write(
      epath.Path(folder),
      config,
      {path: tensors_lib.from_array(x) for path, x in params.items()},
  )
  return config, params


def assert_agree(folder):
  """Our logits and the reference's, with padding on either side."""
  model, reference = loading.load(folder), Reference(folder)
  rng = np.random.default_rng(1)
  inputs = rng.integers(2, 37, (3, 30))
  decoder_inputs = rng.integers(2, 37, (3, 25))
  decoder_inputs[:, 0] = 0
  mask = np.ones((3, 30), bool)
  mask[1, 17:] = mask[2, :9] = False
  logits = model.logits(np.where(mask, inputs, 0), decoder_inputs, mask)
  for row in range(3):
    expected = reference.logits(inputs[row, mask[row]], decoder_inputs[row])
    scale = max(1.0, expected.std())
    np.testing.assert_allclose(
        logits[row] / scale, expected / scale, rtol=0, atol=2e-5
    )
  return model


@pytest.mark.parametrize('kind', KINDS)
def test_logits_of_every_kind(tmp_path, kind):
  config, params = save(tmp_path / 'm', **KINDS[kind])
  model = assert_agree(tmp_path / 'm')
  assert model.config == config
  loaded = tensors_lib.flatten(model.model.params)
  assert set(loaded) == set(params)
  for path, array in params.items():
    np.testing.assert_array_equal(loaded[path], array)


@pytest.mark.parametrize(
    'model_type, changes, is_tied',
    [
        ('mt5', {}, False),
        ('mt5', {'logits_via_embedding': True}, True),
        ('mt5', {}, True),  # as newer versions write it, whatever the tensors
        ('umt5', {'relative_bias_per_layer': True}, False),
        (
            'umt5',
            {'relative_bias_per_layer': True, 'scale_logits': True},
            True,
        ),
    ],
)
def test_logits_of_the_multilingual_ones(
    tmp_path, model_type, changes, is_tied
):
  save(tmp_path / 'm', **changes)
  path = tmp_path / 'm' / 'config.json'
  values = json.loads(path.read_text())
  values.pop('scale_decoder_outputs', None)
  values |= {'model_type': model_type, 'tie_word_embeddings': is_tied}
  path.write_text(json.dumps(values))
  assert_agree(tmp_path / 'm')


def test_another_model_is_told_apart(tmp_path):
  save(tmp_path / 'm')
  path = tmp_path / 'm' / 'config.json'
  values = json.loads(path.read_text())
  save(tmp_path / 'other')
  for name, value in (
      ('layer_norm_epsilon', 0.1),
      ('feed_forward_proj', 'gated-relu'),
      ('relative_attention_max_distance', 40),
      ('scale_decoder_outputs', True),
  ):
    path.write_text(json.dumps({**values, name: value}))
    reference, other = Reference(tmp_path / 'm'), Reference(tmp_path / 'other')
    tokens = np.arange(2, 32)
    difference = reference.logits(tokens, tokens) - other.logits(tokens, tokens)
    assert np.abs(difference).max() > 1e-2
