"""Checkpoints in t5x's layout, with our logits and our next update.

Runs in the project's environment; `check_written.py` then has t5x itself
restore them.

    python benchmarks/t5x/write.py FOLDER
"""

import json
import pathlib
import sys

from etils import epath
import jax
import numpy as np
import optax

from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import types
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer
from distillspec_jax.training import optimizers
from distillspec_jax.training import schedules

SIZES = {
    'vocab_size': 256,
    'emb_dim': 128,
    'num_heads': 4,
    'head_dim': 40,
    'mlp_dim': 144,
    'num_encoder_layers': 2,
    'num_decoder_layers': 3,
}
V1_0 = {'mlp_activations': ('relu',), 'logits_via_embedding': True}
MODELS = {
    'v1_1': {},
    'v1_0': V1_0,
    'decoder_only': {'num_encoder_layers': 0},
}
STEPS = 3
RATE = 0.01


def main(folder: pathlib.Path) -> None:
  for name, changes in MODELS.items():
    config = config_lib.T5Config(**{**SIZES, **changes})
    write(folder / name, config)
    print(folder / name)


def write(folder: pathlib.Path, config: config_lib.T5Config) -> None:
  """Two checkpoints of one model, and what t5x should make of them.

  Of step 0 with a fresh state of Adafactor, and of step 3 with a real one.
  """
  network = transformer.Transformer(config)
  params = network.init(jax.random.key(0))
  rate = schedules.Factors(factors='constant', base_learning_rate=RATE)
  transform = optimizers.Optimizer(learning_rate=rate).build(STEPS)
  state = transform.init(params)
  save(folder, params, 0)
  update = jax.jit(transform.update)
  for step in range(STEPS):
    updates, state = update(gradient(params, step), state, params)
    params = optax.apply_updates(params, updates)
  save(folder, params, STEPS, optimizers.adafactor_moments(state).by_path)
  updates, _ = update(gradient(params, STEPS), state, params)

  rng = np.random.default_rng(0)
  length = 0 if config.is_decoder_only else 9  # else the prompt, as a prefix
  inputs = rng.integers(2, config.vocab_size, (2, length), np.int32)
  tokens = rng.integers(2, config.vocab_size, (2, 7), np.int32)
  model = model_lib.Model(params, network)
  prompt = types.Prompt(inputs, np.ones_like(inputs))
  logits = jax.jit(model_lib.Model.logits)(
      model, prompt, tokens, np.ones_like(tokens)
  )
  parts = {
      'params': params,
      'gradient': gradient(params, STEPS),
      'next': optax.apply_updates(params, updates),
  }
  np.savez(
      folder / 'expected.npz',
      inputs=inputs,
      tokens=tokens,
      logits=logits,
      **{
          f'{part}/{path}': x
          for part, tree in parts.items()
          for path, x in tensors_lib.flatten(tree).items()
      },
  )
  values = {**config.to_dict(), 'rate': RATE, 'step': STEPS}
  (folder / 'config.json').write_text(json.dumps(values, indent=2) + '\n')


def gradient(params, step):
  rng = np.random.default_rng(step)
  return jax.tree.map(
      lambda x: rng.standard_normal(x.shape).astype(np.float32), params
  )


def save(folder, params, step, moments=None):
  flat = tensors_lib.flatten(params)
  tensors = {path: tensors_lib.from_array(x) for path, x in flat.items()}
  t5x.write(epath.Path(folder), tensors, step, moments)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
