"""Large splits are tokenised once, and read as if they were in memory."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import batches
from distillspec_jax.data import examples as examples_lib
from distillspec_jax.data import prepared
from distillspec_jax.data import reading
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabulary_kinds

COUNT = 37


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(prepared, '_PART', 10)
  monkeypatch.setattr(prepared, 'CHUNK', 4)


def make(folder, count=COUNT, **changes):
  path = folder / 'x.jsonl'
  if not path.exists():
    rows = [
        {'inputs': f'{i} ' * (i % 5), 'labels': '' if i == 20 else f'a{i}' * 3}
        for i in range(count)
    ]
    lines = [json.dumps(row) for row in rows]
    lines.insert(12, '?')
    path.write_text('\n'.join(lines))
  return tasks.json_lines(
      **{
          'train': str(path),
          'validation': str(path),
          'on_bad_line': 'skip',
          'vocabulary': 'bytes',
          'input_length': 8,
          'label_length': 8,
          'cache': str(folder / 'cache'),
          'max_tokens_in_memory': 0,
          **changes,
      }
  )


def in_memory(folder):
  cache = f'{folder}/unused'
  return make(folder, max_tokens_in_memory=10**6, cache=cache)


def folder_of(folder, split='train'):
  (found,) = (folder / 'cache').glob(f'json_lines-{split}-*')
  return found


def check_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def count_tokenised(monkeypatch):
  """Counts the texts that are tokenised from now on."""
  counts = []
  whole = vocabulary_kinds.Bytes.encode_all

  def encode_all(self, texts):
    counts.append(len(texts))
    return whole(self, texts)

  monkeypatch.setattr(vocabulary_kinds.Bytes, 'encode_all', encode_all)
  return counts


def test_prepared_examples_are_those_in_memory(tmp_path, capsys):
  large, small = make(tmp_path), in_memory(tmp_path)
  files, memory = large.examples('train'), small.examples('train')
  assert isinstance(files, prepared.Prepared)
  assert isinstance(memory, examples_lib.InMemory)
  assert len(files) == len(memory) == COUNT - 1
  for one, other in zip(files, memory):
    check_equal(tuple(one), (other.inputs[:8], other.labels[:8]))
  check_equal(files[-1].labels, memory[-1].labels[:8])
  statistics = [batches.statistics(task, 'train') for task in (large, small)]
  assert statistics[0] == statistics[1]
  assert large.skipped_lines('train') == 1
  assert 'more than 0 tokens; it is tokenised once' in capsys.readouterr().err


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('start', [0, 3, 11])
def test_batches_are_those_of_memory_at_any_start(tmp_path, pack, start):
  settings = dict(seed=3, pack=pack, start=start)
  pairs = zip(
      batches.batches(make(tmp_path), 'train', 4, **settings),
      batches.batches(in_memory(tmp_path), 'train', 4, **settings),
  )
  for _, (one, other) in zip(range(6), pairs):
    check_equal(one, other)


def test_a_second_start_tokenises_next_to_nothing(tmp_path, monkeypatch):
  make(tmp_path).examples('train')
  counts = count_tokenised(monkeypatch)
  monkeypatch.setattr(prepared.fingerprints, '_FIRST', 4)
  make(tmp_path, cache=f'{tmp_path}/other').examples('train')
  assert sum(counts) > 2 * COUNT - 4
  counts.clear()
  make(tmp_path, cache=f'{tmp_path}/other').examples('train')
  assert sum(counts) == 2 * 4  # the first examples are compared


def test_an_interrupted_preparation_continues(tmp_path, monkeypatch, capsys):
  whole, calls = tasks.json_lines.tokenise, []

  def interrupted(self, raw):
    calls.append(len(raw))
    if len(calls) == 9:  # 1 to compare the first, 3 for each part
      raise KeyboardInterrupt
    return whole(self, raw)

  with monkeypatch.context() as patched:
    patched.setattr(tasks.json_lines, 'tokenise', interrupted)
    with pytest.raises(KeyboardInterrupt):
      make(tmp_path).examples('train')
  left = sorted(path.name for path in folder_of(tmp_path).glob('part-*.json'))
  assert left == ['part-00000.json', 'part-00001.json']
  before = (folder_of(tmp_path) / left[0]).read_text()
  with monkeypatch.context() as patched:
    counts = count_tokenised(patched)
    continued = make(tmp_path).examples('train')
  assert 'continues after 2 parts' in capsys.readouterr().err
  assert (folder_of(tmp_path) / left[0]).read_text() == before
  assert sum(counts[2:]) == 2 * (COUNT + 1 - 20)
  check_equal(list(continued), list(make(tmp_path).examples('train')))
  assert len(continued) == COUNT - 1


@pytest.mark.parametrize('damage', ['complete', 'version', 'records', 'lost'])
def test_what_is_not_whole_is_never_read(tmp_path, capsys, damage):
  expected = list(make(tmp_path).examples('train'))
  folder = folder_of(tmp_path)
  records = next(folder.glob('part-00001-*.records'))
  complete = folder / 'complete.json'
  if damage == 'complete':
    complete.write_text(complete.read_text()[:-20])
  elif damage == 'version':
    prepared._write_json(complete, {'parts': [], 'format': 0})
  elif damage == 'records':
    records.write_bytes(records.read_bytes()[:-1])
  else:
    records.unlink()
  capsys.readouterr()
  check_equal(list(make(tmp_path).examples('train')), expected)
  error = capsys.readouterr().err
  assert f'{folder} ' in error and 'it is prepared again' in error
  assert list(make(tmp_path).examples('train'))
  assert 'prepared again' not in capsys.readouterr().err


@pytest.mark.parametrize(
    'changes',
    [
        {'input_length': 7},
        {'prefix': '> '},
        {'labels': 'inputs'},
        {'max_examples': 5},
        {'vocabulary': vocabulary_kinds.Bytes(['a'])},
    ],
)
def test_other_settings_make_other_files(tmp_path, changes):
  make(tmp_path).examples('train')
  make(tmp_path, **changes).examples('train')
  assert len(list((tmp_path / 'cache').iterdir())) == 2


def test_another_source_makes_other_files(tmp_path):
  make(tmp_path).examples('train')
  with open(tmp_path / 'x.jsonl', 'a') as file:
    file.write('\n' + json.dumps({'inputs': 'x', 'labels': 'new'}))
  assert len(make(tmp_path).examples('train')) == COUNT
  # What does not change the tokens makes none.
  assert len(make(tmp_path, name='other').examples('train')) == COUNT
  assert len(list((tmp_path / 'cache').glob('json_lines-*'))) == 2


def test_a_task_of_ones_own_is_identified_by_its_code(tmp_path):
  @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
  class words(tasks.Task):
    splits = ('train',)
    name: str = 'words'

    def read(self, split):
      return ((word, word) for word in ('a', 'b'))

  class more(words):

    def read(self, split):
      return ((word, word) for word in ('a', 'b', 'c'))

  settings = dict(
      vocabulary='bytes', cache=str(tmp_path / 'cache'), max_tokens_in_memory=0
  )
  assert len(words(**settings).examples('train')) == 2
  assert len(more(**settings).examples('train')) == 3


@pytest.mark.parametrize('is_shared', [True, False])
def test_each_host_prepares_its_share(tmp_path, monkeypatch, is_shared):
  expected = list(in_memory(tmp_path).examples('train'))
  written = {0: [], 1: []}
  commit = prepared._Writer.commit
  host = [0]

  def record(writer):
    written[host[0]].append(writer._number)
    commit(writer)

  def other_host():  # reaches its first part when host 0 has done its share
    if host == [0] and is_shared and len(written[0]) == 2:
      host[0] = 1
      make(tmp_path).examples('train')
      host[0] = 0

  whole = prepared._write_parts

  def write_parts(*arguments):
    total = whole(*arguments)
    other_host()
    return total

  monkeypatch.setattr(prepared._Writer, 'commit', record)
  monkeypatch.setattr(prepared, '_write_parts', write_parts)
  monkeypatch.setattr(prepared.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(prepared.jax, 'process_index', lambda: host[0])
  examples = make(tmp_path).examples('train')
  assert [e.labels.tolist() for e in examples] == [
      e.labels[:8].tolist() for e in expected
  ]
  if is_shared:
    assert written == {0: [0, 2], 1: [1, 3]}
  else:
    assert written == {0: [0, 2, 1, 3], 1: []}


def test_files_in_a_bucket_are_copied_here(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
  expected = list(make(tmp_path).examples('train'))
  monkeypatch.setattr(prepared, '_is_remote', lambda path: 'cache' in str(path))
  copied = make(tmp_path).examples('train')
  check_equal(list(copied), expected)
  kept = tmp_path / 'home' / 'distillspec_jax' / 'buckets'
  assert len(list(kept.rglob('*.records'))) == 4


def test_without_a_folder_large_splits_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(prepared.cache, 'folder', lambda kind: None)
  with pytest.raises(errors.UserError, match='no folder .* Set `cache`, or'):
    make(tmp_path, cache=None).examples('train')
  assert len(
      make(tmp_path, cache=None, max_tokens_in_memory=9999).texts('train')
  )
  prepared.use_folder(str(tmp_path / 'given'))
  try:
    make(tmp_path, cache=None).examples('train')
  finally:
    prepared.use_folder(None)
  assert len(list((tmp_path / 'given').iterdir())) == 1


# The order.


@pytest.mark.parametrize('listed', [0, 2**20])
def test_an_epoch_has_every_row_once_in_an_order_of_its_own(
    monkeypatch, listed
):
  monkeypatch.setattr(reading, '_LISTED', listed)
  order = reading.Order(50, 0, True, 3)
  epochs = [[order[50 * e + i] for i in range(50)] for e in range(3)]
  assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  other = reading.Order(50, 1, True, None)
  assert [other[i] for i in range(50)] not in epochs
  assert len(order) == 150


def test_packing_does_not_depend_on_the_window(tmp_path, monkeypatch):
  examples = make(tmp_path).examples('train')
  whole = reading.Rows(examples, (8, 24), True)
  monkeypatch.setattr(reading, '_WINDOW', 5)
  parts = reading.Rows(examples, (8, 3), True)
  assert len(parts) == len(examples)  # each label fills a row
  monkeypatch.setattr(reading, '_WINDOW', 50)
  again = reading.Rows(examples, (8, 24), True)
  rows = [whole.numbers(row) for row in range(len(whole))]
  assert rows == [again.numbers(row) for row in range(len(again))]
  assert sorted(sum(rows, [])) == list(range(len(examples)))
  assert len(whole) < len(examples)
