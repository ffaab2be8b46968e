"""Folders that `export.py` wrote, loaded by transformers: the same logits?

Runs in an environment of its own (requirements.txt) that has no JAX.

    python benchmarks/hugging_face/check_exported.py FOLDER
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

TOLERANCE = 1e-4  # absolute, float32


def main(folder: pathlib.Path) -> int:
  transformers.logging.set_verbosity_error()
  print(f'transformers {transformers.__version__}, torch {torch.__version__}')
  print(f'{"model":20} {"largest logit difference":>25}  tokenizer')
  failed = 0
  for path in sorted(folder.glob('*/hugging_face')):
    golden = np.load(path / 'logits.npz')
    model, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        path, output_loading_info=True
    )
    with torch.no_grad():
      logits = (
          model.eval()(
              input_ids=torch.tensor(golden['inputs']),
              attention_mask=torch.tensor(golden['mask']).long(),
              decoder_input_ids=torch.tensor(golden['decoder_inputs']),
          )
          .logits.float()
          .numpy()
      )
    apart = float(np.abs(logits - golden['logits']).max())
    left = {name: keys for name, keys in report.items() if keys}
    words = tokenizer(path, golden)
    is_right = apart <= TOLERANCE and not left and words != 'other tokens'
    failed += not is_right
    verdict = '' if is_right else '  WRONG'
    print(f'{path.parent.name:20} {apart:25.2e}  {words}{verdict} {left or ""}')
  return 1 if failed else 0


def tokenizer(path: pathlib.Path, golden) -> str:
  """Whether the folder's tokenizer gives the tokens that ours gave."""
  if not (path / 'tokenizer_config.json').exists():
    return 'none'
  loaded = transformers.AutoTokenizer.from_pretrained(path)
  expected = json.loads(str(golden['tokens']))
  found = loaded(list(golden['texts']), add_special_tokens=False).input_ids
  return 'same tokens' if found == expected else 'other tokens'


if __name__ == '__main__':
  sys.exit(main(pathlib.Path(sys.argv[1])))
