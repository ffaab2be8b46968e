"""The configuration of this process: one text, and its hash."""

import pytest

from distillspec_jax.core import configuration


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
  monkeypatch.setattr(configuration, '_current', configuration.current())


def test_it_is_written_into_the_folder_of_a_run(tmp_path):
  configuration.set_current('a = 1\n')
  configuration.write(tmp_path / 'run')
  assert (tmp_path / 'run' / 'config.gin').read_text() == 'a = 1\n'


def test_an_empty_one_leaves_nothing(tmp_path):
  configuration.set_current('')
  configuration.write(tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_its_hash_is_that_of_its_text():
  hashes = []
  for text in ('a = 1', 'a = 2', 'a = 1'):
    configuration.set_current(text)
    assert configuration.current().text == text
    hashes.append(configuration.current().hash)
  assert hashes[0] == hashes[2] != hashes[1]
  assert len(hashes[0]) == 12
