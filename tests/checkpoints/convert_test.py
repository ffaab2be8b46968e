"""The command prints the report and returns the folder."""

import inspect

from etils import epath

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import convert
from distillspec_jax.checkpoints import hugging_face
from tests.checkpoints import models


def test_the_report_is_printed(tmp_path, capsys):
  config = models.CONFIG
  (tmp_path / 'm').mkdir()
  tensors = models.as_tensors(models.random_arrays(config))
  hugging_face.write(epath.Path(tmp_path / 'm'), config, tensors)
  folder = convert.convert(str(tmp_path / 'm'), str(tmp_path / 'out'))
  assert folder == epath.Path(tmp_path / 'out')
  assert 'largest logit difference   0\n' in capsys.readouterr().out


def test_its_flags_are_those_of_the_function():
  signature = inspect.signature(conversion.convert)
  assert inspect.signature(convert.convert) == signature
