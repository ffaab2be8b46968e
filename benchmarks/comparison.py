"""What comparisons share: options, models, a peer, turns, ratios, results.

A peer runs in an environment of its own, as a server that reads one JSON object
per line and answers each with one. Calls of both sides take turns in one run,
and a ratio is taken of each pair of neighbouring calls, so that a machine that
becomes slower does so for both.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import progress
from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer as transformer_lib

HERE = pathlib.Path(__file__).parent


def parser(doc: str, peer: str | None = None) -> argparse.ArgumentParser:
  """The options that all scripts have.

  Args:
    doc: of the script.
    peer: the libraries that --peer must have; None: there is no peer.
  """
  options = argparse.ArgumentParser(description=doc.splitlines()[0])
  if peer is not None:
    options.add_argument('--peer', required=True, help=f'python with {peer}')
  options.add_argument(
      '--run', help='folder whose results.jsonl gets the lines'
  )
  options.add_argument('--rounds', type=int, default=5)
  options.add_argument('--pause', type=float, default=0.5, help='seconds')
  options.add_argument('--input_length', type=int, default=64)
  return options


def numbers(kind: type) -> Callable[[str], tuple]:
  """Reads an option that is a list, such as 1,8."""
  return lambda text: tuple(kind(part) for part in text.split(','))


# Models and inputs.


def name(size: str) -> str:
  """The name of the published size, as it is in results."""
  return f't5_1_1_{size}'


def published(size: str, **changes: Any) -> config_lib.T5Config:
  return config_lib.published(name(size), **changes)


def random_model(config: config_lib.T5Config, seed: int = 0) -> model_lib.Model:
  network = transformer_lib.Transformer(config)
  return model_lib.Model(network.init(jax.random.key(seed)), network)


def prompt(tokens: np.ndarray) -> types.Prompt:
  """The tokens on the device."""
  tokens = jnp.asarray(tokens, jnp.int32)
  return jax.block_until_ready(types.Prompt(tokens, jnp.ones_like(tokens)))


def random_inputs(rounds: int, batch: int, length: int) -> list[np.ndarray]:
  """int32[batch, length] for round 0 and `rounds` more, of ordinary tokens."""
  rng = np.random.default_rng(batch)
  return [
      rng.integers(2, 32000, (batch, length), np.int32)
      for _ in range(rounds + 1)
  ]


def checkpoint_of(model: model_lib.Model) -> parameters.Checkpoint:
  """The model as if it had been read."""
  flat = tensors.flatten(model.params)
  arrays = {path: tensors.from_array(array) for path, array in flat.items()}
  return parameters.Checkpoint(model.config, arrays)


def save(
    folder: str | pathlib.Path,
    model: model_lib.Model,
    library: str = 'transformers',
) -> pathlib.Path:
  """A folder from which both the library and we load the model."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  checkpoint = checkpoint_of(model)
  if library != 't5x':
    hugging_face.write(
        epath.Path(folder), checkpoint.config, checkpoint.tensors
    )
  else:
    t5x.write(epath.Path(folder), checkpoint.tensors, 0)
  return folder


def load(folder: pathlib.Path, **options: Any) -> model_lib.Model:
  return loading.load(folder, **options).model


# Turns.


class Peer:
  """A server in a process of its own; a context manager that ends it."""

  def __init__(self, python: str, server: str):
    self._errors = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
        [python, str(HERE / server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._errors,
        text=True,
    )

  def ask(self, **request: Any) -> dict[str, Any]:
    """The answer to a request, in which there may be arrays.

    Raises:
      RuntimeError: the server has ended, with the end of its output.
    """
    try:
      text = json.dumps(request, default=lambda array: array.tolist())
      self._process.stdin.write(text + '\n')
      self._process.stdin.flush()
      answer = self._process.stdout.readline()
    except BrokenPipeError:
      answer = ''
    if not answer:
      self._errors.seek(0)
      raise RuntimeError(f'The peer has ended: {self._errors.read()[-3000:]}')
    return json.loads(answer)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with self._errors, self._process:
      pass  # closes its pipes, which ends it, and waits


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
  """Seconds of a call, and what it returns."""
  start = time.perf_counter()
  out = jax.block_until_ready(call(*arguments))
  return time.perf_counter() - start, out


def take_turns(
    calls: Mapping[str, Callable[[int], float]],
    rounds: int,
    pause: float,
    name: str,
    is_warm: bool = False,
) -> dict[str, list[float]]:
  """What each call returns in each round but round 0, which warms up.

  Args:
    calls: name -> round -> seconds.
    rounds: after the first.
    pause: seconds before each call, so that waiting threads of one side do not
      slow the other down.
    name: of the progress that is shown.
    is_warm: all have been called before, and round 0 is left out.
  """
  seconds = {call: [] for call in calls}
  # Who goes first goes last in the next round.
  turns = [
      (i, call)
      for i in range(1 if is_warm else 0, rounds + 1)
      for call in (list(calls) if i % 2 == 0 else reversed(calls))
  ]
  for i, call in progress.shown(turns, name):
    time.sleep(pause)
    value = calls[call](i)
    if i:
      seconds[call].append(value)
  return seconds


class Ratio(NamedTuple):
  """The median of the ratios of neighbouring calls, and their range."""

  median: float
  lowest: float
  highest: float

  def __str__(self):
    return f'{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})'

  def metrics(self, name: str, count: int) -> dict[str, results.Metric]:
    return metrics(
        count,
        '1',
        **{
            name: self.median,
            f'{name}_lowest': self.lowest,
            f'{name}_highest': self.highest,
        },
    )


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
  """Times of theirs over times of ours: above 1 we are faster."""
  ratios = sorted(b / a for a, b in zip(ours, theirs))
  return Ratio(statistics.median(ratios), ratios[0], ratios[-1])


class Sides(NamedTuple):
  """Median seconds of either side, and the ratio."""

  ours: float
  theirs: float
  ratio: Ratio


def both(
    ours: Callable[[int], float],
    theirs: Callable[[int], float],
    options: argparse.Namespace,
    name: str,
) -> Sides:
  """What calls of both sides take, in turns; see `take_turns`."""
  calls = {'ours': ours, 'theirs': theirs}
  times = take_turns(calls, options.rounds, options.pause, name)
  medians = {side: statistics.median(times[side]) for side in calls}
  return Sides(**medians, ratio=ratio(times['theirs'], times['ours']))


# Results.


def metrics(
    count: int, unit: str, **values: float
) -> dict[str, results.Metric]:
  """Metrics of one unit and count."""
  return {
      name: results.Metric(value, None, count, unit)
      for name, value in values.items()
  }


def write(run: str | None, split: str = 'peers', **line: Any) -> None:
  """A line of results of times; nothing without a run."""
  if run is not None:
    results.write(run, 'latency', split=split, seed=0, **line)


def warn_if_busy(seconds: float = 1.0) -> None:
  """Warns where others use the processors, if the system tells (Linux)."""
  file = pathlib.Path('/proc/stat')
  if not file.exists():
    return
  before = _processor_times(file)
  time.sleep(seconds)
  spent = [now - then for then, now in zip(before, _processor_times(file))]
  busy = 1.0 - spent[3] / sum(spent)  # the fourth is idle time
  if busy > 0.1:
    print(
        f'Others use {busy:.0%} of the processors. Wait for a quiet machine'
        ' before you trust these times.',
        file=sys.stderr,
    )


def _processor_times(file: pathlib.Path) -> list[int]:
  return [int(field) for field in file.read_text().splitlines()[0].split()[1:]]


def print_sides(answer: Mapping[str, Any]) -> None:
  """Versions and devices of both sides."""
  theirs = ', '.join(f'{key} {value}' for key, value in answer.items())
  device = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  print(f'ours: jax {jax.__version__}, {device}; theirs: {theirs}')
