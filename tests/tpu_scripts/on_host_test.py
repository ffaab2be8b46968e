"""What is called on a host, run here: started once, followed, stopped."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from tests.tpu_scripts import conftest

# A run that ends at SIGTERM with a checkpoint, as training does.
TRAINING = """
trap 'echo saved; exit 143' TERM
touch started
echo "step 1 in $PWD"
while :; do sleep 0.05; done
"""
STARTED: list[subprocess.Popen] = []


@pytest.fixture(name='host')
def _host(tmp_path, monkeypatch):
  """A host with its folder, and a bucket that is mounted by a fake."""
  programs = tmp_path / 'bin'
  programs.mkdir()
  for name, text in (
      ('hostname', 'echo host-7'),
      ('mountpoint', 'exit 1'),
      ('gcsfuse', f'echo "$@" >>{tmp_path}/mounted'),
  ):
    (programs / name).write_text(f'#!/bin/bash\n{text}\n')
    (programs / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{programs}:{os.environ["PATH"]}')
  folder = tmp_path / 'distillspec'
  folder.mkdir()
  shutil.copy(conftest.SCRIPTS / 'on_host.sh', folder)
  yield folder
  for process in STARTED:
    process.kill()
    process.communicate()
  STARTED.clear()
  for launch in folder.glob('launches/*'):  # what a failed test left
    if is_ours(launch):
      os.killpg(pid(launch), signal.SIGKILL)


def pid(launch):
  return int((launch / 'pid').read_text())


def is_ours(launch):
  """Whether the process of a launch is there, and is what was started here."""
  try:
    words = pathlib.Path(f'/proc/{pid(launch)}/cmdline').read_bytes()
  except OSError:
    return False
  return f'\0work\0{launch}\0' in words.decode()


def start(folder, *arguments):
  process = subprocess.Popen(
      ['bash', str(folder / 'on_host.sh'), *arguments],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
  )
  STARTED.append(process)
  return process


def run(folder, *arguments):
  process = start(folder, *arguments)
  out, _ = process.communicate(timeout=30)
  return process.returncode, out


def wait_for(path):
  end = time.monotonic() + 20
  while not path.exists():
    assert time.monotonic() < end, path
    time.sleep(0.02)


def test_a_command_is_run_once_for_an_id(host, tmp_path):
  command = ('bash', '-c', 'echo "$0 $PWD" | tee -a times; exit 3', 'a b')
  expected = f'[host-7] a b {host}/bucket\n[host-7] ended with exit code 3\n'
  for _ in range(2):
    assert run(host, 'run', 'b', 'one', *command) == (3, expected)
  assert (host / 'bucket' / 'times').read_text().count('a b') == 1
  mounted = (tmp_path / 'mounted').read_text().split()
  assert mounted[-2:] == ['b', str(host / 'bucket')]


def test_a_run_outlives_its_connection_and_is_found_again(host):
  first = start(host, 'run', 'b', 'one', 'bash', '-c', TRAINING)
  wait_for(host / 'bucket' / 'started')
  first.send_signal(signal.SIGKILL)
  first.wait()
  again = start(host, 'run', 'b', 'one', 'bash', '-c', TRAINING)
  assert again.stdout.readline() == f'[host-7] step 1 in {host}/bucket\n'
  worker = pid(host / 'launches' / 'one')
  children = pathlib.Path(f'/proc/{worker}/task/{worker}/children')
  os.kill(int(children.read_text()), signal.SIGTERM)
  out, _ = again.communicate(timeout=30)
  assert out == '[host-7] saved\n[host-7] ended with exit code 143\n'
  assert again.returncode == 143


def test_at_a_shutdown_the_command_ends_by_its_own_signal(host):
  first = start(host, 'run', 'b', 'one', 'bash', '-c', TRAINING)
  wait_for(host / 'bucket' / 'started')
  assert is_ours(host / 'launches' / 'one')  # and not any other's group
  os.killpg(pid(host / 'launches' / 'one'), signal.SIGTERM)
  out, _ = first.communicate(timeout=30)
  assert out.count('saved') == 1 and first.returncode == 143


def test_a_launch_ends_what_another_left_running(host):
  first = start(host, 'run', 'b', 'one', 'bash', '-c', TRAINING)
  wait_for(host / 'bucket' / 'started')
  assert run(host, 'run', 'b', 'two', 'echo', 'new') == (
      0, '[host-7] new\n[host-7] ended with exit code 0\n'
  )  # fmt: skip
  assert first.communicate(timeout=30)[0].endswith('exit code 143\n')
  latest = host / 'launches' / 'latest'
  assert latest.resolve().name == 'two'


def test_a_run_of_which_nothing_is_left_was_killed(host):
  folder = host / 'launches' / 'one'
  folder.mkdir(parents=True)
  (folder / 'log').write_text('step 1\n')
  # After a restart of the host it is that of another program.
  (folder / 'pid').write_text(f'{os.getpid()}\n')
  assert run(host, 'run', 'b', 'one', 'true') == (
      137, '[host-7] step 1\n[host-7] ended with exit code 137\n'
  )  # fmt: skip


def test_it_says_what_it_can_do(host):
  code, out = run(host, 'rum')
  assert code == 2 and "write install, run or watch, not 'rum'" in out
