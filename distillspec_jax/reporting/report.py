"""A folder of results -> report.html, report.md and figures/."""

from __future__ import annotations

import json
import os
import pathlib

from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.reporting import figures as figures_lib
from distillspec_jax.reporting import page


def report(
    folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> pathlib.Path:
  """Draws all results in a folder and below it; returns the page's path.

  Args:
    folder: of a run or an experiment; every results.jsonl below it is read,
      and samples.json in it if it is there.
    output: folder to write to; default: `folder`.

  Raises:
    UserError: there is no folder, no results, or a damaged line.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise errors.UserError(f'{folder} is not a folder; name that of a run.')
  files = [
      path
      for path in sorted(folder.rglob('results.jsonl'))
      if not any(part.endswith('.incomplete') for part in path.parts)
  ]
  lines = [line for path in files for line in results.read(path)]
  if not lines:
    raise errors.UserError(
        f'There are no results in {folder}: no results.jsonl with a line, in it'
        ' or below it. Run train, evaluate or benchmark into it first.'
    )
  samples = []
  if (folder / 'samples.json').is_file():
    samples = json.loads((folder / 'samples.json').read_text())
  target = pathlib.Path(output) if output is not None else folder
  (target / 'figures').mkdir(parents=True, exist_ok=True)
  figures = figures_lib.draw(lines)
  for figure in figures:
    figure.figure.savefig(target / 'figures' / f'{figure.name}.png')
  (target / 'report.md').write_text(page.markdown(lines))
  path = target / 'report.html'
  path.write_text(page.render(lines, figures, samples, folder.resolve().name))
  return path
