from distillspec_jax.training import tensorboard


def test_scalars_are_written(tmp_path):
  writer = tensorboard.MetricsWriter(tmp_path / 'metrics')
  writer.write(1, {'loss': 0.5})
  writer.close()
  (file,) = (tmp_path / 'metrics').glob('events*')
  assert b'loss' in file.read_bytes()
