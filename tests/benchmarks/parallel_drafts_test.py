"""The comparison of parallel drafts gives commands that are complete."""

import pathlib
import subprocess

import parallel_drafts


def test_each_draft_is_trained_and_measured(tmp_path, monkeypatch, configure):
  given = []

  def run(command, check):
    assert check
    given.append(command[3:])
    configure(*command[3:])
    if 'evaluate' in command:
      folder = next(x for x in command if x.startswith('--run='))
      folder = pathlib.Path(folder.removeprefix('--run='))
      folder.mkdir(parents=True)
      (folder / 'results.jsonl').touch()

  monkeypatch.setattr(subprocess, 'run', run)
  arguments = [
      f'--quickstart={tmp_path}', f'--run={tmp_path / "run"}', '--seeds=7',
      '--gin.parallel.Parallel.chains=3',
  ]  # fmt: skip
  parallel_drafts.main(arguments)
  commands = [command[0] for command in given]
  assert commands == ['train', 'evaluate', 'train', 'evaluate', 'evaluate']
  own = arguments[-1:]
  assert [flag in given[i] for i in (0, 2) for flag in own] == [False, True]
  assert ['--gin.decoding.grid.parallel=(True,)' in x for x in given[1::2]] == [
      False,
      True,
  ]
  assert '--gin.decoding.grid.parallel=(False,)' in given[4]
  parallel_drafts.main(arguments)  # what is measured is not measured again
  assert [command[0] for command in given[5:]] == ['train', 'train']
