"""Training from the command line: what the terminal says, and exit codes."""

import json

import pytest

from distillspec_jax.commands import main
from tests import tiny

pytestmark = pytest.mark.usefixtures('fresh_configuration')


def train(folder, *flags):
  """Fine-tunes the smallest model on six lines; the exit code."""
  data = folder / 'data.jsonl'
  lines = [{'inputs': word, 'labels': word * 2} for word in tiny.WORDS]
  data.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return main.main([
      'train', f'--run={folder / "run"}', '--gin_file=tasks/json_lines.gin',
      '--gin_file=methods/fine_tune.gin', '--gin_file=runs/train.gin',
      '--gin.MODEL=test', '--gin.NUM_STEPS=6',
      '--gin.settings.Steps.batch_size=8',
      f'--gin.TRAIN={data}', f'--gin.VALIDATION={data}',
      '--gin.tasks.json_lines.vocabulary=bytes',
      '--gin.tasks.json_lines.input_length=8',
      '--gin.tasks.json_lines.label_length=8', *flags,
  ])  # fmt: skip


def test_a_rate_that_is_far_too_high_stops_the_run_with_one_line(
    tmp_path, capsys
):
  assert train(tmp_path, '--gin.optimizers.Optimizer.learning_rate=1e30') == 1
  err = capsys.readouterr().err
  assert 'distillspec: ' in err and 'Traceback' not in err
  *_, last = err.strip().splitlines()
  assert 'training stops at step 1, which is not finite' in last
  assert 'Lower Optimizer.learning_rate' in last
  assert not [
      path.name
      for path in (tmp_path / 'run' / 'checkpoints').iterdir()
      if path.name.isdigit()
  ]

  def refuse(constant):
    raise AssertionError(f'{constant} is no JSON')

  written = (tmp_path / 'run' / 'results.jsonl').read_text()
  for line in written.splitlines():
    json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize(
    'flag, message',
    [
        ('optimizers.Optimizer.learning_rate=1e999', 'learning_rate is inf'),
        ('loop.train.seed=99999999999999999999', 'seed is 9999'),
        ('loop.train.seed=-1', 'seed is -1'),
        ('settings.Steps.batch_size=1000000000000', 'batch_size is 1000'),
        ('settings.Steps.keep_checkpoints=0', 'keep_checkpoints is 0'),
        ('settings.Steps.keep_checkpoints=-1', 'keep_checkpoints is -1'),
        ('method.Method.dropout_rate=1.5', 'dropout_rate is 1.5'),
    ],
)
def test_settings_out_of_range_are_one_line(tmp_path, capsys, flag, message):
  assert train(tmp_path, f'--gin.{flag}') == 2
  err = capsys.readouterr().err
  assert message in err and 'Traceback' not in err
  assert not (tmp_path / 'run').exists()
