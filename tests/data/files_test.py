import io
import json

from etils import epath
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import files

BOM = '\ufeff'


def read_json(path, skip=False, inputs='q', labels='a'):
  return list(files.json_lines(path, inputs, labels, skip))


def test_json_lines(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"q": "1", "a": "ü"}\n\n{"q": "2", "a": "b", "c": 3}\n')
  assert read_json(path) == [('1', 'ü'), ('2', 'b')]
  assert read_json(path, inputs=None) == [('', 'ü'), ('', 'b')]


BAD = {
    '{"q": ': 'line 2 is not JSON',
    '[1]': 'line 2 is JSON, but not an object',
    '{"q": "x"}': "line 2 has no field 'a'; it has \\['q'\\]",
    '{"\\ud83d": "x"}': "line 2 has no field 'q'",
    '{"q": "x", "a": 1}': "line 2 has a field 'a' that is not a string",
    # Python refuses to convert this many digits, and nests only so far.
    '{"q": "x", "a": "b", "c": ' + '1' * 5000 + '}': 'line 2 has an integer of',
    '[' * 100_000: 'line 2 has an integer of .* or nesting too deep',
    # Half of a surrogate pair: JSON can escape it, UTF-8 cannot express it.
    r'{"q": "ab\ud83d", "a": "b"}': (
        r"line 2 has a field 'q' that is not Unicode \('\\ud83d' at.* 2\)"
    ),
    b'{"q": "\xff", "a": "b"}': 'line 2 is not UTF-8 .*byte 7.*iconv',
}


@pytest.mark.parametrize('line', BAD, ids=lambda line: line[:30])
def test_a_bad_line_is_named_or_skipped(tmp_path, line):
  path = tmp_path / 'x.jsonl'
  raw = line if isinstance(line, bytes) else line.encode()
  path.write_bytes(b'{"q": "1", "a": "b"}\n' + raw + b'\n')
  with pytest.raises(errors.UserError, match=BAD[line]) as raised:
    read_json(path)
  assert str(path) in str(raised.value)
  str(raised.value).encode()  # can be printed
  assert read_json(path, skip=True) == [('1', 'b'), None]


def test_whole_surrogate_pairs_and_control_characters_are_text(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text(r'{"q": "\ud83d\ude00", "a": "\u0000\u2028"}')
  assert read_json(path) == [('😀', '\0\u2028')]


def test_tab_separated(tmp_path):
  path = tmp_path / 'x.tsv'
  path.write_text('a b\tc\n\nd\te\n')
  assert list(files.tab_separated(path)) == [('a b', 'c'), ('d', 'e')]
  path.write_text('a\tb\nc\nd\te\tf\n\t\n')
  with pytest.raises(errors.UserError, match='line 2 has 1 columns, not 2'):
    list(files.tab_separated(path))
  pairs = list(files.tab_separated(path, skip=True))
  assert pairs == [('a', 'b'), None, None]


def test_parallel_files_have_a_line_for_each_line(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  a.write_text('1\n\n3\n')
  b.write_text('x\ny\n\n')
  assert list(files.parallel(a, b)) == [('1', 'x'), ('', 'y'), ('3', '')]
  b.write_text('x\n')
  with pytest.raises(errors.UserError, match='has 3 lines .* has 1'):
    list(files.parallel(a, b))


def test_a_bad_line_is_skipped_with_its_translation(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  a.write_bytes(b'1\n\xff\n3\n')
  b.write_bytes(b'x\ny\n\xff\n')
  with pytest.raises(errors.UserError, match='a, line 2 is not UTF-8'):
    list(files.parallel(a, b))
  assert list(files.parallel(a, b, skip=True)) == [('1', 'x'), None, None]


def write(path, text):
  path.write_bytes(text.encode())
  return path


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
  tsv = write(tmp_path / 'x.tsv', f'{BOM}a\tb\r\nc\td\r\n')
  assert list(files.tab_separated(tsv)) == [('a', 'b'), ('c', 'd')]
  en = write(tmp_path / 'x.en', f'{BOM}A dog.\r\nA cat.\r\n')
  de = write(tmp_path / 'x.de', 'Ein Hund.\nEine Katze.\n')
  assert list(files.parallel(en, de)) == [
      ('A dog.', 'Ein Hund.'),
      ('A cat.', 'Eine Katze.'),
  ]
  row = '{"q": "a", "a": "b"}\r\n'
  jsonl = write(tmp_path / 'x.jsonl', BOM + row + row)
  assert read_json(jsonl) == [('a', 'b')] * 2
  assert list(files.texts(en, 'q')) == ['A dog.', 'A cat.']
  assert list(files.texts(jsonl, 'q')) == ['a', 'a']


def test_only_the_mark_and_the_line_end_are_dropped(tmp_path):
  path = write(tmp_path / 'x', f'a{BOM}\r\r\n{BOM}b\u2028\x85c \n\rd')
  assert list(files.texts(path, '')) == [
      f'a{BOM}\r',
      f'{BOM}b\u2028\x85c ',
      '\rd',
  ]


def test_every_line_of_a_text_is_one(tmp_path):
  path = write(tmp_path / 'x.txt', '\na\n\n')
  assert list(files.texts(path, '')) == ['', 'a', '']
  assert list(files.texts(write(path, ''), '')) == []
  jsonl = write(tmp_path / 'x.jsonl', '{"x": "a"}\n\n{"x": "b"}\n')
  with pytest.raises(errors.UserError, match='line 2 is not JSON'):
    list(files.texts(jsonl, 'x'))
  with pytest.raises(errors.UserError, match="line 1 has no field 'y'"):
    list(files.texts(jsonl, 'y'))


def test_lines_of_a_stream():
  stream = io.BytesIO(f'{BOM}a\r\n\nü'.encode())
  assert list(files.lines(stream, 'standard input')) == ['a', '', 'ü']
  stream = io.BytesIO(b'a\n\xff\n')
  with pytest.raises(errors.UserError, match='input, line 2 is not UTF-8'):
    list(files.lines(stream, 'standard input'))


def test_text_without_lone_surrogates_is_accepted():
  files.check_text('😀 \0', 'The text')
  with pytest.raises(
      errors.UserError,
      match=r"The text is not Unicode \('\\udcff' at character 1\); give it",
  ):
    files.check_text('a\udcff', 'The text')


def test_files_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(errors.UserError, match='absent.jsonl cannot be read: No'):
    read_json(tmp_path / 'absent.jsonl')
  with pytest.raises(errors.UserError, match='cannot be read: Is a directory'):
    read_json(tmp_path)


def test_files_in_the_home_folder_and_in_buckets_are_read(
    tmp_path, monkeypatch
):
  write(tmp_path / 'x.jsonl', json.dumps({'q': 'a', 'a': 'b'}))
  monkeypatch.setenv('HOME', str(tmp_path))
  assert read_json('~/x.jsonl') == [('a', 'b')]
  for backend in (epath.backend.tf_backend, epath.backend.fsspec_backend):
    monkeypatch.setattr(
        backend,
        'open',
        lambda path, mode: open(tmp_path / path.split('/')[-1], mode),
    )
  assert read_json('gs://bucket/x.jsonl') == [('a', 'b')]
