"""Does the data layer hold ten million examples? Memory, restarts, hosts.

  python benchmarks/data_scale.py --run=runs/data_scale [--examples=10000000]

Writes a synthetic set of short examples, prepares it, trains a tiny model for a
few steps and again after a restart, and checks what the documentation promises:

  resident memory that the reader adds, with prepared data
  seconds from an empty process's first call to its first batch, at a late step
  batches after a restart equal those of an uninterrupted run, packed or not
  two hosts read disjoint rows, whose union is the rows of one

The measurements are in RUN/data_scale.json; the exit code is 1 where a limit is
exceeded or batches differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
import psutil

from distillspec_jax.data import batches as batches_lib
from distillspec_jax.data import tasks
from distillspec_jax.training import loop
from distillspec_jax.training import method
from distillspec_jax.training import settings

BATCH = 64
MEMORY_LIMIT_MB, RESTART_LIMIT_S = 500, 10
_LINES = 100_000  # written at once


def write(path: pathlib.Path, examples: int) -> None:
  """Numbers and their squares, one example a line."""
  if path.exists():
    return
  temporary = path.with_suffix('.part')
  with temporary.open('w') as file:
    for start in range(0, examples, _LINES):
      numbers = range(start, min(start + _LINES, examples))
      file.write(''.join(f'{n:x}\t{n * n:x}\n' for n in numbers))
  temporary.rename(path)


def task(folder: pathlib.Path) -> tasks.Task:
  return tasks.tab_separated(
      train=str(folder / 'train.tsv'),
      validation=str(folder / 'validation.tsv'),
      vocabulary='bytes',
      input_length=16,
      label_length=32,
      cache=str(folder / 'cache'),
      max_tokens_in_memory=0,  # also where fewer examples are asked for
  )


def resident_mb() -> float:
  return psutil.Process().memory_info().rss / 2**20


def take(
    folder: pathlib.Path, start: int, pack: bool, rows: Any = None
) -> list[Any]:
  every = batches_lib.batches(
      task(folder), 'train', BATCH, seed=0, pack=pack, start=start, rows=rows
  )
  return list(itertools.islice(every, 20))


def read(folder: pathlib.Path, pack: bool, start: int) -> dict[str, float]:
  """Of a process of its own: the time to a batch, and memory after many."""
  import grain  # noqa: F401  what is loaded once is not the reader's

  before, began = resident_mb(), time.perf_counter()
  every = batches_lib.batches(
      task(folder), 'train', BATCH, seed=0, pack=pack, start=start
  )
  next(every)
  seconds = time.perf_counter() - began
  for _ in range(300):
    next(every)
  rate = 301 * BATCH / (time.perf_counter() - began)
  return {
      'first_batch_s': seconds,
      'memory_mb': resident_mb() - before,
      'rows_per_second': rate,
  }


def in_own_process(function: Any, *arguments: Any) -> Any:
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    return pool.apply(function, arguments)


def equal(a: Any, b: Any) -> bool:
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def resumes(folder: pathlib.Path, pack: bool) -> bool:
  """Whether batches from step 7 are those of a run from step 0."""
  return equal(take(folder, 0, pack)[7:], take(folder, 7, pack)[:13])


def hosts_agree(folder: pathlib.Path, pack: bool) -> bool:
  """Whether two hosts' rows, put together, are those of one."""
  halves = np.arange(BATCH)[: BATCH // 2], np.arange(BATCH)[BATCH // 2 :]
  parts = [take(folder, 5, pack, rows) for rows in halves]
  joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  return equal(joined, take(folder, 5, pack))


def train(folder: pathlib.Path, run: pathlib.Path, steps: int) -> float:
  """Seconds of a run of a tiny model up to a step."""
  began = time.perf_counter()
  loop.train(
      run=str(run),
      task=task(folder),
      training=settings.Training(
          start=settings.Start(model='test'),
          method=method.Method(),
          steps=settings.Steps(num_steps=steps, batch_size=BATCH),
      ),
  )
  return time.perf_counter() - began


def main(arguments: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--run', type=pathlib.Path, required=True)
  parser.add_argument('--examples', type=int, default=10_000_000)
  parser.add_argument('--steps', type=int, default=20)
  options = parser.parse_args(arguments)
  folder = options.run / 'data'
  folder.mkdir(parents=True, exist_ok=True)
  write(folder / 'train.tsv', options.examples)
  write(folder / 'validation.tsv', 1000)
  began = time.perf_counter()
  examples = task(folder).examples('train')
  measured: dict[str, Any] = {
      'examples': len(examples),
      'kind': type(examples).__name__,
      'prepare_s': time.perf_counter() - began,
  }
  problems = []
  for pack in (False, True):
    name = 'packed' if pack else 'padded'
    values = in_own_process(read, folder, pack, options.examples // BATCH // 3)
    values['resumed_equal'] = resumes(folder, pack)
    values['hosts_equal'] = hosts_agree(folder, pack)
    measured[name] = values
    if values['memory_mb'] > MEMORY_LIMIT_MB:
      problems.append(f'{name}: the reader takes {values["memory_mb"]:.0f} MB')
    if values['first_batch_s'] > RESTART_LIMIT_S:
      problems.append(f'{name}: {values["first_batch_s"]:.1f} s to a batch')
    problems += [f'{name}: {n} is false' for n in values if values[n] is False]
  if options.steps:
    run = options.run / 'training'
    measured['train_s'] = train(folder, run, options.steps)
    measured['restart_s'] = train(folder, run, options.steps + 5)
  (options.run / 'data_scale.json').write_text(json.dumps(measured, indent=1))
  print(json.dumps(measured, indent=1))
  for problem in problems:
    print(problem, file=sys.stderr)
  return bool(problems)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
