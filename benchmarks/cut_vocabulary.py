"""A draft's step with its whole output layer beside one cut to fewer tokens.

Random weights of a published size; the cut draft is made of the whole one, by
what `distillspec convert --trim_vocabulary` does, and a third is the cut one
held in int8, which needs qwix. A step feeds one token, makes the logits and
draws the next token, as when drafting; all take turns.

    python benchmarks/cut_vocabulary.py --run=runs/cut [--size=small]
        [--trim_vocabulary=8032] [--batches=1,8] [--dtype=float32]
"""

import argparse
import sys

import beside
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import tensors
from distillspec_jax.checkpoints import trim_vocabulary
from distillspec_jax.core import results
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import stopwatch
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import decoding as decoding_lib

SETTINGS = {
    'greedy': {'temperature': 0.0},
    'temperature 1': {'temperature': 1.0},
    'top-p 0.9': {'temperature': 1.0, 'top_p': 0.9},
}


def models(size: str, count: int, dtype: str):
  """The whole draft, the cut one, and that in int8, of the same weights."""
  config = config_lib.published(f't5_1_1_{size}', dtype=dtype)
  params = transformer_lib.Transformer(config).init(jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  flat = tensors.flatten(params)
  whole = parameters.Checkpoint(
      config,
      {path: tensors.from_array(array) for path, array in flat.items()},
  )
  cut = trim_vocabulary.trim(whole, tuple(range(count)))
  return (
      loading.place(whole, 'whole'),
      loading.place(cut, 'cut'),
      loading.place(cut, 'cut_int8', weights='int8'),
  )


def compare(drafts, batch: int, name: str, options) -> None:
  """One line of results, and of text."""
  decoding = decoding_lib.Decoding(**SETTINGS[name])
  rng = np.random.default_rng(batch)
  tokens = jnp.asarray(
      rng.integers(2, 32000, (batch, options.input_length)), jnp.int32
  )
  inputs = costs.Inputs(tokens, jnp.ones_like(tokens))
  watches = {
      model.name: costs.step(
          model, inputs, decoding, model.config.vocab_size, speculative=False
      )
      for model in drafts
  }
  found = stopwatch.read(watches)
  ratios = {kind: found[kind] / found['whole'] for kind in ('cut', 'cut_int8')}
  print(
      f'batch {batch}, {name:13}: {1e3 * found["whole"]:6.2f} ms ->'
      f' {1e3 * found["cut"]:6.2f} ms, ratio {ratios["cut"]:.2f}; in int8'
      f' {1e3 * found["cut_int8"]:6.2f} ms, ratio {ratios["cut_int8"]:.2f}',
      flush=True,
  )
  laps = min(len(watch.laps) for watch in watches.values())
  metrics = {
      f'{kind}_step_ms': results.Metric(1e3 * seconds, None, laps, 'ms')
      for kind, seconds in found.items()
  }
  beside.write(
      options.run,
      f'{options.trim_vocabulary} output tokens',
      target=None,
      draft=f't5_1_1_{options.size} {options.dtype}',
      task='random tokens',
      decoding=decoding.describe(speculative=False, batch_size=batch),
      metrics=metrics
      | {
          f'{kind}_ratio': results.Metric(ratio, None, laps, '1')
          for kind, ratio in ratios.items()
      },
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--run', help='folder whose results.jsonl gets the lines')
  parser.add_argument('--size', default='small')
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--trim_vocabulary', type=int, default=8032)
  parser.add_argument('--batches', type=beside.numbers(int), default=(1, 8))
  parser.add_argument('--settings', default=','.join(SETTINGS))
  parser.add_argument('--input_length', type=int, default=64)
  options = parser.parse_args()
  drafts = models(options.size, options.trim_vocabulary, options.dtype)
  for batch in options.batches:
    for name in options.settings.split(','):
      compare(drafts, batch, name, options)


if __name__ == '__main__':
  sys.exit(main())
