"""A user's own T5: from their folders to a distilled draft, and back."""

import json

from etils import epath
import numpy as np
import pytest

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import tensors
from distillspec_jax.commands import main
from distillspec_jax.data import vocabularies
from tests import tiny

WORDS = 'ab cd ef gh ij kl'.split()

pytestmark = pytest.mark.usefixtures('fresh_configuration')


def save(folder, seed, **changes):
  """A Hugging Face folder with random weights and ByT5's tokenizer."""
  folder.mkdir()
  model = tiny.model(tiny.BYTES, seed=seed, dropout_rate=0.1, **changes)
  hugging_face.write(
      epath.Path(folder),
      model.config,
      {
          path: tensors.from_array(x)
          for path, x in tensors.flatten(model.params).items()
      },
  )
  vocabularies.save_hugging_face(vocabularies.load('bytes'), folder)


def run(*arguments):
  assert main.main([str(argument) for argument in arguments]) == 0


def test_from_their_folders_to_a_draft_and_back(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save(tmp_path / 'large', 0)
  save(tmp_path / 'small', 1, num_decoder_layers=1)
  lines = [
      {'inputs': word, 'labels': word * 2} for word in WORDS for _ in range(3)
  ]
  data = ''.join(json.dumps(line) + '\n' for line in lines)
  for split in ('train', 'validation'):
    (tmp_path / f'{split}.jsonl').write_text(data)
  run(
      'train', '--run=draft', '--gin_file=tasks/json_lines.gin',
      '--gin_file=methods/on_policy_gkd.gin', '--gin_file=runs/distil.gin',
      '--gin.TARGET=large', '--gin.DRAFT=small', '--gin.NUM_STEPS=2',
      '--gin.TRAIN=train.jsonl', '--gin.VALIDATION=validation.jsonl',
      '--gin.settings.Steps.batch_size=8',
      '--gin.tasks.json_lines.input_length=8',
      '--gin.tasks.json_lines.label_length=8',
      '--gin.optimizers.Optimizer.learning_rate=0.05',
      '--gin.settings.Validation.examples=8',
  )  # fmt: skip
  # The best is perhaps the one before training; this one is not.
  run('convert', 'draft', 'out', '--to=hugging_face', '--step=2')
  capsys.readouterr()
  run(
      'decode', '--target=large', '--draft=out', '--max_new_tokens=6',
      '--block_length=2', 'ab',
  )  # fmt: skip
  out, err = capsys.readouterr()
  assert out.endswith('\n') and 'tokens per target call' in err

  # What is handed back is the draft as it was trained, and whole.
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['num_decoder_layers'] == 1
  tokenizer = 'tokenizer_config.json'
  assert (tmp_path / 'out' / tokenizer).read_bytes() == (
      tmp_path / 'small' / tokenizer
  ).read_bytes()
  tokens = np.arange(2, 14).reshape(2, 6)
  before, trained, after = (
      loading.load(name, step=step).logits(tokens, tokens)
      for name, step in (('small', None), ('draft', 2), ('out', None))
  )
  np.testing.assert_array_equal(after, trained)
  assert np.abs(after - before).max() > 1e-3
