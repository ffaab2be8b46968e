"""examples.jsonl: what is written is read, once."""

import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import example_records
from distillspec_jax.core import results

INPUTS = 'abc'


def write(folder, emitted, draft='distilled', **columns):
  line = results.write(
      folder,
      'acceptance',
      target='t',
      draft=draft,
      task='code',
      split='test',
      decoding={'temperature': 0.0},
      metrics={'tokens': results.Metric(1.0, None, 2, 'tokens')},
      seed=3,
  )
  quality = {'rouge2': np.array([0.25, np.nan])}
  columns = {'emitted': np.array(emitted), 'outputs': ['a', 'b'], **columns}
  example_records.write(folder, line, INPUTS, columns, quality)
  return line


def test_a_record_says_what_was_decoded_and_counted(tmp_path):
  line = write(
      tmp_path / 'run', [5, 7], reached_at=np.array([[1, 2], [3, 4]]),
      expected=np.array([0.123456789, 2.0], np.float32),
  )  # fmt: skip
  first, second = example_records.read(tmp_path / 'run' / 'examples.jsonl')
  assert first == {
      **{name: line[name] for name in (
          'run', 'target', 'draft', 'draft_folder', 'task', 'split', 'decoding'
      )},
      'seed': 3, 'inputs': INPUTS, 'example': 0, 'emitted': 5,
      'reached_at': [1, 2], 'expected': 0.123457, 'quality': {'rouge2': 0.25},
  }  # fmt: skip
  assert (second['example'], second['quality']) == (1, {'rouge2': None})


def test_of_a_repeated_measurement_the_newest_counts(tmp_path):
  write(tmp_path, [5, 7])
  write(tmp_path, [1, 2], draft='fine-tuned')
  write(tmp_path, [6, 8])
  records = example_records.read(tmp_path / 'examples.jsonl')
  assert [r['emitted'] for r in records] == [1, 2, 6, 8]
  # A line that a dying process truncated is left out, and overwritten.
  with (tmp_path / 'examples.jsonl').open('a') as file:
    file.write('{"run": ')
  assert example_records.read(tmp_path / 'examples.jsonl') == records
  write(tmp_path, [6, 9])
  assert example_records.read(tmp_path / 'examples.jsonl')[-1]['emitted'] == 9


def test_a_measurement_that_fails_leaves_no_records(tmp_path):
  with pytest.raises(RuntimeError):
    with results.together():
      write(tmp_path, [5, 7])
      raise RuntimeError
  assert not (tmp_path / 'examples.jsonl').exists()
  with results.together():
    write(tmp_path, [5, 7])
    assert not (tmp_path / 'examples.jsonl').exists()
  assert len(example_records.read(tmp_path / 'examples.jsonl')) == 2


@pytest.mark.parametrize('line', ['[1]', '{"run": "x"}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
  path = tmp_path / 'examples.jsonl'
  path.write_text(f'{line}\n')
  with pytest.raises(errors.UserError, match='examples.jsonl, line 1 is not a'):
    example_records.read(path)
