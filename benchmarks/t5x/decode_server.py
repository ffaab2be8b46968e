"""t5x's own greedy decoding, timed on request; see `benchmarks/comparison.py`.

Runs in an environment of its own that has t5x (requirements.txt). The decoder
is what its `infer.py` runs with `decoding.temperature_sample` at temperature 0:
`predict_batch_with_aux` as one compiled program. Reads one JSON object per line
from standard input and answers each with one on standard output:

  {"model": FOLDER, "config": {...}}          loads checkpoint_0 of the folder
  {"inputs": [[...]], "max_new_tokens": N}    times one call
"""

import functools
import time

import jax
import network
import numpy as np
from t5x import decoding


def main() -> None:
  params = predict = None

  def answer(request: dict) -> dict | None:
    nonlocal params, predict
    if 'model' not in request:
      return timed(predict, params, request)
    greedy = functools.partial(decoding.temperature_sample, temperature=0.0)
    predict = compiled(network.model(request['config'], greedy))
    params = jax.device_put(network.params(request['model']))
    return None

  network.serve(answer)


def compiled(model):
  """(params, inputs, empty labels of the wanted length) -> tokens."""

  @jax.jit
  def predict(params, inputs, labels):
    tokens, _ = model.predict_batch_with_aux(
        params,
        {'encoder_input_tokens': inputs, 'decoder_input_tokens': labels},
        decoder_params={'eos_id': -1},  # ends no sequence, as ours
    )
    return tokens

  return predict


def timed(predict, params, request) -> dict:
  inputs = np.array(request['inputs'], np.int32)
  labels = np.zeros((len(inputs), request['max_new_tokens']), np.int32)
  ready = jax.block_until_ready(jax.device_put((inputs, labels)))
  start = time.perf_counter()
  tokens = np.asarray(predict(params, *ready))
  return {'seconds': time.perf_counter() - start, 'tokens': tokens.tolist()}


if __name__ == '__main__':
  main()
