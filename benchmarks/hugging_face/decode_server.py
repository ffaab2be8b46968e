"""transformers' `generate`, timed on request; see `benchmarks/beside.py`.

Runs in an environment of its own (requirements.txt), on a GPU if torch has one,
in float32. Reads a JSON object a line from standard input and answers each with
one on standard output:

  {"model": FOLDER, "draft": FOLDER or null}   loads a model, and its assistant
  {"inputs": [[...]], "max_new_tokens": N}     times one call; also
      "cache": null or "static"     of the keys and values
      "sampled": false or true      at temperature 1, from all tokens
      "seed": 0                     of sampling
      "draft_length": null or N     assisted, with so many drafted tokens
      "workaround": false or true   see `timed`
"""

import json
import sys
import time

import torch
import transformers
from transformers.generation import candidate_generator

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
COUNTS = {'accepted': 0, 'judged': 0}


def main() -> None:
  transformers.logging.set_verbosity_error()
  if DEVICE == 'cuda':
    torch.set_float32_matmul_precision('high')  # TF32, as JAX does there
  count_acceptance()
  out = sys.stdout
  sys.stdout = sys.stderr  # what libraries print is no answer
  model, draft = None, None
  for line in sys.stdin:
    request = json.loads(line)
    if 'model' in request:
      model, draft = None, None  # before the next ones are read
      model = load(request['model'])
      if request.get('draft'):
        draft = load(request['draft'])
      answer = {
          'transformers': transformers.__version__,
          'torch': torch.__version__,
          'device': device_name(),
      }
    else:
      answer = timed(model, draft, request)
    out.write(json.dumps(answer) + '\n')
    out.flush()


def device_name() -> str:
  if DEVICE == 'cuda':
    return torch.cuda.get_device_name()
  return f'cpu ({torch.get_num_threads()} threads)'


def load(folder: str):
  """A model that ends no row before its length, as the other side does."""
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
      folder, dtype=torch.float32
  )
  model.generation_config.eos_token_id = None
  return model.to(DEVICE).eval()


@torch.no_grad()
def timed(model, draft, request) -> dict:
  """Seconds, tokens, and how many of the drafted tokens were accepted.

  The draft of an encoder-decoder pair reads its whole prefix again in each
  block, unless the caller hands over a mask of the decoder's first token: the
  workaround.
  """
  inputs = torch.tensor(request['inputs'], device=DEVICE)
  settings = {
      'attention_mask': torch.ones_like(inputs),
      'max_new_tokens': request['max_new_tokens'],
      'do_sample': request.get('sampled', False),
      'cache_implementation': request.get('cache'),
      'disable_compile': True,  # eager, with either cache
  }
  if settings['do_sample']:
    settings.update(temperature=1.0, top_k=0, top_p=1.0)
    torch.manual_seed(request.get('seed', 0))
  if request.get('draft_length'):
    # Given to the call, these three would be ignored.
    draft.generation_config.num_assistant_tokens = request['draft_length']
    draft.generation_config.num_assistant_tokens_schedule = 'constant'
    draft.generation_config.assistant_confidence_threshold = 0.0
    settings['assistant_model'] = draft
    if request.get('workaround'):
      settings['decoder_attention_mask'] = torch.ones(
          (1, 1), dtype=torch.long, device=DEVICE
      )
  COUNTS.update(accepted=0, judged=0)
  start = time.perf_counter()
  tokens = model.generate(inputs, **settings)
  if DEVICE == 'cuda':
    torch.cuda.synchronize()
  seconds = time.perf_counter() - start
  return {'seconds': seconds, 'tokens': tokens[:, 1:].tolist(), **COUNTS}


def count_acceptance() -> None:
  """Has every block that is judged counted, which nothing reports."""
  kind = candidate_generator.AssistedCandidateGenerator
  update = kind.update_candidate_strategy

  def counting(self, input_ids, scores, num_matches):
    drafted = scores.shape[1] - 1
    COUNTS['accepted'] += int(num_matches)
    COUNTS['judged'] += min(int(num_matches) + 1, drafted)
    return update(self, input_ids, scores, num_matches)

  kind.update_candidate_strategy = counting


if __name__ == '__main__':
  main()
