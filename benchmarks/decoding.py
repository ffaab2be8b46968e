"""Greedy decoding beside transformers: the same weights, inputs and lengths.

Random weights of the published sizes are written as a Hugging Face folder, from
which both load. Calls alternate, in one run, and a ratio is made of each pair
of neighbours; that both say the same tokens is counted, too.

    python benchmarks/decoding.py --peer=.venv-hugging-face/bin/python
        --run=runs/peers [--sizes=small,base] [--batches=1,8] [--rounds=5]
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import pretrained
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib

SERVER = pathlib.Path(__file__).parent / 'hugging_face' / 'decode_server.py'
NEVER = -1  # an EOS that no token is


class Peer:
  """transformers in a process of its own."""

  def __init__(self, python: str):
    self._process = subprocess.Popen(
        [python, str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

  def ask(self, **request):
    self._process.stdin.write(json.dumps(request) + '\n')
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def save(folder: pathlib.Path, config: config_lib.T5Config) -> None:
  """Random weights as a Hugging Face folder."""
  params = transformer_lib.Transformer(config).init(jax.random.key(0))
  flat = tensors.flatten(params)
  hugging_face.write(
      epath.Path(folder),
      config.to_dict(),
      {path: tensors.from_array(array) for path, array in flat.items()},
  )


def ours(model: pretrained.Model, inputs: np.ndarray, length: int):
  """Seconds and tokens of one call."""
  decoding = decoding_lib.Decoding(max_new_tokens=length, eos_ids=(NEVER,))
  keys = randomness.row_keys(jax.random.key(0), len(inputs))
  tokens = jnp.asarray(inputs, jnp.int32)
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


def bytes_a_token(model: pretrained.Model) -> int:
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


def compare(peer, model, folder, size, batch, options) -> None:
  """One line of results, and of text."""
  rng = np.random.default_rng(batch)
  rounds = [
      rng.integers(2, 32000, (batch, options.input_length))
      for _ in range(options.rounds + 1)
  ]
  mine, theirs, same = [], [], 0
  for number, inputs in enumerate(rounds):
    time.sleep(options.pause)
    own, tokens = ours(model, inputs, options.max_new_tokens)
    time.sleep(options.pause)
    answer = peer.ask(
        inputs=inputs.tolist(), max_new_tokens=options.max_new_tokens
    )
    if number == 0:
      continue  # compiling, and their first call
    mine.append(own)
    theirs.append(answer['seconds'])
    same += int((tokens == np.array(answer['tokens'])).all(axis=1).sum())
  count = batch * options.max_new_tokens
  ratios = sorted(b / a for a, b in zip(mine, theirs))
  speed = count / statistics.median(mine)
  other = count / statistics.median(theirs)
  ratio = statistics.median(ratios)
  share = bytes_a_token(model) * speed / batch / options.bandwidth
  rows = batch * options.rounds
  print(
      f'{size:6} batch {batch}: {speed:7.1f} tokens/s, transformers'
      f' {other:7.1f}, ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}),'
      f' {share:.0%} of the bandwidth, {same} of {rows} rows the same'
  )
  if options.run is None:
    return

  def metric(value, unit):
    return results.Metric(value, None, options.rounds, unit)

  results.write(
      pathlib.Path(options.run) / 'results.jsonl',
      'latency',
      run=pathlib.Path(options.run).name,
      target=f't5_1_1_{size}',
      draft=None,
      task='random tokens',
      split='peers',
      decoding=decoding_lib.Decoding(
          max_new_tokens=options.max_new_tokens
      ).describe(speculative=False, batch_size=batch),
      metrics={
          'tokens_per_second': metric(speed, 'tokens/s'),
          'transformers_tokens_per_second': metric(other, 'tokens/s'),
          'ratio_to_transformers': metric(ratio, '1'),
          'lowest_ratio': metric(ratios[0], '1'),
          'highest_ratio': metric(ratios[-1], '1'),
          'share_of_bandwidth': metric(share, '1'),
          'equal_rows': metric(same / rows, '1'),
      },
      seed=0,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--peer', required=True, help='python with transformers')
  parser.add_argument('--run', help='folder whose results.jsonl gets the lines')
  parser.add_argument('--sizes', default='small,base')
  parser.add_argument('--batches', default='1,8')
  parser.add_argument('--rounds', type=int, default=5)
  # So that threads of one that wait for work do not slow the other down.
  parser.add_argument('--pause', type=float, default=0.5, help='seconds')
  parser.add_argument('--input_length', type=int, default=64)
  parser.add_argument('--max_new_tokens', type=int, default=64)
  options = parser.parse_args()
  options.bandwidth = read_bandwidth()
  print(f'memory is read at {options.bandwidth / 1e9:.1f} GB/s')
  peer = Peer(options.peer)
  for size in options.sizes.split(','):
    config = config_lib.published(f't5_1_1_{size}')
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      save(folder, config)
      about = peer.ask(model=str(folder))
      model = pretrained.load(folder)
      if size == options.sizes.split(',')[0]:
        print(', '.join(f'{key} {value}' for key, value in about.items()))
      for batch in options.batches.split(','):
        compare(peer, model, folder, size, int(batch), options)
  peer.close()


if __name__ == '__main__':
  sys.exit(main())
