"""Is speculative decoding as fast as its parts say? At chosen acceptance rates.

The draft's tokens pass with a chosen chance ('simulated'), so that the sampler
is measured by itself; the models have random weights of the published sizes.
Speculative and autoregressive decoding take turns, and the speed-up is the
median of the ratios of neighbours. Beside it stands the prediction

    E_t + L s                         E_t, E_d  target's, draft's encoder
    -----------------------------     s         step of autoregressive decoding
    E_t + E_d + n (f + (G-1) d + v)   f, d      draft's first, other steps
                                      v         target on a block, and verdict

with L tokens a row and n blocks, as many as the slowest row was counted to
need. All times in it are of programs that do that step and nothing else, with
caches of the very sizes, taken in the same rounds; none is of a whole decoding.

    python benchmarks/cost_model.py [--run=runs/cost_model] [--batches=1,8]
        [--rates=0.5,0.7,0.9] [--block_lengths=3,5,7] [--temperature=0]
"""

import argparse
import dataclasses
import statistics
import sys
import time

import beside
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.evaluation.speed import costs as costs_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib

WANTED = 0.10  # how far from 1 measured over predicted may be


def random_model(name: str, seed: int) -> loading.Model:
  transformer = transformer_lib.Transformer(config_lib.published(name))
  params = transformer.init(jax.random.key(seed))
  return loading.Model(transformer, params, None, name)


def seconds(call):
  """Seconds of a call, and what it returns."""
  began = time.perf_counter()
  out = jax.block_until_ready(call())
  return time.perf_counter() - began, out


@dataclasses.dataclass
class Measured:
  """Of one rate and block length, a number a round."""

  seconds: list[float] = dataclasses.field(default_factory=list)
  speedup: list[float] = dataclasses.field(default_factory=list)
  predicted: list[float] = dataclasses.field(default_factory=list)
  blocks: list[int] = dataclasses.field(default_factory=list)
  efficiency: list[float] = dataclasses.field(default_factory=list)


class Bench:
  """All programs of one batch size, compiled and warmed up."""

  def __init__(self, target, draft, batch, options):
    self.models, self.batch, self.options = (target, draft), batch, options
    rng = np.random.default_rng(batch)
    shape = batch, options.input_length
    tokens = jnp.asarray(rng.integers(2, 32000, shape), jnp.int32)
    self.inputs = costs_lib.inputs(target, draft, tokens, jnp.ones_like(tokens))
    self.read = self.inputs.tokens, self.inputs.segments
    first = self.decoding(options.rates[0], options.block_lengths[0])
    self.vocabulary = transformer_lib.shared_vocabulary(
        target.transformer, draft.transformer
    )
    size = self.vocabulary
    self.base = {
        'begin': costs_lib.prefill(target, self.inputs, first),
        'draft_prefill': costs_lib.prefill(draft, self.inputs, first),
        'step': costs_lib.step(
            target, self.inputs, first, size, speculative=False
        ),
    }
    self.of_blocks = {}
    self.plain(0)
    for length in options.block_lengths:
      decoding = self.decoding(options.rates[0], length)
      self.of_blocks[length] = {
          'draft_first': costs_lib.step(
              draft, self.inputs, decoding, size, tokens=2
          ),
          'draft': costs_lib.step(draft, self.inputs, decoding, size),
          'verify': costs_lib.verify(target, self.inputs, decoding, size),
      }
      for rate in options.rates:
        self.fast(rate, length, 0)

  def decoding(self, rate, length):
    return decoding_lib.Decoding(
        temperature=self.options.temperature,
        block_length=length,
        max_new_tokens=self.options.max_new_tokens,
        eos_ids=(),
        lenience=('simulated', rate),
    )

  def keys(self, number):
    return randomness.row_keys(jax.random.key(number), self.batch)

  def plain(self, number):
    target, options = self.models[0], self.options
    decoding = decoding_lib.Decoding(
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        eos_ids=(),
    )
    keys = jax.block_until_ready(self.keys(number))
    return seconds(
        lambda: autoregressive.generate(
            target.transformer, target.params, *self.read, keys,
            decoding, self.vocabulary,
        )
    )[0]  # fmt: skip

  def fast(self, rate, length, number):
    target, draft = self.models
    keys = jax.block_until_ready(self.keys(number))
    return seconds(
        lambda: pair_lib.answer(
            target, draft, *self.read, keys, self.decoding(rate, length)
        )
    )

  def round(self, number, found) -> costs_lib.Costs:
    """Every program once; adds to what was found before."""
    base = {name: watch.lap() for name, watch in self.base.items()}
    for length, watches in self.of_blocks.items():
      own = {name: watch.lap() for name, watch in watches.items()}
      verify = {length: own.pop('verify')}
      costs = costs_lib.Costs(**base, **own, verify=verify)
      before = self.plain(number)
      times = [
          (rate, *self.fast(rate, length, number))
          for rate in self.options.rates
      ]
      plain = (before + self.plain(number)) / 2
      steps = self.options.max_new_tokens
      for rate, took, out in times:
        blocks = np.asarray(out.statistics.blocks)
        predicted_s = costs.prefill + costs.draft_prefill
        predicted_s += int(blocks.max()) * costs.block(length)
        one = found[rate, length]
        one.seconds.append(took)
        one.speedup.append(plain / took)
        one.predicted.append((costs.prefill + steps * costs.step) / predicted_s)
        one.blocks.append(int(blocks.max()))
        one.efficiency.append(steps * self.batch / int(blocks.sum()))
      yield length, costs, plain


def measure(bench, options) -> bool:
  """Prints and writes what one batch size gives; whether all is as wanted."""
  found = {
      (rate, length): Measured()
      for length in options.block_lengths
      for rate in options.rates
  }
  seen = {length: [] for length in options.block_lengths}
  for number in range(1, options.rounds + 1):
    began = time.perf_counter()
    for length, costs, plain in bench.round(number, found):
      seen[length].append((costs, plain))
    took = time.perf_counter() - began
    print(f'batch {bench.batch}, round {number}/{options.rounds}: {took:.0f} s',
          file=sys.stderr, flush=True)  # fmt: skip
  good = True
  for length, costs in seen.items():
    print_costs(bench.batch, length, costs)
    for rate in options.rates:
      one = found[rate, length]
      ratios = sorted(a / b for a, b in zip(one.speedup, one.predicted))
      ratio = statistics.median(ratios)
      good &= abs(ratio - 1) <= WANTED
      print(
          f'  rate {rate:g}: tokens a block'
          f' {statistics.median(one.efficiency):.2f}, blocks'
          f' {statistics.median(one.blocks):g}, speed-up'
          f' {statistics.median(one.speedup):.3f}'
          f' ({min(one.speedup):.3f} to {max(one.speedup):.3f}), predicted'
          f' {statistics.median(one.predicted):.3f}, measured / predicted'
          f' {ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})',
          flush=True,
      )
      write(bench, options, rate, length, one, seen[length], ratios)
  return good


def print_costs(batch, length, seen) -> None:
  def ms(value):
    return f'{1e3 * statistics.median(value(costs) for costs, _ in seen):.2f}'

  plain = 1e3 * statistics.median(plain for _, plain in seen)
  print(
      f'batch {batch}, block {length}: target step {ms(lambda c: c.step)} ms,'
      f' draft {ms(lambda c: c.draft_first)} + {length - 1} x'
      f' {ms(lambda c: c.draft)}, verify {ms(lambda c: c.verify[length])},'
      f' block {ms(lambda c: c.block(length))}, encoders'
      f' {ms(lambda c: c.prefill)} and {ms(lambda c: c.draft_prefill)};'
      f' autoregressive {plain:.0f} ms in all'
  )


def write(bench, options, rate, length, one, seen, ratios) -> None:
  def metric(values, unit):
    return results.Metric(statistics.median(values), None, options.rounds, unit)

  def cost(value, unit='1'):
    return metric([value(costs) for costs, _ in seen], unit)

  def ms(value):
    return cost(lambda costs: 1e3 * value(costs), 'ms')

  target, draft = bench.models
  beside.write(
      options.run,
      'simulated acceptance',
      target=target.name,
      draft=draft.name,
      task='random tokens',
      decoding=bench.decoding(rate, length).describe(
          speculative=True, batch_size=bench.batch
      ),
      metrics={
          'measured_speedup': metric(one.speedup, '1'),
          'predicted_speedup_by_place': metric(one.predicted, '1'),
          'measured_over_predicted': metric(ratios, '1'),
          'lowest_measured_over_predicted': metric(ratios[:1], '1'),
          'highest_measured_over_predicted': metric(ratios[-1:], '1'),
          'block_efficiency': metric(one.efficiency, 'tokens/block'),
          'blocks': metric(one.blocks, 'blocks'),
          'cost_ratio': cost(lambda c: c.draft_ratio),
          'verify_ratio': cost(lambda c: c.verify_ratio(length)),
          'target_step_ms': ms(lambda c: c.step),
          'draft_first_ms': ms(lambda c: c.draft_first),
          'draft_step_ms': ms(lambda c: c.draft),
          'verify_ms': ms(lambda c: c.verify[length]),
          'encoder_ms': ms(lambda c: c.prefill),
          'draft_encoder_ms': ms(lambda c: c.draft_prefill),
      },
  )  # fmt: skip


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--run', help='folder whose results.jsonl gets the lines')
  parser.add_argument('--target', default='t5_1_1_base')
  parser.add_argument('--draft', default='t5_1_1_small')
  ints, floats = beside.numbers(int), beside.numbers(float)
  parser.add_argument('--batches', type=ints, default=(1, 8))
  parser.add_argument('--rates', type=floats, default=(0.5, 0.7, 0.9))
  parser.add_argument('--block_lengths', type=ints, default=(3, 5, 7))
  parser.add_argument('--temperature', type=float, default=0.0)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--input_length', type=int, default=64)
  parser.add_argument('--max_new_tokens', type=int, default=32)
  parser.add_argument('--cache', help='folder for compiled programs')
  options = parser.parse_args()
  if options.cache is not None:
    jax.config.update('jax_compilation_cache_dir', options.cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  beside.warn_if_busy()
  target = random_model(options.target, 0)
  draft = random_model(options.draft, 1)
  good = True
  for batch in options.batches:
    began = time.perf_counter()
    bench = Bench(target, draft, batch, options)
    took = time.perf_counter() - began
    print(f'batch {batch}: compiled in {took:.0f} s', file=sys.stderr,
          flush=True)  # fmt: skip
    good &= measure(bench, options)
  verdict = 'within' if good else 'NOT within'
  print(f'all {verdict} {WANTED:.0%} of the prediction')
  return 0 if good else 1


if __name__ == '__main__':
  sys.exit(main())
