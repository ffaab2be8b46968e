from distillspec_jax.training import progress


def test_without_a_terminal_it_prints_the_first_and_the_last_line(capfd):
  with progress.Progress(10, 4, 'run') as bar:
    for step in range(5, 11):
      bar.update(step, {'loss': 1.0 / step, 'acceptance_rate': 0.5})
  lines = capfd.readouterr().err.splitlines()
  assert lines[0].startswith('run: step 5/10')
  assert lines[-1].startswith('run: step 10/10')
  assert len(lines) == 2
  for part in ('loss 0.100', 'acceptance_rate 0.500', 'steps/s', 's left'):
    assert part in lines[-1]


def test_lines_come_every_few_seconds(capfd, monkeypatch):
  monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', 0.0)
  with progress.Progress(3, 0, 'run') as bar:
    for step in (1, 2, 3):
      bar.update(step, {})
  assert len(capfd.readouterr().err.splitlines()) == 3


def test_scalars_are_written_for_tensorboard(tmp_path):
  writer = progress.MetricsWriter(tmp_path / 'metrics')
  writer.write(1, {'loss': 0.5})
  writer.close()
  (file,) = (tmp_path / 'metrics').glob('events*')
  assert b'loss' in file.read_bytes()
