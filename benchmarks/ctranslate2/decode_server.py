"""CTranslate2's greedy decoding, timed on request; see `comparison.py`.

Runs in an environment of its own (requirements.txt), on all cores of the CPU.
Reads one JSON object per line from standard input and answers each with one on
standard output:

  {"model": FOLDER, "weights": "float32" or "int8"}   converts and loads a model
  {"inputs": [[...]], "max_new_tokens": N}            times one call

The folder is one of transformers. It has no tokenizer, which the conversion
asks for, so it gets one whose tokens are numbers.
"""

import json
import os
import sys
import tempfile
import time

import ctranslate2
import tokenizers
import transformers

START = 3  # after padding, the end and an unknown token
CORES = len(os.sched_getaffinity(0))


def main() -> None:
  out = sys.stdout
  sys.stdout = sys.stderr  # what libraries print is no answer
  translator = None
  for line in sys.stdin:
    request = json.loads(line)
    if 'model' in request:
      translator = load(request['model'], request['weights'])
      answer = {
          'ctranslate2': ctranslate2.__version__,
          'device': f'cpu ({CORES} threads)',
      }
    else:
      answer = timed(translator, request)
    out.write(json.dumps(answer) + '\n')
    out.flush()


def load(folder: str, weights: str) -> ctranslate2.Translator:
  config = transformers.AutoConfig.from_pretrained(folder)
  names = {name(i): i for i in range(config.vocab_size)}
  model = tokenizers.models.WordLevel(names, unk_token=name(2))
  transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizers.Tokenizer(model),
      pad_token=name(0),
      eos_token=name(1),
      unk_token=name(2),
  ).save_pretrained(folder)
  with tempfile.TemporaryDirectory() as converted:
    ctranslate2.converters.TransformersConverter(folder).convert(
        converted, quantization=weights, force=True
    )
    return ctranslate2.Translator(
        converted,
        device='cpu',
        compute_type=weights,
        inter_threads=1,
        intra_threads=CORES,
    )


def timed(translator, request: dict) -> dict:
  """Seconds and tokens of sequences that do not end before their length."""
  length = request['max_new_tokens']
  texts = [[name(token) for token in row] for row in request['inputs']]
  start = time.perf_counter()
  outputs = translator.translate_batch(
      texts,
      beam_size=1,
      min_decoding_length=length,
      max_decoding_length=length,
  )
  seconds = time.perf_counter() - start
  tokens = [
      [number(token) for token in output.hypotheses[0]] for output in outputs
  ]
  return {'seconds': seconds, 'tokens': tokens}


def name(token: int) -> str:
  return ('<pad>', '</s>', '<unk>')[token] if token < START else f't{token}'


def number(token: str) -> int:
  special = {name(i): i for i in range(START)}
  return special[token] if token in special else int(token[1:])


if __name__ == '__main__':
  main()
