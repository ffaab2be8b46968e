"""How long loading takes, against reading the same bytes.

Writes a T5 v1.1 base with random weights (1 GB), then, in turns and in one
process, reads its file to memory and loads it as a model, ready on the device.
Peak memory is that of a process of its own, beyond what it had before loading.

    python benchmarks/loading.py [--size=base] [--rounds=7]
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile

import comparison
import jax


def memory(name: str) -> float:
  """GB of this process: 'VmRSS' now, 'VmHWM' at its highest."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(name):
      return int(line.split()[1]) * 1024 / 1e9
  raise ValueError(name)


def print_peak(folder: str) -> None:
  """Run in a process of its own."""
  jax.block_until_ready(jax.numpy.zeros(3))
  before = memory('VmRSS')
  jax.block_until_ready(comparison.load(folder))
  print(f'{memory("VmHWM") - before:.2f}')


def main() -> None:
  parser = comparison.parser(__doc__)
  parser.set_defaults(rounds=7, pause=0.0)
  parser.add_argument('--size', default='base')
  parser.add_argument('--peak')
  options = parser.parse_args()
  if options.peak:
    print_peak(options.peak)
    return
  config = comparison.published(options.size)
  with tempfile.TemporaryDirectory() as name:
    folder = comparison.save(name, comparison.random_model(config))
    file = folder / 'model.safetensors'
    calls = {
        'reading': lambda _: comparison.timed(file.read_bytes)[0],
        'loading': lambda _: comparison.timed(comparison.load, folder)[0],
    }
    times = comparison.take_turns(
        calls, options.rounds, options.pause, 'loading'
    )
    size = file.stat().st_size
    peak = subprocess.run(
        [sys.executable, __file__, f'--peak={folder}'],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
  seconds = {name: statistics.median(s) for name, s in times.items()}
  ratio = comparison.ratio(times['loading'], times['reading'])
  largest = config.vocab_size * config.emb_dim * 4
  print(f'file                     {size / 1e9:.2f} GB')
  print(f'largest tensor           {largest / 1e9:.2f} GB')
  print(f'reading the file         {seconds["reading"]:.2f} s (median)')
  print(f'loading the model        {seconds["loading"]:.2f} s (median)')
  print(f'loading / reading        {ratio}, {options.rounds} rounds')
  print(f'peak memory in loading   {peak} GB')


if __name__ == '__main__':
  main()
