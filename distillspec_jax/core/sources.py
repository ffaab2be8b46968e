"""Paths that users give: `~`, buckets, and names in Hugging Face's cache."""

from __future__ import annotations

import os
import pathlib
import re

from etils import epath

from distillspec_jax.core import errors

# What is needed of a repository; the rest is the same model in other formats.
_FILES = ('*.json', '*.safetensors', '*.model')
_REPOSITORY = re.compile(r'[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?')


def expanded(path: str | os.PathLike[str]) -> str:
  """The path, with the home folder in place of `~`.

  Raises:
    UserError: there is no such home folder, or it is no path.
  """
  if not isinstance(path, str | os.PathLike) or not os.fspath(path):
    raise errors.UserError(f'The path is {path!r}; give a folder or a name.')
  text = os.fspath(path)
  result = os.path.expanduser(text)
  if text.startswith('~') and result == text:
    raise errors.UserError(
        f'{text}: there is no home folder {text.partition("/")[0]}. Write the'
        f' whole path, or ./{text} for a file of this name.'
    )
  return result


def run_folder(path: str | os.PathLike[str]) -> pathlib.Path:
  """The folder that `path` names, to which results can be added.

  Raises:
    UserError: it is not in a file system.
  """
  text = expanded(path)
  if '://' in text:
    raise errors.UserError(
        f'The folder of a run is {text!r}; it must be in a file system, where'
        ' lines can be added to files. Mount the bucket, or copy the folder to'
        ' it when the run is done.'
    )
  return pathlib.Path(text)


def resolve(path: str | os.PathLike[str]) -> epath.Path:
  """The folder that `path` names, local or remote.

  Args:
    path: a folder, 'gs://...', or a repository of the Hugging Face hub, such
      as 'google/flan-t5-small': it is looked for in the hub's local cache, and
      downloaded where the package huggingface_hub is installed.

  Raises:
    UserError: there is nothing; the message says what was looked for.
  """
  text = expanded(path)
  if '://' in text:
    return _remote(text)
  folder = epath.Path(text)
  if folder.is_dir():
    return folder
  if folder.exists():
    raise errors.UserError(
        f'{text} is a file; name the folder that it lies in.'
    )
  if not _REPOSITORY.fullmatch(text):
    raise errors.UserError(f'There is no folder {text}.')
  return _from_hub(text)


def _remote(text: str) -> epath.Path:
  try:
    folder = epath.Path(text)
    is_there = folder.exists()
  except Exception as error:  # of many kinds: no such scheme, network, rights
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
        f'{text} cannot be read: {reason}{"." * (reason[-1:] != ".")} Give a'
        " folder, 'gs://BUCKET/FOLDER', or a repository's name."
    ) from error
  if not is_there:
    raise errors.UserError(
        f'{text} is not there, or this machine may not read it.'
    )
  return folder


def check_regular(path: epath.Path) -> None:
  """Raises UserError for a folder, or a pipe, which might never end.

  What is not there, and what lies in a bucket, is left to whoever opens it.
  """
  if '://' in str(path) or not os.path.exists(path):
    return
  if os.path.isdir(path):
    raise errors.UserError(f'{path} cannot be read: it is a folder.')
  if not os.path.isfile(path):
    raise errors.UserError(
        f'{path} is a pipe or a device; copy what it gives to a file.'
    )


def check_all_regular(folder: epath.Path) -> None:
  """Raises UserError for a pipe or device anywhere in a local folder."""
  if '://' not in str(folder):
    for parent, _, names in os.walk(folder):
      for name in names:
        check_regular(epath.Path(parent) / name)


def read_bytes(path: epath.Path) -> bytes:
  """The content of a file of a model.

  Raises:
    UserError: it is something else, such as a folder or a pipe.
  """
  check_regular(path)
  try:
    return epath.Path(path).read_bytes()
  except OSError as error:
    raise errors.UserError(
        f'{path} cannot be read: {error.strerror or error}.'
    ) from error


def hub_cache() -> pathlib.Path:
  """Where the hub's files are kept; HF_HUB_CACHE and HF_HOME move it."""
  cache = os.environ.get('XDG_CACHE_HOME', '~/.cache')
  home = os.environ.get('HF_HOME', f'{cache}/huggingface')
  # Without a home folder `~` stays, and nothing is there.
  return pathlib.Path(
      os.path.expanduser(os.environ.get('HF_HUB_CACHE', f'{home}/hub'))
  )


def _from_hub(name: str) -> epath.Path:
  cached = _cached(name)
  if cached is not None:
    return cached
  if '/' not in name:  # more likely a folder's name that is misspelt
    raise errors.UserError(f'There is no folder {name}.')
  repository = hub_cache() / f'models--{name.replace("/", "--")}'
  looked = f'There is no folder {name}, and {repository} holds no such model.'
  fetch = (
      f' Fetch it where there is a network: `hf download {name}`'
      ' (pip install huggingface_hub), and copy the folder here.'
  )
  if os.environ.get('HF_HUB_OFFLINE', '0').upper() in (
      '1',
      'ON',
      'YES',
      'TRUE',
  ):
    raise errors.UserError(f'{looked} HF_HUB_OFFLINE is set.{fetch}')
  try:
    import huggingface_hub
  except ImportError as error:
    raise errors.UserError(
        f"{looked} To download it, pip install -e '.[hub]'.{fetch}"
    ) from error
  try:
    return epath.Path(
        huggingface_hub.snapshot_download(
            name, allow_patterns=list(_FILES), cache_dir=hub_cache()
        )
    )
  except Exception as error:  # of many kinds: network, rights, no such name
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
        f'{looked} Downloading it failed: {reason}{"." * (reason[-1:] != ".")}'
        f'{fetch}'
    ) from error


def _cached(name: str) -> epath.Path | None:
  """The snapshot of the main branch, or else the only one, in the cache."""
  repository = hub_cache() / f'models--{name.replace("/", "--")}'
  main = repository / 'refs' / 'main'
  if main.is_file():
    snapshot = repository / 'snapshots' / main.read_text().strip()
    return epath.Path(snapshot) if _is_whole(snapshot) else None
  snapshots = list((repository / 'snapshots').glob('*'))
  if len(snapshots) == 1 and _is_whole(snapshots[0]):
    return epath.Path(snapshots[0])
  return None


def _is_whole(snapshot: pathlib.Path) -> bool:
  """Whether configuration and weights are there, not only a tokenizer."""
  weights = [*snapshot.glob('*.safetensors'), *snapshot.glob('*.bin')]
  return (snapshot / 'config.json').exists() and bool(weights)
