"""transformers' `generate`, timed on request; the peer of `decoding.py`.

Runs in an environment of its own (requirements.txt). Reads a JSON object a line
from standard input and answers each with one on standard output:

  {"model": FOLDER}                                   loads a model
  {"inputs": [[...]], "max_new_tokens": N, "cache": C} times one greedy call
"""

import json
import sys
import time

import torch
import transformers


def main() -> None:
  transformers.logging.set_verbosity_error()
  out = sys.stdout
  sys.stdout = sys.stderr  # what libraries print is no answer
  model = None
  for line in sys.stdin:
    request = json.loads(line)
    if 'model' in request:
      model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
          request['model'], dtype=torch.float32
      ).eval()
      answer = {
          'transformers': transformers.__version__,
          'torch': torch.__version__,
          'threads': torch.get_num_threads(),
      }
    else:
      answer = timed(model, request)
    out.write(json.dumps(answer) + '\n')
    out.flush()


@torch.no_grad()
def timed(model, request) -> dict:
  inputs = torch.tensor(request['inputs'])
  length = request['max_new_tokens']
  start = time.perf_counter()
  tokens = model.generate(
      inputs,
      attention_mask=torch.ones_like(inputs),
      max_new_tokens=length,
      min_new_tokens=length,  # no row ends early, here and there
      do_sample=False,
      cache_implementation=request.get('cache'),
  )
  seconds = time.perf_counter() - start
  return {'seconds': seconds, 'tokens': tokens[:, 1:].tolist()}


if __name__ == '__main__':
  main()
