"""Kills commands at random times; started again, they end as if never killed.

  make test-recovery        (or python tests/recovery/kills.py 100)

Each trial starts one of the commands in a fresh folder, kills it with SIGKILL
at random times, one to three times in a row, starts it again until it is done,
and compares all that it left with what an uninterrupted process left: arrays
and files bit for bit, lines of results without times and rates.
"""

import collections
from collections.abc import Callable
import functools
import itertools
import json
import os
import pathlib
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time

from etils import epath
import jax

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import orbax_arrays
from distillspec_jax.commands import decode
from distillspec_jax.commands import main
from distillspec_jax.core import results
from distillspec_jax.evaluation import acceptance
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import loop
from distillspec_jax.training import method
from distillspec_jax.training import optimizers
from distillspec_jax.training import settings
from tests import conftest  # for the cache of compiled programs
from tests import tiny

del decode, conftest  # imported, so that forked processes need not
jax.config.update('jax_num_cpu_devices', 1)

_DRAFTING = decoding_lib.Drafting(length=2)


def train(
    folder: pathlib.Path,
    models: pathlib.Path,
    distil: bool = False,
    seed: int = 0,
) -> None:
  start = settings.Start(model=tiny.config(tiny.BYTES))
  more = {}
  if distil:
    start = settings.Start(checkpoint=str(models / 'draft'))
    more = {
        'target': str(models / 'target'),
        'method': method.Method(divergence='forward_kl', fixed_fraction=0.0),
    }
  loop.train(
      run=str(folder / 'run'),
      task=tiny.task(models / 'task', validation=8),
      seed=seed,
      training=settings.Training(
          start=start,
          steps=settings.Steps(
              num_steps=12, batch_size=8, log_every=1, checkpoint_every=2
          ),
          optimizer=optimizers.Optimizer(name='adamw', learning_rate=3e-3),
          validation=settings.Validation(
              every=3,
              examples=8,
              decoding=decoding_lib.Decoding(drafting=_DRAFTING),
          ),
          **more,
      ),
  )


def evaluate(folder: pathlib.Path, models: pathlib.Path) -> None:
  with results.together():  # as the command does
    acceptance.evaluate(
        run=str(folder / 'run'),
        target=str(models / 'target'),
        draft=str(models / 'draft'),
        task=tiny.task(models / 'task', validation=8),
        examples=8,
        batch_size=2,
        decodings=[
            decoding_lib.Decoding(drafting=decoding_lib.Drafting(length=length))
            for length in (2, 3)
        ],
    )


def decode_lines(folder: pathlib.Path, models: pathlib.Path) -> None:
  texts = models / 'texts.txt'
  lines = (f'{a} {b}' for a in tiny.WORDS for b in tiny.WORDS)
  texts.write_text('\n'.join(itertools.islice(lines, 24)) + '\n')
  code = main.main([
      'decode', f'--target={models / "target"}', f'--file={texts}',
      f'--out={folder / "out.jsonl"}', '--max_new_tokens=8', '--batch_size=2',
  ])  # fmt: skip
  if code:
    raise SystemExit(code)


def convert(folder: pathlib.Path, models: pathlib.Path, to: str) -> None:
  if not (folder / 'model').exists():  # it does not write twice
    conversion.convert(str(models / 'target'), str(folder / 'model'), to=to)


COMMANDS: dict[str, Callable[..., None]] = {
    'train': train,
    'distil': functools.partial(train, distil=True),
    'evaluate': evaluate,
    'decode': decode_lines,
    'convert': functools.partial(convert, to='distillspec'),
    'export': functools.partial(convert, to='hugging_face'),
}


def content(folder: pathlib.Path, log: pathlib.Path) -> dict[str, object]:
  """Path -> what is in it, but for times, names by chance, and TensorBoard.

  It is read by a process of its own: TensorStore cannot be used before a fork.
  """
  read = folder.with_suffix('.content')
  dump = lambda *_: read.write_bytes(pickle.dumps(_content(folder)))
  run(dump, folder, folder, log)
  found = pickle.loads(read.read_bytes())
  read.unlink()
  return found


def _content(folder: pathlib.Path) -> dict[str, object]:
  found: dict[str, object] = {}
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    parts = path.relative_to(folder).parts
    if not path.is_file() or 'metrics' in parts:
      continue
    if path.name == '_METADATA':  # arrays that Orbax wrote
      arrays = orbax_arrays.read(epath.Path(path.parent))
      for array, tensor in arrays.items():
        found[f'{name}/{array}'] = tensor.all().tobytes()
    elif {'state', 'params'} & set(parts[:-1]):
      continue  # its other files
    elif path.name == 'results.jsonl':
      found[name] = [_timeless(line) for line in path.read_text().splitlines()]
    elif path.name not in ('_CHECKPOINT_METADATA', 'commit_success.txt'):
      found[name] = path.read_bytes()
  return found


def _timeless(line: str) -> dict[str, object]:
  values = json.loads(line)
  del values['provenance']
  values['metrics'].pop('tokens_per_second', None)
  return values


def run(command, folder, models, log, seconds: float | None = None) -> bool:
  """Runs it in a process of its own, which is killed after a time.

  Returns:
    Whether it was killed before it was done.
  """
  pid = os.fork()  # before anything has started JAX here
  if not pid:
    code = 1
    try:
      output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
      os.dup2(output, 1)
      os.dup2(output, 2)
      command(folder, models)
      code = 0
    except BaseException:
      import traceback

      traceback.print_exc()
    finally:
      os._exit(code)
  deadline = None if seconds is None else time.monotonic() + seconds
  while deadline is None or time.monotonic() < deadline:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      if status:
        raise RuntimeError(f'{folder}: failed; see {log}')
      return False
    time.sleep(0.01)
  os.kill(pid, signal.SIGKILL)
  os.waitpid(pid, 0)
  return True


def kill(count: int, keep: pathlib.Path, seed: int = 0) -> list[str]:
  """Kills until `count` processes were; returns what ended otherwise."""
  rng = random.Random(seed)
  models = keep / 'models'
  log = keep / 'log.txt'
  for seed_of_model, name in enumerate(('target', 'draft')):
    folder = keep / name
    run(functools.partial(train, seed=seed_of_model), folder, models, log)
    shutil.copytree(folder / 'run' / 'best', models / name)
  expected, durations = {}, {}
  for name, command in COMMANDS.items():
    folder = keep / 'whole' / name
    folder.mkdir(parents=True)
    start = time.monotonic()
    run(command, folder, models, log)
    durations[name] = time.monotonic() - start
    expected[name] = content(folder, log)
  kills, trials, wrong = collections.Counter(), collections.Counter(), []
  names = itertools.cycle(COMMANDS)
  while kills.total() < count:
    name = next(names)
    folder = keep / f'{sum(trials.values())}_{name}'
    folder.mkdir()
    trials[name] += 1
    waits = [rng.uniform(0, durations[name]) for _ in range(rng.randint(1, 3))]
    for wait in (*waits, None):  # the last is not killed
      start = time.monotonic()
      was_killed = run(COMMANDS[name], folder, models, log, wait)
      kills[name] += was_killed
      if not was_killed:  # the machine may be quicker by now
        durations[name] = min(durations[name], time.monotonic() - start)
        break
    found = content(folder, log)
    if found == expected[name]:
      shutil.rmtree(folder)
    else:
      names_of = set(found) ^ set(expected[name]) or {
          path for path in found if found[path] != expected[name][path]
      }
      wrong.append(f'{folder}: {", ".join(sorted(names_of)[:5])}')
      print(wrong[-1], file=sys.stderr, flush=True)
    total = f'{kills.total()} kills in {trials.total()} trials'
    print(f'{total}, {len(wrong)} ended otherwise', flush=True)
  for name in COMMANDS:
    print(f'{name:<12}{kills[name]} kills in {trials[name]} trials')
  return wrong


if __name__ == '__main__':
  where = pathlib.Path(tempfile.mkdtemp(prefix='kills_'))
  failed = kill(int(sys.argv[1]) if len(sys.argv) > 1 else 100, where)
  if failed:
    sys.exit(f'{len(failed)} ended otherwise; see {where}')
  shutil.rmtree(where)
