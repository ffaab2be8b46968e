"""Tasks of data sets with named fields: TFDS, and Hugging Face's folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import re
from typing import Any

from etils import epath

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.data import files
from distillspec_jax.data import lazy_imports
from distillspec_jax.data import task

settings = task.settings


@settings
class RowTask(task.Task):
  """A task whose examples are rows with named fields.

  A subclass may define `pair(row)`, for texts made of several fields.

  Attributes:
    inputs: field of the input, 'translation.en' for a field in a field; None
      makes a language-modelling task.
    labels: field of the text that the model learns to emit.
  """

  inputs: str | None = 'inputs'
  labels: str = 'labels'

  @property
  def is_decoder_only(self) -> bool:
    return self.inputs is None

  def __post_init__(self):
    check.text(labels=self.labels)
    if self.inputs is not None:
      check.text(inputs=self.inputs)
    super().__post_init__()

  def pair(self, row: Mapping[str, Any]) -> files.Pair:
    """(input, label) of a row, whose texts may be bytes."""
    inputs = '' if self.inputs is None else self.field(row, self.inputs)
    return inputs, self.field(row, self.labels)

  def field(self, row: Mapping[str, Any], name: str) -> str:
    """The text of a field.

    Raises:
      UserError: there is no such field, or it is no text.
    """
    value: Any = row
    for part in name.split('.'):
      if not isinstance(value, Mapping) or part not in value:
        has = sorted(value) if isinstance(value, Mapping) else value
        raise errors.UserError(
            f'Task {self.name!r} reads the field {name!r}, which is not there;'
            f' {part!r} is looked for in {check.shown(has)}. Set `inputs` and'
            ' `labels` to names of fields.'
        )
      value = value[part]
    if isinstance(value, bytes):
      value = value.decode(errors='replace')
    if not isinstance(value, str):
      raise errors.UserError(
          f'The field {name!r} of task {self.name!r} is {check.shown(value)},'
          ' which is no text. Set `inputs` and `labels` to fields with texts.'
      )
    return value


@settings
class tfds(RowTask):
  """A data set of TensorFlow Datasets that has been prepared.

  Attributes:
    name: of the data set, as in tfds.load: 'cnn_dailymail:3.4.0', or with a
      configuration 'wmt14_translate/de-en:1.0.0'.
    train: its split for training; slices such as 'train[:90%]' are splits, too.
    validation: its split that is held out; None: there is none.
    test: its split for tests; None: there is none.
    data_dir: where it was prepared, local or gs://; default: as TFDS has it.
  """

  name: str
  train: str | None = 'train'
  validation: str | None = 'validation'
  test: str | None = 'test'
  data_dir: str | None = None

  @property
  def splits(self) -> tuple[str, ...]:
    named = {s: getattr(self, s) for s in task.Task.splits}
    known = self._builder.info.splits
    return tuple(
        split
        for split, source in named.items()
        if source is not None
        # Before it is prepared, TFDS may not know what a data set has.
        and (not known or all(part in known for part in _parts(source)))
    )

  def _other_split(self, split: str) -> str:
    has = ', '.join(self._builder.info.splits)
    return (
        f' The data set {self.name} has {has}: set `{split}` to one of them, or'
        " to a slice, as in 'train[90%:]'."
    )

  @property
  def _builder(self) -> Any:
    module = lazy_imports.import_tfds()
    data_dir = self.data_dir and sources.expanded(self.data_dir)
    try:
      return module.builder(self.name, data_dir=data_dir)
    except Exception as error:  # of many kinds: no such name, version, config
      reason = ' '.join(str(error).split())[:200]
      raise errors.UserError(
          f'TFDS has no data set {self.name!r}: {reason}'
      ) from error

  def read(self, split: str) -> Iterator[files.Pair]:
    module, builder = lazy_imports.import_tfds(), self._builder
    try:
      rows = builder.as_dataset(split=getattr(self, split), shuffle_files=False)
    except AssertionError as error:
      where = f' --data_dir={self.data_dir}' if self.data_dir else ''
      raise errors.UserError(
          f'The data set {self.name} is not in {builder.data_dir}. Prepare it:'
          f' tfds build {builder.info.full_name}{where}; or set `data_dir` to'
          ' where it is.'
      ) from error
    for row in module.as_numpy(rows):
      yield self.pair(row)


def _parts(split: str) -> list[str]:
  """'train[:90%]+test' -> ['train', 'test']."""
  parts = re.sub(r'\[[^\]]*\]', '', split).split('+')
  return [part.strip() for part in parts]


@settings
class hugging_face_dataset(RowTask):
  """A folder of Hugging Face `datasets`: parquet files, or `save_to_disk`.

  Parquet files belong to the split that their name begins with, or the folder
  that they lie in: data/train-00000-of-00005.parquet, train/0000.parquet.

  Attributes:
    folder: local or remote; a configuration's, where there are several.
    train: its split for training.
    validation: its split that is held out.
    test: its split for tests.
  """

  folder: str
  train: str = 'train'
  validation: str = 'validation'
  test: str = 'test'
  name: str = 'hugging_face_dataset'

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(s for s in task.Task.splits if self.files(s))

  def _other_split(self, split: str) -> str:
    return (
        f' {self.folder} has no .parquet or .arrow files named like'
        f' {getattr(self, split)!r}; set `{split}` to the name of its split.'
    )

  def files(self, split: str) -> list[str]:
    folder = epath.Path(sources.expanded(self.folder))
    if not folder.is_dir():
      raise errors.UserError(f'There is no folder {self.folder}.')
    name = getattr(self, split)
    found = [
        str(path)
        for kind in ('parquet', 'arrow')
        for pattern in ('*', '*/*')
        for path in folder.glob(f'{pattern}.{kind}')
        if re.fullmatch(rf'{re.escape(name)}([-.].*)?', path.name)
        or path.parent.name == name
    ]
    return sorted(path for path in found if '/cache-' not in path)

  def read(self, split: str) -> Iterator[files.Pair]:
    lazy_imports.import_pyarrow()
    for path in self.files(split):
      for row in _arrow_rows(path, self._columns):
        yield self.pair(row)

  @property
  def _columns(self) -> list[str] | None:
    """The columns to read; all where `pair` is a subclass's own."""
    if type(self).pair is not RowTask.pair:
      return None
    fields = (
        [self.labels] if self.inputs is None else [self.inputs, self.labels]
    )
    return sorted({field.split('.')[0] for field in fields})


def _arrow_rows(
    path: str, columns: list[str] | None
) -> Iterator[Mapping[str, Any]]:
  """The rows of a file, a batch of them in memory."""
  import pyarrow
  from pyarrow import parquet

  try:
    with epath.Path(path).open('rb') as file:
      if path.endswith('.parquet'):
        read = parquet.ParquetFile(file)
        names = read.schema_arrow.names
        batches = read.iter_batches(
            1024, columns=columns and [c for c in columns if c in names]
        )
      else:
        batches = pyarrow.ipc.open_stream(file)
      for batch in batches:
        yield from batch.to_pylist()
  except (OSError, pyarrow.ArrowException) as error:
    reason = ' '.join(str(error).split())[:200]
    raise errors.UserError(
        f'The file {path} cannot be read: {reason}'
    ) from error
