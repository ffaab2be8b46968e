"""A folder of results -> report.html, report.md and figures/."""

from __future__ import annotations

import io
import os
import pathlib
import re

from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.reporting import answers
from distillspec_jax.reporting import figures
from distillspec_jax.reporting import markdown
from distillspec_jax.reporting import page
from distillspec_jax.reporting import rows as rows_lib


def report(*, run: str, output: str | None = None) -> pathlib.Path:
  """Draws all results in a folder and below it; returns the page's path.

  Args:
    run: folder of a run or an experiment; every results.jsonl in it and below
      it is read, and samples.json in it if it is there.
    output: folder to write to; default: that of the run.

  Raises:
    UserError: there is no folder, no results, or a damaged line.
  """
  folder = pathlib.Path(run)
  if not folder.is_dir():
    raise errors.UserError(f'{folder} is not a folder; name that of a run.')
  lines = [line for path in _files(folder) for line in results.read(path)]
  if not lines:
    raise errors.UserError(
        f'There are no results in {folder}: no results.jsonl with a line, in it'
        ' or below it. Run train, evaluate or benchmark into it first.'
    )
  samples = answers.read(folder / 'samples.json')
  target = pathlib.Path(output) if output is not None else folder
  (target / 'figures').mkdir(parents=True, exist_ok=True)
  studies = rows_lib.studies(lines)
  drawn = [
      (study, _drawn(study, target / 'figures', len(studies) > 1))
      for study in studies
  ]
  name = folder.resolve().name
  _write(
      target / 'report.md', markdown.render(name, lines, studies, bool(samples))
  )
  path = target / 'report.html'
  _write(path, page.render(name, lines, drawn, samples))
  return path


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Files of results, but not those of a measurement that was cut off."""
  return [
      path
      for path in sorted(folder.rglob(results.FILE))
      if not any(part.endswith('.incomplete') for part in path.parts)
  ]


def _drawn(
    study: rows_lib.Study, folder: pathlib.Path, several: bool
) -> list[page.Images]:
  """The study's figures; the light ones are written to the folder too."""
  prefix = ''
  if several:  # names that are free of what a file's name cannot hold
    prefix = re.sub(r'\W+', '_', page.heading(study)) + '_'
  made = []
  for light, dark in zip(
      figures.draw(study, figures.LIGHT), figures.draw(study, figures.DARK)
  ):
    images = []
    for one, other in zip(light.panels, dark.panels):
      png = _png(one)
      (folder / f'{prefix}{one.name}.png').write_bytes(png)
      images.append(page.Image(one.title, one.alt, png, _png(other)))
    made.append(page.Images(light.title, light.caption, images))
  return made


def _png(panel: figures.Panel) -> bytes:
  data = io.BytesIO()
  panel.figure.savefig(data, format='png')
  return data.getvalue()


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a file that is whole or as it was before."""
  beside = path.with_name(path.name + '.new')
  beside.write_text(text, encoding='utf-8')
  os.replace(beside, path)
