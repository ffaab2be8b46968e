"""Which ends of a run are started again, and on which machine."""

import re

import pytest

from tests.tpu_scripts import conftest

SETTINGS = (
    '--project=p', '--zone=z', '--name=t5', '--type=v6e-16', '--bucket=b',
    '--capacity=spot',
)  # fmt: skip
COMMAND = ('--', 'distillspec', 'train', '--run=runs/x')


def host(code, name='host-0'):
  return f'[{name}] ended with exit code {code}\n'


@pytest.fixture(name='launch')
def _launch(script):
  def run(*answers, settings=(), rules=conftest.READY):
    """`answers`: exit code and output of one ssh after the other."""
    ssh = [('tpu-vm ssh', *answer) for answer in answers]
    return script(
        '3_launch.sh', *SETTINGS, *settings, *COMMAND, rules=[*rules, *ssh]
    )

  return run


def ids(done):
  """The ids of the launches, in order."""
  runs = [call[-1] for call in done.calls_of('ssh')]
  found = [
      re.search(r'on_host.sh run b (\S+) distillspec', run) for run in runs
  ]
  return [match.group(1).rpartition('.')[2] for match in found if match]


def test_a_preempted_run_is_started_again(launch, tmp_path):
  done = launch((143, host(143)), (0, 'step 7\n' + host(0)))
  assert done.code == 0, done.err
  assert ids(done) == ['0', '1']
  assert 'Exit code 143; starting again (1 of 20)' in done.err
  logs = sorted((tmp_path / 'logs' / 't5').iterdir())
  assert [log.read_text() for log in logs] == [
      f'{host(143)}t5: gcloud exit code 143\n', f'step 7\n{host(0)}'
  ]  # fmt: skip
  assert 'step 7' in done.out


@pytest.mark.parametrize('code', [69, 134, 137, 143])
def test_codes_that_start_it_again(launch, code):
  assert ids(launch((code, host(code)), (0, host(0)))) == ['0', '1']


@pytest.mark.parametrize('code', [0, 1, 2, 3, 130])
def test_codes_that_end_it(launch, code):
  done = launch((code, host(code)), (0, ''))
  assert done.code == code and ids(done) == ['0']


def test_a_host_that_failed_outweighs_those_that_lost_it(launch):
  lost = host(69) + host(1, 'host-1') + host(69, 'host-2')
  done = launch((69, lost), (0, ''))
  assert done.code == 1 and ids(done) == ['0']


def test_what_a_run_says_is_not_taken_for_its_end(launch):
  said = '[host-0] gcloud exit code 1\n[host-0] exit code 143\n' + host(0)
  done = launch((0, said), (0, ''))
  assert done.code == 0 and ids(done) == ['0']


def test_restarts_are_bounded(launch):
  done = launch((137, host(137)), settings=['--restarts=2'])
  assert done.code == 137 and ids(done) == ['0', '1', '2']
  assert 'Exit code 137 after 2 restarts, which is the limit' in done.err


def test_hosts_that_were_not_heard_are_followed_and_not_started(launch):
  done = launch((255, 'step 3\n'), (0, host(0)))
  assert done.code == 0 and ids(done) == ['0', '0']


def test_a_launch_is_followed_by_its_id(launch):
  done = launch((0, host(0)), settings=['--id=20260131-120000.4'])
  assert ids(done) == ['4']


def test_all_slices_are_started_and_any_may_fail(launch):
  done = launch(
      (143, host(143)), (0, host(0)), settings=['--slices=2', '--restarts=1']
  )
  runs = [call[call.index('ssh') + 1] for call in done.calls_of('ssh')]
  assert sorted(runs[:2]) == sorted(runs[2:]) == ['t5-0', 't5-1']
  assert done.code == 0 and ids(done) == ['0', '0', '1', '1']


@pytest.mark.parametrize(
    'gone',
    [
        [('queued-resources describe', 0, 'SUSPENDED\n')],
        [('queued-resources describe', 0, 'FAILED\n')],
        [
            ('queued-resources describe', 0, 'ACTIVE\n'),
            ('tpu-vm describe', 0, 'PREEMPTED\n'),
        ],
        [
            ('queued-resources describe', 0, 'SUSPENDING\n'),
            ('queued-resources describe', 0, 'SUSPENDED\n'),
        ],
    ],
)
# What gcloud says of a machine that is gone: nothing heard, or no such machine.
@pytest.mark.parametrize('code', [1, 255])
def test_a_machine_that_was_taken_is_made_again(launch, gone, code):
  there = list(conftest.READY)
  # Twice it is asked for where gcloud's own code may be because it is gone.
  rules = there + gone * (2 if code == 1 else 1) + there
  done = launch((code, ''), (0, 'installed\n'), (0, host(0)), rules=rules)
  assert done.code == 0, done.err
  steps = [
      call[4] for call in done.calls if call[4] in ('create', 'delete', 'ssh')
  ]
  assert steps == ['ssh', 'delete', 'create', 'ssh', 'ssh']
  (create,) = done.calls_of('create')
  assert {'--spot', '--accelerator-type=v6e-16', '--node-id=t5'} <= set(create)
  assert '--quiet' in done.calls_of('delete')[0]
  install, run = done.calls_of('ssh')[1:]
  assert 'on_host.sh install b' in install[-1]
  assert 'on_host.sh run b' in run[-1]


def test_a_while_without_an_answer_is_waited_for(launch):
  there = list(conftest.READY)
  silent = [('queued-resources describe', 1, '')] * 3
  rules = there + silent + there
  done = launch((143, host(143)), (0, host(0)), rules=rules)
  assert done.code == 0 and ids(done) == ['0', '1']
