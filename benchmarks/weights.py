"""A decoding step with weights in float32, bfloat16 and int8.

Random weights of a published size, loaded as a user would. A step feeds one
token, makes the logits and takes the best; the kinds take turns. int8 needs
qwix.

    python benchmarks/weights.py --run=runs/weights [--sizes=small,base]
        [--batches=1,8]
"""

import argparse
import pathlib
import sys
import tempfile

import beside
import jax
import jax.numpy as jnp

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import results
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import stopwatch
from distillspec_jax.models import config as config_lib
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
  tokens = jnp.full((batch, 64), 7, jnp.int32)
  inputs = costs.Inputs(tokens, jnp.ones_like(tokens))
  watches = {
      kind: costs.step(
          model, inputs, GREEDY, model.config.vocab_size, speculative=False
      )
      for kind, model in models.items()
  }
  steps = stopwatch.read(watches)
  text = ', '.join(f'{kind} {1e3 * step:.1f}' for kind, step in steps.items())
  print(f'{size}, batch {batch}, ms a step: {text}', flush=True)
  beside.write(
      options.run,
      'weights',
      target=f't5_1_1_{size}',
      draft=None,
      task='random tokens',
      decoding=GREEDY.describe(speculative=False, batch_size=batch),
      metrics={
          f'{kind}_step_ms': results.Metric(
              1e3 * step, None, len(watches[kind].laps), 'ms'
          )
          for kind, step in steps.items()
      },
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--run', help='folder whose results.jsonl gets the lines')
  parser.add_argument('--sizes', default='small,base')
  parser.add_argument('--batches', type=beside.numbers(int), default=(1, 8))
  options = parser.parse_args()
  for size in options.sizes.split(','):
    config = config_lib.published(f't5_1_1_{size}')
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      params = transformer_lib.Transformer(config).init(jax.random.key(0))
      beside.save(folder, config, params)
      del params
      models = {
          kind: loading.load(folder, **how) for kind, how in KINDS.items()
      }
      for batch in options.batches:
        compare(models, size, batch, options)


if __name__ == '__main__':
  sys.exit(main())
