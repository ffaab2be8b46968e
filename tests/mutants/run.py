"""Runs the mutants: python -m tests.mutants.run [part of a name ...].

One at a time, each in a copy of the package in a temporary folder; first the
package as it is, whose tests must pass. Prints a table; the exit code is 1 if a
mutant survives.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

from tests.mutants import mutants

ROOT = pathlib.Path(__file__).parents[2]
COPIED = ('distillspec_jax', 'tests', 'gin_configs', 'pyproject.toml')

# The tiny pair's check of a certificate, as `certificate.checks` makes it.
CERTIFY = """
import sys
from distillspec_jax.evaluation import certificate, exactness, sensitivity
from distillspec_jax.sampling import decoding as decoding_lib

rule, is_warped = sys.argv[1], sys.argv[2] == 'True'
changes = dict((certificate.RULES | certificate.PARALLEL_RULES)[rule])
if 'adaptive' in changes:
  changes['adaptive'] = changes['adaptive'](0.5)  # the tiny pair has its own
sampling = certificate.WARPED if is_warped else certificate.PLAIN
default = decoding_lib.Decoding(sampling=certificate.PLAIN)
settings = sensitivity.DEFAULT
share = settings.false_alarm / certificate.num_statistical(default)
decoding = default.replace(**changes).replace(sampling=sampling)
number = sensitivity.num_samples(
    settings.bias, exactness.num_outputs(decoding), share
)
fit = exactness.enumerated(decoding, number, seed=0)
print(f'p = {fit.p_value:.2g}', 'holds' if fit.p_value > share else 'FAILS')
"""


def copy(folder: pathlib.Path) -> None:
  """The package and its tests, without what was compiled."""
  for name in COPIED:
    if (ROOT / name).is_dir():
      ignored = shutil.ignore_patterns('__pycache__')
      shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    else:
      shutil.copy(ROOT / name, folder / name)


def patch(folder: pathlib.Path, mutant: mutants.Mutant) -> None:
  file = folder / 'distillspec_jax' / mutant.file
  text = file.read_text()
  assert text.count(mutant.old) == 1, f'{mutant.name}: {mutant.file} changed'
  file.write_text(text.replace(mutant.old, mutant.new))


def python(folder: pathlib.Path, *arguments: str) -> tuple[int, str]:
  environment = {
      **os.environ,
      'PYTHONPATH': str(folder),
      'PYTHONDONTWRITEBYTECODE': '1',
      'DISTILLSPEC_SHARED': str(folder / 'no reference data'),
  }
  done = subprocess.run(
      [sys.executable, *arguments],
      cwd=folder,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
  )
  return done.returncode, done.stdout


def failed_test(folder: pathlib.Path, tests: str) -> str | None:
  """The first test that fails; None if all pass.

  Raises:
    RuntimeError: no test was run.
  """
  options = '-m pytest -x -n 0 -p no:cacheprovider --durations=0 --no-header'
  code, output = python(folder, *options.split(), *shlex.split(tests))
  if code == 0:
    return None
  found = re.search(r'^FAILED tests/(\S+)', output, re.M)
  if code != 1 or not found:
    raise RuntimeError(output[-3000:])
  return found.group(1)


def certificate(folder: pathlib.Path, mutant: mutants.Mutant) -> str:
  code, output = python(
      folder, '-c', CERTIFY, mutant.rule, str(mutant.is_warped)
  )
  if code:
    raise RuntimeError(output[-3000:])
  return output.splitlines()[-1]


def run(mutant: mutants.Mutant) -> bool:
  """Whether it is killed; prints by what."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    copy(folder)
    patch(folder, mutant)
    start = time.monotonic()
    killer = failed_test(folder, mutant.tests)
    seconds = time.monotonic() - start
    verdict = certificate(folder, mutant) if mutant.rule else '-'
  is_killed = killer is not None and not verdict.endswith('holds')
  print(
      f'{"killed" if is_killed else "SURVIVES"} | {mutant.name} |'
      f' {killer or "no test"} | {seconds:.0f} s | certificate: {verdict}',
      flush=True,
  )
  return is_killed


def main(parts: list[str]) -> int:
  chosen = [
      mutant
      for name, mutant in mutants.ALL.items()
      if not parts or any(part in name for part in parts)
  ]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    copy(folder)
    for tests in dict.fromkeys(mutant.tests for mutant in chosen):
      killer = failed_test(folder, tests)
      if killer is not None:
        raise SystemExit(f'{killer} fails without any mutant.')
  return 0 if all([run(mutant) for mutant in chosen]) else 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
