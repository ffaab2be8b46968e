"""A model whose axes differ in size, and its parameters as tensors."""

import numpy as np

from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.models import config as config_lib

CONFIG = config_lib.T5Config(
    vocab_size=24,
    emb_dim=6,
    num_heads=2,
    head_dim=5,
    mlp_dim=8,
    num_encoder_layers=3,
    num_decoder_layers=2,
    relative_buckets=7,
)


def random_arrays(config, dtype=np.float32):
  """Path -> array, of every parameter."""
  rng = np.random.default_rng(0)
  return {
      path: rng.standard_normal(shape).astype(dtype)
      for path, shape in parameters.shapes(config).items()
  }


def as_tensors(arrays):
  return {path: tensors_lib.from_array(x) for path, x in arrays.items()}
