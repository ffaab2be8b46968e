"""A folder of results -> report.html, report.md and figures/."""

from __future__ import annotations

from collections.abc import Sequence
import os
import pathlib
import re

from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import sources
from distillspec_jax.core import study_file
from distillspec_jax.reporting import drawing
from distillspec_jax.reporting import figures
from distillspec_jax.reporting import markdown
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import page
from distillspec_jax.reporting import rows
from distillspec_jax.reporting import sample_texts


def report(
    *, run: str, output: str | None = None, measure: str | None = None
) -> pathlib.Path:
  """Draws all results in a folder and below it; returns the page's path.

  Args:
    run: folder of a run or an experiment; every results.jsonl in it and below
      it is read, and its samples.json if there is one.
    output: folder to write to; default: `run`.
    measure: of a study, by which its rows are ranked; default: tokens per
      target call, of a garden tokens per second.

  Raises:
    UserError: the folder or results are absent, or a line is damaged.
  """
  folder = sources.run_folder(run)
  if not folder.is_dir():
    raise errors.UserError(f'{folder} is not a folder; give that of a run.')
  lines = [
      {**line, 'folder': path.parent.relative_to(folder).as_posix()}
      for path in sorted(folder.rglob(results.FILE))
      # An interrupted measurement leaves its folder under this name.
      if not any(part.endswith('.incomplete') for part in path.parts)
      for line in results.read(path)
  ]
  if not lines:
    raise errors.UserError(
        f'There are no results in {folder} or below it (no results.jsonl with'
        ' a line). Run train, evaluate or benchmark into it first.'
    )
  samples = sample_texts.read(folder / 'samples.json')
  study = rows.read(folder)
  target = folder if output is None else sources.run_folder(output)
  (target / 'figures').mkdir(parents=True, exist_ok=True)
  if study is None:
    if measure is not None:
      raise errors.UserError(
          f'measure is {measure!r}, but {folder} is no study: it has no'
          f' {study_file.FILE}. Leave measure out.'
      )
    chapters = [page.chapter(one) for one in measurements.studies(lines)]
  else:
    chapters = page.study_chapters(study, lines, measure)
  drawn: dict[str, page.Chapter] = {}
  for number, chapter in enumerate(chapters):
    prefix = re.sub(r'\W+', '_', chapter.heading)[:80] + '_'
    if prefix in drawn:
      prefix = f'{number}_{prefix}'
    name = prefix if chapters[1:] else ''
    sections = _drawn(chapter.sections, target / 'figures', name)
    drawn[prefix] = chapter._replace(sections=sections)
  name = folder.resolve().name if study is None else study.title
  text = markdown.render(name, lines, chapters, bool(samples), study)
  _write(target / 'report.md', text)
  path = target / 'report.html'
  html = page.render(name, lines, list(drawn.values()), samples, study)
  _write(path, html)
  return path


def _drawn(
    shown: Sequence[figures.Section], folder: pathlib.Path, prefix: str
) -> list[figures.Section]:
  """Writes PNG files; returns sections of (title, SVG)."""
  sections = []
  for section in shown:
    images = []
    for panel in section.panels:
      svg, png = drawing.images(panel, prefix)
      (folder / f'{prefix}{panel.name}.png').write_bytes(png)
      images.append((panel.title, svg))
    sections.append(section._replace(panels=images))
  return sections


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a file that is complete, or as it was before."""
  temporary = path.with_name(path.name + '.new')
  temporary.write_text(text, encoding='utf-8')
  os.replace(temporary, path)
