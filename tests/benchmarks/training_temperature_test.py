"""The study of the training temperature gives commands that are complete."""

import subprocess

import training_temperature


def test_each_draft_is_trained_and_measured_once(
    tmp_path, monkeypatch, configure
):
  given = []

  def run(command, check):
    assert check
    given.append(command[3:])
    configure(*command[3:])
    if 'evaluate' in command:
      folder = tmp_path / 'run' / 'temperature_1' / 'seed_7' / 'evaluation'
      folder.mkdir(parents=True)
      (folder / 'results.jsonl').touch()

  monkeypatch.setattr(subprocess, 'run', run)
  arguments = [
      f'--quickstart={tmp_path}', f'--run={tmp_path / "run"}',
      '--temperatures=1', '--seeds=7',
  ]  # fmt: skip
  training_temperature.main(arguments)
  assert [command[0] for command in given] == ['train', 'evaluate']
  assert '--gin.loop.train.seed=7' in given[0]
  assert '--gin.method.Method.temperature=1.0' in given[0]
  training_temperature.main(arguments)
  assert len(given) == 2
