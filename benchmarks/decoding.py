"""Greedy decoding beside a peer: the same weights, inputs and lengths.

Random weights of the published sizes are written as a folder from which both
load. Calls alternate, in one run, and a ratio is made of each pair of
neighbours; that both say the same tokens is counted, too. Of transformers'
caches the faster one is taken, in eager mode.

    python benchmarks/decoding.py --peer=.venv-hugging-face/bin/python
        --run=runs/peers [--sizes=small,base] [--batches=1,8] [--rounds=5]

With --library=t5x the peer is t5x's own decoder, in an environment that has it
(see t5x/requirements.txt).
"""

import pathlib
import sys
import tempfile
import time

import beside
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib

SERVERS = {
    'transformers': 'hugging_face/decode_server.py',
    't5x': 't5x/decode_server.py',
}
CACHES = {'transformers': (None, 'static'), 't5x': (None,)}


def ours(model: loading.Model, inputs: np.ndarray, length: int):
  """Seconds and tokens of one call."""
  decoding = decoding_lib.Decoding(max_new_tokens=length, eos_ids=())
  keys = randomness.row_keys(jax.random.key(0), len(inputs))
  tokens = jax.block_until_ready(jnp.asarray(inputs, jnp.int32))
  start = time.perf_counter()
  out = autoregressive.generate(
      model.transformer, model.params, tokens, jnp.ones_like(tokens), keys,
      decoding,
  )  # fmt: skip
  found = np.asarray(out.tokens)
  return time.perf_counter() - start, found


def read_bandwidth() -> float:
  """Bytes a second at which all cores read memory: a sum of 1 GB, best of 5."""
  array = jnp.ones(1 << 28, jnp.float32)
  total = jax.jit(jnp.sum)
  total(array).block_until_ready()
  best = min(
      _seconds(lambda: total(array).block_until_ready()) for _ in range(5)
  )
  return array.nbytes / best


def _seconds(function) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def bytes_a_token(model: loading.Model) -> int:
  """Weights that a decoding step reads: keys and values of the encoder's
  output are there already, and of the embedding one row is read."""
  decoder = tensors.flatten(model.params['decoder'])
  return sum(
      array.nbytes
      for path, array in decoder.items()
      if not path.endswith(
          (
              'encoder_decoder_attention/key/kernel',
              'encoder_decoder_attention/value/kernel',
          )
      )
  )


def fastest_cache(peer, inputs: np.ndarray, length: int, caches) -> str | None:
  """The one whose second call takes least."""
  if len(caches) == 1:
    return caches[0]

  def seconds(cache):
    request = {'inputs': inputs, 'max_new_tokens': length, 'cache': cache}
    return [peer.ask(**request)['seconds'] for _ in range(2)][1]

  return min(caches, key=seconds)


def compare(peer, model, size, batch, options) -> None:
  """One line of results, and of text."""
  length, rounds = options.max_new_tokens, options.rounds
  inputs = beside.random_inputs(rounds, batch, options.input_length)
  cache = fastest_cache(peer, inputs[0], length, CACHES[options.library])
  said = {'ours': [], 'theirs': []}

  def call_ours(i):
    seconds, tokens = ours(model, inputs[i], length)
    said['ours'].append(tokens)
    return seconds

  def call_theirs(i):
    answer = peer.ask(inputs=inputs[i], max_new_tokens=length, cache=cache)
    said['theirs'].append(np.array(answer['tokens']))
    return answer['seconds']

  sides = beside.both(call_ours, call_theirs, options, f'{size}, {batch}')
  rows = batch * rounds
  same = sum(
      int((a == b).all(axis=1).sum())
      for a, b in zip(said['ours'][1:], said['theirs'][1:])
  )
  speed, other = batch * length / sides.ours, batch * length / sides.theirs
  share = bytes_a_token(model) * speed / batch / options.bandwidth
  print(
      f'{size:6} batch {batch}: {speed:7.1f} tokens/s, {options.library}'
      f' {other:7.1f} ({cache or "its own"} cache), ratio {sides.ratio},'
      f' {share:.0%} of the bandwidth, {same} of {rows} rows the same'
  )
  metric = lambda value, unit: results.Metric(value, None, rounds, unit)
  beside.write(
      options.run,
      target=f't5_1_1_{size}',
      draft=None,
      task='random tokens',
      decoding=decoding_lib.Decoding(
          max_new_tokens=length, block_length=1
      ).describe(speculative=False, batch_size=batch),
      metrics={
          'tokens_per_second': metric(speed, 'tokens/s'),
          f'{options.library}_tokens_per_second': metric(other, 'tokens/s'),
          **beside.ratio_metrics(
              f'ratio_to_{options.library}', sides.ratio, rounds
          ),
          'share_of_bandwidth': metric(share, '1'),
          'equal_rows': results.Metric(same / rows, None, rows, '1'),
      },
  )  # fmt: skip


def main() -> None:
  parser = beside.parser(__doc__, 'the library')
  parser.add_argument(
      '--library', choices=tuple(SERVERS), default='transformers'
  )
  parser.add_argument('--sizes', default='small,base')
  parser.add_argument('--batches', type=beside.numbers(int), default=(1, 8))
  parser.add_argument('--max_new_tokens', type=int, default=64)
  options = parser.parse_args()
  beside.warn_if_busy()
  options.bandwidth = read_bandwidth()
  print(f'memory is read at {options.bandwidth / 1e9:.1f} GB/s')
  with beside.Peer(options.peer, SERVERS[options.library]) as peer:
    for number, size in enumerate(options.sizes.split(',')):
      config = config_lib.published(f't5_1_1_{size}')
      with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        params = transformer_lib.Transformer(config).init(jax.random.key(0))
        beside.save(folder, config, params, options.library)
        del params
        model = loading.load(folder)
        about = peer.ask(model=name, config=config.to_dict())
      if number == 0:
        print(beside.about(about))
      for batch in options.batches:
        compare(peer, model, size, batch, options)


if __name__ == '__main__':
  sys.exit(main())
