"""How long loading takes, against reading the same bytes.

Makes a T5 v1.1 base with random weights (1 GB), then, in turns and in one
process, reads its file to memory and loads it as a model, ready on the device.
Peak memory is that of a process of its own, above what it had before loading.

    python benchmarks/loading.py [--size=base] [--rounds=7]
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from etils import epath
import jax

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import tensors
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib


def make(folder: pathlib.Path, size: str) -> None:
  """A Hugging Face folder with random weights."""
  config = config_lib.published(f't5_1_1_{size}')
  params = transformer_lib.Transformer(config).init(jax.random.key(0))
  flat = tensors.flatten(params)
  hugging_face.write(
      epath.Path(folder),
      config,
      {path: tensors.from_array(array) for path, array in flat.items()},
  )


def load(folder: pathlib.Path) -> loading.Model:
  model = loading.load(folder)
  jax.block_until_ready(model.params)
  return model


def seconds(function) -> float:
  start = time.perf_counter()
  made = function()
  passed = time.perf_counter() - start
  del made
  return passed


def memory(name: str) -> float:
  """GB of this process: 'VmRSS' now, 'VmHWM' at its highest."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(name):
      return int(line.split()[1]) * 1024 / 1e9
  raise ValueError(name)


def print_peak(folder: pathlib.Path) -> None:
  """Run in a process of its own."""
  jax.block_until_ready(jax.numpy.zeros(3))
  before = memory('VmRSS')
  load(folder)
  print(f'{memory("VmHWM") - before:.2f}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', default='base')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--peak', type=pathlib.Path, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.peak:
    print_peak(options.peak)
    return
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    make(folder, options.size)
    file = folder / 'model.safetensors'
    seconds(file.read_bytes), seconds(lambda: load(folder))  # warm
    rounds = [
        (seconds(file.read_bytes), seconds(lambda: load(folder)))
        for _ in range(options.rounds)
    ]
    nbytes = file.stat().st_size
    peak = subprocess.run(
        [sys.executable, __file__, f'--peak={folder}'],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
  read, loaded = zip(*rounds)
  ratios = sorted(b / a for a, b in rounds)
  largest = 32128 * config_lib.published(f't5_1_1_{options.size}').emb_dim * 4
  print(f'file                     {nbytes / 1e9:.2f} GB')
  print(f'largest tensor           {largest / 1e9:.2f} GB')
  print(f'reading the file         {statistics.median(read):.2f} s (median)')
  print(f'loading the model        {statistics.median(loaded):.2f} s (median)')
  print(
      f'loading / reading        {statistics.median(ratios):.2f} (median of'
      f' {len(ratios)} rounds, {ratios[0]:.2f} to {ratios[-1]:.2f})'
  )
  print(f'peak memory in loading   {peak} GB')


if __name__ == '__main__':
  main()
