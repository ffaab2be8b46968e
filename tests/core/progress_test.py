"""What is shown without a terminal."""

from distillspec_jax.core import progress


def test_items_pass_through_and_quick_work_is_silent(capsys):
  assert list(progress.shown([3, 1, 2], 'greedy')) == [3, 1, 2]
  assert capsys.readouterr().err == ''


def test_slow_work_says_how_far_it_is(capsys, monkeypatch):
  seconds = iter([0.0, 3.0, 6.0, 9.0, 12.0])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(seconds))
  assert list(progress.shown('abcd', 'greedy')) == list('abcd')
  assert capsys.readouterr().err == 'greedy: 2/4\ngreedy: 4/4\n'
