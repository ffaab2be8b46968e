"""The command prints how both sides compare, and the folder."""

import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.commands import main


@pytest.mark.usefixtures('fresh_configuration')
def test_it_prints_the_comparison_and_the_folder(pair, tmp_path, capsys):
  folder = tmp_path / 'out'
  arguments = ['convert', pair['draft'], str(folder), '--to=hugging_face']
  assert main.main(arguments) == 0
  *report, last = capsys.readouterr().out.splitlines()
  assert last == str(folder)
  assert any(line.startswith('tensors matched by path') for line in report)
  config = loading.load(pair['draft']).config
  assert loading.load(folder).config.emb_dim == config.emb_dim
  assert main.main(arguments) == 2
  assert 'distillspec: ' in capsys.readouterr().err
