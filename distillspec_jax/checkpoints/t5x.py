"""Checkpoints of t5x, in and out, without t5x.

  checkpoint_N/checkpoint   native layout: an index and zarr folders
  checkpoint_N/state/       Orbax, which t5x writes today; older Orbax, too

What is read has our names and shapes (`t5x_layout`), whichever network wrote
it. Written is the native layout, which every t5x reads.
"""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Any

from etils import epath
import numpy as np

from distillspec_jax.checkpoints import orbax_arrays
from distillspec_jax.checkpoints import t5x_layout
from distillspec_jax.checkpoints import t5x_native
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors

# Path of a parameter -> what Adafactor keeps of it, see `read_adafactor`.
Moments = dict[str, dict[str, np.ndarray]]

_MOMENTS = ('m', 'v', 'v_col', 'v_row')
_FACTORED_FROM = 128  # t5x's default of Adafactor.min_dim_size_to_factor
_NAME = re.compile(r'checkpoint_(\d+)')
_UNFINISHED = re.compile(r'\.(tmp|orbax-checkpoint-tmp)')
_COMMITTED = 'commit_success.txt'


def find(path: epath.Path, step: int | None = None) -> epath.Path | None:
  """The folder of a checkpoint, or None where there is none.

  Args:
    path: a checkpoint's folder, or one with several, of which the latest is
      taken. What has not been written to its end is none.
    step: take the one of that step.

  Raises:
    UserError: there are checkpoints, but none of that step.
  """
  path = epath.Path(path)
  if _is_checkpoint(path):
    number = _NAME.fullmatch(path.name)
    if step is not None and (number is None or int(number[1]) != step):
      raise errors.UserError(
          f'{path} is one checkpoint, but step is {step}; leave it out, or name'
          ' the folder that has several.'
      )
    return path
  steps = {}
  if path.is_dir():
    numbers = ((_NAME.fullmatch(child.name), child) for child in path.iterdir())
    steps = {int(number[1]): child for number, child in numbers if number}
  if step is None:
    for number in sorted(steps, reverse=True):
      if _is_checkpoint(steps[number]):
        return steps[number]
    return None
  if step in steps and _is_checkpoint(steps[step]):
    return steps[step]
  others = [str(n) for n in sorted(steps) if _is_checkpoint(steps[n])]
  if not others:
    return None
  raise errors.UserError(
      f'{path} has no whole checkpoint of step {step}; it has those of steps'
      f' {", ".join(others)}.'
  )


def read(folder: epath.Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """The configuration and the parameters; of these, nothing is read yet.

  Args:
    folder: of one checkpoint, see `find`.

  Returns:
    Fields of `T5Config` as far as they follow from shapes, and tensors by
    path. The optimizer's state is left aside.

  Raises:
    UserError: the checkpoint is damaged, too old, or not a T5.
  """
  folder = epath.Path(folder)
  found = _part(folder, 'target')
  if not found:
    raise errors.UserError(
        f'{folder} has no parameters (target); it is not a checkpoint of t5x,'
        ' or was not copied whole.'
    )
  t5x_native.check_floats(found, folder)
  return t5x_layout.ours(found, folder)


def read_adafactor(folder: epath.Path) -> tuple[int, Moments]:
  """The step and Adafactor's state, as t5x keeps it.

  Returns:
    Steps done, and for each parameter's path 'v' of its shape, or 'v_row' and
    'v_col' (the average over its largest and second largest axis), and 'm';
    what is not used is [0.0].

  Raises:
    UserError: there is no state, or of another optimizer, or layers are
      scanned.
  """
  folder = epath.Path(folder)
  found = _part(folder, 'state')
  if not found:
    raise errors.UserError(
        f'{folder} has no state of an optimizer, only parameters. Start the'
        ' optimizer anew instead.'
    )
  prefix = 'param_states/'
  states: dict[str, dict[str, Tensor]] = {}
  for path, tensor in found.items():
    parameter, _, name = path.removeprefix(prefix).rpartition('/')
    if path.startswith(prefix):
      states.setdefault(parameter, {})[name] = tensor
  is_adafactor = states and all(
      tuple(sorted(state)) == _MOMENTS for state in states.values()
  )
  if 'step' not in found or not is_adafactor:
    raise errors.UserError(
        f'The optimizer of {folder} is not Adafactor: its state has'
        f' {", ".join(sorted(found)[:4])}. Only that of Adafactor can be taken'
        ' over; start the optimizer anew instead.'
    )
  if t5x_layout.is_scanned(states):
    raise errors.UserError(
        f'The layers in {folder} are scanned, and so is the state of its'
        ' optimizer, which cannot be taken over. Start the optimizer anew'
        ' instead; the parameters can be loaded.'
    )
  moments = {
      path: {name: tensor.all() for name, tensor in state.items()}
      for path, state in t5x_layout.with_our_embedding(states).items()
  }
  return int(found['step'].all()), moments


def write(
    folder: epath.Path,
    tensors: Mapping[str, Tensor],
    step: int,
    adafactor: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> epath.Path:
  """Writes FOLDER/checkpoint_STEP in the native layout, as t5x reads it.

  It has its name only when it is complete.

  Args:
    folder: gets the checkpoint; made if it is absent.
    tensors: by path, layers not scanned; written as float32.
    step: of training.
    adafactor: its state as `read_adafactor` gives it; default: the state
      before the first step.

  Returns:
    The folder of the checkpoint.

  Raises:
    UserError: the checkpoint is there already, the state does not fit, or the
      model shares another's encoder, which t5x has no name for.
  """
  if 'encoder_projection/kernel' in tensors:
    raise errors.UserError(
        "The model is a draft that reads its target's encoder output; t5x has"
        ' no such model. Write it with to=distillspec.'
    )
  folder = epath.Path(folder)
  final = folder / f'checkpoint_{step}'
  if final.exists():
    raise errors.UserError(
        f'{final} is there already; nothing is overwritten. Name another'
        ' folder, or remove it.'
    )
  if adafactor is None:
    states = {
        path: _fresh(tensor.shape, _FACTORED_FROM)
        for path, tensor in tensors.items()
    }
  else:
    _check_fit(tensors, adafactor)
    states = {
        path: {
            name: tensors_lib.from_array(np.asarray(x, np.float32))
            for name, x in state.items()
        }
        for path, state in adafactor.items()
    }
  beside = final.with_name(f'{final.name}.tmp')
  if beside.exists():
    beside.rmtree()  # of an attempt that was interrupted
  beside.mkdir(parents=True)
  t5x_native.write(
      beside,
      t5x_layout.with_their_embedding(
          {path: tensor.astype('float32') for path, tensor in tensors.items()}
      ),
      step,
      t5x_layout.with_their_embedding(states),
  )
  beside.rename(final)
  return final


def _is_checkpoint(folder: epath.Path) -> bool:
  if _UNFINISHED.search(folder.name):
    return False
  state = folder / 'state'
  if (folder / t5x_native.INDEX).exists() or (
      state / t5x_native.INDEX
  ).exists():
    return True
  if not orbax_arrays.is_one(state):
    return False
  # A bucket has no renaming: there Orbax says so in a file when it is done.
  is_remote = '://' in str(folder)
  return not is_remote or (folder / _COMMITTED).exists()


def _part(folder: epath.Path, part: str) -> dict[str, Tensor]:
  """Path -> tensor of 'target' or 'state', whatever the layout."""
  if (folder / t5x_native.INDEX).exists():
    return t5x_native.read(folder, part) or {}
  state = folder / 'state'
  if (state / 'manifest.ocdbt').exists():
    return orbax_arrays.read(state, (part,))
  if (state / t5x_native.INDEX).exists():
    return t5x_native.read(state, part) or {}
  if orbax_arrays.is_one(state):
    return t5x_native.read_folders(state, part)
  raise errors.UserError(
      f'{folder} is not a checkpoint of t5x: neither the file'
      f' {t5x_native.INDEX} nor the folder state of Orbax is there.'
  )


def _fresh(shape: tuple[int, ...], factored_from: int) -> dict[str, Tensor]:
  """Adafactor's state of a parameter before the first step."""
  sizes = dict.fromkeys(_MOMENTS, (1,))
  order = np.argsort(shape, kind='stable')  # ties: the last is the largest
  if len(shape) > 1 and shape[order[-2]] >= factored_from:
    sizes['v_row'] = tuple(np.delete(shape, order[-1]).tolist())
    sizes['v_col'] = tuple(np.delete(shape, order[-2]).tolist())
  else:
    sizes['v'] = shape
  return {name: _zeros(size) for name, size in sizes.items()}


def _zeros(shape: tuple[int, ...]) -> Tensor:
  def read(index: tensors_lib.Index) -> np.ndarray:
    return np.zeros([part.stop - part.start for part in index], np.float32)

  return Tensor(shape, np.dtype(np.float32), read)


def _check_fit(
    tensors: Mapping[str, Tensor],
    adafactor: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
  apart = sorted(set(tensors) ^ set(adafactor))
  apart += [
      path
      for path, state in sorted(adafactor.items())
      if path in tensors and not _fits(tensors[path].shape, state)
  ]
  if apart:
    raise errors.UserError(
        'The state of Adafactor is not that of these parameters:'
        f' {", ".join(apart[:20])} differ. Leave adafactor out to write the'
        ' state before the first step.'
    )


def _fits(shape: tuple[int, ...], state: Mapping[str, np.ndarray]) -> bool:
  if tuple(sorted(state)) != _MOMENTS:
    return False
  whole = {name: t.shape for name, t in _fresh(shape, 2**62).items()}
  factored = {name: t.shape for name, t in _fresh(shape, 1).items()}
  found = {name: array.shape for name, array in state.items()}
  found['m'] = (1,) if found['m'] == shape else found['m']
  return found in (whole, factored)
