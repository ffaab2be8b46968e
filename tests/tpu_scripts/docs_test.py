"""The commands of docs/tpu.md are complete."""

import re
import shlex

import pytest

from tests.commands.conftest import configure
from tests.commands.conftest import fresh_configuration
from tests.tpu_scripts import conftest

__all__ = ['configure', 'fresh_configuration']

PAGE = (conftest.SCRIPTS.parent / 'docs' / 'tpu.md').read_text()
LINES = [
    shlex.split(line)
    for block in re.findall(r'^```\n(.*?)^```$', PAGE, re.M | re.S)
    for line in block.replace('\\\n', ' ').splitlines()
]
COMMANDS = [words for words in LINES if words and '/' in words[0]]
EXPORTED = dict(
    word.split('=')
    for words in LINES
    if words and words[0] == 'export'
    for word in words[1:]
)


def test_all_scripts_are_there():
  shown = {words[0].removeprefix('tpu_scripts/') for words in COMMANDS}
  assert shown == {
      str(path.relative_to(conftest.SCRIPTS))
      for path in conftest.SCRIPTS.rglob('[0-9]*.sh')
  }


@pytest.mark.parametrize('words', COMMANDS, ids=lambda words: words[0])
def test_a_command_is_complete(script, words):
  name = words[0].removeprefix('tpu_scripts/')
  done = script(name, '--dry-run', *words[1:], **EXPORTED)
  assert done.code == 0, done.err
  assert done.shown and not done.calls


@pytest.mark.parametrize(
    'words',
    [words[words.index('--') + 1 :] for words in COMMANDS if '--' in words],
    ids=lambda words: words[1],
)
def test_what_is_launched_is_complete(configure, words):
  assert words[0] == 'distillspec'
  configure(*words[1:])
