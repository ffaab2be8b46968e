"""Flips single bytes of all files of a run, one at a time, and reads it.

  make test-recovery        (or python tests/recovery/flips.py 200)

Each flip ends in one of these ways; the last two must not occur:

  same       what is read is what was written: nothing depends on the byte
  older      the checkpoint is set aside, and the one before it is used
  refused    one line (UserError)
  wrong      something else is used, silently
  traceback  any other exception
"""

import collections
import contextlib
import io
import pathlib
import random
import shutil
import sys
import tempfile

import jax
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.core import errors
from distillspec_jax.training import loop
from distillspec_jax.training import settings
from tests import tiny


def trained(folder: pathlib.Path) -> pathlib.Path:
  """A run with checkpoints of steps 1 and 2, and a model."""
  run = folder / 'run'
  loop.train(
      run=str(run),
      task=tiny.task(folder / 'task', validation=8),
      training=settings.Training(
          start=settings.Start(model=tiny.config(tiny.BYTES)),
          steps=settings.Steps(
              num_steps=2, batch_size=8, log_every=1, checkpoint_every=1
          ),
          validation=settings.Validation(every=1, examples=8),
      ),
  )
  return run


def loaded(run: pathlib.Path):
  model = loading.load(run)
  return model.model, model.config, model.vocabulary, model.vocabulary.files


def is_same(a, b) -> bool:
  leaves = [jax.tree.leaves(each) for each in (a, b)]
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
      _equal(x, y) for x, y in zip(*leaves)
  )


def _equal(x, y) -> bool:
  if not isinstance(x, jax.Array):
    return x == y
  if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
    x, y = jax.random.key_data(x), jax.random.key_data(y)
  return np.array_equal(x, y)


def outcome(run: pathlib.Path, kind: str, like, truth) -> str:
  """How reading a run with one changed byte ends."""
  text = io.StringIO()
  try:
    with contextlib.redirect_stderr(text):
      if kind == 'model':
        return 'same' if is_same(loaded(run), truth['model']) else 'wrong'
      with store.Store(run / 'checkpoints') as checkpoints:
        step, *rest = checkpoints.restore_last(like, lambda *_: None)
  except errors.UserError:
    return 'refused'
  except Exception as error:  # of any kind: that is what is looked for
    print(f'{type(error).__name__}: {error}', file=sys.stderr)
    return 'traceback'
  if not is_same(rest, truth[step]):
    return 'wrong'
  if step == 2:
    return 'same'
  return 'older' if 'is damaged' in text.getvalue() else 'wrong'


def flip(count: int, seed: int = 0) -> collections.Counter:
  """(kind, outcome) -> number, of `count` flips in checkpoint and model."""
  rng = random.Random(seed)
  outcomes = collections.Counter()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    run = trained(folder)
    like, truth = read_all(run)
    files = {
        'checkpoint': sorted((run / 'checkpoints' / '2').rglob('*')),
        'model': sorted((run / 'best').rglob('*')),
    }
    for number in range(count):
      kind = ('checkpoint', 'model')[number % 2]
      changeable = [p for p in files[kind] if p.is_file() and p.stat().st_size]
      # Files in turn, so that small ones are not left out.
      path = changeable[number // 2 % len(changeable)]
      with changed(run, folder / 'copy', path, rng) as copy:
        found = outcome(copy, kind, like, truth)
      outcomes[kind, found] += 1
      if found in ('wrong', 'traceback'):
        print(f'{found}: {path.relative_to(run)}', file=sys.stderr)
  return outcomes


def read_all(run: pathlib.Path):
  """Shapes of the state, and what a whole run reads as."""
  truth = {'model': loaded(run)}
  with store.Store(run / 'checkpoints') as checkpoints:
    like = shapes(run)
    for step in (1, 2):
      truth[step] = list(checkpoints.restore(step, like))
  return like, truth


def shapes(run: pathlib.Path):
  """The state's shapes, flat, as the checkpoint itself says."""
  record = store.read_record(store.epath.Path(run / 'checkpoints' / '2'))
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return {
      path: jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=one)
      for path, (dtype, shape, _) in record.arrays.items()
  }


@contextlib.contextmanager
def changed(run, copy, path, rng):
  """A copy of the run with one byte of a file changed."""
  shutil.copytree(run, copy)
  target = copy / path.relative_to(run)
  raw = bytearray(target.read_bytes())
  raw[rng.randrange(len(raw))] ^= rng.randrange(1, 256)
  target.write_bytes(raw)
  try:
    yield copy
  finally:
    shutil.rmtree(copy)


if __name__ == '__main__':
  total = flip(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
  for (kind, found), number in sorted(total.items()):
    print(f'{kind:<12}{found:<12}{number}')
  bad = sum(n for (_, how), n in total.items() if how in ('wrong', 'traceback'))
  print(f'{total.total()} flips, {bad} used wrongly or not explained')
  sys.exit(bool(bad))
