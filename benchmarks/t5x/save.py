"""Checkpoints that t5x itself writes, of all its networks, in both layouts.

Runs in an environment of its own that has t5x (requirements.txt);
`check_saved.py` then loads them here.

    python benchmarks/t5x/save.py FOLDER
"""

import importlib
import pathlib
import sys

import jax
import network
import numpy as np
from t5x import checkpoints

SIZES = {
    'vocab_size': 256,
    'emb_dim': 32,
    'num_heads': 4,
    'head_dim': 10,
    'mlp_dim': 48,
    'mlp_activations': ('gelu', 'linear'),
}
STACKS = {'num_encoder_layers': 2, 'num_decoder_layers': 3}
NETWORKS = {  # name -> module, more of its configuration
    't5': ('t5', STACKS),
    'scalable_t5_scanned': ('scalable_t5', STACKS),
    'scalable_t5_unscanned': ('scalable_t5', {**STACKS, 'scan_layers': False}),
    'decoder_only': ('decoder_only', {'num_layers': 3}),
}
INPUTS, TOKENS = (2, 9), (2, 7)


def main(folder: pathlib.Path) -> None:
  jax.config.update('jax_default_matmul_precision', 'highest')
  for name, (module, more) in NETWORKS.items():
    save(folder / name, module, more)
    print(folder / name)


def save(folder, module, more):
  model, shapes = build(module, more)
  initializer, partitioner = network.initializer(model, shapes)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  shape = initializer.global_train_state_shape
  native, orbax = folder / 'native', folder / 'orbax'
  for path in (native, orbax):
    path.mkdir(parents=True)
  checkpoints.Checkpointer(shape, partitioner, str(native)).save(state)
  manager = checkpoints.OrbaxCheckpointManagerInterface(
      str(orbax), shape, partitioner
  )
  manager.save(state)
  manager.close()

  rng = np.random.default_rng(0)
  inputs = rng.integers(2, SIZES['vocab_size'], INPUTS, np.int32)
  tokens = rng.integers(2, SIZES['vocab_size'], TOKENS, np.int32)
  batch = (tokens, np.ones_like(tokens))
  if module == 'decoder_only':
    inputs = inputs[:, :0]
  else:
    batch = (inputs, *batch)
  logits = model.module.apply(
      {'params': state.params}, *batch, enable_dropout=False
  )
  np.savez(folder / 'expected.npz', inputs=inputs, tokens=tokens, logits=logits)


def build(module, more):
  """The model and the shapes of its features."""
  library = importlib.import_module(f't5x.examples.{module}.network')
  size = SIZES['vocab_size']
  shapes = {'decoder_input_tokens': TOKENS, 'decoder_target_tokens': TOKENS}
  if module == 'decoder_only':
    config = library.TransformerConfig(**SIZES, **more)
    wrapper = library.DecoderWrapper(config)
    return network.decoder_only(wrapper, size), shapes
  module = library.Transformer(library.T5Config(**SIZES, **more))
  shapes['encoder_input_tokens'] = INPUTS
  return network.encoder_decoder(module, size), shapes


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]).resolve())
