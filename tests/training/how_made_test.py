"""A run has one line that tells how its model was made."""

from distillspec_jax.core import results
from distillspec_jax.training import how_made
from tests import tiny


def test_it_is_written_once_for_the_same_settings(tmp_path):
  target, draft = tiny.target(), tiny.draft()
  task = tiny.task(tmp_path / 'task')
  run = tmp_path / 'run'
  for settings in ({'a': '1'}, {'a': '1'}, {'a': '2'}):
    how_made.record(run, settings, draft, target, task, seed=3)
  lines = results.read(run / 'results.jsonl')
  assert [line['decoding'] for line in lines] == [{'a': '1'}, {'a': '2'}]
  assert {line['kind'] for line in lines} == {'run'}
  sizes = lines[0]['metrics']
  assert 0 < sizes['parameters']['value'] <= sizes['target_parameters']['value']
  assert lines[0]['provenance']['seed'] == 3
