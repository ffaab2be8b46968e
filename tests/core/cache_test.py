import pathlib

from distillspec_jax.core import cache


def test_it_is_where_the_environment_says(monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', '/elsewhere')
  folder = pathlib.Path('/elsewhere/distillspec_jax/plans')
  assert cache.folder('plans') == folder


def test_else_it_is_in_the_home_folder(monkeypatch):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setenv('HOME', '/home/me')
  folder = pathlib.Path('/home/me/.cache/distillspec_jax/plans')
  assert cache.folder('plans') == folder
