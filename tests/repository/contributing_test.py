"""CONTRIBUTING's example of a verifier: one new file, one line elsewhere."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'CONTRIBUTING.md').read_text()
SECTION = TEXT.partition('\n## Add a verifier\n')[2].partition('\n## ')[0]
(FILE,) = re.findall(r'^```python\n(.*?)^```$', SECTION, re.M | re.S)
(LINE,) = re.findall(r'^```\n(from .*?)^```$', SECTION, re.M | re.S)

# What the page promises of it, and that its distribution is the target's.
USE = """
from distillspec_jax.evaluation import exactness
from distillspec_jax.sampling import decoding, verification

verifier = verification.parse('firstonly')
assert verifier.describe() == 'firstonly' and verifier.is_lossless
sampled = decoding.Decoding(
    sampling=decoding.Sampling(temperature=1.0), verifier=verifier
)
print(exactness.enumerated(sampled, 20_000, seed=0).p_value)
"""


def run(folder: pathlib.Path, file: str) -> subprocess.CompletedProcess:
  """`USE` with a copy of the package that has the new file and line."""
  shutil.copytree(ROOT / 'distillspec_jax', folder / 'distillspec_jax')
  verifiers = folder / 'distillspec_jax' / 'sampling' / 'verification'
  (verifiers / 'first_only.py').write_text(file)
  init = (verifiers / '__init__.py').read_text()
  first = re.search(r'^from distillspec_jax\.sampling', init, re.MULTILINE)
  init = init[: first.start()] + LINE + init[first.start() :]
  (verifiers / '__init__.py').write_text(init)
  return subprocess.run(
      [sys.executable, '-c', USE],
      env={**os.environ, 'PYTHONPATH': str(folder)},
      cwd=folder,
      capture_output=True,
      text=True,
  )


def test_the_verifier_works_and_is_exact(tmp_path):
  done = run(tmp_path, FILE)
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) > 1e-6  # the chance of a false alarm


def test_a_wrong_verifier_is_not_exact(tmp_path):
  """The one above, but rejected tokens are replaced by the draft's."""
  wrong = FILE.replace('p_logits[:, :2]', 'q_logits[:, [0, 0]]')
  assert wrong != FILE
  done = run(tmp_path, wrong)
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) < 1e-6


@pytest.mark.parametrize('line', LINE.splitlines())
def test_it_is_one_line(line):
  assert LINE.count('\n') == 1 and line.startswith('from distillspec_jax.')
