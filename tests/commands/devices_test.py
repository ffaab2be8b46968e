import argparse

import jax
import pytest

from distillspec_jax.commands import devices

pytestmark = pytest.mark.usefixtures('fresh_configuration')


def parse(*arguments):
  parser = argparse.ArgumentParser()
  devices.add_mesh_flag(parser)
  devices.add_host_flags(parser)
  return parser.parse_args(arguments)


def test_a_mesh_is_set_within(monkeypatch):
  monkeypatch.delenv('JAX_COORDINATOR_ADDRESS', raising=False)
  with devices.using(parse('--mesh=2,2,2')):
    assert dict(jax.sharding.get_mesh().shape) == {
        'data': 2, 'fsdp': 2, 'tensor': 2,
    }  # fmt: skip
  with devices.using(parse()):
    assert not jax.sharding.get_mesh().shape


def test_commands_need_not_have_the_flags():
  with devices.using(argparse.Namespace()):
    assert not jax.sharding.get_mesh().shape


def test_without_a_place_for_them_programs_are_not_kept(
    monkeypatch, tmp_path, capsys
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  before = jax.config.jax_compilation_cache_dir
  devices.cache_programs()
  assert jax.config.jax_compilation_cache_dir == before
  assert capsys.readouterr().err == (
      'distillspec: compiled programs are not kept, because there is no home'
      ' folder to write to; XDG_CACHE_HOME names another.\n'
  )


def test_compiled_programs_are_kept_unless_the_environment_says_where(
    monkeypatch, tmp_path
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  devices.cache_programs()
  folder = tmp_path / 'cache' / 'distillspec_jax' / 'xla'
  assert jax.config.jax_compilation_cache_dir == str(folder)
  jax.config.update('jax_compilation_cache_dir', 'mine')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'mine')
  devices.cache_programs()
  assert jax.config.jax_compilation_cache_dir == 'mine'
