"""What both servers share: the loop over requests, and loading with torch."""

from collections.abc import Callable
import json
import sys

import torch
import transformers

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def serve(answer: Callable[[dict], dict | None]) -> None:
  """Answers each line of standard input with one on standard output.

  Args:
    answer: of a request; None, after a request that loads models, becomes the
      versions and the device.
  """
  transformers.logging.set_verbosity_error()
  if DEVICE == 'cuda':
    torch.set_float32_matmul_precision('high')  # TF32, as JAX does there
  out = sys.stdout
  sys.stdout = sys.stderr  # what libraries print is no answer
  for line in sys.stdin:
    out.write(json.dumps(answer(json.loads(line)) or about()) + '\n')
    out.flush()


def about() -> dict:
  device = f'cpu ({torch.get_num_threads()} threads)'
  return {
      'transformers': transformers.__version__,
      'torch': torch.__version__,
      'device': torch.cuda.get_device_name() if DEVICE == 'cuda' else device,
  }


def synchronize() -> None:
  if DEVICE == 'cuda':
    torch.cuda.synchronize()


def load(folder: str):
  """A model that ends no sequence before its length, as ours."""
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
      folder, dtype=torch.float32
  )
  model.generation_config.eos_token_id = None
  return model.to(DEVICE).eval()  # no dropout
