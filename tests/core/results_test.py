"""results.jsonl: what is written can be read, and damage is named."""

import json
import math

import numpy as np
import pytest

from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import results


def add(path, kind='acceptance', **metrics):
  """Appends a line to the file, which is named as results are."""
  metrics = metrics or {
      'expected_acceptance': results.Metric(0.5, 0.01, 8, '1')
  }
  return results.write(
      path.parent,
      kind,
      target='target',
      draft='distilled',
      task='toy',
      split='validation',
      decoding={'temperature': 0.0, 'block_length': 5},
      metrics=metrics,
      seed=3,
  )


def test_what_is_written_is_read(tmp_path):
  path = tmp_path / 'new' / 'results.jsonl'
  written = [add(path), add(path, 'latency')]
  assert results.read(path) == written
  assert path.read_text().count('\n') == 2
  metric = {'value': 0.5, 'standard_error': 0.01, 'count': 8, 'unit': '1'}
  assert written[0]['metrics'] == {'expected_acceptance': metric}
  assert written[1]['kind'] == 'latency'


def test_provenance_names_code_configuration_seed_device_and_time(
    tmp_path, monkeypatch
):
  known = configuration.Configuration('a = 1', 'abc')
  monkeypatch.setattr(configuration, '_current', known)
  line = add(tmp_path / 'results.jsonl')
  provenance = line['provenance']
  assert (provenance['seed'], provenance['config_hash']) == (3, 'abc')
  assert provenance['device'] and provenance['jax']
  assert provenance['time_utc'].endswith('Z')
  assert isinstance(provenance['git'], str)


def test_lines_are_written_together_or_not_at_all(tmp_path):
  path = tmp_path / 'new' / 'results.jsonl'
  with pytest.raises(KeyboardInterrupt):
    with results.together():
      add(path)
      raise KeyboardInterrupt
  assert not path.exists()
  add(path)
  with results.together():
    add(path, 'latency')
    add(path, 'certificate')
    assert len(results.read(path)) == 1
  kinds = [line['kind'] for line in results.read(path)]
  assert kinds == ['acceptance', 'latency', 'certificate']
  add(path)
  assert len(results.read(path)) == 4


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_the_file_is_json_whatever_was_measured(tmp_path, value):
  path = tmp_path / 'results.jsonl'

  def refuse(constant):
    raise AssertionError(f'{constant} is no JSON')

  def check():
    line = json.loads(path.read_text(), parse_constant=refuse)
    assert line['metrics']['step']['standard_error'] is None
    (read,) = results.read(path)
    assert math.isnan(read['metrics']['x']['value'])

  number = results.Metric(1, value, 1, 's')
  add(path, 'training', x=results.Metric(value, None, 1, 's'), step=number)
  check()
  results.drop_after(tmp_path, 1)
  check()


@pytest.mark.parametrize(
    'kind, metrics, message',
    [
        ('speed', {}, "kind is 'speed'; it must be one of 'run'"),
        ('latency', {'x': results.Metric('1', None, 1, 's')}, "Metric 'x' is"),
        ('latency', {'x': results.Metric(None, None, 1, 's')}, "Metric 'x' is"),
    ],
)
def test_invalid_results_are_refused(tmp_path, kind, metrics, message):
  path = tmp_path / 'results.jsonl'
  with pytest.raises(ValueError, match=message):
    add(path, kind, **metrics)
  assert not path.exists()


def test_a_result_needs_a_metric(tmp_path):
  with pytest.raises(ValueError, match='needs at least one metric'):
    results.write(
        tmp_path, 'plan', target=None, draft=None, task='t', split='s',
        decoding=None, metrics={}, seed=0,
    )  # fmt: skip


def test_a_truncated_last_line_is_skipped(tmp_path):
  path = tmp_path / 'results.jsonl'
  kept = add(path)
  with path.open('a') as file:
    file.write('{"kind": "acc')
  assert results.read(path) == [kept]


def test_writing_after_a_truncated_line_replaces_it(tmp_path):
  path = tmp_path / 'results.jsonl'
  first = add(path)
  with path.open('a') as file:
    file.write('{"kind": "acc')
  second = add(path)
  assert results.read(path) == [first, second]


def test_writing_after_a_line_without_a_newline_keeps_it(tmp_path):
  path = tmp_path / 'results.jsonl'
  first = add(path)
  path.write_text(path.read_text().rstrip('\n'))
  assert results.read(path) == [first]
  second = add(path)
  assert results.read(path) == [first, second]


def test_a_line_that_is_not_json_is_named(tmp_path):
  path = tmp_path / 'results.jsonl'
  add(path)
  path.write_text(path.read_text() + 'nonsense\n')
  add(path)
  with pytest.raises(errors.UserError, match=r'results\.jsonl, line 2 is not'):
    results.read(path)


def test_a_complete_last_line_that_is_not_json_is_named(tmp_path):
  path = tmp_path / 'results.jsonl'
  for text in ('nonsense', '[' * 100_000):
    path.write_text(text + '\n')
    with pytest.raises(errors.UserError, match='line 1 is not JSON'):
      results.read(path)


def test_an_absent_file_is_named(tmp_path):
  with pytest.raises(errors.UserError, match='no results file .*absent'):
    results.read(tmp_path / 'absent')


def without(name):
  return lambda line: line.pop(name)


@pytest.mark.parametrize(
    'damage, message',
    [
        (without('kind'), "'kind' is missing"),
        (without('provenance'), "'provenance' is missing"),
        (lambda line: line.update(kind='speed'), "'kind' is 'speed'"),
        (lambda line: line.update(task=3), "'task' is 3"),
        (lambda line: line['metrics'].update(x=1), "metric 'x' is 1"),
        (lambda line: line['metrics'].update(x={}), "'x' lacks 'value'"),
        (
            lambda line: line['metrics']['expected_acceptance'].update(
                value='a'
            ),
            "has the value 'a'",
        ),
        (
            lambda line: line['metrics']['expected_acceptance'].update(
                standard_error='a'
            ),
            "has the error 'a'",
        ),
        (lambda line: line.update(kind='training'), "no metric 'step'"),
        (lambda line: line['provenance'].pop('seed'), "lacks 'seed'"),
        (lambda line: line['provenance'].update(seed='a'), "'seed' is 'a'"),
        (lambda line: line['provenance'].update(time_utc=5), "'time_utc' is 5"),
        (
            lambda line: line.update(decoding={'temperature': 'hot'}),
            "its 'temperature' is 'hot'",
        ),
        (lambda line: line.update(draft='\ud83d'), 'which is not Unicode'),
    ],
)
def test_a_line_that_is_not_a_result_is_named(tmp_path, damage, message):
  path = tmp_path / 'results.jsonl'
  line = add(path)
  damage(line)
  path.write_text(path.read_text() + json.dumps(line) + '\n')
  with pytest.raises(
      errors.UserError, match=f'line 2 is not a result.*{message}'
  ):
    results.read(path)


def test_a_line_that_is_not_an_object_is_named(tmp_path):
  path = tmp_path / 'results.jsonl'
  path.write_text('[1]\n')
  with pytest.raises(errors.UserError, match='it is list, not an object'):
    results.read(path)


def test_training_lines_after_a_step_are_dropped(tmp_path):
  path = tmp_path / 'results.jsonl'
  for step in (10, 20, 30):
    add(path, 'training', step=results.Metric(step, None, 1, 'step'))
  other = add(path, 'training', step=results.Metric(90, None, 1, 'step'))
  other['run'] = 'moved here from elsewhere'
  path.write_text(
      ''.join(path.read_text().splitlines(True)[:-1]) + json.dumps(other) + '\n'
  )
  measured = add(path)
  results.drop_after(tmp_path, 20)
  kept = results.read(path)
  assert [line['metrics']['step']['value'] for line in kept[:2]] == [10, 20]
  assert kept[2:] == [other, measured]
  assert [file.name for file in tmp_path.iterdir()] == ['results.jsonl']


@pytest.mark.parametrize(
    'examples, fault',
    [
        (None, "'examples' is None"),
        ({'inputs': 'a'}, "'examples' is"),
        ({'inputs': 'a', 'metrics': {'x': [1, 2]}}, "'examples' is"),
        ({'inputs': 'a', 'metrics': {'x': [[1], [1, 2]]}}, 'different lengths'),
    ],
)
def test_examples_that_are_none_are_refused(tmp_path, examples, fault):
  path = tmp_path / 'results.jsonl'
  line = add(path)
  path.write_text(json.dumps({**line, 'examples': examples}) + '\n')
  with pytest.raises(errors.UserError, match=fault):
    results.read(path)


def test_examples_are_kept(tmp_path):
  path = tmp_path / 'results.jsonl'
  add(path)
  columns = np.array([1.0000004, 2.0]), np.array([3, 4])
  results.write(
      tmp_path, 'acceptance', target=None, draft=None, task='', split='',
      decoding=None, metrics={'x': results.Metric(1.0, None, 2, '1')}, seed=0,
      examples=results.Examples(
          'abc', {'x': columns, 'y': (np.array([1.0, np.nan]),)}
      ),
  )  # fmt: skip
  _, line = results.read(path)
  assert line['examples'] == {
      'inputs': 'abc', 'metrics': {'x': [[1.0, 2.0], [3, 4]]},
  }  # fmt: skip


def test_a_folder_of_a_draft_is_the_same_from_everywhere(tmp_path, monkeypatch):
  (tmp_path / 'draft').mkdir()
  monkeypatch.chdir(tmp_path)
  folders = {
      results.write(
          tmp_path / 'run', 'acceptance', target=None, draft='d', task='',
          split='', decoding=None, seed=0, draft_folder=folder,
          metrics={'x': results.Metric(1.0, None, 2, '1')},
      )['draft_folder']
      for folder in ('draft', './draft', str(tmp_path / 'draft'))
  }  # fmt: skip
  assert folders == {str(tmp_path / 'draft')}
