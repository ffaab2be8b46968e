"""A decoding step with weights in float32, bfloat16 and int8.

Random weights of a published size, loaded as a user would. A step feeds one
token, makes the logits and takes the best; its time is the difference of many
and few steps in one program, of the least times of all rounds, in which the
kinds take turns. int8 needs qwix.

    python benchmarks/weights.py --run=runs/weights [--sizes=small,base]
        [--batches=1,8] [--rounds=5]
"""

import argparse
import pathlib
import sys
import tempfile

import beside
import cut_vocabulary
import jax
import jax.numpy as jnp

from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import pretrained
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import decoding as decoding_lib

KINDS = {
    'float32': {},
    'bfloat16': {'dtype': 'bfloat16', 'param_dtype': 'bfloat16'},
    'int8': {'weights': 'int8'},
    'int8_weight_only': {'weights': 'int8_weight_only'},
}
GREEDY = decoding_lib.Decoding()


def compare(models, size: str, batch: int, options) -> None:
  """One line of results, and of text."""
  inputs = jnp.full((batch, 64), 7, jnp.int32)
  keys = randomness.row_keys(jax.random.key(0), batch)
  times = {kind: [] for kind in models}
  for number in range(options.rounds + 1):
    for kind, model in models.items():
      seconds = cut_vocabulary.seconds(model, inputs, keys, GREEDY)
      if number:  # the first compiles
        times[kind].append(seconds)
  steps = {kind: cut_vocabulary.step_ms(found) for kind, found in times.items()}
  text = ', '.join(f'{kind} {step:.1f}' for kind, step in steps.items())
  print(f'{size}, batch {batch}, ms a step: {text}', flush=True)
  if options.run is None:
    return
  results.write(
      pathlib.Path(options.run) / 'results.jsonl',
      'latency',
      run=pathlib.Path(options.run).name,
      target=f't5_1_1_{size}',
      draft=None,
      task='random tokens',
      split='weights',
      decoding=GREEDY.describe(speculative=False, batch_size=batch),
      metrics={
          f'{kind}_step_ms': results.Metric(step, None, options.rounds, 'ms')
          for kind, step in steps.items()
      },
      seed=0,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--run', help='folder whose results.jsonl gets the lines')
  parser.add_argument('--sizes', default='small,base')
  parser.add_argument('--batches', default='1,8')
  parser.add_argument('--rounds', type=int, default=5)
  options = parser.parse_args()
  for size in options.sizes.split(','):
    config = config_lib.published(f't5_1_1_{size}')
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      params = transformer_lib.Transformer(config).init(jax.random.key(0))
      beside.save(folder, config, params)
      del params
      models = {
          kind: pretrained.load(folder, **how) for kind, how in KINDS.items()
      }
      for batch in options.batches.split(','):
        compare(models, size, int(batch), options)


if __name__ == '__main__':
  sys.exit(main())
