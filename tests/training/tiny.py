"""A task and a model that train in seconds, for the tests of this folder."""

import dataclasses

from distillspec_jax.data import tasks
from distillspec_jax.models import config as config_lib

WORDS = 'ab cd ef gh ij kl'.split()


def task(folder, name='tiny', **changes):
  """Parallel text whose labels are the inputs' words, doubled."""
  folder.mkdir(parents=True, exist_ok=True)
  for split, count in (('train', 48), ('validation', 8)):
    lines = [f'{WORDS[i % 6]} {WORDS[(i // 6) % 6]}' for i in range(count)]
    (folder / f'{split}.in').write_text('\n'.join(lines) + '\n')
    doubled = [' '.join(w * 2 for w in line.split()) for line in lines]
    (folder / f'{split}.out').write_text('\n'.join(doubled) + '\n')
  pair = lambda split: (
      str(folder / f'{split}.in'),
      str(folder / f'{split}.out'),
  )
  return tasks.parallel_text(
      train=pair('train'),
      validation=pair('validation'),
      name=name,
      **{
          'vocabulary': 'bytes',
          'input_length': 8,
          'label_length': 12,
          **changes,
      },
  )


def config(**changes):
  base = config_lib.published('test', vocab_size=384)
  return dataclasses.replace(base, **changes)
