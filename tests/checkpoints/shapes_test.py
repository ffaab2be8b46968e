"""Hand-written names and shapes are those of the network itself."""

import json

from etils import epath
import pytest

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import t5x_layout
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib

PUBLISHED = [
    *(
        f't5_1_{minor}_{size}'
        for minor in (0, 1)
        for size in ('small', 'base', 'large', 'xl', 'xxl')
    ),
    'test', 'nano', 'micro', 'tiny', 'mini',
]  # fmt: skip
VARIANTS = {
    'plain': {},
    'biases': {'relative_bias_per_layer': True},
    'tied': {'logits_via_embedding': True},
    'relu': {'mlp_activations': ('relu',)},
    'deep decoder': {'num_decoder_layers': 12},
    'decoder-only': {'num_encoder_layers': 0},
}


def of_the_network(config):
  leaves = tensors_lib.flatten(transformer_lib.Transformer(config).abstract())
  return {path: leaf.shape for path, leaf in leaves.items()}


def assert_same(config):
  expected = of_the_network(config)
  assert t5x_layout.shapes(config.to_dict()) == expected
  if not config.num_encoder_layers:
    return
  theirs = {}
  for name, place in hugging_face.names(config.to_dict()).items():
    shape = hugging_face._shape(config.to_dict(), name)
    theirs[place.path] = shape[::-1] if place.is_transposed else shape
    assert (
        place.is_transposed
        or place.path == 'token_embedder/embedding'
        or (len(shape) == 1)
    )
  assert theirs == expected


@pytest.mark.parametrize('name', PUBLISHED)
def test_published(name):
  assert_same(config_lib.published(name))


@pytest.mark.parametrize('changes', VARIANTS.values(), ids=VARIANTS)
def test_variants(changes):
  assert_same(config_lib.published('test', **changes))


def test_golden_t5x(shared):
  saved = json.loads((shared / 'golden/t5x/configs.json').read_text())
  for values in saved.values():
    assert_same(config_lib.T5Config.from_dict(values))


def test_golden_hugging_face(shared):
  for path in sorted((shared / 'golden/hugging_face').glob('*/config.json')):
    found = hugging_face.read(epath.Path(path.parent))
    assert_same(config_lib.T5Config.from_dict(found.config))
