import os
import subprocess
import sys

import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import lazy_imports
from distillspec_jax.data import tasks


def test_a_missing_seqio_is_named_with_its_remedy(monkeypatch):
  monkeypatch.setitem(sys.modules, 'seqio', None)
  with pytest.raises(errors.UserError, match=r"pip install -e '\.\[seqio\]'"):
    lazy_imports.import_seqio()
  with pytest.raises(errors.UserError, match=r"pip install -e '\.\[seqio\]'"):
    tasks.registered('any', vocabulary='bytes')


def test_quiet_keeps_lines_off_the_terminal_but_not_errors(capfd):
  with pytest.raises(ValueError, match='boom'):
    with lazy_imports.quiet():
      os.write(2, b'noise of a library\n')
      raise ValueError('boom')
  os.write(2, b'a message\n')
  assert capfd.readouterr().err == 'a message\n'


TOKENISE = """
import json, pathlib, sys
from distillspec_jax.data import batches, tasks
folder = pathlib.Path(sys.argv[1])
row = json.dumps({'inputs': 'the draft', 'labels': 'the target'})
(folder / 'x.jsonl').write_text(row)
(folder / 'x.tsv').write_text('a\\tb')
paths = lambda name: dict.fromkeys(('train', 'validation'), str(folder / name))
pair = (str(folder / 'x.tsv'), str(folder / 'x.tsv'))
for task in (
    tasks.json_lines(**paths('x.jsonl'), vocabulary='bytes'),
    tasks.tab_separated(**paths('x.tsv'), vocabulary='bytes'),
    tasks.parallel_text(train=pair, validation=pair, vocabulary='bytes'),
    tasks.standard_library_code(
        vocabulary='sentencepiece', vocabulary_size=512, max_examples=2000),
):
  next(batches.batches(task, 'validation', 2, seed=0))
slow = {'seqio', 'tensorflow', 'tensorflow_text', 'tensorflow_datasets'}
print(sorted(slow & set(sys.modules)))
"""


def test_neither_seqio_nor_tensorflow_tokenises_texts(tmp_path):
  done = subprocess.run(
      [sys.executable, '-c', TOKENISE, str(tmp_path)],
      env={**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'cache')},
      capture_output=True,
      text=True,
  )
  assert done.stdout == '[]\n', done.stderr
