"""Runs a study: many runs, each once, and one page.

A study is an object with `kind`, `axes`, `setup` and `build(builder)`, which
asks the builder for models, measurements and rows. It may have `averages(root,
rows)`, over rows that are measured, and `finish(root, builder)`, after all
stages.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import sys
from typing import Any, Protocol

from distillspec_jax.checkpoints import store
from distillspec_jax.core import configuration
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import sources
from distillspec_jax.core import study_file
from distillspec_jax.distributed import hosts
from distillspec_jax.distributed import locks
from distillspec_jax.reporting import report as report_lib
from distillspec_jax.studies import builder as builder_lib
from distillspec_jax.studies import setup as setup_lib
from distillspec_jax.studies import stages as stages_lib


class Study(Protocol):
  """What a kind of study is made of; the module says more."""

  kind: str
  axes: tuple[str, ...]
  setup: setup_lib.Setup

  def build(self, builder: builder_lib.Builder) -> None:
    """Adds all stages and rows; raises UserError for what does not fit."""


def run_study(
    *,
    run: str,
    study: Any,
    title: str | None = None,
    show: Callable[[str, list[Any]], None] | None = None,
    is_dry_run: bool = False,
) -> str:
  """Does all stages of a study and writes its page, whose path is returned.

  Args:
    run: the study's folder; created if it is absent.
    study: an `Experiment`, a `Grid`, a `Garden`, a `Transfer` or a `Lossy`.
    title: of the page; default: the kind of study and the task.
    show: gets titles and measurements of evaluate and benchmark, for tables.
    is_dry_run: does nothing, and returns a text about what would be done.

  Raises:
    UserError: anything that is wrong with the settings, before work starts.
    Failed: some stages failed; the others were done.
  """
  root = sources.run_folder(run)
  builder = _built(root, study, show)
  if is_dry_run:
    return '\n'.join(_listed(root, builder))
  root = store.check_writable(run)

  def write(failed: dict[str, str]) -> None:
    if hosts.is_first():
      _write(root, study, builder, title, failed)

  if hosts.is_first():
    _warn_of_change(root)
    configuration.write(root)
  with locks.held(root / locks.FILE):
    write({})
    failed = stages_lib.run(root, builder.stages, write)
    write(failed)
    page = ''
    if hosts.is_first():  # the others wait for it when they leave
      if not failed and hasattr(study, 'finish'):
        study.finish(root, builder)
      if any(root.rglob(results.FILE)):
        page = str(report_lib.report(run=str(root)))
  if failed:
    causes = list(dict.fromkeys(failed.values()))
    raise errors.Failed(
        f'{len(failed)} of {len(builder.stages)} stages are not done:'
        f' {"; ".join(causes)}. The others are, see {page or root}. Start the'
        ' study again to try these again.'
    )
  return page


def _listed(root: pathlib.Path, builder: builder_lib.Builder) -> list[str]:
  """One line for each stage, and the rows; nothing is done or written."""
  states = stages_lib.states(root, builder.stages)
  lines = [
      f'{states[stage.name]:8} {stage.what:10} {stage.name}'
      for stage in builder.stages
  ]
  for row in builder.rows:
    labels = ', '.join(f'{axis} {value}' for axis, value in row.labels.items())
    against = f', compared with {row.control}' if row.control else ''
    lines.append(f'row: {row.name}, seed {row.seed} ({labels}){against}')
  done = sum(state == 'done' for state in states.values())
  left = _seconds_left(root, builder.stages, states)
  lines.append(
      f'{len(builder.stages)} stages, {done} done,'
      f' {len(builder.stages) - done} to do{left}'
  )
  return lines


def _warn_of_change(root: pathlib.Path) -> None:
  """Says so where the configuration is not that of the study's last start."""
  file, text = root / 'config.gin', configuration.current().text
  if text and file.is_file() and file.read_text() != text:
    print(
        f'{root}: the configuration has changed since the last start. Models'
        ' and measurements of changed models are made anew; other measurements'
        ' are kept. Remove the folders of those to be made with new settings.',
        file=sys.stderr,
    )


def _built(
    root: pathlib.Path, study: Any, show: Callable[..., None] | None
) -> builder_lib.Builder:
  """The stages and rows of a study; what does not fit is refused here."""
  if not hasattr(study, 'build'):
    raise errors.UserError(
        f'study is {study!r}; give an Experiment, a Grid, a Garden, a Transfer'
        ' or a Lossy.'
    )
  builder = builder_lib.Builder(root, study.setup, show)
  study.build(builder)
  return builder


def _write(
    root: pathlib.Path,
    study: Any,
    builder: builder_lib.Builder,
    title: str | None,
    failed: dict[str, str],
) -> None:
  states = stages_lib.states(root, builder.stages)
  rows = builder.rows_now(failed)
  averages: list[dict[str, Any]] = []
  if hasattr(study, 'averages'):
    averages = study.averages(root, rows)
  study_file.write(
      root,
      {
          'kind': study.kind,
          'title': title or f'{study.kind}, {study.setup.task.name}',
          'command': configuration.command(),
          'axes': list(study.axes),
          'stages': {
              'total': len(states),
              'done': sum(x == 'done' for x in states.values()),
              'failed': len(failed),
          },
          'averages': averages,
          'rows': rows,
      },
  )


def _seconds_left(root, stages, states) -> str:
  """An estimate from the stages of the same kind that are done; '' without."""
  seconds: dict[str, list[float]] = {}
  for stage in stages:
    record = stage.record(root)
    if states[stage.name] == 'done' and record is not None:
      seconds.setdefault(stage.what, []).append(record['seconds'])
  left = [stage.what for stage in stages if states[stage.name] != 'done']
  if not left or not all(what in seconds for what in left):
    return ''
  total = sum(sum(seconds[what]) / len(seconds[what]) for what in left)
  return f', about {max(1, round(total / 60))} min at the pace so far'
