"""What can be made again is kept where there is a place for it."""

import pwd

import pytest

from distillspec_jax.core import cache


def test_it_is_where_the_environment_says(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder = tmp_path / 'distillspec_jax' / 'plans'
  assert cache.folder('plans') == folder and folder.is_dir()


def test_else_it_is_in_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  folder = tmp_path / '.cache' / 'distillspec_jax' / 'plans'
  assert cache.folder('plans') == folder


@pytest.fixture(name='no_home', params=['no entry', 'not a folder'])
def _no_home(request, monkeypatch, tmp_path):
  """A user without a home folder, as in some containers and batch systems."""
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  if request.param == 'not a folder':
    (tmp_path / 'file').touch()
    monkeypatch.setenv('HOME', str(tmp_path / 'file'))
    return

  def find(uid):
    raise KeyError(f'getpwuid(): uid not found: {uid}')

  monkeypatch.delenv('HOME', raising=False)
  monkeypatch.setattr(pwd, 'getpwuid', find)


@pytest.mark.usefixtures('no_home')
def test_without_a_home_folder_nothing_is_kept():
  assert cache.folder('plans') is None
  assert cache.get('plans', 'x', lambda: b'new') == b'new'


def test_what_is_kept_is_made_once(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  made = []

  def make():
    made.append(1)
    return b'content'

  for _ in range(2):
    assert cache.get('plans', 'x', make) == b'content'
  assert len(made) == 1
  assert [p.name for p in cache.folder('plans').iterdir()] == ['x']
