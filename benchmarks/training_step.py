"""The on-policy distillation step beside the same step in plain PyTorch.

A draft samples its own tokens, the target reads them, the draft's forward KL
from the target is minimised with AdamW, all in float32: ours as the training
loop runs it (one program with a donated state), theirs as one would write it
with transformers (`hugging_face/train_server.py`). Steps take turns in one run;
at the start both must give the same loss on the same tokens. Where the time
goes is reported of both: of ours by timing parts of the step as programs of
their own, which hide nothing of each other, so that they add up to more.

    python benchmarks/training_step.py --peer=.venv-hugging-face/bin/python
        --run=runs/peers [--target=base] [--draft=small] [--rounds=5]
"""

import statistics
import sys
import tempfile
import time

import beside
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.losses import objective
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import rollouts
from distillspec_jax.training import step as step_lib

METHOD = method_lib.Method(
    divergence='forward_kl', fixed_fraction=0.0, draft_fraction=1.0
)
RATE = 1e-5
TOLERANCE = 1e-3  # of the losses, relative
PARTS = ('sampling', 'target', 'draft_forward', 'draft_backward', 'optimizer')


class Ours:
  """Our step on a pair, and its parts."""

  def __init__(self, folders):
    self.target, draft = (loading.load(folder) for folder in folders)
    self.draft = draft.transformer
    self._optimizer = optimizers.Optimizer(
        name='adamw', learning_rate=RATE, cooldown_from=1.0
    ).build(1000)
    state = step_lib.initial_state(
        draft.params, self._optimizer, jax.random.key(0)
    )
    # As the training loop does; or else the second step is compiled anew.
    self._state = jax.device_put(state, jax.devices()[0])
    self._step = jax.jit(
        step_lib.make_step(
            METHOD, self._optimizer, self.draft, self.target.transformer
        ),
        donate_argnums=0,
    )
    self._loss = step_lib.make_loss(METHOD, self.draft, self.target.transformer)
    self._sample = jax.jit(self._rollout)

  def step(self, batch: types.Batch) -> float:
    """Seconds of one step, whose result is the state of the next."""
    start = time.perf_counter()
    self._state, metrics = jax.block_until_ready(
        self._step(self._state, self.target.params, batch)
    )
    seconds = time.perf_counter() - start
    if not np.isfinite(metrics['loss'].total):
      raise RuntimeError(f'The loss is {metrics["loss"].total}.')
    return seconds

  def _rollout(self, params, batch, key):
    return rollouts.with_labels(
        batch, key, METHOD, self.draft, params, None, None
    )[0]

  def labels(self, batch: types.Batch) -> types.Batch:
    """The batch with tokens that the draft samples."""
    return self._sample(self._state.params, batch, jax.random.key(1))

  def loss_on(self, batch: types.Batch) -> float:
    """The loss a token, in nats, nothing sampled."""
    _, metrics = jax.jit(self._loss)(
        self._state.params, self.target.params, batch, None
    )
    return float(metrics['loss'].value())

  def parts(self, batch: types.Batch, rounds: int) -> dict[str, float]:
    """Seconds of the parts: medians of calls that take turns.

    'target' are its states and logits; 'draft_forward' is what the whole loss
    takes more, 'draft_backward' what the gradient takes more than the loss.
    """
    params, target_params = self._state.params, self.target.params
    labelled = self.labels(batch)
    gradients = jax.tree.map(jnp.zeros_like, params)
    key = jax.random.key(1)
    update = jax.jit(self._update, donate_argnums=0)
    state = jax.tree.map(jnp.copy, (params, self._state.optimizer))
    target = jax.jit(self._read)
    loss = jax.jit(self._loss)
    gradient = jax.jit(jax.grad(self._loss, has_aux=True))
    programs = {
        'sampling': lambda: self._sample(params, batch, key),
        'target': lambda: target(target_params, labelled),
        'loss': lambda: loss(params, target_params, labelled, None),
        'gradient': lambda: gradient(params, target_params, labelled, None),
    }
    found = {name: [] for name in (*programs, 'optimizer')}
    for _ in range(rounds + 1):
      for name, program in programs.items():
        start = time.perf_counter()
        jax.block_until_ready(program())
        found[name].append(time.perf_counter() - start)
      start = time.perf_counter()
      state = jax.block_until_ready(update(state, gradients))
      found['optimizer'].append(time.perf_counter() - start)
    middle = {name: statistics.median(s[1:]) for name, s in found.items()}
    return {
        'sampling': middle['sampling'],
        'target': middle['target'],
        'draft_forward': max(middle['loss'] - middle['target'], 0.0),
        'draft_backward': max(middle['gradient'] - middle['loss'], 0.0),
        'optimizer': middle['optimizer'],
    }

  def _read(self, params, batch):
    """The target's logits, a number made of which keeps them all."""
    model = self.target.transformer
    hidden = model.hidden(
        params,
        batch.inputs,
        batch.input_segments,
        transformer_lib.shift_right(batch.labels, batch.segments),
        batch.segments,
    )
    return objective.supervised(
        lambda x: model.unembed(params, x), hidden, batch.labels, batch.mask
    )['loss']

  def _update(self, state, gradients):
    params, optimizer = state
    updates, optimizer = self._optimizer.update(gradients, optimizer, params)
    params = jax.tree.map(lambda p, u: p + u, params, updates)
    return params, optimizer


def make_batch(inputs: np.ndarray, length: int) -> types.Batch:
  """A batch whose labels are to be sampled; every row gets `length`."""
  inputs = jnp.asarray(inputs, jnp.int32)
  ones = jnp.ones((len(inputs), length), jnp.int32)
  return jax.block_until_ready(
      types.Batch(
          inputs=inputs,
          input_segments=jnp.ones_like(inputs),
          labels=ones,
          segments=ones,
          mask=ones > 0,
      )
  )


def check_losses(peer, ours: Ours, inputs: np.ndarray, length: int) -> float:
  """Raises unless both sides give the same loss; the relative difference."""
  batch = ours.labels(make_batch(inputs, length))
  # Ours leaves out what stands after an EOS, which plain PyTorch does not.
  batch = batch.replace(
      segments=jnp.ones_like(batch.segments), mask=jnp.ones_like(batch.mask)
  )
  own = ours.loss_on(batch)
  theirs = peer.ask(inputs=inputs, labels=np.asarray(batch.labels))['loss']
  apart = abs(own - theirs) / own
  print(f'loss on the same tokens: ours {own:.6f}, theirs {theirs:.6f} nats')
  if not apart < TOLERANCE:
    raise RuntimeError(f'The losses are {apart:.2e} apart; they must be equal.')
  return apart


def compare(peer, ours: Ours, options) -> None:
  """Text, and a line of results."""
  rounds, length = options.rounds, options.length
  inputs = beside.random_inputs(rounds, options.batch, options.input_length)
  apart = check_losses(peer, ours, inputs[0], length)
  theirs_parts = []

  def call_theirs(i):
    answer = peer.ask(inputs=inputs[i], length=length, seed=i)
    theirs_parts.append(answer['parts'])
    return answer['seconds']

  sides = beside.both(
      lambda i: ours.step(make_batch(inputs[i], length)),
      call_theirs,
      options,
      'steps',
  )
  parts = {
      'ours': ours.parts(make_batch(inputs[0], length), rounds),
      'theirs': {
          part: statistics.median(found[part] for found in theirs_parts[1:])
          for part in PARTS
      },
  }
  print(f'{"":16}{"ours":>12}{"PyTorch":>18}')
  metrics = {}
  for part in PARTS:
    row = f'{part.replace("_", " "):16}'
    for side, prefix in (('ours', ''), ('theirs', 'pytorch_')):
      value = parts[side][part]
      share = value / sum(parts[side].values())
      row += f'{value:9.3f} s {share:4.0%}  '
      metrics[f'{prefix}{part}_s'] = results.Metric(value, None, rounds, 's')
      metrics[f'{prefix}{part}_share'] = results.Metric(
          share, None, rounds, '1'
      )
    print(row)
  print(
      f'whole step: ours {sides.ours:.3f} s, PyTorch {sides.theirs:.3f} s,'
      f' ratio {sides.ratio}'
  )
  beside.write(
      options.run,
      target=f't5_1_1_{options.target}',
      draft=f't5_1_1_{options.draft}',
      task='on-policy distillation step',
      decoding=None,
      metrics={
          'step_s': results.Metric(sides.ours, None, rounds, 's'),
          'pytorch_step_s': results.Metric(sides.theirs, None, rounds, 's'),
          **beside.ratio_metrics('ratio_to_pytorch', sides.ratio, rounds),
          'loss_difference': results.Metric(apart, None, 1, '1'),
          **metrics,
      },
  )


def main() -> None:
  parser = beside.parser(__doc__, 'transformers')
  parser.set_defaults(input_length=128)
  parser.add_argument('--target', default='base')
  parser.add_argument('--draft', default='small')
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--length', type=int, default=64, help='sampled tokens')
  options = parser.parse_args()
  beside.warn_if_busy()
  with (
      beside.Peer(options.peer, 'hugging_face/train_server.py') as peer,
      tempfile.TemporaryDirectory() as name,
  ):
    configs = [
        config_lib.published(f't5_1_1_{size}')
        for size in (options.target, options.draft)
    ]
    made = (
        transformer_lib.Transformer(config).init(jax.random.key(number))
        for number, config in enumerate(configs)
    )
    folders = beside.save_pair(name, configs, made)
    answer = peer.ask(
        target=str(folders[0]), draft=str(folders[1]), learning_rate=RATE
    )
    print(beside.about(answer))
    compare(peer, Ours(folders), options)


if __name__ == '__main__':
  sys.exit(main())
