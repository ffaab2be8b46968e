"""`distillspec convert`: a checkpoint of one format in another, and the proof.

What was written is read again and compared with what it was made of, tensor by
tensor and by the logits on a fixed input, before it gets its name: a folder
that is there is complete and right.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints import trim_vocabulary
from distillspec_jax.core import errors
from distillspec_jax.core import progress
from distillspec_jax.core import sources
from distillspec_jax.data import files
from distillspec_jax.data import vocabularies
from distillspec_jax.models import config as config_lib

FORMATS = ('distillspec', 'hugging_face', 't5x')
_DTYPES = ('float32', 'bfloat16', 'float16')
# How a model is run and trained, not what it is.
_NOT_MEANING = ('dropout_rate', 'dtype', 'remat', 'scan_layers')


class Proof(NamedTuple):
  """How two checkpoints compare.

  Attributes:
    parameters: number of them.
    tensors: matched by path.
    dtypes: 'float32 -> bfloat16' -> number of tensors, where they differ.
    largest_change: of any parameter, absolute.
    largest_logit_difference: on a fixed input, computed in float32.
  """

  parameters: int
  tensors: int
  dtypes: dict[str, int]
  largest_change: float
  largest_logit_difference: float


def convert(
    source: str,
    destination: str,
    *,
    to: str = 'distillspec',
    step: int | None = None,
    dtype: str | None = None,
    vocabulary: str | None = None,
    output_tokens: int | None = None,
    texts: str | None = None,
    field: str = 'text',
    allow_nonfinite: bool = False,
) -> epath.Path:
  """Writes the model in `source` to `destination` and compares the two.

  Args:
    source: a folder of ours, of Hugging Face or of t5x, or a repository's name
      in the Hugging Face cache; as in `load`.
    destination: a folder that is not there yet, or empty.
    to: 'distillspec', 'hugging_face' or 't5x' (its native layout).
    step: take the checkpoint of that step, of a run or of t5x.
    dtype: 'float32', 'bfloat16' or 'float16'; default: as in the source
      (t5x: float32).
    vocabulary: where it is, if not in the source: a SentencePiece .model file,
      a tokenizer.json, a folder, or 'bytes'.
    output_tokens: makes a draft that proposes from so many tokens only, the
      most frequent of --texts, and so takes less time; its output layer has no
      others. Needs --texts, and cannot go to other formats.
    texts: file with texts like those that the target writes, one a line, or
      .jsonl, as `decode --out` writes it.
    field: of each object in a .jsonl file of texts.
    allow_nonfinite: converts parameters that are NaN or infinite, too.

  Returns:
    The folder that was written.

  Raises:
    UserError: the source cannot be read, the destination is not empty, the
      format cannot express the model, or the two differ.
  """
  if to not in FORMATS:
    raise errors.UserError(f'to is {to!r}; it must be one of {FORMATS}.')
  if dtype is not None and dtype not in _DTYPES:
    raise errors.UserError(f'dtype is {dtype!r}; it must be one of {_DTYPES}.')
  if to == 't5x' and dtype not in (None, 'float32'):
    raise errors.UserError(
        f'dtype is {dtype!r}, but t5x keeps float32; leave dtype out.'
    )
  if (output_tokens is None) != (texts is None):
    raise errors.UserError(
        f'output_tokens is {output_tokens} and texts is {texts}; give both, to'
        ' keep the most frequent tokens of the texts, or neither.'
    )
  folder = sources.resolve(source)
  original = model_folder.unscanned(loading.read(folder, step))
  config = config_lib.T5Config.from_dict(original.config)
  original = original._replace(config=config.to_dict())
  words = loading.find_vocabulary(folder, config.vocab_size, vocabulary)
  if output_tokens is not None:
    original = _cut(original, source, words, output_tokens, texts, field)
    config = config_lib.T5Config.from_dict(original.config)
  if config.output_tokens is not None and to != 'distillspec':
    raise errors.UserError(
        f'The output layer of {source} has columns for {config.num_columns} of'
        f' {config.vocab_size} tokens, which {to} cannot express. Leave --to'
        ' out to keep it so, or convert the whole model that it was cut from.'
    )
  target = _vacant(destination)
  beside = target.parent / f'.{target.name}.new'
  if beside.exists():
    beside.rmtree()  # of a conversion that was interrupted
  beside.mkdir(parents=True)
  try:
    _write(beside, original, to, dtype, words)
    written = loading.read(beside)
    proof = compare(original, written, source, destination, allow_nonfinite)
    if target.exists():
      target.rmdir()  # it is empty
    beside.rename(target)
  except BaseException:
    beside.rmtree()
    raise
  _report(proof, original, words, to)
  return target


def compare(
    original: tensors_lib.Checkpoint,
    written: tensors_lib.Checkpoint,
    source: str,
    destination: str,
    allow_nonfinite: bool = False,
) -> Proof:
  """How the two differ; one tensor, then one model, is in memory at a time.

  Raises:
    UserError: they are not the same model: a tensor is missing, left over or
      of another shape, the configurations disagree, or a value differs without
      its dtype having changed.
  """
  _check_same_meaning(original.config, written.config, destination)
  shapes = {path: t.shape for path, t in original.tensors.items()}
  wrong = tensors_lib.mismatches(written.tensors, shapes)
  if wrong:
    raise errors.UserError(f'{destination} is not {source}: {wrong}.')
  dtypes: dict[str, int] = {}
  largest, changed, spoilt = 0.0, [], {}
  pairs = tensors_lib.compare(original.tensors, written.tensors)
  for path, difference in progress.shown(pairs, 'comparing', len(shapes)):
    largest = max(largest, difference.largest)
    if difference.nonfinite:
      spoilt[path] = difference.nonfinite
    before, after = difference.dtypes
    if before != after:
      change = f'{before} -> {after}'
      dtypes[change] = dtypes.get(change, 0) + 1
    elif difference.largest:
      changed.append(path)
  if spoilt and not allow_nonfinite:
    raise errors.UserError(
        f'{source} -> {destination}: {tensors_lib.nonfinite_message(spoilt)}'
    )
  if changed:
    raise errors.UserError(
        f'{destination} is not {source}: {", ".join(changed)} differ by up to'
        f' {largest:.3g}.'
    )
  before, after = _logits(original, source), _logits(written, destination)
  with np.errstate(invalid='ignore'):  # -inf where there is no column
    apart = np.abs(before - after)
  if not dtypes and np.nan_to_num(apart).max() > 0.0:
    raise errors.UserError(
        f'{destination} has the parameters of {source} but other logits, apart'
        f' by up to {np.nanmax(apart):.3g}; this is an error of the program.'
    )
  return Proof(
      parameters=sum(t.size for t in original.tensors.values()),
      tensors=len(shapes),
      dtypes=dtypes,
      largest_change=largest,
      largest_logit_difference=float(np.nan_to_num(apart).max()),
  )


def _cut(
    checkpoint: tensors_lib.Checkpoint,
    source: str,
    vocabulary: Any,
    size: int,
    texts: str,
    field: str,
) -> tensors_lib.Checkpoint:
  """The model with the columns of the most frequent tokens of a file."""
  if vocabulary is None:
    raise errors.UserError(
        f'{source} has no vocabulary, so the tokens of {texts} cannot be'
        ' counted; say where it is with --vocabulary.'
    )
  whole = config_lib.T5Config.from_dict(checkpoint.config)
  chosen = trim_vocabulary.choose(
      files.texts(texts, field), vocabulary, whole.vocab_size, size
  )
  found = trim_vocabulary.cut(checkpoint, chosen.tokens)
  before = _logits(checkpoint, source)[..., list(chosen.tokens)]
  after = _logits(found, source)[..., list(chosen.tokens)]
  apart = float(np.nan_to_num(np.abs(before - after)).max())
  if apart > 1e-4 * max(float(np.nan_to_num(np.abs(before)).max()), 1.0):
    raise errors.UserError(
        f'The logits that were kept of {source} changed by up to {apart:.3g};'
        ' this is an error of the program.'
    )
  print(f'tokens of the output layer {size:,} of {whole.vocab_size:,}')
  print(
      f'they cover                 {chosen.covered / chosen.count:.2%} of the'
      f' {chosen.count:,} tokens in {texts}'
  )
  print(f'change of their logits     {apart:.3g}')
  return found


def _write(
    folder: epath.Path,
    checkpoint: tensors_lib.Checkpoint,
    to: str,
    dtype: str | None,
    vocabulary: Any,
) -> None:
  config = dict(checkpoint.config)
  tensors = checkpoint.tensors
  if dtype is not None:
    tensors = {path: tensor.astype(dtype) for path, tensor in tensors.items()}
  if to == 't5x':
    t5x.write(folder, tensors, checkpoint.step)
  elif to == 'hugging_face':
    hugging_face.write(folder, config, tensors)
    vocabularies.save_hugging_face(vocabulary, folder)
  else:
    arrays = {
        path: tensors[path].all()
        for path in progress.shown(list(tensors), 'reading')
    }
    params = tensors_lib.unflatten(arrays)
    model_folder.write(folder, config, params, checkpoint.step)
    if vocabulary is not None:
      vocabularies.save(vocabulary, folder)


def _vacant(destination: str) -> epath.Path:
  """The folder, which is not there or is empty."""
  folder = epath.Path(destination).expanduser()
  if '://' not in destination:
    folder = epath.Path(os.path.abspath(folder))
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise errors.UserError(
        f'{destination} is there already and not an empty folder; nothing is'
        ' overwritten. Name another, or remove it.'
    )
  return folder


def _check_same_meaning(
    original: dict[str, Any], written: dict[str, Any], destination: str
) -> None:
  a = dataclasses.asdict(config_lib.T5Config.from_dict(original))
  b = dataclasses.asdict(config_lib.T5Config.from_dict(written))
  apart = [
      f'{name} is {a[name]} and would be read as {b[name]}'
      for name in a
      if a[name] != b[name] and name not in _NOT_MEANING
  ]
  if apart:
    raise errors.UserError(
        f'The format of {destination} cannot express this model:'
        f' {"; ".join(apart)}. Use another format.'
    )


def _logits(checkpoint: tensors_lib.Checkpoint, name: str) -> np.ndarray:
  """float32[2, 8, V] on a fixed input."""
  model = loading.place(checkpoint, name, dtype='float32', allow_nonfinite=True)
  tokens = np.random.default_rng(0).integers(
      0, model.config.vocab_size, (2, 24), np.int32
  )
  encoded = None
  if model.config.shares_encoder:
    shape = (2, 16, model.config.encoded_dim)
    encoded = np.random.default_rng(1).standard_normal(shape, np.float32)
  mask = np.ones((2, 16), bool)
  return np.asarray(model.logits(tokens[:, :16], tokens[:, 16:], mask, encoded))


def _report(
    proof: Proof,
    checkpoint: tensors_lib.Checkpoint,
    vocabulary: Any,
    to: str,
) -> None:
  print(f'parameters                 {proof.parameters:,}')
  print(f'tensors matched by path    {proof.tensors} of {proof.tensors}')
  for change, count in proof.dtypes.items():
    print(f'dtype                      {change} ({count} tensors)')
  if not proof.dtypes:
    print('dtype                      unchanged')
  print(f'largest parameter change   {proof.largest_change:.3g}')
  print(f'largest logit difference   {proof.largest_logit_difference:.3g}')
  for name in checkpoint.left_aside:
    print(f'left aside                 {name}')
  if to == 't5x':
    words = 'none: t5x keeps it elsewhere, as config.gin says'
  else:
    words = f'{vocabulary.vocab_size} tokens' if vocabulary else 'none found'
  print(f'vocabulary                 {words}')
