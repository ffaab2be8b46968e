"""Checkpoints that t5x wrote (`save.py`), loaded here: the same logits?

Runs in the project's environment.

    python benchmarks/t5x/check_saved.py FOLDER
"""

import pathlib
import sys

import jax
import numpy as np

from distillspec_jax.checkpoints import loading

TOLERANCE = 1e-4  # absolute, float32


def main(folder: pathlib.Path) -> int:
  jax.config.update('jax_default_matmul_precision', 'highest')
  print(f'{"network":24} {"layout":8} {"largest logit difference":>24}')
  is_right = True
  for path in sorted(folder.glob('*/expected.npz')):
    expected = np.load(path)
    for layout in ('native', 'orbax'):
      model = loading.load(path.parent / layout)
      logits = model.logits(expected['inputs'], expected['tokens'])
      apart = float(np.abs(logits - expected['logits']).max())
      verdict = '' if apart <= TOLERANCE else '  WRONG'
      is_right &= apart <= TOLERANCE
      print(f'{path.parent.name:24} {layout:8} {apart:24.2e}{verdict}')
  return 0 if is_right else 1


if __name__ == '__main__':
  sys.exit(main(pathlib.Path(sys.argv[1])))
