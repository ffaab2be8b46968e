"""transformers' `generate`, timed on request; see `benchmarks/comparison.py`.

Runs in an environment of its own (requirements.txt), on a GPU if torch has one,
in float32. Reads one JSON object per line from standard input and answers each
with one on standard output:

  {"model": FOLDER, "draft": FOLDER or null}   loads a model, and its assistant
  {"inputs": [[...]], "max_new_tokens": N}     times one call; also
      "cache": null or "static"     of the keys and values
      "sampled": false or true      at temperature 1, from all tokens
      "seed": 0                     of sampling
      "draft_length": null or N     assisted, with so many drafted tokens
      "workaround": false or true   see `timed`
"""

import time

import server
import torch
from transformers.generation import candidate_generator

COUNTS = {'accepted': 0, 'judged': 0}
MODELS = {'model': None, 'draft': None}


def main() -> None:
  count_acceptance()
  server.serve(answer)


def answer(request: dict) -> dict | None:
  if 'model' not in request:
    return timed(**MODELS, request=request)
  MODELS.update(model=None, draft=None)  # before the next ones are read
  for name in MODELS:
    if request.get(name):
      MODELS[name] = server.load(request[name])
  return None


@torch.no_grad()
def timed(model, draft, request) -> dict:
  """Seconds, tokens, and how many of the drafted tokens were accepted.

  The draft of an encoder-decoder pair reads its whole prefix again in each
  block, unless the caller passes a mask of the decoder's first token: the
  workaround.
  """
  inputs = torch.tensor(request['inputs'], device=server.DEVICE)
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
          (1, 1), dtype=torch.long, device=server.DEVICE
      )
  COUNTS.update(accepted=0, judged=0)
  start = time.perf_counter()
  tokens = model.generate(inputs, **settings)
  server.synchronize()
  seconds = time.perf_counter() - start
  return {'seconds': seconds, 'tokens': tokens[:, 1:].tolist(), **COUNTS}


def count_acceptance() -> None:
  """Counts what is judged and accepted, which transformers does not report."""
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
