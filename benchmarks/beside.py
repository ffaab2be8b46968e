"""What a comparison with a peer needs: options, models, turns, and ratios.

The peer runs in an environment of its own, as a server that reads a JSON object
a line and answers each with one. Calls of both sides take turns in one run, and
a ratio is made of each pair of neighbours, so that a machine that becomes
slower does so for both.
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
from typing import NamedTuple

from etils import epath
import jax
import numpy as np

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import progress
from distillspec_jax.core import results
from distillspec_jax.models import config as config_lib

HERE = pathlib.Path(__file__).parent


def parser(doc: str, library: str) -> argparse.ArgumentParser:
  """The options that all comparisons have."""
  made = argparse.ArgumentParser(description=doc.splitlines()[0])
  made.add_argument('--peer', required=True, help=f'python with {library}')
  made.add_argument('--run', help='folder whose results.jsonl gets the lines')
  made.add_argument('--rounds', type=int, default=5)
  made.add_argument('--pause', type=float, default=0.5, help='seconds')
  made.add_argument('--input_length', type=int, default=64)
  return made


def numbers(kind: type) -> Callable[[str], tuple]:
  """Reads an option that is a list, such as 1,8."""
  return lambda text: tuple(kind(part) for part in text.split(','))


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

  def ask(self, **request):
    """The answer to a request; a number of numpy's is one of Python's.

    Raises:
      RuntimeError: the server has ended, with its last words.
    """
    try:
      self._process.stdin.write(json.dumps(request, default=_plain) + '\n')
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
    self._process.stdin.close()
    self._process.wait()
    self._errors.close()


def _plain(value):
  return value.tolist()


def take_turns(
    calls: Mapping[str, Callable[[int], float]],
    rounds: int,
    pause: float,
    name: str,
    is_warm: bool = False,
) -> dict[str, list[float]]:
  """What each call gives in each round but round 0, which warms up.

  Args:
    calls: name -> round -> seconds, or whatever is to be compared.
    rounds: after the first.
    pause: seconds before each call, so that threads of one that wait for work
      do not slow the other down.
    name: of what is shown while it goes on.
    is_warm: all have been called before, and round 0 is left out.
  """
  found = {call: [] for call in calls}
  numbers = range(1 if is_warm else 0, rounds + 1)
  turns = [(i, call) for i in numbers for call in _order(calls, i)]
  for i, call in progress.shown(turns, name):
    time.sleep(pause)
    value = calls[call](i)
    if i:
      found[call].append(value)
  return found


def _order(calls, i):
  """Who goes first goes last in the next round."""
  return list(calls) if i % 2 == 0 else list(reversed(calls))


class Ratio(NamedTuple):
  """How often one goes into the other: the median of neighbours, and range."""

  median: float
  lowest: float
  highest: float

  def __str__(self):
    return f'{self.median:.2f} ({self.lowest:.2f} to {self.highest:.2f})'


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
  """Times of theirs over times of ours: above 1 we are faster."""
  found = sorted(b / a for a, b in zip(ours, theirs))
  return Ratio(statistics.median(found), found[0], found[-1])


class Sides(NamedTuple):
  """What two sides take: median seconds of either, and the ratio."""

  ours: float
  theirs: float
  ratio: Ratio


def both(
    ours: Callable[[int], float],
    theirs: Callable[[int], float],
    options: argparse.Namespace,
    name: str,
) -> Sides:
  """What a call of ours and one of theirs take, in turns; see `take_turns`."""
  calls = {'ours': ours, 'theirs': theirs}
  times = take_turns(calls, options.rounds, options.pause, name)
  medians = {side: statistics.median(times[side]) for side in calls}
  return Sides(**medians, ratio=ratio(times['theirs'], times['ours']))


def ratio_metrics(name: str, found: Ratio, rounds: int):
  """The three numbers of a ratio as metrics of a line of results."""
  return {
      key: results.Metric(value, None, rounds, '1')
      for key, value in (
          (name, found.median),
          (f'{name}_lowest', found.lowest),
          (f'{name}_highest', found.highest),
      )
  }


def write(run: str | None, split: str = 'peers', **line) -> None:
  """A line of results of times; nothing without a run."""
  if run is not None:
    results.write(run, 'latency', split=split, seed=0, **line)


def save(
    folder: pathlib.Path,
    config: config_lib.T5Config,
    params,
    library: str = 'transformers',
) -> None:
  """A model as the library reads it, and we as well."""
  folder.mkdir(parents=True, exist_ok=True)
  flat = tensors.flatten(params)
  made = {path: tensors.from_array(array) for path, array in flat.items()}
  if library == 'transformers':
    hugging_face.write(epath.Path(folder), config, made)
  else:
    t5x.write(epath.Path(folder), made, 0)


def save_pair(root: str, configs, params) -> list[pathlib.Path]:
  """Folders of target and draft, whose parameters are made one by one."""
  folders = [pathlib.Path(root, part) for part in ('target', 'draft')]
  for folder, config, made in zip(folders, configs, params):
    save(folder, config, made)
  return folders


def random_inputs(rounds: int, batch: int, length: int) -> list[np.ndarray]:
  """int32[batch, length] for round 0 and `rounds` more, of ordinary tokens."""
  rng = np.random.default_rng(batch)
  return [
      rng.integers(2, 32000, (batch, length), np.int32)
      for _ in range(rounds + 1)
  ]


def warn_if_busy(seconds: float = 1.0) -> None:
  """Says so where others use the processors, if the system tells (Linux)."""
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
        ' before you believe these times.',
        file=sys.stderr,
    )


def _processor_times(file: pathlib.Path) -> list[int]:
  return [int(field) for field in file.read_text().splitlines()[0].split()[1:]]


def about(answer: Mapping[str, object]) -> str:
  """Versions and device of both sides."""
  theirs = ', '.join(f'{key} {value}' for key, value in answer.items())
  device = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  return f'ours: jax {jax.__version__}, {device}; theirs: {theirs}'
