"""Speculative decoding beside transformers' assisted generation.

Both load the same controlled pair (see `controlled_pair.py`), read the same
inputs and say equally many tokens, greedy and sampled. First each side finds
its best block length; then, in one run, six or seven ways of decoding take
turns, and ratios are made of neighbours:

  ours        autoregressive and speculative, at batch 1 and at --batch
  theirs      autoregressive, assisted (with the workaround that makes it fast,
              see `hugging_face/decode_server.py`) and the plain assisted call,
              at batch 1, for it takes no other

Greedy, all of them must say the same tokens, which is counted. Our draft may be
held in int8 (with qwix); the target never is, and what is said stays the same.

    python benchmarks/speculation.py --peer=.venv-hugging-face/bin/python
        --run=runs/peers [--target=base] [--draft=small] [--rounds=3]
        [--draft_weights=int8]
"""

import functools
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

import beside
import controlled_pair
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import int8
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative

MODES = {'greedy': 0.0, 'sampled': 1.0}
TRIED = 4  # inputs that a block length is found with, after a warming one
FIRST_SEED = 1000  # of these; rounds of the comparison count from 0


class Call(NamedTuple):
  """What one timed call came to."""

  seconds: float
  tokens: np.ndarray  # int32[B, L]
  accepted: int
  judged: int


class Ours:
  """Our ways of decoding a pair."""

  def __init__(self, folders, length: int, draft_weights: str | None):
    target, draft = folders
    self.target = loading.load(target)
    self.draft = loading.load(draft, weights=draft_weights)
    self.length = length

  def decoding(self, temperature: float, block_length: int | None):
    return decoding_lib.Decoding(
        temperature=temperature,
        block_length=block_length or 1,
        max_new_tokens=self.length,
        eos_ids=(),
    )

  def __call__(
      self,
      inputs: np.ndarray,
      temperature: float,
      block_length: int | None = None,
      seed: int = 0,
  ) -> Call:
    """One call; autoregressive without a block length."""
    models, kind = [self.target], autoregressive
    if block_length is not None:
      models, kind = [self.target, self.draft], speculative
    pairs = [x for model in models for x in (model.transformer, model.params)]
    tokens = jnp.asarray(inputs, jnp.int32)
    keys = randomness.row_keys(jax.random.key(seed), len(inputs))
    ready = jax.block_until_ready((tokens, jnp.ones_like(tokens), keys))
    start = time.perf_counter()
    samples = kind.generate(
        *pairs, *ready, self.decoding(temperature, block_length)
    )
    said = np.asarray(samples.tokens)
    seconds = time.perf_counter() - start
    check_full(np.asarray(samples.lengths), self.length)
    found = samples.statistics
    judged = int(found.reached_at.sum())
    return Call(seconds, said, int(found.accepted.sum()), judged)


class Theirs:
  """transformers' ways of decoding a pair, one row at a time."""

  def __init__(self, peer: beside.Peer, length: int):
    self._peer = peer
    self._length = length

  def __call__(
      self,
      inputs: np.ndarray,
      temperature: float,
      block_length: int | None = None,
      seed: int = 0,
      workaround: bool = True,
  ) -> Call:
    """One call; autoregressive without a block length."""
    answer = self._peer.ask(
        inputs=inputs,
        max_new_tokens=self._length,
        sampled=temperature > 0.0,
        seed=seed,
        draft_length=block_length,
        workaround=workaround,
    )
    tokens = np.array(answer['tokens'])
    check_full(np.array([len(row) for row in answer['tokens']]), self._length)
    return Call(answer['seconds'], tokens, answer['accepted'], answer['judged'])


def check_full(found: np.ndarray, wanted: int) -> None:
  """Raises unless all rows have the wanted number of tokens."""
  if not (found == wanted).all():
    raise RuntimeError(f'Rows have {found} tokens; each must have {wanted}.')


class Way(NamedTuple):
  """A way of decoding."""

  call: Ours | Theirs
  rows: int  # of the inputs
  block_length: int | None  # None is autoregressive
  more: dict[str, bool] = {}


class Found(NamedTuple):
  """Calls of one way, round by round."""

  way: Way
  calls: list[Call]

  @property
  def each(self) -> list[float]:
    """Seconds a row."""
    return [call.seconds / self.way.rows for call in self.calls]

  @property
  def tokens_per_second(self) -> results.Metric:
    length = self.calls[0].tokens.shape[1]
    speed = length / statistics.median(self.each)
    return results.Metric(speed, None, len(self.calls), 'tokens/s')

  @property
  def acceptance(self) -> results.Metric | None:
    """Accepted over judged tokens."""
    judged = sum(call.judged for call in self.calls)
    if not judged:
      return None
    accepted = sum(call.accepted for call in self.calls)
    return results.Metric(accepted / judged, None, judged, '1')


def best(tried, temperature, name, call, rows, block_lengths, **more) -> Way:
  """The way whose block length takes least over inputs, the first warming up.

  They are not those of the comparison, nor are their seeds: what is best by
  luck has no luck there.
  """
  found = {}
  for length in block_lengths:
    calls = [
        call(inputs[:rows], temperature, length, FIRST_SEED + i, **more)
        for i, inputs in enumerate(tried)
    ]
    found[length] = statistics.mean(call.seconds for call in calls[1:])
  fastest = min(found, key=found.get)
  rates = ', '.join(f'{g}: {rows / s:.2f}' for g, s in found.items())
  print(f'  {name}: rows/s by block length {rates}', flush=True)
  return Way(call, rows, fastest, more)


def compare(ours: Ours, theirs: Theirs, mode: str, options) -> None:
  """All ways of decoding in one mode: text, and two lines of results."""
  temperature, rounds, batch = MODES[mode], options.rounds, options.batch
  made = beside.random_inputs(rounds + 1 + TRIED, batch, options.input_length)
  inputs, tried = made[: rounds + 1], made[rounds + 1 :]
  at_best = functools.partial(best, tried, temperature)
  print(mode, flush=True)
  ways = {
      'ours': at_best('ours', ours, 1, options.blocks),
      'assisted': at_best('assisted', theirs, 1, options.peer_blocks),
      'ours, alone': Way(ours, 1, None),
      'transformers, alone': Way(theirs, 1, None),
      'plain call': at_best(
          'plain call', theirs, 1, options.plain_blocks, workaround=False
      ),
      'ours, batch': at_best(
          f'ours, batch {batch}', ours, batch, options.blocks
      ),
      'ours, batch, alone': Way(ours, batch, None),
  }
  found = {name: Found(way, []) for name, way in ways.items()}

  def timed(name, i):
    way = ways[name]
    call = way.call(
        inputs[i][: way.rows], temperature, way.block_length, i, **way.more
    )
    if i:
      found[name].calls.append(call)
    return call.seconds

  for name, way in ways.items():
    if way.block_length is None:
      timed(name, 0)  # the others are warm
  calls = {name: functools.partial(timed, name) for name in ways}
  beside.take_turns(calls, rounds, options.pause, mode, is_warm=True)
  for name, one in found.items():
    rate = one.acceptance
    print(
        f'  {name:20} {one.tokens_per_second.value:7.1f} tokens/s'
        f'  block {one.way.block_length or "-"}'
        f'  acceptance {f"{rate.value:.3f}" if rate else "-"}'
    )
  for name in ('ours', 'ours, batch'):
    report(found, name, temperature, options)


def report(found, name: str, temperature: float, options) -> None:
  """One of our ways beside the others: text, and a line of results."""
  mine, alone = found[name], found[f'{name}, alone']
  rows = mine.way.rows
  assisted, plain = found['assisted'], found['plain call']
  single = found['transformers, alone']
  metrics = {
      'tokens_per_second': mine.tokens_per_second,
      'autoregressive_tokens_per_second': alone.tokens_per_second,
      'acceptance_rate': mine.acceptance,
      'transformers_tokens_per_second': single.tokens_per_second,
      'transformers_assisted_tokens_per_second': assisted.tokens_per_second,
      'transformers_plain_call_tokens_per_second': plain.tokens_per_second,
      'transformers_acceptance_rate': assisted.acceptance,
      'transformers_block_length': results.Metric(
          assisted.way.block_length, None, 1, 'tokens'
      ),
  }
  ratios = {  # of seconds a row, so that batches of any size compare
      'ratio_to_assisted': beside.ratio(assisted.each, mine.each),
      'ratio_to_plain_call': beside.ratio(plain.each, mine.each),
      'ratio_to_own_autoregressive': beside.ratio(alone.each, mine.each),
  }
  if rows == 1:
    ratios['transformers_ratio_to_own_autoregressive'] = beside.ratio(
        single.each, assisted.each
    )
  for key, ratio in ratios.items():
    metrics.update(beside.ratio_metrics(key, ratio, options.rounds))
    print(f'  batch {rows} {key.replace("_", " "):42} {ratio}')
  if temperature == 0.0:
    same = equal_rows((mine, alone, assisted, plain), single)
    metrics['equal_rows'] = same
    print(
        f'  batch {rows}: {same.value:.0%} of {same.count} answers are, token'
        ' by token, what transformers says alone'
    )
  decoding = mine.way.call.decoding(temperature, mine.way.block_length)
  beside.write(
      options.run,
      target=f't5_1_1_{options.target}',
      draft=int8.named(
          f't5_1_1_{options.draft}', options.draft_weights or 'float'
      ),
      task='controlled pair',
      decoding=decoding.describe(speculative=True, batch_size=rows),
      metrics=metrics,
  )


def equal_rows(several, single: Found) -> results.Metric:
  """The share of answers equal to `single`'s; of a batch its first row is."""
  equal = [
      bool((call.tokens[0] == other.tokens[0]).all())
      for one in several
      for call, other in zip(one.calls, single.calls)
  ]
  return results.Metric(float(np.mean(equal)), None, len(equal), '1')


def main() -> None:
  parser = beside.parser(__doc__, 'transformers')
  parser.set_defaults(rounds=3, pause=0.3)
  parser.add_argument('--target', default='base')
  parser.add_argument('--draft', default='small')
  parser.add_argument('--draft_weights', help='int8 or int8_weight_only')
  parser.add_argument('--agreement', type=float, default=0.8)
  parser.add_argument('--certainty', type=float, default=0.95)
  parser.add_argument('--modes', default='greedy,sampled')
  parser.add_argument('--batch', type=int, default=8)
  lengths = beside.numbers(int)
  parser.add_argument('--blocks', type=lengths, default=(2, 3, 5))
  parser.add_argument('--peer_blocks', type=lengths, default=(1, 2, 3, 5))
  parser.add_argument('--plain_blocks', type=lengths, default=(1, 2))
  parser.add_argument('--max_new_tokens', type=int, default=64)
  options = parser.parse_args()
  beside.warn_if_busy()
  configs = [
      config_lib.published(f't5_1_1_{size}')
      for size in (options.target, options.draft)
  ]
  with (
      beside.Peer(options.peer, 'hugging_face/decode_server.py') as peer,
      tempfile.TemporaryDirectory() as name,
  ):
    made = controlled_pair.pair(*configs, options.agreement, options.certainty)
    folders = beside.save_pair(name, configs, made)
    del made
    answer = peer.ask(model=str(folders[0]), draft=str(folders[1]))
    print(beside.about(answer))
    ours = Ours(folders, options.max_new_tokens, options.draft_weights)
    theirs = Theirs(peer, options.max_new_tokens)
    for mode in options.modes.split(','):
      compare(ours, theirs, mode, options)


if __name__ == '__main__':
  sys.exit(main())
