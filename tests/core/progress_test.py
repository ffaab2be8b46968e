"""What is shown without a terminal, and with one."""

import io
import itertools

import jax
import pytest
import rich.console

from distillspec_jax.core import progress


def test_items_pass_through_and_quick_work_is_silent(capsys):
  assert list(progress.shown([3, 1, 2], 'greedy')) == [3, 1, 2]
  assert capsys.readouterr().err == ''


def test_slow_work_prints_a_line_every_few_seconds(capsys, monkeypatch):
  seconds = iter([0.0, 3.0, 6.0, 9.0, 12.0])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(seconds))
  assert list(progress.shown('abcd', 'greedy')) == list('abcd')
  assert capsys.readouterr().err == (
      'greedy: 2/4  0.333/s  6 s left\ngreedy: 4/4  0.333/s  0 s left\n'
  )


def test_steps_print_the_first_and_the_last_line(capsys):
  with progress.Progress('run', 10, 4) as shown:
    for step in range(5, 11):
      shown.update(step, f'loss {1 / step:.3f}')
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2
  assert lines[0].startswith('run: 5/10  loss 0.200  ')
  assert lines[1].startswith('run: 10/10  loss 0.100  ')
  assert lines[1].endswith('/s  0 s left')


@pytest.mark.parametrize(
    'left, text',
    [(45, '45 s'), (119, '119 s'), (719, '12 min'), (11_100, '3 h 5 min')],
)
def test_the_time_left_is_in_units_that_one_reads(
    capsys, monkeypatch, left, text
):
  seconds = iter([0.0, float(left)])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(seconds))
  with progress.Progress('run', 2) as shown:
    shown.update(1)
  assert capsys.readouterr().err.endswith(f'  {text} left\n')


def test_lines_come_every_few_seconds(capsys, monkeypatch):
  monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', 0.0)
  with progress.Progress('run', 3) as shown:
    for step in (1, 2, 3):
      shown.update(step)
  assert len(capsys.readouterr().err.splitlines()) == 3


def test_long_work_prints_few_lines(capsys, monkeypatch):
  monkeypatch.setattr(progress.time, 'monotonic', itertools.count().__next__)
  with progress.Progress('run', 20_000) as shown:
    for step in range(1, 20_001):  # a second each
      shown.update(step)
  assert 50 < len(capsys.readouterr().err.splitlines()) < 150  # not 4,000


def test_a_notebook_gets_no_escape_codes(capsys, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')  # as ipykernel sets it
  with progress.Progress('run', 1) as shown:
    shown.update(1)
  progress.console().print('[bold]text')
  assert '\x1b' not in capsys.readouterr().err
  # Twin: rich would believe in a terminal.
  rich.console.Console(stderr=True).print('[bold]text')
  assert '\x1b' in capsys.readouterr().err


def test_a_terminal_in_a_notebook_is_none(monkeypatch):
  monkeypatch.setattr(progress.sys.stderr, 'isatty', lambda: True)
  monkeypatch.delenv('JPY_PARENT_PID', raising=False)
  assert not progress.is_plain()
  monkeypatch.setenv('JPY_PARENT_PID', '1')
  assert progress.is_plain()


@pytest.mark.parametrize('index', [0, 1])
def test_a_terminal_gets_a_bar_from_the_first_process(monkeypatch, index):
  screen = io.StringIO()
  terminal = rich.console.Console(
      file=screen, force_terminal=True, width=120, legacy_windows=False
  )
  monkeypatch.setattr(progress, 'is_plain', lambda: False)
  monkeypatch.setattr(rich.console, 'Console', lambda **_: terminal)
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  with progress.Progress('run', 2) as shown:
    shown.update(2, 'loss 0.5')
  assert ('loss 0.5' in screen.getvalue()) == (index == 0)
