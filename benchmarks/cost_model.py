"""Is speculative decoding as fast as its parts predict? At chosen rates.

Drafted tokens pass with a chosen probability (`Simulated`), so that the sampler
is measured by itself; the models have random weights of the published sizes.
Speculative and autoregressive decoding take turns, and the speed-up is the
median of the ratios of neighbours. It is compared with the prediction

    E_t + L s                         E_t, E_d  target's, draft's encoder
    -----------------------------     s         step of autoregressive decoding
    E_t + E_d + n (f + (G-1) d + v)   f, d      draft's first, other steps
                                      v         target on a block, and verdict

with L tokens per sequence and n blocks, as many as the slowest sequence was
counted to need. All times in it are of programs that do that step and nothing
else, with caches of the same sizes, timed in the same rounds. A parallel draft
takes one step, on 2 G tokens, instead of f + (G-1) d.

    python benchmarks/cost_model.py [--run=runs/cost_model] [--batches=1,8]
        [--rates=0.5,0.7,0.9] [--block_lengths=3,5,7] [--temperature=0]
        [--parallel]
"""

import itertools
import statistics
import sys
from typing import NamedTuple

import comparison
import jax
import numpy as np

from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.evaluation.speed import costs as costs_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification

TOLERANCE = 0.10  # how far from 1 measured over predicted may be


class Round(NamedTuple):
  """One rate and block length in one round."""

  costs: costs_lib.Costs
  plain_s: float  # of autoregressive decoding
  speedup: float
  predicted: float
  blocks: int  # of the slowest sequence
  efficiency: float  # tokens per target call


class Bench:
  """All programs of one batch size, compiled and warmed up."""

  def __init__(self, target, draft, batch: int, options):
    self.models, self.batch, self.options = (target, draft), batch, options
    (inputs,) = comparison.random_inputs(0, batch, options.input_length)
    self.prompt = prompt = comparison.prompt(inputs)
    self.vocabulary_size = size = model_lib.common_vocabulary(target, draft)
    self.watches = {}
    for length in options.block_lengths:
      decoding = self.decoding(options.rates[0], length)
      step = lambda *args, decoding=decoding, **kwargs: costs_lib.step(
          *args, prompt, decoding, size, **kwargs
      )
      self.watches[length] = {
          'prefill': costs_lib.prefill(target, prompt, decoding),
          'step': step(target, speculative=False),
          'draft_prefill': costs_lib.prefill(draft, prompt, decoding),
          'draft_first': step(draft, tokens=2),
          'draft': step(draft),
          'verify': costs_lib.verify(target, prompt, decoding, size),
      }
      if options.parallel:
        self.watches[length]['parallel'] = step(
            draft, tokens=2 * length, drafted=length
        )
      for rate in options.rates:
        self.fast(decoding.replace(verifier=verification.Simulated(rate)), 0)
    self.plain(0)

  def decoding(self, rate: float, length: int) -> decoding_lib.Decoding:
    return decoding_lib.Decoding(
        sampling=decoding_lib.Sampling(temperature=self.options.temperature),
        drafting=decoding_lib.Drafting(
            length=length, parallel=self.options.parallel
        ),
        verifier=verification.Simulated(rate),
        max_new_tokens=self.options.max_new_tokens,
        eos_ids=(),
    )

  def keys(self, number: int) -> jax.Array:
    keys = randomness.row_keys(jax.random.key(number), self.batch)
    return jax.block_until_ready(keys)

  def plain(self, number: int) -> float:
    """Seconds of autoregressive decoding."""
    keys, decoding = self.keys(number), self.decoding(0.0, 1).without_draft()
    return comparison.timed(
        lambda: autoregressive.generate(
            self.models[0], self.prompt, keys, decoding,
            vocabulary_size=self.vocabulary_size,
        )
    )[0]  # fmt: skip

  def fast(self, decoding: decoding_lib.Decoding, number: int):
    """Seconds of speculative decoding, and its blocks int[B]."""
    keys = self.keys(number)
    seconds, samples = comparison.timed(
        lambda: speculative.generate(*self.models, self.prompt, keys, decoding)
    )
    return seconds, np.asarray(samples.statistics.blocks)

  def round(self, number: int, length: int) -> list[Round]:
    """Every program of a block length once; one entry for each rate."""
    laps = {name: watch.lap() for name, watch in self.watches[length].items()}
    by_length = {
        name: {length: laps.pop(name)}
        for name in ('verify', 'parallel')
        if name in laps
    }
    costs = costs_lib.Costs(**laps, **by_length)
    before = self.plain(number)
    timed = [
        self.fast(self.decoding(rate, length), number)
        for rate in self.options.rates
    ]
    plain_s = (before + self.plain(number)) / 2
    steps, rounds = self.options.max_new_tokens, []
    for seconds, blocks in timed:
      slowest = int(blocks.max())
      predicted_s = costs.prefill + costs.draft_prefill
      predicted_s += slowest * costs.block(length)
      rounds.append(
          Round(
              costs,
              plain_s,
              plain_s / seconds,
              (costs.prefill + steps * costs.step) / predicted_s,
              slowest,
              steps * self.batch / int(blocks.sum()),
          )
      )
    return rounds


def measure(bench: Bench, options) -> bool:
  """Results of one batch size, and whether they are as predicted."""
  rounds = {
      key: [] for key in itertools.product(options.block_lengths, options.rates)
  }
  for number in range(1, options.rounds + 1):
    for length in options.block_lengths:
      for rate, one in zip(options.rates, bench.round(number, length)):
        rounds[length, rate].append(one)
    print(f'batch {bench.batch}, round {number}', file=sys.stderr, flush=True)
  ratios = [
      report(bench, length, rate, several, options)
      for (length, rate), several in rounds.items()
  ]
  return all(abs(ratio - 1) <= TOLERANCE for ratio in ratios)


def report(bench, length, rate, rounds: list[Round], options) -> float:
  """Text and a line of results; returns measured over predicted."""
  median = lambda value: statistics.median(map(value, rounds))
  ratios = sorted(one.speedup / one.predicted for one in rounds)
  ratio = statistics.median(ratios)
  numbers = {
      'measured_speedup': median(lambda one: one.speedup),
      'predicted_speedup_by_place': median(lambda one: one.predicted),
      'measured_over_predicted': ratio,
      'lowest_measured_over_predicted': ratios[0],
      'highest_measured_over_predicted': ratios[-1],
      'cost_ratio': median(lambda one: one.costs.draft_ratio(length)),
      'verify_ratio': median(lambda one: one.costs.verify_ratio(length)),
  }
  times = {
      'target_step_ms': lambda costs: costs.step,
      'draft_first_ms': lambda costs: costs.draft_first,
      'draft_step_ms': lambda costs: costs.parallel.get(length, costs.draft),
      'verify_ms': lambda costs: costs.verify[length],
      'encoder_ms': lambda costs: costs.prefill,
      'draft_encoder_ms': lambda costs: costs.draft_prefill,
  }
  times = {
      name: 1e3 * median(lambda one, value=value: value(one.costs))
      for name, value in times.items()
  }
  efficiency = median(lambda one: one.efficiency)
  blocks = median(lambda one: one.blocks)
  text = ', '.join(f'{name} {value:.3g}' for name, value in times.items())
  print(
      f'batch {bench.batch}, block length {length}, rate {rate:g}:'
      f' {efficiency:.2f} tokens per target call, {blocks:g} blocks; speed-up'
      f' {numbers["measured_speedup"]:.3f}, predicted'
      f' {numbers["predicted_speedup_by_place"]:.3f}, ratio {ratio:.3f}'
      f' ({ratios[0]:.3f} to {ratios[-1]:.3f}); {text}; autoregressive'
      f' {1e3 * median(lambda one: one.plain_s):.0f} ms in all',
      flush=True,
  )
  count = options.rounds
  comparison.write(
      options.run,
      'simulated acceptance',
      target=comparison.name(options.target),
      draft=comparison.name(options.draft),
      task='random tokens',
      decoding=bench.decoding(rate, length).describe(
          speculative=True, batch_size=bench.batch
      ),
      metrics={
          **comparison.metrics(count, '1', **numbers),
          **comparison.metrics(count, 'ms', **times),
          'block_efficiency': results.Metric(
              efficiency, None, count, 'tokens/block'
          ),
          'blocks': results.Metric(blocks, None, count, 'blocks'),
      },
  )
  return ratio


def main() -> int:
  parser = comparison.parser(__doc__)
  parser.set_defaults(rounds=3)
  parser.add_argument('--target', default='base')
  parser.add_argument('--draft', default='small')
  ints, floats = comparison.numbers(int), comparison.numbers(float)
  parser.add_argument('--batches', type=ints, default=(1, 8))
  parser.add_argument('--rates', type=floats, default=(0.5, 0.7, 0.9))
  parser.add_argument('--block_lengths', type=ints, default=(3, 5, 7))
  parser.add_argument('--temperature', type=float, default=0.0)
  parser.add_argument('--max_new_tokens', type=int, default=32)
  parser.add_argument('--parallel', action='store_true')
  options = parser.parse_args()
  comparison.warn_if_busy()
  models = [
      comparison.random_model(comparison.published(size, mask_token=2), seed)
      for seed, size in enumerate((options.target, options.draft))
  ]
  is_predicted = True
  for batch in options.batches:
    bench = Bench(*models, batch, options)
    is_predicted &= measure(bench, options)
  verdict = 'within' if is_predicted else 'NOT within'
  print(f'all {verdict} {TOLERANCE:.0%} of the prediction')
  return 0 if is_predicted else 1


if __name__ == '__main__':
  sys.exit(main())
