"""A draft's step with its whole output layer beside one cut to fewer tokens.

Random weights of a published size; the cut draft is made of the whole one, by
what `distillspec convert --output_tokens` does. A step feeds one token, makes
the logits and draws the next token, as when drafting. Both take turns in one
process; a step's time is the difference of many and few steps in one program,
so that it is free of the encoder. It is made of the least times of all rounds;
the quartiles are of the ratios of single rounds, and say how busy the machine
was.

    python benchmarks/cut_vocabulary.py --run=runs/cut [--size=small]
        [--output_tokens=8032] [--batches=1,8] [--rounds=15] [--dtype=float32]
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import cut_head
from distillspec_jax.models import pretrained
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import rows as rows_lib
from distillspec_jax.sampling import warping

FEW, MANY = 8, 40  # steps of a program; the difference counts
SETTINGS = {
    'greedy': {'temperature': 0.0},
    'temperature 1': {'temperature': 1.0},
    'top-p 0.9': {'temperature': 1.0, 'top_p': 0.9},
}


@functools.partial(jax.jit, static_argnums=(0, 5))
def propose(model, params, inputs, keys, steps, decoding):
  """int32[B]: the last token of `steps` steps of drafting."""
  columns = model.columns()
  state, prefix = model.begin(params, inputs, jnp.ones_like(inputs), MANY)

  def step(number, carry):
    state, token = carry
    hidden, state = model.advance(params, state, token[:, None])
    logits = columns.cut(model.unembed(params, hidden)[:, 0])
    if decoding.greedy:
      drawn = rows_lib.best(logits)
    else:
      drawn = randomness.categorical(
          randomness.events(keys, number), warping.warp(logits, decoding)
      )
    return state, columns.tokens(drawn)

  return jax.lax.fori_loop(0, steps, step, (state, prefix.tokens[:, 0]))[1]


def models(size: str, output_tokens: int, dtype: str):
  """The whole draft and the cut one, of the same weights."""
  config = config_lib.published(f't5_1_1_{size}', dtype=dtype)
  params = transformer_lib.Transformer(config).init(jax.random.key(0))
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  flat = tensors.flatten(params)
  whole = tensors.Checkpoint(
      config.to_dict(),
      {path: tensors.from_array(array) for path, array in flat.items()},
  )
  cut = cut_head.cut(whole, tuple(range(output_tokens)))
  return pretrained.place(whole, 'whole'), pretrained.place(cut, 'cut')


def seconds(model, inputs, keys, decoding) -> tuple[float, float]:
  """Of few steps and of many."""
  times = []
  for steps in (FEW, MANY):
    start = time.perf_counter()
    out = propose(
        model.transformer, model.params, inputs, keys, np.int32(steps), decoding
    )
    out.block_until_ready()
    times.append(time.perf_counter() - start)
  return times[0], times[1]


def step_ms(times: list[tuple[float, float]]) -> float:
  """Milliseconds a step, of the least times."""
  few, many = (min(column) for column in zip(*times))
  return (many - few) / (MANY - FEW) * 1e3


def compare(pair, batch: int, name: str, options) -> None:
  """One line of results, and of text."""
  decoding = decoding_lib.Decoding(**SETTINGS[name])
  rng = np.random.default_rng(batch)
  inputs = jnp.asarray(
      rng.integers(2, 32000, (batch, options.input_length)), jnp.int32
  )
  keys = randomness.row_keys(jax.random.key(0), batch)
  found = ([], [])
  for number in range(options.rounds + 1):
    for i in (0, 1) if number % 2 else (1, 0):
      times = seconds(pair[i], inputs, keys, decoding)
      if number:  # the first compiles
        found[i].append(times)
  whole, cut = map(step_ms, found)
  ratio = cut / whole
  single = [step_ms([b]) / step_ms([a]) for a, b in zip(*found)]
  low, _, high = statistics.quantiles(single, n=4)
  print(
      f'batch {batch}, {name:13}: {whole:6.2f} ms -> {cut:6.2f} ms, ratio'
      f' {ratio:.2f} (rounds: middle half {low:.2f} to {high:.2f})',
      flush=True,
  )
  if options.run is None:
    return

  def metric(value, unit):
    return results.Metric(value, None, options.rounds, unit)

  results.write(
      pathlib.Path(options.run) / 'results.jsonl',
      'latency',
      run=pathlib.Path(options.run).name,
      target=None,
      draft=f't5_1_1_{options.size} {options.dtype}',
      task='random tokens',
      split=f'{options.output_tokens} output tokens',
      decoding=decoding.describe(speculative=False, batch_size=batch),
      metrics={
          'whole_step_ms': metric(whole, 'ms'),
          'cut_step_ms': metric(cut, 'ms'),
          'ratio': metric(ratio, '1'),
          'lower_quartile_of_ratios': metric(low, '1'),
          'upper_quartile_of_ratios': metric(high, '1'),
      },
      seed=0,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--run', help='folder whose results.jsonl gets the lines')
  parser.add_argument('--size', default='small')
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--output_tokens', type=int, default=8032)
  parser.add_argument('--batches', default='1,8')
  parser.add_argument('--settings', default=','.join(SETTINGS))
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--input_length', type=int, default=64)
  options = parser.parse_args()
  pair = models(options.size, options.output_tokens, options.dtype)
  for batch in options.batches.split(','):
    for name in options.settings.split(','):
      compare(pair, int(batch), name, options)


if __name__ == '__main__':
  sys.exit(main())
