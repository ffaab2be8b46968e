"""The configuration that this process runs with, as text.

The command line sets it once, after the gin files are parsed; stages write it
into the run's folder, and its hash into the results. In a notebook it is empty.
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import NamedTuple


class Configuration(NamedTuple):
  """Attributes: text, gin bindings that can be parsed again; hash of it."""

  text: str
  hash: str


_current = Configuration('', '')
_command = ''


def set_current(text: str) -> None:
  """Replaces the configuration of this process."""
  global _current
  _current = Configuration(text, hashlib.sha256(text.encode()).hexdigest()[:12])


def current() -> Configuration:
  return _current


def set_command(text: str) -> None:
  """Says which command line this process runs."""
  global _command
  _command = text


def command() -> str:
  """The command line of this process; '' in Python."""
  return _command


def write(folder: pathlib.Path) -> None:
  """Writes FOLDER/config.gin, unless there is nothing to write."""
  if _current.text:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.gin').write_text(_current.text)
