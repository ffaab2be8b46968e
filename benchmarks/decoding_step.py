"""A decoding step of one model, stored and trimmed in several ways.

A step feeds one token, computes the logits and chooses the next token; the
kinds of a model, of the same random weights, take turns:

  float32, bfloat16         parameters and computation
  int8, int8_weight_only    see `checkpoints.loading.load`; need qwix
  trimmed, trimmed_int8     the output layer has --trim_vocabulary tokens, as
                            `distillspec convert` makes it

    python benchmarks/decoding_step.py --run=runs/weights [--sizes=small,base]
        [--batches=1,8] [--kinds=float32,bfloat16,int8,int8_weight_only]
    python benchmarks/decoding_step.py --run=runs/trimmed --sizes=small
        --kinds=float32,trimmed,trimmed_int8
        --settings='greedy,temperature 1,top-p 0.9'
"""

import sys

import comparison

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import trim_vocabulary
from distillspec_jax.core import results
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import stopwatch
from distillspec_jax.sampling import decoding as decoding_lib

KINDS = {
    'float32': {},
    'bfloat16': {'dtype': 'bfloat16', 'param_dtype': 'bfloat16'},
    'int8': {'weights': 'int8'},
    'int8_weight_only': {'weights': 'int8_weight_only'},
    'trimmed': {},
    'trimmed_int8': {'weights': 'int8'},
}
SETTINGS = {
    'greedy': {'temperature': 0.0},
    'temperature 1': {'temperature': 1.0},
    'top-p 0.9': {'temperature': 1.0, 'top_p': 0.9},
}


def models_of(size: str, options):
  """The kinds of one model."""
  full = comparison.checkpoint_of(
      comparison.random_model(comparison.published(size))
  )
  trimmed = trim_vocabulary.trim(full, tuple(range(options.trim_vocabulary)))
  return {
      kind: loading.place(
          trimmed if kind.startswith('trimmed') else full, kind, **KINDS[kind]
      ).model
      for kind in options.kinds.split(',')
  }


def compare(models, size: str, batch: int, setting: str, options) -> None:
  """One line of results, and of text."""
  decoding = decoding_lib.Decoding().replace(**SETTINGS[setting])
  (inputs,) = comparison.random_inputs(0, batch, options.input_length)
  prompt = comparison.prompt(inputs)
  watches = {
      kind: costs.step(
          model, prompt, decoding, model.config.vocab_size, speculative=False
      )
      for kind, model in models.items()
  }
  seconds = stopwatch.read(watches)
  first = next(iter(seconds.values()))
  text = ', '.join(
      f'{kind} {1e3 * step:.2f} ({step / first:.2f})'
      for kind, step in seconds.items()
  )
  print(
      f'{size}, batch {batch}, {setting}, ms per step (ratio): {text}',
      flush=True,
  )
  metrics = {}
  for kind, step in seconds.items():
    laps = len(watches[kind].laps)
    metrics[f'{kind}_step_ms'] = results.Metric(1e3 * step, None, laps, 'ms')
    metrics[f'{kind}_ratio'] = results.Metric(step / first, None, laps, '1')
  comparison.write(
      options.run,
      'decoding step',
      target=comparison.name(size),
      draft=None,
      task='random tokens',
      decoding=decoding.describe(speculative=False, batch_size=batch),
      metrics=metrics,
  )


def main() -> None:
  parser = comparison.parser(__doc__)
  parser.add_argument('--sizes', default='small,base')
  parser.add_argument('--kinds', default=','.join(list(KINDS)[:4]))
  parser.add_argument('--settings', default='greedy')
  parser.add_argument('--batches', type=comparison.numbers(int), default=(1, 8))
  parser.add_argument('--trim_vocabulary', type=int, default=8032)
  options = parser.parse_args()
  for size in options.sizes.split(','):
    models = models_of(size, options)
    for batch in options.batches:
      for setting in options.settings.split(','):
        compare(models, size, batch, setting, options)


if __name__ == '__main__':
  sys.exit(main())
