"""Checkpoints of t5x, read and written without t5x.

  checkpoint_N/checkpoint   native layout: an index and zarr folders
  checkpoint_N/state/       Orbax, which t5x writes today, and older Orbax

Whichever network wrote it, what is read has our names and shapes
(`t5x_layout`). The native layout is written, which every t5x reads.
"""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import NamedTuple

from etils import epath
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import orbax_arrays
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import t5x_layout
from distillspec_jax.checkpoints import t5x_native
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors

_STATES = 'param_states/'
_MOMENTS = ('m', 'v', 'v_col', 'v_row')
_FACTORED_FROM = 128  # t5x's default of Adafactor.min_dim_size_to_factor
_NAME = re.compile(r'checkpoint_(\d+)')
_UNFINISHED = re.compile(r'\.(tmp|orbax-checkpoint-tmp)')
_COMMITTED = 'commit_success.txt'


class AdafactorState(NamedTuple):
  """What t5x keeps of Adafactor.

  Attributes:
    step: updates done.
    by_path: path of a parameter -> 'v' of its shape, or 'v_row' and 'v_col'
      (averages of v over its largest and second largest axis), and 'm', the
      momentum; what is not used is [0.0].
  """

  step: int
  by_path: dict[str, dict[str, np.ndarray]]


def find(path: epath.Path, step: int | None = None) -> epath.Path | None:
  """The folder of a checkpoint, or None where there is none.

  Args:
    path: a checkpoint's folder, or one with several; of these, the latest that
      is complete.
    step: the one of that step instead.

  Raises:
    UserError: there are checkpoints, but none of that step.
  """
  path = epath.Path(path)
  if _is_checkpoint(path):
    if step not in (None, _step(path)):
      raise errors.UserError(
          f'{path} is one checkpoint, but step is {step}; leave it out, or name'
          ' the folder that has several.'
      )
    return path
  children = path.iterdir() if path.is_dir() else ()
  folders = {_step(child): child for child in children}
  folders.pop(None, None)
  if step is None:
    latest_first = [folders[n] for n in sorted(folders, reverse=True)]
    return next(filter(_is_checkpoint, latest_first), None)
  if step in folders and _is_checkpoint(folders[step]):
    return folders[step]
  others = [str(n) for n in sorted(folders) if _is_checkpoint(folders[n])]
  if not others:
    return None
  raise errors.UserError(
      f'{path} has no complete checkpoint of step {step}; it has those of steps'
      f' {", ".join(others)}.'
  )


def read(folder: epath.Path) -> parameters.Checkpoint:
  """The parameters, not read yet, with the configuration that they imply.

  Args:
    folder: of one checkpoint, see `find`.

  Raises:
    UserError: the checkpoint is damaged, too old, or not a T5.
  """
  folder = epath.Path(folder)
  tensors = _part(folder, 'target')
  if not tensors:
    raise errors.UserError(
        f'{folder} has no parameters (target); it is not a checkpoint of t5x,'
        ' or was not copied completely.'
    )
  others = [
      f'{path}, which is {tensor.dtype}'
      for path, tensor in tensors.items()
      if not jnp.issubdtype(tensor.dtype, jnp.floating)
  ]
  if others:
    raise errors.UserError(
        f'{len(others)} arrays in {folder} are not of a floating type, such as'
        f' {others[0]}. Old versions of t5x wrote bfloat16 as uint16; load the'
        ' checkpoint with such a version and save it as float32.'
    )
  config, tensors = t5x_layout.to_ours(tensors, folder)
  ignored = ('the state of the optimizer',)
  return parameters.Checkpoint(config, tensors, ignored, _step(folder) or 0)


def read_adafactor(folder: epath.Path) -> AdafactorState:
  """Adafactor's state in a checkpoint.

  Raises:
    UserError: there is no state, it is another optimizer's, or layers are
      scanned.
  """
  folder = epath.Path(folder)
  tensors = _part(folder, 'state')
  if not tensors:
    raise errors.UserError(
        f'{folder} has no state of an optimizer, only parameters. Start the'
        ' optimizer anew instead.'
    )
  states = t5x_layout.with_our_embedding(
      {
          path.removeprefix(_STATES): tensor
          for path, tensor in tensors.items()
          if path.startswith(_STATES)
      }
  )
  paths = sorted({path.rpartition('/')[0] for path in states})
  expected = {f'{path}/{name}' for path in paths for name in _MOMENTS}
  if 'step' not in tensors or not states or set(states) != expected:
    raise errors.UserError(
        f'The optimizer of {folder} is not Adafactor: its state has'
        f' {", ".join(sorted(tensors)[:4])}. Only that of Adafactor can be'
        ' restored; start the optimizer anew instead.'
    )
  if any(map(parameters.is_stacked, paths)):
    raise errors.UserError(
        f'The layers in {folder} are scanned, and so is the state of its'
        ' optimizer, which cannot be restored. Start the optimizer anew'
        ' instead; the parameters can be loaded.'
    )
  by_path = {
      path: {name: states[f'{path}/{name}'].all() for name in _MOMENTS}
      for path in paths
  }
  return AdafactorState(int(tensors['step'].all()), by_path)


def write(
    folder: epath.Path,
    tensors: Mapping[str, Tensor],
    step: int,
    adafactor: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> epath.Path:
  """Writes FOLDER/checkpoint_STEP in the native layout, as t5x reads it.

  The folder gets that name only when it is complete.

  Args:
    folder: is created if it does not exist.
    tensors: by path, layers not scanned; written as float32.
    step: of training.
    adafactor: its state, `AdafactorState.by_path`; default: the state before
      the first step.

  Returns:
    The folder of the checkpoint.

  Raises:
    UserError: the checkpoint exists already, the state does not fit, or the
      model is a draft that shares an encoder, for which t5x has no name.
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
        f'{final} exists already; nothing is overwritten. Name another'
        ' folder, or remove it.'
    )
  given = None if adafactor is None else tensors_lib.flatten(adafactor)
  shapes = _state_shapes(tensors, given)
  if given is None:
    # Views of a single zero, which take no memory.
    zero = np.zeros((), np.float32)
    given = {p: np.broadcast_to(zero, shape) for p, shape in shapes.items()}
  wrong = parameters.mismatches(given, shapes)
  if wrong:
    raise errors.UserError(
        f'The state of Adafactor is not that of these parameters: {wrong}.'
        ' Leave adafactor out to write the state before the first step.'
    )
  states = {
      path: tensors_lib.from_array(np.asarray(x, np.float32))
      for path, x in given.items()
  }
  temporary = final.with_name(f'{final.name}.tmp')
  if temporary.exists():
    temporary.rmtree()  # of an attempt that was interrupted
  temporary.mkdir(parents=True)
  t5x_native.write(
      temporary,
      t5x_layout.with_their_embedding(
          {path: tensor.astype('float32') for path, tensor in tensors.items()}
      ),
      step,
      t5x_layout.with_their_embedding(states),
  )
  temporary.rename(final)
  return final


def _step(folder: epath.Path) -> int | None:
  match = _NAME.fullmatch(folder.name)
  return int(match[1]) if match else None


def _is_checkpoint(folder: epath.Path) -> bool:
  if _UNFINISHED.search(folder.name):
    return False
  state = folder / 'state'
  if any((at / t5x_native.INDEX).exists() for at in (folder, state)):
    return True
  if not orbax_arrays.is_checkpoint(state):
    return False
  # Orbax renames a folder that is complete. A bucket has no renaming; there it
  # writes a file instead.
  is_remote = '://' in str(folder)
  return not is_remote or (folder / _COMMITTED).exists()


def _part(folder: epath.Path, part: str) -> dict[str, Tensor]:
  """Path -> tensor of 'target' or 'state', whatever the layout."""
  if (folder / t5x_native.INDEX).exists():
    return t5x_native.read(folder, part)
  state = folder / 'state'
  if (state / 'manifest.ocdbt').exists():
    return orbax_arrays.read(state, (part,))
  if (state / t5x_native.INDEX).exists():
    return t5x_native.read(state, part)
  if orbax_arrays.is_checkpoint(state):
    return t5x_native.read_folders(state, part)
  raise errors.UserError(
      f'{folder} is not a checkpoint of t5x: neither the file'
      f' {t5x_native.INDEX} nor the folder state of Orbax is there.'
  )


def _state_shapes(
    tensors: Mapping[str, Tensor], given: Mapping[str, np.ndarray] | None
) -> dict[str, tuple[int, ...]]:
  """Path of a parameter, '/' and name -> shape, of Adafactor's state.

  Whether second moments are factored, and whether there is momentum, are
  settings of the optimizer; it is seen from the state that is given, if any.
  """
  shapes = {}
  for path, tensor in tensors.items():
    sizes, shape = dict.fromkeys(_MOMENTS, (1,)), tensor.shape
    order = np.argsort(shape, kind='stable')  # ties: the last is the largest
    is_factored = len(shape) > 1 and shape[order[-2]] >= _FACTORED_FROM
    if given is not None:
      is_factored = len(shape) > 1 and np.shape(given.get(f'{path}/v')) == (1,)
      if np.shape(given.get(f'{path}/m')) == shape:
        sizes['m'] = shape
    if is_factored:
      sizes['v_row'] = tuple(np.delete(shape, order[-1]).tolist())
      sizes['v_col'] = tuple(np.delete(shape, order[-2]).tolist())
    else:
      sizes['v'] = shape
    shapes |= {f'{path}/{name}': size for name, size in sizes.items()}
  return shapes
