"""Checkpoints that `write.py` wrote, restored by t5x: the same model and run?

Runs in an environment of its own that has t5x (requirements.txt).

    python benchmarks/t5x/check_written.py FOLDER
"""

import importlib
import json
import pathlib
import sys

import jax
import network
import numpy as np
from t5x import checkpoints
from t5x import state_utils

FRESH, TRAINED = 0, 3  # steps
TOLERANCE = 1e-4  # absolute, of float32 logits
UPDATE_TOLERANCE = 2e-6


def main(folder: pathlib.Path) -> int:
  jax.config.update('jax_default_matmul_precision', 'highest')
  print(f'jax {jax.__version__}')
  print(
      f'{"model":14} {"restored by":24} {"step":>4} {"parameters":>10}'
      f' {"logits":>10} {"next step":>10}'
  )
  is_right = True
  for path in sorted(folder.glob('*/config.json')):
    config = json.loads(path.read_text())
    expected = dict(np.load(path.parent / 'expected.npz'))
    for step in (FRESH, TRAINED):
      is_right &= check_loaded(path.parent, step, expected)
    for name, restore in (
        ('Checkpointer', by_checkpointer),
        ('OrbaxCheckpointManager', by_orbax),
    ):
      is_right &= check_restored(name, restore, path.parent, config, expected)
    is_right &= check_fresh(path.parent, config)
  return 0 if is_right else 1


def check_loaded(folder, step, expected):
  """By `load_t5x_checkpoint`, which knows nothing of the model."""
  tree = checkpoints.load_t5x_checkpoint(str(folder), step=step)
  params = flatten(tree['target'])
  apart = np.nan
  if step == TRAINED:
    apart = largest(params, ours(expected, 'params', params))
  same = bool(params) and not apart > 0 and int(tree['state']['step']) == step
  report(folder.name, 'load_t5x_checkpoint', step, apart, np.nan, np.nan, same)
  return same


def check_restored(name, restore, folder, config, expected):
  model, state = restore_into_state(restore, folder, TRAINED, config)
  params = flatten(state.params)
  apart = largest(params, ours(expected, 'params', params))
  tokens = expected['tokens']
  batch = (tokens, np.ones_like(tokens))
  if config['num_encoder_layers']:
    batch = (expected['inputs'], *batch)
  logits = model.module.apply(
      {'params': state.params}, *batch, enable_dropout=False
  )
  logits = np.abs(np.asarray(logits) - expected['logits']).max()
  gradient = unflatten(ours(expected, 'gradient', params))
  state = state.apply_gradient(gradient, learning_rate=config['rate'])
  after = flatten(state.params)
  update = largest(after, ours(expected, 'next', after))
  same = (
      apart == 0.0
      and logits <= TOLERANCE
      and update <= UPDATE_TOLERANCE
      and int(state.step) == TRAINED + 1
  )
  report(folder.name, name, TRAINED, apart, logits, update, same)
  return same


def check_fresh(folder, config):
  """A state of Adafactor that is all zeros, and a step from there."""
  _, state = restore_into_state(by_checkpointer, folder, FRESH, config)
  states = flatten(state.state_dict()['state'])
  zero = not any(np.any(np.asarray(x)) for x in states.values())
  gradient = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state.params)
  state = state.apply_gradient(gradient, learning_rate=config['rate'])
  zero &= int(state.step) == FRESH + 1
  report(folder.name, 'Checkpointer', FRESH, np.nan, np.nan, np.nan, zero)
  return zero


def restore_into_state(restore, folder, step, config):
  """The model, and the TrainState that t5x restores for it."""
  sizes = {
      name: config[name]
      for name in (
          'vocab_size', 'emb_dim', 'num_heads', 'head_dim', 'mlp_dim',
          'mlp_activations', 'logits_via_embedding',
      )
  }  # fmt: skip
  shapes = {'decoder_input_tokens': (2, 7), 'decoder_target_tokens': (2, 7)}
  depth = config['num_decoder_layers']
  if config['num_encoder_layers']:
    library = importlib.import_module('t5x.examples.t5.network')
    values = library.T5Config(
        **sizes,
        num_encoder_layers=config['num_encoder_layers'],
        num_decoder_layers=depth,
    )
    module = library.Transformer(values)
    model = network.encoder_decoder(module, config['vocab_size'])
    shapes['encoder_input_tokens'] = (2, 9)
  else:
    library = importlib.import_module('t5x.examples.decoder_only.network')
    values = library.TransformerConfig(**sizes, num_layers=depth)
    module = library.DecoderWrapper(values)
    model = network.decoder_only(module, config['vocab_size'])
  initializer, partitioner = network.initializer(model, shapes)
  shape = initializer.global_train_state_shape
  return model, restore(str(folder), step, shape, partitioner)


def by_checkpointer(folder, step, shape, partitioner):
  path = f'{folder}/checkpoint_{step}'
  return checkpoints.Checkpointer(shape, partitioner, folder).restore(path=path)


def by_orbax(folder, step, shape, partitioner):
  manager = checkpoints.OrbaxCheckpointManagerInterface(
      folder, shape, partitioner
  )
  return manager.restore(step=step)


def flatten(tree):
  return state_utils.flatten_state_dict(tree)


def unflatten(flat):
  tree = {}
  for path, value in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree


def ours(expected, part, theirs):
  """What we expect, with decoder_only's name for the embedding."""
  prefix = f'{part}/'
  arrays = {
      path.removeprefix(prefix): array
      for path, array in expected.items()
      if path.startswith(prefix)
  }
  if 'decoder/token_embedder/embedding' in theirs:
    name = 'token_embedder/embedding'
    arrays[f'decoder/{name}'] = arrays.pop(name)
  return arrays


def largest(a, b):
  """Largest absolute difference; infinite where paths or shapes differ."""
  if set(a) != set(b) or any(a[k].shape != b[k].shape for k in a):
    return np.inf
  return max(float(np.abs(np.asarray(a[k]) - b[k]).max()) for k in a)


def report(model, name, step, apart, logits, update, is_right):
  values = [
      f'{"-" if np.isnan(value) else f"{value:.2e}":>10}'
      for value in (apart, logits, update)
  ]
  verdict = '' if is_right else '  WRONG'
  print(f'{model:14} {name:24} {step:4} {" ".join(values)}{verdict}')


if __name__ == '__main__':
  sys.exit(main(pathlib.Path(sys.argv[1]).resolve()))
