"""The supervised fine-tuning step beside t5x's own.

The same weights, batches, loss (cross-entropy with z-loss, summed) and
optimizer (Adafactor at a constant rate), in float32; ours as the training loop
runs it, theirs as its `Trainer` does (`t5x/train_server.py`). Steps take turns
in one run. Step by step the losses stand side by side: without dropout they
must be equal.

    python benchmarks/finetuning_step.py --peer=PYTHON_WITH_T5X --run=runs/peers
        [--size=small] [--dropout_rate=0.0] [--rounds=5]

t5x/requirements.txt says how to make an environment that has t5x. One that is
not installed but lies in a folder is found by PYTHONPATH, which its process
inherits.
"""

import pathlib
import sys
import tempfile
import time

import beside
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import step as step_lib

RATE, Z_LOSS = 1e-3, 1e-4
TOLERANCE = 1e-3  # of the losses, relative


class Ours:
  """Our step on a model."""

  def __init__(self, config: config_lib.T5Config, params):
    optimizer = optimizers.Optimizer(
        name='adafactor', learning_rate=RATE, cooldown_from=1.0
    ).build(1000)
    method = method_lib.Method(z_loss=Z_LOSS, reduction='sum')
    model = transformer_lib.Transformer(config)
    self._state = step_lib.initial_state(params, optimizer, jax.random.key(0))
    self._step = jax.jit(
        step_lib.make_step(method, optimizer, model), donate_argnums=0
    )

  def step(self, inputs: np.ndarray, labels: np.ndarray):
    """Seconds of one step, and the loss before it."""
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    batch = types.Batch(
        inputs=inputs,
        input_segments=jnp.ones_like(inputs),
        labels=labels,
        segments=jnp.ones_like(labels),
        mask=jnp.ones_like(labels) > 0,
    )
    jax.block_until_ready(batch)
    start = time.perf_counter()
    self._state, metrics = jax.block_until_ready(
        self._step(self._state, None, batch)
    )
    return time.perf_counter() - start, float(metrics['loss'].total)


def compare(peer, ours: Ours, config, options) -> None:
  """Text, and a line of results."""
  rounds = options.rounds
  inputs = beside.random_inputs(rounds, options.batch, options.input_length)
  labels = beside.random_inputs(rounds, options.batch, options.label_length)
  losses = {'ours': [], 'theirs': []}

  def call_ours(i):
    seconds, loss = ours.step(inputs[i], labels[i])
    losses['ours'].append(loss)
    return seconds

  def call_theirs(i):
    answer = peer.ask(inputs=inputs[i], labels=labels[i])
    losses['theirs'].append(answer['loss'])
    return answer['seconds']

  sides = beside.both(call_ours, call_theirs, options, 'steps')
  apart = max(abs(a - b) / b for a, b in zip(losses['ours'], losses['theirs']))
  count = options.batch * options.label_length
  for number, (own, other) in enumerate(zip(*losses.values())):
    print(
        f'step {number}: loss ours {own / count:.5f}, t5x'
        f' {other / count:.5f} nats/token'
    )
  if not config.dropout_rate and not apart < TOLERANCE:
    raise RuntimeError(f'The losses are {apart:.2e} apart; they must be equal.')
  print(
      f'step: ours {sides.ours:.3f} s, t5x {sides.theirs:.3f} s, ratio'
      f' {sides.ratio}'
  )
  beside.write(
      options.run,
      target=f't5_1_1_{options.size}',
      draft=None,
      task=f'fine-tuning step, dropout {config.dropout_rate:g}',
      decoding=None,
      metrics={
          'step_s': results.Metric(sides.ours, None, rounds, 's'),
          't5x_step_s': results.Metric(sides.theirs, None, rounds, 's'),
          **beside.ratio_metrics('ratio_to_t5x', sides.ratio, rounds),
          'loss_difference': results.Metric(apart, None, rounds + 1, '1'),
      },
  )


def main() -> None:
  parser = beside.parser(__doc__, 't5x')
  parser.set_defaults(input_length=128)
  parser.add_argument('--size', default='small')
  parser.add_argument('--dropout_rate', type=float, default=0.0)
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--label_length', type=int, default=64)
  options = parser.parse_args()
  beside.warn_if_busy()
  config = config_lib.published(
      f't5_1_1_{options.size}', dropout_rate=options.dropout_rate
  )
  params = transformer_lib.Transformer(config).init(jax.random.key(0))
  with beside.Peer(options.peer, 't5x/train_server.py') as peer:
    with tempfile.TemporaryDirectory() as name:
      beside.save(pathlib.Path(name), config, params, 't5x')
      answer = peer.ask(
          model=name,
          config=config.to_dict(),
          batch=options.batch,
          lengths=[options.input_length, options.label_length],
          rate=RATE,
          z_loss=Z_LOSS,
      )
    print(beside.about(answer))
    compare(peer, Ours(config, params), config, options)


if __name__ == '__main__':
  sys.exit(main())
