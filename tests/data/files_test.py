import contextlib
import functools
import gzip
import io
import json
import os

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
    '{"q": "é", "a": "b"}'.encode('latin-1'): 'line 2 is not UTF-8 .*byte 7',
    '{"q": "x", "a": "b"}'.encode('utf-16'): 'line 2 has bytes of UTF-16',
    b'a\0': 'line 2 has bytes of UTF-16',
    b'\x1f\x8b\x08': 'line 2 is compressed; .* ends in .gz',
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


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-le', 'utf-16-be'])
def test_a_file_of_another_encoding_is_named(tmp_path, encoding):
  path = tmp_path / 'x.tsv'
  path.write_bytes('a\tb\nc\td\n'.encode(encoding))
  with pytest.raises(errors.UserError, match='x.tsv, line 1 has bytes of UTF'):
    list(files.tab_separated(path))
  assert set(files.tab_separated(path, skip=True)) == {None}
  with pytest.raises(errors.UserError, match='x.tsv, line 1 .*Fix the line.$'):
    list(files.texts(path, ''))


def test_the_setting_of_a_missing_field_is_named(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"id": 1, "question": "x", "answer": "y"}\n')
  message = "'answer', 'id', 'question'.*--gin.tasks.json_lines.{}={}. Fix"
  read = functools.partial(files.json_lines, path, owner='tasks.json_lines')
  with pytest.raises(
      errors.UserError, match=message.format('inputs', 'question')
  ):
    list(read('inputs', 'answer'))
  with pytest.raises(
      errors.UserError, match=message.format('labels', 'answer')
  ):
    list(read('question', 'labels'))
  with pytest.raises(errors.UserError, match='as in --field=question. Fix'):
    list(files.texts(path, 'inputs'))
  with pytest.raises(errors.UserError, match="'question'\\]. Fix the line"):
    list(files.texts(path, 'inputs', setting=''))


def test_compressed_files_are_read(tmp_path):
  jsonl, tsv = tmp_path / 'x.jsonl.gz', tmp_path / 'x.tsv.gz'
  jsonl.write_bytes(gzip.compress(f'{BOM}{{"q": "ü", "a": "b"}}\n'.encode()))
  tsv.write_bytes(gzip.compress(b'a\tb\n') + gzip.compress(b'c\td\n'))
  assert read_json(jsonl) == [('ü', 'b')]
  assert list(files.texts(jsonl, 'q')) == ['ü']
  assert list(files.tab_separated(tsv)) == [('a', 'b'), ('c', 'd')]


@pytest.mark.parametrize('flip', [0, 12, -5, None])
def test_a_damaged_compressed_file_is_named(tmp_path, flip):
  text = ''.join(f'{i}\t{i * i}\n' for i in range(20_000)).encode()
  content = bytearray(gzip.compress(text))
  if flip is None:
    del content[-2000:]
  else:
    content[flip] ^= 0xFF
  path = tmp_path / 'x.tsv.gz'
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match='x.tsv.gz cannot be read'):
    list(files.tab_separated(path, skip=True))


def test_long_lines_are_read_but_not_without_end(tmp_path, monkeypatch):
  path = tmp_path / 'x.tsv'
  path.write_text(f'a\tb\n{"c" * 10**7}\td\ne\tf\n')
  assert [len(a) for a, _ in files.tab_separated(path)] == [1, 10**7, 1]
  monkeypatch.setattr(files, '_MAX_LINE', 1000)
  with pytest.raises(errors.UserError, match='line 2 has more than 1000 bytes'):
    list(files.tab_separated(path))
  assert list(files.tab_separated(path, skip=True)) == [
      ('a', 'b'),
      None,
      ('e', 'f'),
  ]


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'x.tsv')
  with pytest.raises(errors.UserError, match='x.tsv is a pipe or a device'):
    list(files.tab_separated(tmp_path / 'x.tsv'))


def test_whole_surrogate_pairs_and_control_characters_are_text(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text(r'{"q": "\ud83d\ude00", "a": "\u0000\u2028"}')
  assert read_json(path) == [('😀', '\0\u2028')]


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'x.txt').write_text('a\n')
  assert list(files.texts('~/x.txt', 'inputs')) == ['a']


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
  with pytest.raises(errors.UserError, match='b has 1 lines and .*a has more'):
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
  with pytest.raises(errors.UserError, match='cannot be read: it is a folder'):
    read_json(tmp_path)


class InBucket(contextlib.closing):
  """An open file that can do what one that TensorFlow opens can."""

  mode = 'rb'

  def __enter__(self):
    self.read = self.thing.read
    return self


def test_files_in_the_home_folder_and_in_buckets_are_read(
    tmp_path, monkeypatch
):
  line = json.dumps({'q': 'a', 'a': 'b'})
  write(tmp_path / 'x.jsonl', '\n'.join([line] * 9999))
  (tmp_path / 'x.jsonl.gz').write_bytes(gzip.compress(line.encode()))
  monkeypatch.setenv('HOME', str(tmp_path))
  assert read_json('~/x.jsonl') == [('a', 'b')] * 9999
  for backend in (epath.backend.tf_backend, epath.backend.fsspec_backend):
    monkeypatch.setattr(
        backend,
        'open',
        lambda path, mode: InBucket(open(tmp_path / path.split('/')[-1], mode)),
    )
  assert read_json('gs://bucket/x.jsonl') == [('a', 'b')] * 9999
  assert read_json('gs://bucket/x.jsonl.gz') == [('a', 'b')]
  for backend in (epath.backend.tf_backend, epath.backend.fsspec_backend):
    monkeypatch.setattr(backend, 'open', lambda path, mode: 1 / 0)
  with pytest.raises(errors.UserError, match='cannot be read: division by'):
    read_json('gs://bucket/x.jsonl')
