"""Where models are looked for, and what is said where they are not."""

import builtins
import pathlib
import re
import sys
import types

from etils import epath
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import sources

NAME = 'google/flan-t5-small'


@pytest.fixture(name='hub')
def _hub(tmp_path, monkeypatch):
  """An empty cache of the hub."""
  monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.delenv('HF_HUB_OFFLINE', raising=False)
  monkeypatch.chdir(tmp_path)
  return tmp_path / 'hub' / 'models--google--flan-t5-small'


@pytest.fixture(name='no_hub_package')
def _no_hub_package(monkeypatch):
  original = builtins.__import__

  def refuse(name, *args, **kwargs):
    if name == 'huggingface_hub':
      raise ImportError(name)
    return original(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', refuse)


def snapshot(hub, revision='abc', files=('config.json', 'model.safetensors')):
  folder = hub / 'snapshots' / revision
  folder.mkdir(parents=True)
  for file in files:
    (folder / file).write_text('')
  return epath.Path(folder)


def test_folders_are_taken_as_they_are(tmp_path, monkeypatch):
  assert sources.resolve(tmp_path) == epath.Path(tmp_path)
  (tmp_path / 'google' / 'flan-t5-small').mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert sources.resolve(NAME) == epath.Path(NAME)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert sources.resolve('~/google') == epath.Path(tmp_path / 'google')


def test_home_folders(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert sources.expanded('~/a') == f'{tmp_path}/a'
  assert sources.expanded(pathlib.Path('~')) == str(tmp_path)
  assert sources.run_folder('~/a') == tmp_path / 'a'
  for text in ('a~', './~/a', 'gs://a/~'):
    assert sources.expanded(text) == text
  with pytest.raises(errors.UserError, match='no home folder ~nobody0. Write'):
    sources.expanded('~nobody0/a')
  for path in (None, 5, b'a', ''):
    with pytest.raises(errors.UserError, match=f'The path is {path!r}; give'):
      sources.run_folder(path)


def test_a_run_needs_a_folder_in_a_file_system():
  with pytest.raises(errors.UserError, match="is 'gs://a/b'; it must be in a"):
    sources.run_folder('gs://a/b')


def test_only_this_module_knows_of_home_folders():
  package = pathlib.Path(sources.__file__).parents[1]
  files = {
      path.name
      for path in package.rglob('*.py')
      if re.search(r'expanduser|\.home\(|Path\(run\)', path.read_text())
  }
  assert files == {'sources.py', 'cache.py'}


def test_the_main_branch_of_a_cached_repository(hub):
  snapshot(hub, 'old')
  expected = snapshot(hub, 'new')
  (hub / 'refs').mkdir()
  (hub / 'refs' / 'main').write_text('new\n')
  assert sources.resolve(NAME) == expected


def test_the_only_snapshot_where_no_branch_is_known(hub):
  expected = snapshot(hub)
  assert sources.resolve(NAME) == expected


def test_where_the_cache_is(tmp_path, monkeypatch):
  monkeypatch.delenv('HF_HUB_CACHE', raising=False)
  monkeypatch.setenv('HF_HOME', str(tmp_path / 'home'))
  assert sources.hub_cache() == tmp_path / 'home' / 'hub'
  monkeypatch.delenv('HF_HOME')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert sources.hub_cache() == tmp_path / 'xdg' / 'huggingface' / 'hub'


@pytest.mark.usefixtures('no_hub_package')
def test_what_is_not_cached_is_said_with_the_way_to_fetch_it(hub):
  snapshot(hub, files=('tokenizer.json',))  # not the model
  with pytest.raises(errors.UserError) as raised:
    sources.resolve(NAME)
  message = str(raised.value)
  assert f'{hub} holds no such model' in message
  assert "pip install -e '.[hub]'" in message
  assert f'hf download {NAME}' in message


def test_offline_nothing_is_downloaded(hub, monkeypatch):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(errors.UserError, match='HF_HUB_OFFLINE is set'):
    sources.resolve(NAME)
  assert not hub.exists()


def test_it_is_downloaded_where_the_package_is(hub, monkeypatch):
  asked = {}

  def download(name, **options):
    asked.update(options, name=name)
    return str(snapshot(hub))

  package = types.SimpleNamespace(snapshot_download=download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', package)
  assert sources.resolve(NAME) == epath.Path(hub / 'snapshots' / 'abc')
  assert asked['name'] == NAME
  assert '*.safetensors' in asked['allow_patterns']
  assert not any('bin' in pattern for pattern in asked['allow_patterns'])


def test_why_a_download_failed_is_said(monkeypatch, hub):
  def download(name, **options):
    raise ConnectionError('Name or service\nnot known')

  package = types.SimpleNamespace(snapshot_download=download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', package)
  with pytest.raises(
      errors.UserError, match='failed: Name or service not known. Fetch it'
  ):
    sources.resolve(NAME)
  assert not hub.exists()


@pytest.mark.usefixtures('hub')
@pytest.mark.parametrize(
    'path, message',
    [
        ('misspelt', r'There is no folder misspelt\.'),
        ('a/b/c', 'There is no folder a/b/c'),
        ('/no/such', 'There is no folder /no/such'),
    ],
)
def test_a_folder_that_is_not_there(path, message):
  with pytest.raises(errors.UserError, match=message):
    sources.resolve(path)


def test_a_file_is_no_folder(tmp_path):
  (tmp_path / 'x').write_text('')
  with pytest.raises(errors.UserError, match='is a file; name the folder'):
    sources.resolve(tmp_path / 'x')


@pytest.mark.parametrize('error', [KeyError('x://'), OSError('no rights.')])
def test_why_a_bucket_cannot_be_read_is_said(monkeypatch, error):
  def refuse(self):
    raise error

  monkeypatch.setattr(type(epath.Path('gs://bucket')), 'exists', refuse)
  with pytest.raises(errors.UserError) as raised:
    sources.resolve('gs://bucket/model')
  message = str(raised.value)
  assert message.startswith('gs://bucket/model cannot be read: ')
  assert '.. ' not in message and "'gs://BUCKET/FOLDER'" in message


def test_another_kind_of_address_is_refused():
  with pytest.raises(errors.UserError, match='http://a/b cannot be read'):
    sources.resolve('http://a/b')


@pytest.mark.parametrize('is_there', [True, False])
def test_buckets(monkeypatch, is_there):
  path = type(epath.Path('gs://bucket/model'))
  monkeypatch.setattr(path, 'exists', lambda self: is_there)
  if is_there:
    found = sources.resolve('gs://bucket/model')
    assert str(found) == 'gs://bucket/model'
  else:
    with pytest.raises(
        errors.UserError, match='gs://bucket/model is not there'
    ):
      sources.resolve('gs://bucket/model')
