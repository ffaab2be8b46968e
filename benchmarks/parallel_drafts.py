"""A parallel draft beside a sequential one of the same size and training time.

Both are the same distilled draft, trained further with the same method, one of
them at masks, too; it does fewer steps, because each takes longer. Measured are
tokens per target call in blocks of five: the sequential draft, the parallel
draft in one call, and the parallel draft token by token. Started again, it
skips what is done. Other flags are passed on to training and measuring.

    python benchmarks/parallel_drafts.py --quickstart=runs/quickstart
        --run=runs/parallel_drafts [--seeds=0,1,2] [--steps=400]
        [--sequential_steps=600] [--gin_file=tasks/python.gin]
        [--gin.parallel.Parallel.chains=8]
"""

import argparse
import pathlib
import subprocess
import sys

import draft_runs

_TRAIN = (
    *draft_runs.TRAIN,
    '--gin.settings.Steps.batch_size=16',
    "--gin.settings.Validation.keep='last'",
    '--gin.optimizers.Optimizer.learning_rate=2e-3',
)
_PARALLEL = '--gin.parallel.Parallel.'


def train(
    options: argparse.Namespace, kind: str, seed: int, more: list[str]
) -> pathlib.Path:
  """Trains the draft further, in RUN/KIND/seed_S/draft, which is returned."""
  folder = options.run / kind / f'seed_{seed}' / 'draft'
  file, steps = 'runs/distil.gin', options.sequential_steps
  if kind == 'parallel':
    file, steps = 'runs/distil_parallel.gin', options.steps
  else:
    more = [flag for flag in more if not flag.startswith(_PARALLEL)]
  distilled = options.quickstart / f'seed_{options.draft_seed}' / 'distilled'
  subprocess.run(
      [
          *_TRAIN, f'--run={folder}',
          f'--gin_file={file}', *_common(options),
          f'--gin.DRAFT={distilled}/best', f'--gin.NUM_STEPS={steps}',
          f'--gin.loop.train.seed={seed}', *more,
      ],
      check=True,
  )  # fmt: skip
  return folder


def measure(
    options: argparse.Namespace, draft: pathlib.Path, name: str, seed: int
) -> None:
  """Evaluates a draft in the folder beside it that is called as it is."""
  measured = draft.parent / f'evaluation_{name.replace(" ", "_")}'
  if (measured / 'results.jsonl').exists():
    return
  subprocess.run(
      [
          *draft_runs.EVALUATE, f'--run={measured}',
          *_common(options), f'--gin.DRAFT={draft}/best',
          f'--gin.decoding.grid.parallel=({name == "parallel"},)',
          f"--gin.acceptance.evaluate.draft_name='{name}'",
          f'--gin.acceptance.evaluate.seed={seed}',
      ],
      check=True,
  )  # fmt: skip


def _common(options: argparse.Namespace) -> list[str]:
  target = options.quickstart / 'target' / 'best'
  return [f'--gin_file={options.gin_file}', f'--gin.TARGET={target}']


def main(arguments: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--quickstart', type=pathlib.Path, required=True)
  parser.add_argument('--run', type=pathlib.Path, required=True)
  parser.add_argument('--draft_seed', type=int, default=0)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--sequential_steps', type=int, default=600)
  parser.add_argument('--gin_file', default='tasks/python.gin')
  options, more = parser.parse_known_args(arguments)
  for seed in map(int, options.seeds.split(',')):
    sequential = train(options, 'sequential', seed, more)
    measure(options, sequential, 'sequential', seed)
    parallel = train(options, 'parallel', seed, more)
    measure(options, parallel, 'parallel', seed)
    measure(options, parallel, 'token by token', seed)


if __name__ == '__main__':
  main(sys.argv[1:])
