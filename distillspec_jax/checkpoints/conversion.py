"""A checkpoint in another format, and the proof that it is the same model.

What was written is read again and compared with the original, tensor by tensor
and by the logits of a fixed input, before it gets its name: a folder that is
there is complete and right.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from distillspec_jax.checkpoints import array_checksums
from distillspec_jax.checkpoints import hugging_face
from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import store
from distillspec_jax.checkpoints import t5x
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints import trim_vocabulary as trim_vocabulary_lib
from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import progress
from distillspec_jax.core import sources
from distillspec_jax.data import files
from distillspec_jax.data import vocabularies
from distillspec_jax.distributed import locks

FORMATS = ('distillspec', 'hugging_face', 't5x')
_DTYPES = ('float32', 'bfloat16', 'float16')
# Fields of the configuration that change how a model is run, not what it is.
_RUN_FIELDS = ('attention', 'dropout_rate', 'dtype', 'remat', 'scan_layers')


@dataclasses.dataclass(frozen=True)
class Comparison:
  """How two checkpoints of one model differ."""

  parameters: int  # number of them
  tensors: int  # matched by path
  dtypes: dict[str, int]  # 'float32 -> bfloat16' -> number of tensors
  largest_change: float  # of any parameter, absolute
  largest_logit_difference: float  # on a fixed input, computed in float32


class Trimmed(NamedTuple):
  """How an output layer was trimmed to the frequent tokens of `texts`."""

  chosen: trim_vocabulary_lib.ChosenTokens
  vocab_size: int  # tokens before
  texts: str
  largest_logit_difference: float  # of the tokens that were kept


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What `convert` wrote, and how it compares with the original."""

  folder: epath.Path
  comparison: Comparison  # with the original, trimmed if it was asked for
  ignored: tuple[str, ...]  # what else the original holds
  vocabulary: str  # what was written of it, in words
  trimmed: Trimmed | None = None


def convert(
    source: str,
    destination: str,
    *,
    to: str = 'distillspec',
    step: int | None = None,
    dtype: str | None = None,
    vocabulary: str | None = None,
    trim_vocabulary: int | None = None,
    texts: str | None = None,
    field: str = 'text',
    allow_nonfinite: bool = False,
) -> Conversion:
  """Writes the model in `source` to `destination` and compares the two.

  Args:
    source: a folder of this package, of Hugging Face or of t5x, or the name of
      a repository in the Hugging Face cache; as in `load`.
    destination: a folder that does not exist yet, or is empty.
    to: 'distillspec', 'hugging_face' or 't5x' (its native layout).
    step: take the checkpoint of that step, of a run or of t5x.
    dtype: 'float32', 'bfloat16' or 'float16'; default: as in the source
      (t5x: float32).
    vocabulary: where it is, if not in the source: a SentencePiece .model file,
      a tokenizer.json, a folder, or 'bytes'.
    trim_vocabulary: makes a draft that proposes only so many tokens, the most
      frequent of --texts, and so takes less time; its output layer has no
      others. Needs --texts, and cannot be written in other formats.
    texts: file with texts like those that the target writes, one per line, or
      .jsonl, as `decode --out` writes it.
    field: of each object in a .jsonl file of texts.
    allow_nonfinite: converts parameters that are NaN or infinite, too.

  Raises:
    UserError: the source cannot be read, the destination is not empty, the
      format cannot express the model, or the two differ.
  """
  check.one_of(FORMATS, to=to)
  if dtype is not None:
    check.one_of(_DTYPES, dtype=dtype)
  if to == 't5x' and dtype not in (None, 'float32'):
    raise errors.UserError(
        f'dtype is {dtype!r}, but t5x keeps float32; leave dtype out.'
    )
  if (trim_vocabulary is None) != (texts is None):
    raise errors.UserError(
        f'trim_vocabulary is {trim_vocabulary} and texts is {texts}; give both,'
        ' to keep the most frequent tokens of the texts, or neither.'
    )
  folder = sources.resolve(source)
  original = loading.read(folder, step)
  array_checksums.verify(original.tensors, original.checksums)
  original = original._replace(checksums={}).unscanned()
  words = loading.find_vocabulary(
      folder, original.config.vocab_size, vocabulary
  )
  trimmed = None
  if trim_vocabulary is not None:
    original, trimmed = _trim(
        original, source, words, trim_vocabulary, texts, field
    )
  config = original.config
  if config.trimmed_vocabulary is not None and to != 'distillspec':
    raise errors.UserError(
        f'The output layer of {source} has {config.num_logits} of'
        f' {config.vocab_size} tokens, which {to} cannot express. Leave --to'
        ' out to keep it so, or convert the whole model that it was trimmed'
        ' from.'
    )
  final = _vacant(destination)
  lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
  if '://' not in destination:
    lock = locks.held(f'{final}.lock')
  with lock, store.writing(final):
    comparison = _write_and_compare(
        final, original, source, destination, to, dtype, words, allow_nonfinite
    )
  kept = f'{words.vocab_size} tokens' if words else 'none found'
  if to == 't5x':
    kept = 'none: t5x keeps it elsewhere, as config.gin says'
  return Conversion(final, comparison, original.ignored, kept, trimmed)


def report(conversion: Conversion) -> str:
  """What was converted and compared, for people."""
  comparison, trimmed = conversion.comparison, conversion.trimmed
  lines = []
  if trimmed is not None:
    chosen = trimmed.chosen
    kept, covered = len(chosen.tokens), chosen.num_covered / chosen.num_total
    lines = [
        f'trimmed vocabulary         {kept:,} of {trimmed.vocab_size:,} tokens',
        f'they cover                 {covered:.2%} of the'
        f' {chosen.num_total:,} tokens in {trimmed.texts}',
        f'change of their logits     {trimmed.largest_logit_difference:.3g}',
    ]
  count = comparison.tensors
  changes = [f'{x} ({n} tensors)' for x, n in comparison.dtypes.items()]
  lines += [
      f'parameters                 {comparison.parameters:,}',
      f'tensors matched by path    {count} of {count}',
      *(f'dtype                      {x}' for x in changes or ['unchanged']),
      f'largest parameter change   {comparison.largest_change:.3g}',
      f'largest logit difference   {comparison.largest_logit_difference:.3g}',
      *(f'ignored                    {name}' for name in conversion.ignored),
      f'vocabulary                 {conversion.vocabulary}',
  ]
  return '\n'.join(lines)


def compare(
    original: parameters.Checkpoint,
    written: parameters.Checkpoint,
    source: str,
    destination: str,
    allow_nonfinite: bool = False,
) -> Comparison:
  """How the two differ; one tensor, then one model, is in memory at a time.

  Raises:
    UserError: they are not the same model: a tensor is missing, left over or
      of another shape, the configurations disagree, or a value differs although
      its dtype did not change.
  """
  _check_same_model(original, written, destination)
  shapes = {path: t.shape for path, t in original.tensors.items()}
  wrong = parameters.mismatches(written.tensors, shapes)
  if wrong:
    raise errors.UserError(f'{destination} is not {source}: {wrong}.')
  dtypes = collections.Counter()
  largest, changed, nonfinite = 0.0, [], {}
  pairs = tensors_lib.compare(original.tensors, written.tensors)
  for path, difference in progress.shown(pairs, 'comparing', len(shapes)):
    largest = max(largest, difference.largest)
    if difference.nonfinite:
      nonfinite[path] = difference.nonfinite
    before, after = difference.dtypes
    if before != after:
      dtypes[f'{before} -> {after}'] += 1
    elif difference.largest:
      changed.append(path)
  if nonfinite and not allow_nonfinite:
    message = tensors_lib.nonfinite_message(nonfinite)
    raise errors.UserError(f'{source} -> {destination}: {message}')
  if changed:
    raise errors.UserError(
        f'{destination} is not {source}: {tensors_lib.listed(changed)} differ'
        f' by up to {largest:.3g}.'
    )
  before, after = _logits(original, source), _logits(written, destination)
  logit_difference = _largest_difference(before, after)
  if not dtypes and logit_difference:
    raise errors.UserError(
        f'{destination} has the parameters of {source}, but its logits differ'
        f' by up to {logit_difference:.3g}; this is an error of the program.'
    )
  return Comparison(
      parameters=sum(t.size for t in original.tensors.values()),
      tensors=len(shapes),
      dtypes=dict(dtypes),
      largest_change=largest,
      largest_logit_difference=logit_difference,
  )


def _trim(
    whole: parameters.Checkpoint,
    source: str,
    vocabulary: Any,
    size: int,
    texts: str,
    field: str,
) -> tuple[parameters.Checkpoint, Trimmed]:
  """The model with only the most frequent tokens of a file."""
  if vocabulary is None:
    raise errors.UserError(
        f'{source} has no vocabulary, so the tokens of {texts} cannot be'
        ' counted; say where it is with --vocabulary.'
    )
  vocab_size = whole.config.vocab_size
  chosen = trim_vocabulary_lib.choose_tokens(
      files.texts(texts, field), vocabulary, vocab_size, size
  )
  checkpoint = trim_vocabulary_lib.trim(whole, chosen.tokens)
  kept = list(chosen.tokens)
  before = _logits(whole, source)[..., kept]
  after = _logits(checkpoint, source)[..., kept]
  difference = _largest_difference(before, after)
  # A product of another shape may be summed in another order.
  if difference > 1e-4 * max(np.abs(np.nan_to_num(before)).max(), 1.0):
    raise errors.UserError(
        f'The logits that were kept of {source} changed by up to'
        f' {difference:.3g}; this is an error of the program.'
    )
  return checkpoint, Trimmed(chosen, vocab_size, texts, difference)


def _write_and_compare(
    final, original, source, destination, to, dtype, words, allow_nonfinite
) -> Comparison:
  """Writes the model; its folder is then complete, or absent."""
  temporary = final.parent / f'.{final.name}.new'
  if temporary.exists():
    temporary.rmtree()  # of a conversion that was interrupted
  temporary.mkdir(parents=True)
  try:
    _write(temporary, original, to, dtype, words)
    written = loading.read(temporary)
    comparison = compare(
        original, written, source, destination, allow_nonfinite
    )
    if final.exists():
      final.rmdir()  # it is empty
    temporary.rename(final)
  except BaseException:
    temporary.rmtree()
    raise
  return comparison


def _write(
    folder: epath.Path,
    checkpoint: parameters.Checkpoint,
    to: str,
    dtype: str | None,
    vocabulary: Any,
) -> None:
  config, tensors = checkpoint.config, checkpoint.tensors
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
    also = None
    if vocabulary is not None:
      also = functools.partial(vocabularies.save, vocabulary)
    model_folder.write(
        folder, config.to_dict(), params, checkpoint.step, also=also
    )


def _vacant(destination: str) -> epath.Path:
  """The folder, which does not exist or is empty."""
  folder = epath.Path(sources.expanded(destination))
  if '://' not in destination:
    folder = epath.Path(os.path.abspath(folder))
    store.check_writable(folder.parent)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise errors.UserError(
        f'{destination} exists and is not an empty folder; nothing is'
        ' overwritten. Name another, or remove it.'
    )
  return folder


def _check_same_model(
    original: parameters.Checkpoint,
    written: parameters.Checkpoint,
    destination: str,
) -> None:
  a, b = (dataclasses.asdict(x.config) for x in (original, written))
  differences = [
      f'{name} is {a[name]} and would be read as {b[name]}'
      for name in a
      if a[name] != b[name] and name not in _RUN_FIELDS
  ]
  if differences:
    raise errors.UserError(
        f'The format of {destination} cannot express this model:'
        f' {"; ".join(differences)}. Use another format.'
    )


def _logits(checkpoint: parameters.Checkpoint, name: str) -> np.ndarray:
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


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
  """Of two arrays of logits, where both are numbers."""
  with np.errstate(invalid='ignore'):  # -inf is that of a trimmed token
    return float(np.nan_to_num(np.abs(a - b)).max())
