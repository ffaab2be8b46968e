"""Greedy decoding beside a peer: the same weights, inputs and lengths.

Random weights of the published sizes are written to a folder from which both
sides load. Calls alternate in one run, and a ratio is taken of each pair of
neighbours; how many rows have the same tokens is counted, too. Of
transformers' caches the faster one is used, in eager mode.

    python benchmarks/decoding.py --peer=.venv-hugging-face/bin/python
        --run=runs/peers [--sizes=small,base] [--batches=1,8] [--rounds=5]

With --library=t5x the peer is t5x's own decoder, in an environment that has it
(see t5x/requirements.txt), with --library=ctranslate2 CTranslate2's, on CPUs;
with --weights=float32,int8 both sides have these weights in turn.
"""

import sys
import tempfile

import comparison
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.models import int8
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib

CACHES = {
    'transformers': (None, 'static'),
    't5x': (None,),
    'ctranslate2': (None,),
}
SERVERS = {
    'transformers': 'hugging_face/decode_server.py',
    't5x': 't5x/decode_server.py',
    'ctranslate2': 'ctranslate2/decode_server.py',
}
WEIGHTS = {'float32': 'float', 'int8': 'int8'}  # theirs -> ours


def read_bandwidth() -> float:
  """Bytes per second at which all cores read memory: a 1 GB sum, best of 5."""
  array = jnp.ones(1 << 28, jnp.float32)
  total = jax.jit(jnp.sum)
  jax.block_until_ready(total(array))
  return array.nbytes / min(comparison.timed(total, array)[0] for _ in range(5))


def bytes_per_token(model: model_lib.Model) -> int:
  """Weights that a decoding step reads.

  Keys and values of the encoder's output are computed before, and of the
  embedding one row is read.
  """
  computed_before = tuple(
      f'encoder_decoder_attention/{name}/kernel' for name in ('key', 'value')
  )
  decoder = tensors.flatten(model.params['decoder'])
  return sum(
      array.nbytes
      for path, array in decoder.items()
      if not path.endswith(computed_before)
  )


def fastest_cache(peer, inputs: np.ndarray, length: int, caches) -> str | None:
  """The one whose second call takes least."""
  if len(caches) == 1:
    return caches[0]

  def seconds(cache):
    request = {'inputs': inputs, 'max_new_tokens': length, 'cache': cache}
    return [peer.ask(**request)['seconds'] for _ in range(2)][1]

  return min(caches, key=seconds)


def compare(peer, model: model_lib.Model, size: str, batch: int, options):
  """One line of results, and of text."""
  length, rounds, library = (
      options.max_new_tokens, options.rounds, options.library,
  )  # fmt: skip
  decoding = decoding_lib.Decoding(max_new_tokens=length, eos_ids=())
  inputs = comparison.random_inputs(rounds, batch, options.input_length)
  cache = fastest_cache(peer, inputs[0], length, CACHES[library])
  tokens = {'ours': [], 'theirs': []}

  def call_ours(i):
    keys = randomness.row_keys(jax.random.key(0), batch)
    prompt = comparison.prompt(inputs[i])
    seconds, out = comparison.timed(
        lambda: np.asarray(
            autoregressive.generate(model, prompt, keys, decoding).tokens
        )
    )
    tokens['ours'].append(out)
    return seconds

  def call_theirs(i):
    answer = peer.ask(inputs=inputs[i], max_new_tokens=length, cache=cache)
    tokens['theirs'].append(np.array(answer['tokens']))
    return answer['seconds']

  size = int8.named(size, model.config.weights)
  sides = comparison.both(call_ours, call_theirs, options, f'{size}, {batch}')
  rows = batch * rounds
  same = sum(
      int((a == b).all(axis=1).sum())
      for a, b in zip(tokens['ours'][1:], tokens['theirs'][1:])
  )
  speed, other = batch * length / sides.ours, batch * length / sides.theirs
  share = bytes_per_token(model) * speed / batch / options.bandwidth
  print(
      f'{size:12} batch {batch}: {speed:7.1f} tokens/s, {library}'
      f' {other:7.1f} ({cache or "its own"} cache), ratio {sides.ratio},'
      f' {share:.0%} of the bandwidth, {same} of {rows} rows the same'
  )
  speeds = {'tokens_per_second': speed, f'{library}_tokens_per_second': other}
  comparison.write(
      options.run,
      target=comparison.name(size),
      draft=None,
      task='random tokens',
      decoding=decoding.describe(speculative=False, batch_size=batch),
      metrics={
          **comparison.metrics(rounds, 'tokens/s', **speeds),
          **sides.ratio.metrics(f'ratio_to_{library}', rounds),
          'share_of_bandwidth': results.Metric(share, None, rounds, '1'),
          'equal_rows': results.Metric(same / rows, None, rows, '1'),
      },
  )


def main() -> None:
  parser = comparison.parser(__doc__, 'the library')
  parser.add_argument(
      '--library', choices=tuple(SERVERS), default='transformers'
  )
  parser.add_argument('--weights', default='float32', help='float32, int8')
  parser.add_argument('--sizes', default='small,base')
  parser.add_argument('--batches', type=comparison.numbers(int), default=(1, 8))
  parser.add_argument('--max_new_tokens', type=int, default=64)
  options = parser.parse_args()
  comparison.warn_if_busy()
  options.bandwidth = read_bandwidth()
  print(f'memory is read at {options.bandwidth / 1e9:.1f} GB/s')
  with comparison.Peer(options.peer, SERVERS[options.library]) as peer:
    for number, size in enumerate(options.sizes.split(',')):
      config = comparison.published(size)
      with tempfile.TemporaryDirectory() as name:
        folder = comparison.save(
            name, comparison.random_model(config), options.library
        )
        for weights in options.weights.split(','):
          model = comparison.load(folder, weights=WEIGHTS[weights])
          answer = peer.ask(
              model=name, config=config.to_dict(), weights=weights
          )
          if number == 0 and weights == 'float32':
            comparison.print_sides(answer)
          for batch in options.batches:
            compare(peer, model, size, batch, options)


if __name__ == '__main__':
  sys.exit(main())
