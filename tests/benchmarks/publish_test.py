"""Numbers in README, docs and gin headers are those of the results files."""

import importlib.util
import pathlib
import re

import pytest

from distillspec_jax.reporting import ranking
from distillspec_jax.reporting import rows
from tests.reporting import made_up_studies

ROOT = pathlib.Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location(
    'publish', ROOT / 'benchmarks' / 'publish.py'
)
publish = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(publish)

# What a measured number looks like in prose.
MEASURED = re.compile(
    r'±|tokens/s|\d [x×]\b|\d\.\d+ times|\d(?:\.\d+)? ms\b|GB/s|\d min \d+ s'
)


@pytest.mark.parametrize(
    'path', list(publish.documents()), ids=lambda p: str(p.relative_to(ROOT))
)
def test_blocks_are_those_of_the_results(path):
  text = path.read_text()
  assert publish.rendered(text) == text, 'run benchmarks/publish.py render'


@pytest.mark.parametrize(
    'path', list(publish.documents()), ids=lambda p: str(p.relative_to(ROOT))
)
def test_numbers_are_in_blocks(path):
  prose = publish._BLOCK.sub('', path.read_text())
  prose = re.sub(r'^```.*?^```', '', prose, flags=re.MULTILINE | re.DOTALL)
  found = [
      line for line in prose.splitlines()
      if MEASURED.search(line) and 'standard error' not in line
  ]  # fmt: skip
  assert not found, 'measured numbers belong into a block'


def test_a_changed_number_is_noticed():
  text = (ROOT / 'README.md').read_text()
  match = publish._BLOCK.search(text)
  number = re.search(r'\d\.\d\d', match['body'])
  assert number, 'the README shows measured numbers'
  changed = text.replace(number[0], '9.99', 1)
  assert publish.rendered(changed) != changed


def test_every_block_has_a_view():
  names = {
      match['name']
      for path in publish.documents()
      for match in publish._BLOCK.finditer(path.read_text())
  }
  assert names
  for name in names:
    assert callable(publish.view(name)), name
  with pytest.raises(KeyError):
    publish.view('no_such_block')


def test_a_study_is_stored_and_rendered(tmp_path, monkeypatch):
  monkeypatch.setattr(publish, 'RESULTS', tmp_path / 'results')
  monkeypatch.setattr(publish, 'PICTURES', tmp_path / 'pictures')
  folder = tmp_path / 'run'
  study = rows.read(made_up_studies.grid(folder))
  publish.store('divergences', str(folder), 'distillspec study', 75)
  file = tmp_path / 'results' / 'divergences.json'
  assert file.stat().st_size < 40_000 and '"examples"' not in file.read_text()
  text = publish.rendered('<!-- measured: study_divergences -->\n<!-- end -->')
  best = ranking.rankings(study)[0].entries[0]
  value = best.measurement.metrics['block_efficiency']
  assert (
      f'| 1 | {best.row.name} | {value.text(3)} | {best.change.text()} |'
      f' {best.change.ends} | yes | 3 |'
  ) in text
  assert 'Ranking: greedy, block length 5, changes against fine-tuned' in text
  assert '2 (0, 1; lacks 2)' in text and 'step 12 is not finite' in text
  assert '1 min 15 s' in text
  pictures = re.findall(r'!\[[^]]+\]\(pictures/([^)]+)\)', text)
  assert len(pictures) == 2  # a heat map for each decoding
  for name in pictures:
    assert '<svg xmlns' in (tmp_path / 'pictures' / name).read_text()


@pytest.mark.parametrize(
    'path', sorted(publish.RESULTS.glob('*.json')), ids=lambda path: path.name
)
def test_results_have_no_paths_of_the_machine(path):
  assert '"/' not in path.read_text()
