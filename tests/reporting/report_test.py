"""The report is one page that needs no other file."""

import html.parser
import json
import re
import subprocess
import sys
import warnings

import pytest

import distillspec_jax
from distillspec_jax.core import errors
from distillspec_jax.reporting import markdown
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import report


class Page(html.parser.HTMLParser):
  """Tags with their attributes, whether they balance, and the text."""

  VOID = frozenset(('meta',))

  def __init__(self, text):
    super().__init__()
    self.tags, self.open, self.text = [], [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data

  def all(self, tag):
    return [attributes for name, attributes in self.tags if name == tag]


def text_of(folder):
  return (folder / 'report.html').read_text(encoding='utf-8')


def make(folder):
  return report.report(run=str(folder)).read_text(encoding='utf-8')


def write(folder, lines):
  folder.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'results.jsonl').write_text(text)


def test_the_whole_report(reported):
  page = Page(text_of(reported))
  assert page.open == []
  for heading in (
      'Block efficiency', 'Lossy verification', 'Wall clock', 'Training',
      'Sample texts', 'Task quality', 'Provenance',
  ):  # fmt: skip
    assert heading in page.text
  for what in ('3 seeds (0, 1, 2)', 'made-up device', 'abcdef', '2000-01-01'):
    assert what in page.text
  images = page.all('svg')
  figures = list((reported / 'figures').iterdir())
  assert len(images) == len(figures) == 13
  assert all(image['aria-label'] for image in images)
  assert all(file.read_bytes()[:4] == b'\x89PNG' for file in figures)


def test_the_page_loads_nothing(reported):
  text = text_of(reported)
  page = Page(text)
  for _, attributes in page.tags:
    for name in ('src', 'srcset', 'href', 'xlink:href', 'action'):
      assert attributes.get(name, '#').startswith('#')
  style = re.search(r'<style>(.*?)</style>', text, re.DOTALL).group(1)
  assert 'url(' not in style and '@import' not in style
  assert not page.all('script') and not page.all('link')


def test_cells_have_labels_for_narrow_screens(reported):
  cells = Page(text_of(reported)).all('td')
  labels = {cell['data-label'] for cell in cells}
  assert 'tokens per target call' in labels and '' not in labels


def test_texts_are_escaped_and_keep_their_whitespace(reported):
  text = text_of(reported)
  assert '(0 &lt; 1):' in text and '(0 < 1)' not in text
  page = Page(text)
  assert '  if values & (0 < 1):\n    return values[0]\n  return None' in (
      page.text
  )
  classes = [tag.get('class') for tag in page.all('span')]
  assert {'accepted', 'corrected', 'bonus', 'end'} <= set(classes)


def test_a_name_that_is_markup_is_shown_as_text(tmp_path, made_up):
  lines = list(made_up['acceptance']((0,), ['distilled']))
  for line in lines:
    line['draft'] = '<script>alert(1)</script>'
  write(tmp_path, lines)
  text = make(tmp_path)
  assert '<script>' not in text
  assert '&lt;script&gt;' in text


def test_markdown_has_the_tables_and_their_definitions(reported):
  text = (reported / 'report.md').read_text(encoding='utf-8')
  assert '| draft | sampling | block length |' in text
  assert '- tokens per target call: block efficiency, measured' in text
  assert '**Block efficiency, greedy** ' in text
  assert '| setting | decoding | tokens/s |' in text
  rows = [
      line
      for line in text.splitlines()
      if line.startswith('| 1 | auto') or line.startswith('| 8 | auto')
  ]
  assert len(rows) == 2


def test_the_report_can_be_written_to_another_folder(reported, tmp_path):
  before = sorted(reported.rglob('*'))
  elsewhere = tmp_path / 'a' / 'b'
  report.report(run=str(reported), output=str(elsewhere))
  names = sorted(path.name for path in elsewhere.iterdir())
  assert names == ['figures', 'report.html', 'report.md']
  assert text_of(elsewhere) == text_of(reported)
  assert sorted(reported.rglob('*')) == before


def test_missing_kinds_are_named(tmp_path, made_up):
  write(tmp_path, made_up['training']((0,)))
  text = make(tmp_path)
  assert 'Acceptance was not measured' in text
  assert 'Wall clock was not measured' in text
  assert 'There are no sample texts.' in text
  assert 'No training' not in text
  assert 'One seed (0)' in text


def test_plans_are_not_called_measured(tmp_path, made_up):
  write(tmp_path, made_up['plans']())
  text = Page(make(tmp_path)).text
  assert 'nothing was run or measured' in text
  assert 'not measured' not in text and 'One seed' not in text


def test_each_of_several_studies_has_a_heading_and_files(tmp_path, made_up):
  for task in ('one', 'other'):
    lines = list(made_up['acceptance']((0,), ['distilled']))
    write(tmp_path / task, [{**line, 'task': task} for line in lines])
  page = Page(make(tmp_path))
  assert len(page.all('h2')) == 2
  files = {path.name for path in (tmp_path / 'figures').iterdir()}
  assert 'one_validation_target_of_made_up_acceptance.png' in files
  assert len(files) == 12


def test_studies_with_similar_or_long_names_have_files_of_their_own(
    tmp_path, made_up
):
  for task in ('a-' + 'b' * 300, 'a ' + 'b' * 300):
    lines = list(made_up['acceptance']((0,), ['distilled']))
    write(tmp_path / task[:9], [{**line, 'task': task} for line in lines])
  make(tmp_path)
  assert len(list((tmp_path / 'figures').iterdir())) == 12


def test_an_interrupted_measurement_is_left_out(tmp_path, made_up):
  lines = list(made_up['acceptance']((0,), ['distilled']))
  write(tmp_path / 'complete', lines)
  write(tmp_path / 'half.incomplete', lines)
  assert f'{len(lines)} lines of results.jsonl' in make(tmp_path)


def test_an_absent_folder_is_named(tmp_path):
  with pytest.raises(errors.UserError, match='absent is not a folder'):
    report.report(run=str(tmp_path / 'absent'))


def test_a_folder_without_results_is_named(tmp_path):
  (tmp_path / 'results.jsonl').write_text('')
  with pytest.raises(errors.UserError, match='There are no results in'):
    report.report(run=str(tmp_path))


def test_a_damaged_line_is_named_and_nothing_is_written(folder):
  path = folder / 'measured' / 'results.jsonl'
  path.write_text('nonsense\n' + path.read_text())
  with pytest.raises(errors.UserError, match='line 1 is not JSON'):
    report.report(run=str(folder))
  assert not (folder / 'figures').exists()


def test_reporting_never_imports_jax(tmp_path, made_up):
  folder = tmp_path
  write(folder, made_up['latency'](['distilled']))
  # The package's __init__ imports JAX, so it is replaced by an empty one.
  code = f"""
import sys, types
package = types.ModuleType('distillspec_jax')
package.__path__ = {list(distillspec_jax.__path__)!r}
sys.modules['distillspec_jax'] = package
from distillspec_jax.reporting import report
report.report(run={str(folder)!r})
sys.exit('jax' in sys.modules or 'matplotlib.pyplot' in sys.modules)
"""
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


def test_runs_whose_folders_have_one_name_are_separate_lines(tmp_path, made_up):
  lines = [
      line for line in made_up['training']((0,)) if line['run'] == 'distilled'
  ]
  for method in ('kd', 'jsd'):
    for seed in (0, 1):
      for line in lines:
        line['run'], line['provenance']['seed'] = 'draft', seed
      write(tmp_path / f'{method}_{seed}' / 'draft', lines)
  page = Page(make(tmp_path))
  labels = [image['aria-label'] for image in page.all('svg')]
  (losses,) = [one for one in labels if 'divergence from the target' in one]
  assert re.search(r'jsd 0\.\d+ .*; kd 0\.\d+', losses)


@pytest.mark.parametrize(
    'name',
    [
        '<script>alert(1)</script>',
        'a|b\n# c',
        r'$\frac{1$',
        '[x](http://y)',
        '**x**',
    ],
)
def test_names_are_text_in_both_reports(tmp_path, made_up, name):
  lines = list(made_up['acceptance']((0,), ['fine-tuned', 'distilled']))
  lines += made_up['latency'](['distilled'])
  for line in lines:
    line['draft'] = line['draft'] and line['draft'].replace('distilled', name)
    line['target'] = f'runs/{name}'
  write(tmp_path, lines)
  page = Page(make(tmp_path))
  assert name in page.text
  text = (tmp_path / 'report.md').read_text(encoding='utf-8')
  shown = markdown._escaped(name)
  assert shown in text
  assert name not in text
  rows = [line for line in text.splitlines() if line.startswith('|')]
  columns = {len(re.findall(r'(?<!\\)\|', row)) for row in rows}
  assert len(columns) == 3  # of the two tables, and of a card's


@pytest.mark.parametrize('value', [1e300, -1e300, 1e-300, float('inf')])
def test_numbers_that_nobody_measured_break_nothing(tmp_path, made_up, value):
  lines = [
      *made_up['acceptance']((0, 1), ['fine-tuned', 'distilled'], (5,)),
      *made_up['latency'](['distilled']),
      *made_up['training']((0,)),
  ]
  for line in lines:
    for name, metric in line['metrics'].items():
      if name != 'step':
        metric['value'] = value
  write(tmp_path, lines)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    text = make(tmp_path)
  assert 'inf' not in Page(text).text.split()


def test_the_heading_names_the_target_once(made_up):
  line = made_up['line']('acceptance', {'x': made_up['metric'](1.0)})
  for target, heading in (
      ('runs/made_up/target', 'target of made_up'),
      ('target', 'target'),
      ('flan-t5-large/', 'target flan-t5-large'),
  ):
    (study,) = measurements.studies([{**line, 'target': target}])
    assert study.heading == f'made up task, validation, {heading}'
