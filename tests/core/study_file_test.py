"""study.json is read as it was written, or refused."""

import json

import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import study_file

ROW = study_file.Row(
    name='forward', labels={'method': 'forward'}, seed=0, target_seed=None,
    folder='seed_0/forward', results=['seed_0/evaluation_forward'],
    lines={'quality': {'kind': 'task_quality'}}, control='longer', seconds=1.5,
)  # fmt: skip
STUDY = {
    'kind': 'grid',
    'title': 'a title',
    'command': '',
    'axes': ['method'],
    'stages': {'total': 1, 'done': 1, 'failed': 0},
    'averages': [],
    'rows': [ROW],
}


def test_it_is_read_as_it_was_written(tmp_path):
  assert study_file.read(tmp_path) is None
  study_file.write(tmp_path, STUDY)
  assert study_file.read(tmp_path) == STUDY


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda study: study.pop('axes'), "'axes' is missing"),
        (lambda study: study.update(kind='x'), "'kind' is 'x', not one of"),
        (
            lambda study: study['rows'][0].pop('seed'),
            "row 1: 'seed' is missing",
        ),
        (
            lambda study: study['rows'][0].update(results='a'),
            "row 1: 'results' is 'a'",
        ),
        (lambda study: study.update(rows=[3]), 'row 1: it is int'),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, change, message):
  study_file.write(tmp_path, STUDY)
  path = tmp_path / study_file.FILE
  study = json.loads(path.read_text())
  change(study)
  path.write_text(json.dumps(study))
  with pytest.raises(errors.UserError, match=message):
    study_file.read(tmp_path)


def test_a_file_that_is_not_json_is_refused(tmp_path):
  (tmp_path / study_file.FILE).write_text('{"kind"')
  with pytest.raises(errors.UserError, match='it is not JSON'):
    study_file.read(tmp_path)
