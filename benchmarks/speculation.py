"""Speculative decoding beside transformers' assisted generation.

Both load the same controlled pair (see `controlled_pair.py`), read the same
inputs and emit equally many tokens, greedy and sampled. First each side finds
its best block length; then, in one run, seven ways of decoding take turns, and
ratios are taken of neighbours:

  ours        autoregressive and speculative, at batch 1 and at --batch
  theirs      autoregressive, assisted (with the workaround that makes it fast,
              see `hugging_face/decode_server.py`) and the plain assisted call,
              at batch 1, the only one that it takes

Greedy, all of them must emit the same tokens, which is counted. Our draft may
be held in int8 (with qwix); the target never is, so the output stays the same.

    python benchmarks/speculation.py --peer=.venv-hugging-face/bin/python
        --run=runs/peers [--target=base] [--draft=small] [--rounds=3]
        [--draft_weights=int8]
"""

import functools
import pathlib
import statistics
import sys
import tempfile
from typing import NamedTuple

import comparison
import controlled_pair
import jax
import numpy as np

from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.models import int8
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import sampler

MODES = {'greedy': 0.0, 'sampled': 1.0}
TRIED = 4  # inputs that a block length is chosen with, after one that warms up
FIRST_SEED = 1000  # of these; rounds of the comparison count from 0


class Call(NamedTuple):
  """A timed call."""

  seconds: float
  tokens: np.ndarray  # int32[B, L]
  accepted: int
  judged: int


class Ours:
  """Our ways of decoding a pair; autoregressive without a block length."""

  def __init__(self, folders, length: int, draft_weights: str | None):
    target, draft = folders
    self.target = comparison.load(target)
    self.draft = comparison.load(draft, weights=draft_weights)
    self.length = length

  def decoding(self, temperature: float, block_length: int | None):
    return decoding_lib.Decoding(
        sampling=decoding_lib.Sampling(temperature=temperature),
        drafting=decoding_lib.Drafting(length=block_length or 1),
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
    prompt = comparison.prompt(inputs)
    keys = randomness.row_keys(jax.random.key(seed), len(inputs))
    decoding = self.decoding(temperature, block_length)
    draft = None if block_length is None else self.draft

    def generate():
      samples = sampler.generate(
          self.target, prompt, keys, decoding, draft=draft
      )
      return np.asarray(samples.tokens), samples

    seconds, (tokens, samples) = comparison.timed(generate)
    check_full(np.asarray(samples.lengths), self.length)
    counts = samples.statistics
    judged = int(counts.reached_at.sum())
    return Call(seconds, tokens, int(counts.accepted.sum()), judged)


class Theirs:
  """transformers' ways of decoding a pair, one sequence at a time."""

  def __init__(self, peer: comparison.Peer, length: int):
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


def check_full(lengths: np.ndarray, length: int) -> None:
  """Raises unless all rows have this number of tokens."""
  if not (lengths == length).all():
    raise RuntimeError(f'Rows have {lengths} tokens; each must have {length}.')


class Way(NamedTuple):
  """A way of decoding, and its calls, round by round."""

  call: Ours | Theirs
  rows: int  # of the inputs
  block_length: int | None  # None is autoregressive
  calls: list[Call]

  @property
  def per_row(self) -> list[float]:
    """Seconds per row."""
    return [call.seconds / self.rows for call in self.calls]

  @property
  def tokens_per_second(self) -> results.Metric:
    length = self.calls[0].tokens.shape[1]
    speed = length / statistics.median(self.per_row)
    return results.Metric(speed, None, len(self.calls), 'tokens/s')

  @property
  def acceptance(self) -> results.Metric | None:
    """Accepted over judged tokens."""
    judged = sum(call.judged for call in self.calls)
    if not judged:
      return None
    accepted = sum(call.accepted for call in self.calls)
    return results.Metric(accepted / judged, None, judged, '1')


def best(tried, temperature, name, call, rows, block_lengths) -> Way:
  """The way whose block length is fastest over inputs, the first warming up.

  They are not those of the comparison, nor are their seeds: what is best by
  luck has no luck there.
  """
  seconds = {}
  for length in block_lengths:
    calls = [
        call(inputs[:rows], temperature, length, FIRST_SEED + i)
        for i, inputs in enumerate(tried)
    ]
    seconds[length] = statistics.mean(call.seconds for call in calls[1:])
  rates = ', '.join(f'{g}: {rows / s:.2f}' for g, s in seconds.items())
  print(f'  {name}: rows/s by block length {rates}', flush=True)
  return Way(call, rows, min(seconds, key=seconds.get), [])


def compare(ours: Ours, theirs: Theirs, mode: str, options) -> None:
  """All ways of decoding in one mode: text, and two lines of results."""
  temperature, rounds, batch = MODES[mode], options.rounds, options.batch
  inputs = comparison.random_inputs(
      rounds + 1 + TRIED, batch, options.input_length
  )
  inputs, tried = inputs[: rounds + 1], inputs[rounds + 1 :]
  plain = functools.partial(theirs, workaround=False)
  print(mode, flush=True)

  def at_best(name, call, rows, block_lengths):
    return best(tried, temperature, name, call, rows, block_lengths)

  ways = {
      'ours': at_best('ours', ours, 1, options.blocks),
      'assisted': at_best('assisted', theirs, 1, options.peer_blocks),
      'ours, alone': Way(ours, 1, None, []),
      'transformers, alone': Way(theirs, 1, None, []),
      'plain call': at_best('plain call', plain, 1, options.plain_blocks),
      'ours, batch': at_best(
          f'ours, batch {batch}', ours, batch, options.blocks
      ),
      'ours, batch, alone': Way(ours, batch, None, []),
  }

  def timed(way, i):
    call = way.call(inputs[i][: way.rows], temperature, way.block_length, i)
    if i:
      way.calls.append(call)
    return call.seconds

  for way in ways.values():
    if way.block_length is None:
      timed(way, 0)  # the others are warm
  calls = {name: functools.partial(timed, way) for name, way in ways.items()}
  comparison.take_turns(calls, rounds, options.pause, mode, is_warm=True)
  for name, way in ways.items():
    rate = way.acceptance
    print(
        f'  {name:20} {way.tokens_per_second.value:7.1f} tokens/s'
        f'  block {way.block_length or "-"}'
        f'  acceptance {f"{rate.value:.3f}" if rate else "-"}'
    )
  for name in ('ours', 'ours, batch'):
    report(ways, name, temperature, options)


def report(ways, name: str, temperature: float, options) -> None:
  """One of our ways beside the others: text, and a line of results.

  Ratios are of equal batches: of ours to our own autoregressive decoding, and
  to theirs at batch 1, which is all that assisted generation takes.
  """
  mine, alone = ways[name], ways[f'{name}, alone']
  assisted, plain = ways['assisted'], ways['plain call']
  single = ways['transformers, alone']
  metrics = {
      'tokens_per_second': mine.tokens_per_second,
      'autoregressive_tokens_per_second': alone.tokens_per_second,
      'acceptance_rate': mine.acceptance,
  }
  ratios = {'ratio_to_own_autoregressive': (alone, mine)}
  if mine.rows == 1:
    ratios |= {
        'transformers_ratio_to_own_autoregressive': (single, assisted),
        'ratio_to_assisted': (assisted, mine),
        'ratio_to_plain_call': (plain, mine),
    }
    metrics |= {
        'transformers_tokens_per_second': single.tokens_per_second,
        'transformers_assisted_tokens_per_second': assisted.tokens_per_second,
        'transformers_plain_call_tokens_per_second': plain.tokens_per_second,
        'transformers_acceptance_rate': assisted.acceptance,
        'transformers_block_length': results.Metric(
            assisted.block_length, None, 1, 'tokens'
        ),
    }
  for key, (slow, fast) in ratios.items():
    ratio = comparison.ratio(slow.per_row, fast.per_row)
    metrics.update(ratio.metrics(key, options.rounds))
    print(f'  batch {mine.rows} {key.replace("_", " "):42} {ratio}')
  if temperature == 0.0:
    same = equal_rows((mine, alone, assisted, plain), single)
    metrics['equal_rows'] = same
    print(
        f'  batch {mine.rows}: {same.value:.0%} of {same.count} outputs are,'
        ' token for token, what transformers emits alone'
    )
  comparison.write(
      options.run,
      target=comparison.name(options.target),
      draft=int8.named(
          comparison.name(options.draft), options.draft_weights or 'float'
      ),
      task='controlled pair',
      decoding=mine.call.decoding(temperature, mine.block_length).describe(
          speculative=True, batch_size=mine.rows
      ),
      metrics=metrics,
  )


def equal_rows(ways, single: Way) -> results.Metric:
  """The share of outputs equal to `single`'s; of a batch its first row is."""
  equal = [
      bool((call.tokens[0] == other.tokens[0]).all())
      for way in ways
      for call, other in zip(way.calls, single.calls)
  ]
  return results.Metric(float(np.mean(equal)), None, len(equal), '1')


def main() -> None:
  parser = comparison.parser(__doc__, 'transformers')
  parser.set_defaults(rounds=3, pause=0.3)
  parser.add_argument('--target', default='base')
  parser.add_argument('--draft', default='small')
  parser.add_argument('--draft_weights', help='int8 or int8_weight_only')
  parser.add_argument('--agreement', type=float, default=0.8)
  parser.add_argument('--certainty', type=float, default=0.95)
  parser.add_argument('--modes', default='greedy,sampled')
  parser.add_argument('--batch', type=int, default=8)
  lengths = comparison.numbers(int)
  parser.add_argument('--blocks', type=lengths, default=(2, 3, 5))
  parser.add_argument('--peer_blocks', type=lengths, default=(1, 2, 3, 5))
  parser.add_argument('--plain_blocks', type=lengths, default=(1, 2))
  parser.add_argument('--max_new_tokens', type=int, default=64)
  options = parser.parse_args()
  comparison.warn_if_busy()
  with (
      comparison.Peer(options.peer, 'hugging_face/decode_server.py') as peer,
      tempfile.TemporaryDirectory() as root,
  ):
    configs = map(comparison.published, (options.target, options.draft))
    pair = controlled_pair.pair(*configs, options.agreement, options.certainty)
    folders = [
        comparison.save(pathlib.Path(root, name), model)
        for name, model in zip(('target', 'draft'), pair)
    ]
    del pair
    answer = peer.ask(model=str(folders[0]), draft=str(folders[1]))
    comparison.print_sides(answer)
    ours = Ours(folders, options.max_new_tokens, options.draft_weights)
    theirs = Theirs(peer, options.max_new_tokens)
    for mode in options.modes.split(','):
      compare(ours, theirs, mode, options)


if __name__ == '__main__':
  sys.exit(main())
