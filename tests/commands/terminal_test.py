"""The first process prints, and cells are not wrapped in files."""

import jax
import pytest
import rich.table

from distillspec_jax.commands import terminal


@pytest.mark.parametrize('index', [0, 1])
def test_the_first_process_prints(monkeypatch, capsys, index):
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  table = rich.table.Table('decoding', title='title')
  table.add_row('long ' * 30)
  terminal.print_tables([table])
  terminal.print_path('runs/x')
  printed = capsys.readouterr()
  assert printed.out == ('runs/x\n' if index == 0 else '')
  assert ('long ' * 30 in printed.err) == (index == 0)
