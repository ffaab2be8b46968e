"""t5x's own fine-tuning step, timed on request; see `benchmarks/comparison.py`.

Runs in an environment of its own that has t5x (requirements.txt): its
`Trainer` with the compiled step that its `train.py` runs, Adafactor at a
constant rate. Reads one JSON object per line from standard input and answers
each with one on standard output:

  {"model": FOLDER, "config": {...}, "batch": B, "lengths": [S, T], "rate": R,
   "z_loss": Z}                                loads checkpoint_0 of the folder
  {"inputs": [[...]], "labels": [[...]]}       times one step
"""

import time

import flax.core
import jax
import network
import numpy as np
from t5x import decoding
from t5x import trainer as trainer_lib


def main() -> None:
  trainer = None

  def answer(request: dict) -> dict | None:
    nonlocal trainer
    if 'model' not in request:
      return step(trainer, request)
    trainer = make(request)
    return None

  network.serve(answer)


def make(request) -> trainer_lib.Trainer:
  model = network.model(
      request['config'],
      decoding.temperature_sample,
      z_loss=request['z_loss'],
      label_smoothing=0.0,
      loss_normalizing_factor=None,
  )
  rows, (inputs, labels) = request['batch'], request['lengths']
  shapes = {
      'encoder_input_tokens': (rows, inputs),
      'decoder_input_tokens': (rows, labels),
      'decoder_target_tokens': (rows, labels),
  }
  initializer, partitioner = network.initializer(model, shapes)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  new = flax.core.freeze(network.params(request['model']))
  state = state.replace_params(
      jax.tree.map(
          lambda old, new: jax.device_put(new, old.sharding), state.params, new
      )
  )
  rate = request['rate']
  return trainer_lib.Trainer(
      model=model,
      train_state=state,
      partitioner=partitioner,
      eval_names=[],
      summary_dir=None,
      train_state_axes=initializer.train_state_axes,
      rng=jax.random.PRNGKey(0),
      learning_rate_fn=lambda step: rate,
      num_microbatches=None,
  )


def step(trainer: trainer_lib.Trainer, request) -> dict:
  """Seconds of one step of the trainer, and the loss before it."""
  labels = np.array(request['labels'], np.int32)
  batch = {
      'encoder_input_tokens': np.array(request['inputs'], np.int32),
      'decoder_input_tokens': np.pad(labels, ((0, 0), (1, 0)))[:, :-1],
      'decoder_target_tokens': labels,
      'decoder_loss_weights': np.ones(labels.shape, np.float32),
  }
  start = time.perf_counter()
  metrics = trainer.train(iter([batch]), 1)
  jax.block_until_ready(trainer.train_state)
  seconds = time.perf_counter() - start
  loss = float(metrics.result()['loss'].value)
  return {'seconds': seconds, 'loss': loss}


if __name__ == '__main__':
  main()
