import pytest

from distillspec_jax.training import tensorboard


def scalars(folder):
  """(step, name, value) of all files, as they were written."""
  return [
      (event.step, value.tag, value.simple_value)
      for path in sorted(folder.glob('*tfevents*'))
      for event in tensorboard._events(path)
      for value in event.summary.value
  ]


def test_scalars_are_written_and_can_be_read_before_the_end(tmp_path):
  writer = tensorboard.MetricsWriter(tmp_path)
  writer.write(1, {'loss': 0.5, 'rate': 2.0})
  writer.flush()
  expected = [(1, 'loss', 0.5), (1, 'rate', 2.0)]
  assert scalars(tmp_path) == expected
  writer.close()
  assert scalars(tmp_path) == expected


@pytest.mark.parametrize('cut', [0, 1, 15, 30], ids=str)
def test_a_run_that_is_resumed_has_every_step_once(tmp_path, cut):
  for resumed_at, steps in ((-1, (0, 1, 2, 3)), (2, (3, 4)), (4, (5,))):
    writer = tensorboard.MetricsWriter(tmp_path, resumed_at)
    for step in steps:
      writer.write(step, {'loss': step / 4})
    writer.close()
    if resumed_at < 0:  # it was killed while it wrote the last event
      (file,) = tmp_path.glob('*tfevents*')
      file.write_bytes(file.read_bytes()[: -cut or None])
  assert scalars(tmp_path) == [(step, 'loss', step / 4) for step in range(6)]
  assert len(list(tmp_path.iterdir())) == 1


def test_a_kill_between_the_new_file_and_the_removal_doubles_nothing(
    tmp_path, monkeypatch
):
  writer = tensorboard.MetricsWriter(tmp_path)
  writer.write(1, {'loss': 0.5})
  writer.close()
  with monkeypatch.context() as patch:
    patch.setattr(tensorboard.pathlib.Path, 'unlink', lambda self: None)
    tensorboard.MetricsWriter(tmp_path, 1).close()
  assert len(list(tmp_path.iterdir())) == 2
  tensorboard.MetricsWriter(tmp_path, 1).close()
  assert scalars(tmp_path) == [(1, 'loss', 0.5)]


def test_a_run_that_starts_anew_begins_with_nothing(tmp_path):
  for _ in range(2):
    writer = tensorboard.MetricsWriter(tmp_path)
    writer.write(0, {'loss': 1.0})
    writer.close()
  assert scalars(tmp_path) == [(0, 'loss', 1.0)]
