"""The temperature at which the draft samples its training text, by seeds.

Distils the quickstart's fine-tuned draft at each temperature with each seed, as
the quickstart does, and measures tokens per target call on the same inputs.
Drafts are named after their temperature. Started again, it skips what is done.

    python benchmarks/training_temperature.py --quickstart=runs/quickstart
        --run=runs/training_temperature [--temperatures=0.5,1] [--seeds=0,1,2]
"""

import argparse
import pathlib
import subprocess
import sys

import draft_runs

_TRAIN = (
    *draft_runs.TRAIN,
    '--gin_file=runs/distil.gin',
    '--gin.optimizers.Optimizer.learning_rate=3e-3',
)


def measure(
    quickstart: pathlib.Path,
    run: pathlib.Path,
    temperature: float,
    seed: int,
    steps: int,
) -> None:
  """Distils and evaluates one draft in RUN/temperature_T/seed_S."""
  folder = run / f'temperature_{temperature:g}' / f'seed_{seed}'
  measured = folder / 'evaluation'
  if (measured / 'results.jsonl').exists():
    return
  target = quickstart / 'target' / 'best'
  common = '--gin_file=tasks/python.gin', f'--gin.TARGET={target}'
  subprocess.run(
      [
          *_TRAIN, f'--run={folder / "draft"}', *common,
          f'--gin.DRAFT={quickstart / "seed_0" / "fine-tuned"}/best',
          f'--gin.NUM_STEPS={steps}', f'--gin.loop.train.seed={seed}',
          f'--gin.method.Method.temperature={temperature}',
      ],
      check=True,
  )  # fmt: skip
  subprocess.run(
      [
          *draft_runs.EVALUATE, f'--run={measured}', *common,
          f'--gin.DRAFT={folder / "draft"}/best',
          f"--gin.acceptance.evaluate.draft_name='T = {temperature:g}'",
          f'--gin.acceptance.evaluate.seed={seed}',
      ],
      check=True,
  )  # fmt: skip


def main(arguments: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--quickstart', type=pathlib.Path, required=True)
  parser.add_argument('--run', type=pathlib.Path, required=True)
  parser.add_argument('--temperatures', default='0.5,1')
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, default=400)
  options = parser.parse_args(arguments)
  for seed in map(int, options.seeds.split(',')):
    for temperature in map(float, options.temperatures.split(',')):
      measure(options.quickstart, options.run, temperature, seed, options.steps)


if __name__ == '__main__':
  main(sys.argv[1:])
