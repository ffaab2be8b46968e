"""A training step beside the same step of a peer, on the same models and data.

With --library=transformers it is an on-policy distillation step beside plain
PyTorch (`hugging_face/train_server.py`): the draft samples its own tokens, the
target reads them, and the draft's forward KL from the target is minimised with
AdamW. At the start both must give the same loss on the same tokens. The time of
each part is reported of both: of ours by timing parts of the step as programs
of their own, which overlap nothing, so that they add up to more.

With --library=t5x it is a fine-tuning step beside t5x's own
(`t5x/train_server.py`), Adafactor at a constant rate, and both must have the
same losses in all steps.

All is float32; ours is as the training loop runs it: one program that donates
its state. Steps take turns in one run.

    python benchmarks/training_step.py --peer=.venv-hugging-face/bin/python
        --run=runs/peers [--target=base] [--draft=small] [--rounds=5]
    python benchmarks/training_step.py --library=t5x --peer=PYTHON_WITH_T5X
        --run=runs/peers [--draft=small] [--dropout_rate=0.0]

t5x/requirements.txt says how to make an environment that has t5x. A copy that
is not installed is found by PYTHONPATH, which its process inherits.
"""

import pathlib
import statistics
import sys
import tempfile

import comparison
import jax
import jax.numpy as jnp
import numpy as np
import optax

from distillspec_jax.core import types
from distillspec_jax.losses import objective
from distillspec_jax.models import model as model_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import rollouts
from distillspec_jax.training import step as step_lib

DISTILLATION = method_lib.Method(divergence='forward_kl', fixed_fraction=0.0)
FINE_TUNING = method_lib.Method(z_loss=1e-4, reduction='sum')
ADAMW = optimizers.Optimizer(
    name='adamw', learning_rate=1e-5, cooldown_from=1.0
)
ADAFACTOR = optimizers.Optimizer(learning_rate=1e-3, cooldown_from=1.0)
TOLERANCE = 1e-3  # of the losses, relative
PARTS = ('sampling', 'target', 'draft_forward', 'draft_backward', 'optimizer')


class Ours:
  """Our step, and its parts."""

  def __init__(
      self,
      method: method_lib.Method,
      optimizer: optimizers.Optimizer,
      draft: model_lib.Model,
      target: model_lib.Model | None = None,
  ):
    self._method, self._draft, self._target = method, draft, target
    self._optimizer = optimizer.build(1000)
    state = step_lib.initial_state(
        draft.params, self._optimizer, jax.random.key(0)
    )
    # As the training loop does; otherwise the second step is compiled anew.
    self._state = jax.device_put(state, jax.devices()[0])
    self._step = jax.jit(
        step_lib.make_step(method, self._optimizer, draft.network),
        donate_argnums=0,
    )
    self._loss = step_lib.make_loss(method, draft.network)
    self._sample = jax.jit(self._rollout)

  def step(self, batch: types.Batch) -> tuple[float, types.Mean]:
    """Seconds of a step, whose state is that of the next, and its loss."""
    seconds, (self._state, metrics) = comparison.timed(
        self._step, self._state, self._target, batch
    )
    if not np.isfinite(metrics['loss'].total):
      raise RuntimeError(f'The loss is {metrics["loss"].total}.')
    return seconds, metrics['loss']

  def _rollout(self, params, batch):
    draft = self._draft.replace(params=params)
    key = jax.random.key(1)
    return rollouts.with_labels(
        batch, batch.prompt, key, self._method, draft, None
    )[0]

  def labelled(self, batch: types.Batch) -> types.Batch:
    """The batch with tokens that the draft samples."""
    return self._sample(self._state.params, batch)

  def loss_on(self, batch: types.Batch) -> float:
    """Nats per token; nothing is sampled."""
    _, metrics = jax.jit(self._loss)(
        self._state.params, self._target, batch, batch.prompt, None
    )
    return float(metrics['loss'].value())

  def parts(self, batch: types.Batch, rounds: int) -> dict[str, float]:
    """Seconds of the parts: medians of calls that take turns.

    'target' are its states and logits; 'draft_forward' is what the loss takes
    beyond that, 'draft_backward' what the gradient takes beyond the loss.
    """
    params, labelled = self._state.params, self.labelled(batch)
    inputs = params, self._target, labelled, labelled.prompt, None
    read, loss = jax.jit(self._read), jax.jit(self._loss)
    gradient = jax.jit(jax.grad(self._loss, has_aux=True))
    update = jax.jit(self._update, donate_argnums=0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = jax.tree.map(jnp.copy, (params, self._state.optimizer))

    def optimize():
      nonlocal state
      state = update(state, zeros)
      return state

    programs = {
        'sampling': lambda: self._sample(params, batch),
        'target': lambda: read(self._target, labelled),
        'loss': lambda: loss(*inputs),
        'gradient': lambda: gradient(*inputs),
        'optimizer': optimize,
    }
    calls = {
        name: lambda _, program=program: comparison.timed(program)[0]
        for name, program in programs.items()
    }
    times = comparison.take_turns(calls, rounds, 0.0, 'parts')
    median = {name: statistics.median(s) for name, s in times.items()}
    gradient_s, loss_s = median.pop('gradient'), median.pop('loss')
    return {
        **median,
        'draft_forward': max(loss_s - median['target'], 0.0),
        'draft_backward': max(gradient_s - loss_s, 0.0),
    }

  def _read(self, target, batch):
    """The target's logits, summed up to a number that needs them all."""
    tokens = model_lib.shift_right(batch.labels, batch.segments)
    hidden = target.hidden(batch.prompt, tokens, batch.segments)
    return objective.supervised(
        target.unembed, hidden, batch.labels, batch.mask
    )['loss']

  def _update(self, state, gradients):
    params, optimizer = state
    updates, optimizer = self._optimizer.update(gradients, optimizer, params)
    return optax.apply_updates(params, updates), optimizer


def batch_of(inputs: np.ndarray, labels: np.ndarray) -> types.Batch:
  """A batch without padding, on the device."""
  inputs, labels = jnp.asarray(inputs, jnp.int32), jnp.asarray(labels)
  ones = jnp.ones_like(labels)
  return jax.block_until_ready(
      types.Batch(inputs, jnp.ones_like(inputs), labels, ones, ones > 0)
  )


def check_equal(ours: list[float], theirs: list[float]) -> float:
  """The largest relative difference of losses; raises if it is not small."""
  apart = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))
  if not apart < TOLERANCE:
    raise RuntimeError(f'The losses are {apart:.2e} apart; they must be equal.')
  return apart


def report(sides: comparison.Sides, peer: str, options, **line) -> None:
  """Text, and a line of results."""
  rounds, metrics = options.rounds, line.pop('metrics')
  seconds = {'step_s': sides.ours, f'{peer.lower()}_step_s': sides.theirs}
  print(
      f'step: ours {sides.ours:.3f} s, {peer} {sides.theirs:.3f} s, ratio'
      f' {sides.ratio}'
  )
  comparison.write(
      options.run,
      decoding=None,
      metrics={
          **comparison.metrics(rounds, 's', **seconds),
          **sides.ratio.metrics(f'ratio_to_{peer.lower()}', rounds),
          **metrics,
      },
      **line,
  )


def fine_tune(peer: comparison.Peer, folder: pathlib.Path, options) -> None:
  """Our fine-tuning step beside t5x's."""
  rounds, length = options.rounds, options.length
  config = comparison.published(
      options.draft, dropout_rate=options.dropout_rate
  )
  model = comparison.random_model(config)
  answer = peer.ask(
      model=str(comparison.save(folder, model, 't5x')),
      config=config.to_dict(),
      batch=options.batch,
      lengths=[options.input_length, length],
      rate=ADAFACTOR.learning_rate,
      z_loss=FINE_TUNING.z_loss,
  )
  comparison.print_sides(answer)
  ours = Ours(FINE_TUNING, ADAFACTOR, model)
  inputs = comparison.random_inputs(rounds, options.batch, options.input_length)
  labels = comparison.random_inputs(rounds, options.batch, length)
  losses = {'ours': [], 'theirs': []}

  def call_ours(i):
    seconds, loss = ours.step(batch_of(inputs[i], labels[i]))
    losses['ours'].append(float(loss.total))
    return seconds

  def call_theirs(i):
    answer = peer.ask(inputs=inputs[i], labels=labels[i])
    losses['theirs'].append(answer['loss'])
    return answer['seconds']

  sides = comparison.both(call_ours, call_theirs, options, 'steps')
  count = options.batch * length
  for number, (own, other) in enumerate(zip(*losses.values())):
    print(
        f'step {number}: loss ours {own / count:.5f}, t5x'
        f' {other / count:.5f} nats/token'
    )
  metrics = {}
  if not options.dropout_rate:
    apart = check_equal(**losses)
    metrics = comparison.metrics(rounds + 1, '1', loss_difference=apart)
  report(
      sides,
      't5x',
      options,
      target=comparison.name(options.draft),
      draft=None,
      task=f'fine-tuning step, dropout {options.dropout_rate:g}',
      metrics=metrics,
  )


def distil(peer: comparison.Peer, folder: pathlib.Path, options) -> None:
  """Our on-policy distillation step beside one of plain PyTorch."""
  rounds, length = options.rounds, options.length
  folders = {
      name: comparison.save(
          folder / name,
          comparison.random_model(comparison.published(size), seed),
      )
      for seed, (name, size) in enumerate(
          (('target', options.target), ('draft', options.draft))
      )
  }
  answer = peer.ask(
      **{name: str(path) for name, path in folders.items()},
      learning_rate=ADAMW.learning_rate,
  )
  comparison.print_sides(answer)
  models = {name: comparison.load(path) for name, path in folders.items()}
  ours = Ours(DISTILLATION, ADAMW, **models)
  inputs = comparison.random_inputs(rounds, options.batch, options.input_length)
  unlabelled = np.ones((options.batch, length), np.int32)
  first = batch_of(inputs[0], unlabelled)

  # Ours leaves out what follows an EOS, which plain PyTorch does not.
  same = batch_of(inputs[0], ours.labelled(first).labels)
  own = ours.loss_on(same)
  other = peer.ask(inputs=inputs[0], labels=np.asarray(same.labels))['loss']
  print(f'loss on the same tokens: ours {own:.6f}, theirs {other:.6f} nats')
  apart = check_equal([own], [other])

  their_parts = []

  def call_theirs(i):
    answer = peer.ask(inputs=inputs[i], length=length, seed=i)
    their_parts.append(answer['parts'])
    return answer['seconds']

  sides = comparison.both(
      lambda i: ours.step(batch_of(inputs[i], unlabelled))[0],
      call_theirs,
      options,
      'steps',
  )
  theirs = {
      part: statistics.median(parts[part] for parts in their_parts[1:])
      for part in PARTS
  }
  metrics = comparison.metrics(1, '1', loss_difference=apart)
  print(f'{"":16}{"ours":>12}{"PyTorch":>18}')
  parts = {'': ours.parts(first, rounds), 'pytorch_': theirs}
  for part in PARTS:
    row = f'{part.replace("_", " "):16}'
    for prefix, seconds in parts.items():
      value = seconds[part]
      share = value / sum(seconds.values())
      row += f'{value:9.3f} s {share:4.0%}  '
      name = f'{prefix}{part}'
      metrics |= comparison.metrics(rounds, 's', **{f'{name}_s': value})
      metrics |= comparison.metrics(rounds, '1', **{f'{name}_share': share})
    print(row)
  report(
      sides,
      'PyTorch',
      options,
      target=comparison.name(options.target),
      draft=comparison.name(options.draft),
      task='on-policy distillation step',
      metrics=metrics,
  )


COMPARISONS = {
    'transformers': ('hugging_face/train_server.py', distil),
    't5x': ('t5x/train_server.py', fine_tune),
}


def main() -> None:
  parser = comparison.parser(__doc__, 'the library')
  parser.set_defaults(input_length=128)
  parser.add_argument(
      '--library', choices=tuple(COMPARISONS), default='transformers'
  )
  parser.add_argument('--target', default='base', help='of a distillation')
  parser.add_argument('--draft', default='small', help='the trained model')
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--length', type=int, default=64, help='of labels')
  parser.add_argument(
      '--dropout_rate', type=float, default=0.0, help='of fine-tuning'
  )
  options = parser.parse_args()
  comparison.warn_if_busy()
  server, compare = COMPARISONS[options.library]
  with (
      comparison.Peer(options.peer, server) as peer,
      tempfile.TemporaryDirectory() as folder,
  ):
    compare(peer, pathlib.Path(folder), options)


if __name__ == '__main__':
  sys.exit(main())
