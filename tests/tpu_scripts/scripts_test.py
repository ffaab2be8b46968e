"""What each script calls, with which arguments, and what it refuses."""

import re

import pytest

from tests.tpu_scripts import conftest

MACHINE = ('--project=p', '--zone=z', '--name=t5')
COMMAND = ('--', 'distillspec', 'train', '--run=runs/x', '--gin.A=(1, 2)')
IMAGE = '--image=repository/image'
# Each script, and settings with which it is complete.
SCRIPTS = {
    '1_create.sh': (*MACHINE, '--type=v6e-16'),
    '2_install.sh': (*MACHINE, '--bucket=b'),
    '3_launch.sh': (*MACHINE, '--type=v6e-16', '--bucket=b', *COMMAND),
    '4_watch.sh': MACHINE,
    '5_fetch.sh': ('--bucket=b', '--run=runs/x'),
    '6_delete.sh': MACHINE,
    'gke/1_create.sh': (*MACHINE, '--type=v6e-16', '--bucket=b'),
    'gke/2_install.sh': (IMAGE,),
    'gke/3_launch.sh': (
        *MACHINE, '--type=v6e-16', '--workload=w', IMAGE, *COMMAND
    ),
    'gke/4_watch.sh': (*MACHINE, '--workload=w'),
    'gke/5_fetch.sh': ('--bucket=b', '--run=runs/x'),
    'gke/6_delete.sh': MACHINE,
}  # fmt: skip
TPUS = ['gcloud', 'compute', 'tpus']
PLACE = ['--project=p', '--zone=z']
CREATE = [*TPUS, 'queued-resources', 'create', 't5', *PLACE]


def plain(calls):
  """Without the time in the id of a launch."""
  return [
      [re.sub(r'\d{8}-\d{6}\.', 'ID.', word) for word in call] for call in calls
  ]


def test_these_are_all_scripts():
  found = {
      str(path.relative_to(conftest.SCRIPTS))
      for path in conftest.SCRIPTS.rglob('[0-9]*.sh')
  }
  assert found == set(SCRIPTS)


@pytest.mark.parametrize(
    ('name', 'slices'),
    [(name, ()) for name in SCRIPTS]
    + [
        (f'{name}.sh', ['--slices=2'])
        for name in ('1_create', '2_install', '3_launch')
    ],
)
def test_a_dry_run_calls_nothing_and_prints_what_the_real_one_calls(
    script, name, slices
):
  settings = SCRIPTS[name]
  shown = script(name, '--dry-run', *slices, *settings)
  assert (shown.code, shown.calls) == (0, [])
  done = script(name, *slices, *settings)
  assert done.code == 0, done.err
  local = [call for call in shown.shown if call[0] == 'mkdir']
  assert sorted(plain(shown.shown)) == sorted(plain([*done.calls, *local]))
  assert done.calls


@pytest.mark.parametrize(
    ('name', 'setting'),
    [
        (name, argument)
        for name, settings in SCRIPTS.items()
        for argument in settings[: [*settings, '--'].index('--')]
    ],
)
def test_a_missing_setting_is_named_with_an_example(script, name, setting):
  rest = [argument for argument in SCRIPTS[name] if argument != setting]
  done = script(name, *rest)
  assert (done.code, done.calls, done.out) == (2, [], '')
  flag = setting.partition('=')[0]
  assert re.fullmatch(
      rf'\d_\w+\.sh: {flag[2:]} is missing \(.+\): give {flag}=VALUE or set'
      rf' TPU_{flag[2:].upper()}, e\.g\. {flag}=\S+\.\n',
      done.err,
  )


@pytest.mark.parametrize('name', ['3_launch.sh', 'gke/3_launch.sh'])
def test_a_launch_needs_a_command(script, name):
  done = script(name, *SCRIPTS[name][: -len(COMMAND)])
  assert (done.code, done.calls) == (2, [])
  assert 'there is no command; write it after --' in done.err


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('--size=3', 'there is no setting --size here'),
        ('v6e-16', 'v6e-16 is not understood; write --NAME=VALUE'),
        (
            '--capacity=cheap',
            'capacity is cheap; it must be on-demand, spot or',
        ),
        ('--slices=0', 'slices is 0; it must be a number, at least 1'),
        ('--type=v9-8', 'type is v9-8; known are v2-, v3-, v4-, v5litepod-'),
    ],
)
def test_a_wrong_setting_is_refused(script, argument, message):
  done = script('1_create.sh', *SCRIPTS['1_create.sh'], argument)
  assert (done.code, done.calls) == (2, [])
  assert message in done.err


def test_a_bucket_is_a_name(script):
  done = script('5_fetch.sh', '--bucket=gs://b', '--run=runs/x')
  assert done.code == 2
  assert 'bucket is gs://b; give its name alone' in done.err


def test_settings_come_from_the_environment_and_flags_win(script):
  done = script(
      '6_delete.sh', '--zone=z', TPU_PROJECT='p', TPU_ZONE='a', TPU_NAME='t5'
  )
  assert done.calls == [
      [*TPUS, 'queued-resources', 'delete', 't5', *PLACE, '--force']
  ]


@pytest.mark.parametrize('name', SCRIPTS)
def test_help_has_an_example_and_the_settings(script, name):
  done = script(name, '--help')
  assert (done.code, done.calls, done.err) == (0, [], '')
  assert '--dry-run' in done.out
  for argument in SCRIPTS[name][: [*SCRIPTS[name], '--'].index('--')]:
    assert f'{argument.partition("=")[0]}=' in done.out


@pytest.mark.parametrize(
    ('kind', 'runtime'),
    [
        ('v6e-16', 'v2-alpha-tpuv6e'),
        ('v5p-128', 'v2-alpha-tpuv5'),
        ('v5litepod-256', 'v2-alpha-tpuv5-lite'),
        ('v4-128', 'tpu-ubuntu2204-base'),
    ],
)
def test_create_takes_the_software_that_is_for_the_type(script, kind, runtime):
  done = script('1_create.sh', *MACHINE, f'--type={kind}')
  assert done.calls[0] == [
      *CREATE,
      f'--accelerator-type={kind}',
      f'--runtime-version={runtime}',
      '--node-id=t5',
  ]


@pytest.mark.parametrize(
    ('settings', 'flags'),
    [
        (['--capacity=spot'], ['--node-id=t5', '--spot']),
        (['--capacity=reserved'], ['--node-id=t5', '--reserved']),
        (['--slices=4'], ['--node-count=4', '--node-prefix=t5']),
        (
            ['--create-flags=--internal-ips --labels=a=b'],
            ['--node-id=t5', '--internal-ips', '--labels=a=b'],
        ),
    ],
)
def test_create_with_each_option(script, settings, flags):
  done = script('1_create.sh', *SCRIPTS['1_create.sh'], *settings)
  assert done.code == 0, done.err
  assert done.calls[0] == [
      *CREATE,
      '--accelerator-type=v6e-16',
      '--runtime-version=v2-alpha-tpuv6e',
      *flags,
  ]


def test_create_with_another_software(script):
  done = script('1_create.sh', *MACHINE, '--type=v9-8', '--runtime=new')
  assert '--runtime-version=new' in done.calls[0]


def test_create_waits_until_all_slices_are_there(script):
  rules = [
      ('queued-resources describe', 0, 'WAITING_FOR_RESOURCES\n'),
      ('queued-resources describe', 0, 'PROVISIONING\n'),
      ('queued-resources describe', 0, 'ACTIVE\n'),
      ('describe t5-1', 0, 'CREATING\n'),
      ('tpu-vm describe', 0, 'READY\n'),
  ]
  done = script(
      '1_create.sh', *MACHINE, '--type=v6e-16', '--slices=2', rules=rules
  )
  assert done.code == 0
  assert re.findall(r't5 is (\w+);', done.err) == [
      'WAITING_FOR_RESOURCES', 'PROVISIONING', 'CREATING'
  ]  # fmt: skip
  assert len(done.calls_of('queued-resources', 'describe')) == 4
  assert len(done.calls_of('tpu-vm', 'describe', 't5-0')) == 2


@pytest.mark.parametrize('state', ['FAILED', 'SUSPENDED'])
def test_create_says_that_a_machine_cannot_be_had(script, state):
  rules = [('queued-resources describe', 0, f'{state}\n')]
  done = script('1_create.sh', *SCRIPTS['1_create.sh'], rules=rules)
  assert done.code == 2
  assert f't5 is {state}.' in done.err and '6_delete.sh' in done.err


def test_create_ends_when_gcloud_refuses(script):
  rules = [('queued-resources create', 1, '')]
  done = script('1_create.sh', *SCRIPTS['1_create.sh'], rules=rules)
  assert done.code == 1 and len(done.calls) == 1


def test_a_machine_that_nobody_knows_is_not_waited_for(script):
  rules = [('queued-resources describe', 1, '')]
  done = script('3_launch.sh', *SCRIPTS['3_launch.sh'], rules=rules)
  assert done.code == 2
  assert 'the state of t5 is not to be had; is it there?' in done.err


def test_install_uploads_once_and_installs_on_all_hosts(script):
  done = script('2_install.sh', *SCRIPTS['2_install.sh'], '--slices=2')
  build, upload, *hosts = done.calls
  root = str(conftest.SCRIPTS.parent)
  assert build == ['make', '-C', root, 'wheel']
  assert upload[:3] == ['gcloud', 'storage', 'cp']
  assert upload[-1] == 'gs://b/install/'
  wheel = 'distillspec_jax-0.1.0-py3-none-any.whl'
  assert [path.rpartition('/')[2] for path in upload[3:-1]] == [
      wheel, 'lock-3.11.txt', 'on_host.sh'
  ]  # fmt: skip
  command = (
      "mkdir -p distillspec && gcloud storage cp 'gs://b/install/*'"
      ' distillspec/ && bash distillspec/on_host.sh install b'
      f' {wheel}'
  )
  assert sorted(hosts) == [
      [*TPUS, 'tpu-vm', 'ssh', f't5-{number}', *PLACE, '--worker=all',
       f'--command={command}']
      for number in range(2)
  ]  # fmt: skip


def test_install_fails_where_a_host_does(script):
  rules = [('ssh', 3, '')]
  done = script('2_install.sh', *SCRIPTS['2_install.sh'], rules=rules)
  assert done.code == 3 and 't5: gcloud exit code 3' in done.out


def test_watch_follows_the_host_that_is_asked_for(script):
  done = script(
      '4_watch.sh', *MACHINE, '--slices=2', '--worker=3',
      '--ssh-flags=--tunnel-through-iap',
  )  # fmt: skip
  state, log = done.calls
  assert state[3:6] == ['queued-resources', 'describe', 't5']
  assert log == [
      *TPUS, 'tpu-vm', 'ssh', 't5-0', *PLACE, '--worker=3',
      '--tunnel-through-iap', '--command=bash distillspec/on_host.sh watch',
  ]  # fmt: skip


@pytest.mark.parametrize('name', ['5_fetch.sh', 'gke/5_fetch.sh'])
def test_fetch_copies_a_run_without_its_checkpoints(script, tmp_path, name):
  done = script(name, *SCRIPTS[name], '--', '--checksums-only')
  assert done.calls == [[
      'gcloud', 'storage', 'rsync', 'gs://b/runs/x', 'runs/x', '--recursive',
      '--exclude=^(.*/)?checkpoints/.*', '--checksums-only',
  ]]  # fmt: skip
  assert (tmp_path / 'runs' / 'x').is_dir()
  left_out = re.compile('^(.*/)?checkpoints/.*')
  paths = ('checkpoints/9/state', 'seed_0/distilled/checkpoints/9/x')
  assert all(map(left_out.match, paths))
  assert not left_out.match('best/params/checkpoints.json')


def test_delete_asks_unless_told(script):
  delete = [*TPUS, 'queued-resources', 'delete', 't5', *PLACE, '--force']
  assert script('6_delete.sh', *MACHINE).calls == [delete]
  assert script('6_delete.sh', *MACHINE, '--yes').calls == [
      [*delete, '--quiet']
  ]


@pytest.mark.parametrize(
    ('settings', 'flag'),
    [
        ([], '--on-demand'),
        (['--capacity=spot'], '--spot'),
        (['--capacity=reserved', '--reservation=r'], '--reservation=r'),
    ],
)
def test_a_cluster_has_the_bucket_as_a_folder(script, settings, flag):
  done = script(
      'gke/1_create.sh', *SCRIPTS['gke/1_create.sh'], '--slices=2', *settings
  )
  create, attach = done.calls
  assert create == [
      'xpk', 'cluster', 'create', *PLACE, '--cluster=t5', '--tpu-type=v6e-16',
      '--num-slices=2', flag, '--enable-gcsfuse-csi-driver',
  ]  # fmt: skip
  assert attach[:4] == ['xpk', 'storage', 'attach', 'bucket']
  assert {'--cluster=t5', '--bucket=b', '--mount-point=/bucket'} <= set(attach)


def test_a_reserved_cluster_needs_the_name_of_the_reservation(script):
  done = script(
      'gke/1_create.sh', *SCRIPTS['gke/1_create.sh'], '--capacity=reserved'
  )
  assert (done.code, done.calls) == (2, [])
  assert 'give --reservation=NAME' in done.err


def test_an_image_is_built_and_uploaded(script):
  done = script('gke/2_install.sh', IMAGE)
  assert [call[:2] for call in done.calls] == [
      ['make', '-C'], ['docker', 'build'], ['docker', 'push']
  ]  # fmt: skip
  assert '--tag=repository/image' in done.calls[1]
  dockerfile = conftest.SCRIPTS / 'gke' / 'Dockerfile'
  assert f'--file={dockerfile}' in done.calls[1] and dockerfile.is_file()


def test_a_cluster_restarts_what_the_launcher_would(script):
  done = script('gke/3_launch.sh', '--slices=2', *SCRIPTS['gke/3_launch.sh'])
  assert done.calls == [[
      'xpk', 'workload', 'create', *PLACE, '--cluster=t5', '--workload=w',
      '--tpu-type=v6e-16', '--num-slices=2',
      '--docker-image=repository/image', '--max-restarts=20',
      '--restart-on-exit-codes=69', '--termination-grace-period-seconds=120',
      '--command=cd /bucket && exec distillspec train --run=runs/x'
      r' --gin.A=\(1\,\ 2\)',
  ]]  # fmt: skip


def test_the_log_of_a_job_is_that_of_its_first_host(script):
  done = script('gke/4_watch.sh', *SCRIPTS['gke/4_watch.sh'])
  jobs, log = done.calls
  assert jobs[:3] == ['xpk', 'workload', 'list']
  assert log[:3] == ['kubectl', 'logs', '--follow']
  assert 'jobset-name=w,' in log[-1]


def test_a_cluster_is_deleted(script):
  delete = ['xpk', 'cluster', 'delete', *PLACE, '--cluster=t5']
  assert script('gke/6_delete.sh', *MACHINE).calls == [delete]
  assert script('gke/6_delete.sh', *MACHINE, '--yes').calls == [
      [*delete, '--force']
  ]
