import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import files


def read_json(path, skip=False, inputs='q', labels='a'):
  skipped = files.Skipped()
  rows = list(files.json_lines(path, inputs, labels, skip, skipped))
  return rows, skipped.lines


def test_json_lines(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"q": "1", "a": "ü"}\n\n{"q": "2", "a": "b", "c": 3}\n')
  assert read_json(path) == ([('1', 'ü'), ('2', 'b')], 0)
  assert read_json(path, inputs=None)[0] == [('', 'ü'), ('', 'b')]


@pytest.mark.parametrize(
    'line, message',
    [
        ('{"q": ', 'line 2 is not JSON'),
        ('[1]', 'line 2 is JSON, but not an object'),
        ('{"q": "x"}', "line 2 has no field 'a'"),
        ('{"q": "x", "a": 1}', "line 2 has a field 'a' that is not a string"),
    ],
)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, line, message):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"q": "1", "a": "b"}\n' + line + '\n')
  with pytest.raises(errors.UserError, match=message) as raised:
    read_json(path)
  assert str(path) in str(raised.value)
  assert read_json(path, skip=True) == ([('1', 'b')], 1)


def test_tab_separated(tmp_path):
  path = tmp_path / 'x.tsv'
  path.write_text('a b\tc\nd\te\n')
  skipped = files.Skipped()
  rows = list(files.tab_separated(path, False, skipped))
  assert rows == [('a b', 'c'), ('d', 'e')]
  path.write_text('a\tb\nc\n')
  with pytest.raises(errors.UserError, match='line 2 has 1 columns, not 2'):
    list(files.tab_separated(path, False, skipped))


def test_parallel_files_have_a_line_for_each_line(tmp_path):
  (tmp_path / 'a').write_text('1\n2\n')
  (tmp_path / 'b').write_text('x\ny\n')
  pairs = list(files.parallel(tmp_path / 'a', tmp_path / 'b'))
  assert pairs == [('1', 'x'), ('2', 'y')]
  (tmp_path / 'b').write_text('x\n')
  with pytest.raises(errors.UserError, match='has 2 lines .* has 1'):
    list(files.parallel(tmp_path / 'a', tmp_path / 'b'))


def test_files_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(errors.UserError, match='absent.jsonl cannot be read'):
    read_json(tmp_path / 'absent.jsonl')
  (tmp_path / 'latin').write_bytes(b'\xff\xfe\xfa')
  with pytest.raises(errors.UserError, match='is not UTF-8'):
    read_json(tmp_path / 'latin')
