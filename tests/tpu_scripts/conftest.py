"""A cloud command line that records what it is called with and calls nothing.

The scripts find it first on PATH. What it answers is a list of rules (pattern
of the command line, exit code, output); a rule is used once, unless it is the
last that fits.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import NamedTuple

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / 'tpu_scripts'
# All that the scripts call that is not a plain tool of the system.
PROGRAMS = ('docker', 'gcloud', 'kubectl', 'make', 'xpk')

FAKE = f"""#!{sys.executable} -IS
import fcntl, json, os, re, sys
folder = os.environ['FAKE_CLOUD']
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(folder + '/lock', 'w') as lock:
  fcntl.flock(lock, fcntl.LOCK_EX)
  with open(folder + '/calls', 'a') as file:
    file.write(json.dumps(call) + '\\n')
  with open(folder + '/rules') as file:
    rules = json.load(file)
  fit = [rule for rule in rules if re.search(rule[0], ' '.join(call))]
  if len(fit) > 1:
    rules.remove(fit[0])
    with open(folder + '/rules', 'w') as file:
      json.dump(rules, file)
_, code, output = fit[0] if fit else ('', 0, '')
print(output, end='')
sys.exit(code)
"""
# Machines are there, and hosts do what they are told.
READY = (
    ('queued-resources describe', 0, 'ACTIVE\n'),
    ('tpu-vm describe', 0, 'READY\n'),
)


class Done(NamedTuple):
  """What a script did."""

  code: int
  out: str
  err: str
  calls: list[list[str]]

  def calls_of(self, *words: str) -> list[list[str]]:
    """Those that have all the words, in order."""
    return [call for call in self.calls if set(words) <= set(call)]

  @property
  def shown(self) -> list[list[str]]:
    """The commands that a dry run prints, as a shell would read them."""
    return [shlex.split(line) for line in self.out.splitlines()]


@pytest.fixture
def script(tmp_path, monkeypatch):
  """A function: runs a script beside the fake cloud, and says what it did."""
  folder = tmp_path / 'cloud'
  folder.mkdir()
  for program in PROGRAMS:
    (folder / program).write_text(FAKE)
    (folder / program).chmod(0o755)
  for name in [name for name in os.environ if name.startswith('TPU_')]:
    monkeypatch.delenv(name)
  environment = {
      **os.environ,
      'FAKE_CLOUD': str(folder),
      'PATH': f'{folder}:{os.environ["PATH"]}',
      'TPU_POLL_SECONDS': '0',
  }

  def run(name, *arguments, rules=READY, **variables) -> Done:
    (folder / 'rules').write_text(json.dumps(list(rules)))
    (folder / 'calls').write_text('')
    done = subprocess.run(
        [str(SCRIPTS / name), *arguments],
        cwd=tmp_path,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    calls = (folder / 'calls').read_text().splitlines()
    return Done(
        done.returncode, done.stdout, done.stderr, [*map(json.loads, calls)]
    )

  return run
