"""Examples that are tokenised once, kept in ArrayRecord files, read by number.

What has more tokens than fit the memory well is prepared: tokenised in parts of
2**16 examples, each a file of records, in a folder whose name has a hash of all
that the tokens depend on. A part counts once its PART.json is there, the folder
once complete.json is: nothing is renamed, so that a bucket serves as well. Who
is interrupted continues with the next part; of several hosts each prepares its
share.

  FOLDER/key.json                       what the tokens depend on
  FOLDER/part-00000.json                number of examples, names of its files
  FOLDER/part-00000-WRITER.records      the tokens of each example
  FOLDER/part-00000-WRITER.lengths.npy  int32[n, 2] before they are cut
  FOLDER/lengths.npy                    those of all parts
  FOLDER/complete.json                  all parts, with a checksum
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import itertools
import json
import os
import re
import secrets
import sys
import tempfile
from typing import Any, NamedTuple
import zlib

from etils import epath
import jax
import numpy as np

from distillspec_jax.core import cache
from distillspec_jax.core import checksums
from distillspec_jax.core import errors
from distillspec_jax.core import progress as progress_lib
from distillspec_jax.core import sources
from distillspec_jax.data import examples as examples_lib
from distillspec_jax.data import fingerprints
from distillspec_jax.distributed import hosts

FORMAT = 1
_PART = 2**16  # examples; what an interruption loses at most
CHUNK = 512  # examples that are tokenised at once
_PART_FILE = 'part-{:05d}.json'
_KIND = 'prepared'  # of cached files
_COMPLETE, _KEY, _LENGTHS = 'complete.json', 'key.json', 'lengths.npy'
_THREADS = 4

_given_folder: str | None = None


def use_folder(path: str | None) -> None:
  """Keeps prepared examples in this folder, local or remote; None: default."""
  global _given_folder
  _given_folder = path


def examples(task: Any, split: str) -> examples_lib.Examples:
  """The examples of a task's split: in memory where they fit, else prepared.

  Raises:
    UserError: the split cannot be read, or there is no folder to prepare it in.
  """
  parent = _parent(task)
  folder, key = None, {}
  if parent is not None:
    key = fingerprints.key(task, split)
    folder = parent / _name(task.name, split, fingerprints.digest(key))
    if (folder / _COMPLETE).exists():
      opened = _opened(folder)
      if opened is not None:
        return opened
  size = fingerprints.size(task, split)
  # A token is rarely fewer than one byte, nor more than eight of them.
  if size is None or size <= 8 * task.max_tokens_in_memory:
    held = examples_lib.collected(
        task.tokenised(split), task.max_tokens_in_memory
    )
    if held is not None:
      return held
  if folder is None:
    raise errors.UserError(
        f'Split {split!r} of task {task.name!r} has more than'
        f' {task.max_tokens_in_memory} tokens, which are kept in files, but'
        ' there is no folder for them. Set `cache`, or --data_cache=FOLDER.'
    )
  _say(
      f'split {split} of task {task.name} has more than'
      f' {task.max_tokens_in_memory} tokens; it is tokenised once, in'
      f' {folder}'
  )
  return _prepare(task, split, folder, key)


def _parent(task: Any) -> epath.Path | None:
  """The folder of all prepared examples."""
  given = task.cache or _given_folder
  if given is not None:
    return epath.Path(sources.expanded(given))
  folder = cache.folder(_KIND)
  return None if folder is None else epath.Path(folder)


def _name(task: str, split: str, digest: str) -> str:
  return f'{re.sub(r"[^a-zA-Z0-9]+", "_", task)}-{split}-{digest}'


def _is_remote(path: epath.Path) -> bool:
  return '://' in str(path)


def _say(text: str) -> None:
  if hosts.is_first():
    print(f'distillspec: {text}', file=sys.stderr, flush=True)


# Writing.


def _prepare(
    task: Any, split: str, folder: epath.Path, key: dict[str, Any]
) -> examples_lib.Examples:
  """Writes the parts that are not there yet, and opens all of them."""
  folder.mkdir(parents=True, exist_ok=True)
  done = len(_parts(folder))
  if done:
    _say(f'continues after {done} parts that were written before')
  (folder / _KEY).write_text(json.dumps(key, indent=1) + '\n')
  # First the share of this host, then what is missing still: nothing where all
  # hosts see one folder and are as fast, everything where each has its own.
  # None of them waits for another, so one may also prepare a split alone.
  index, count = jax.process_index(), jax.process_count()
  total = _write_parts(task, split, folder, lambda part: part % count == index)
  if count > 1 and len(_parts(folder)) < total:
    _write_parts(task, split, folder, lambda part: True)
  _complete(folder, total)
  return Prepared(folder)


def _write_parts(
    task: Any,
    split: str,
    folder: epath.Path,
    is_wanted: Callable[[int], bool],
) -> int:
  """Writes the wanted parts that are not there; returns how many there are."""
  limits = task.input_length, task.label_length
  is_short = task.vocabulary.vocab_size <= 2**16
  raw, written = task.raw(split), 0
  with progress_lib.Progress(
      f'preparing {task.name} {split}', None, is_brief=True
  ) as progress:
    for number in itertools.count():  # returns after the last part
      items = itertools.islice(raw, _PART)
      marker = folder / _PART_FILE.format(number)
      if not is_wanted(number) or _is_there(marker):
        passed = sum(1 for _ in items)
      else:
        with _Writer(folder, number, limits, is_short) as writer:
          while chunk := list(itertools.islice(items, CHUNK)):
            for example in task.tokenise(chunk):
              writer.add(example)
            progress.update(written + writer.passed)
          if writer.passed:
            writer.commit()
        passed = writer.passed
      if not passed:
        return number
      written += passed
      progress.update(written)


class _Part(NamedTuple):
  """A part that is there.

  Attributes:
    number: from 0.
    files: names of its records and of its lengths.
    sizes: of these files, bytes.
    examples: number of them.
    empty: left out because their label is.
    skipped: lines that could not be read.
    crc: of its records.
  """

  number: int
  files: tuple[str, str]
  sizes: tuple[int, int]
  examples: int
  empty: int
  skipped: int
  crc: int


class _Writer:
  """Writes one part; its files are local until they are complete."""

  def __init__(
      self,
      folder: epath.Path,
      number: int,
      limits: tuple[int, int],
      is_short: bool,
  ):
    from array_record.python import array_record_module

    self._folder, self._number, self._limits = folder, number, limits
    self._dtype = np.dtype(np.uint16 if is_short else np.int32)
    self._temporary = tempfile.TemporaryDirectory(
        dir=None if _is_remote(folder) else str(folder), prefix='.writing-'
    )
    self._records = os.path.join(self._temporary.name, 'records')
    self._writer = array_record_module.ArrayRecordWriter(
        self._records, 'group_size:1'
    )
    self._lengths: list[tuple[int, int]] = []
    self.passed = self._empty = self._skipped = self._crc = 0

  def add(self, example: examples_lib.Example | None) -> None:
    self.passed += 1
    if example is None:
      self._skipped += 1
    elif example.is_empty:
      self._empty += 1
    else:
      inputs, labels = example
      self._lengths.append((len(inputs), len(labels)))
      kept = inputs[: self._limits[0]], labels[: self._limits[1]]
      record = b''.join(side.astype(self._dtype).tobytes() for side in kept)
      self._crc = zlib.crc32(record, self._crc)
      self._writer.write(record)

  def __enter__(self) -> _Writer:
    return self

  def __exit__(self, *exception: Any) -> None:
    self._close()
    self._temporary.cleanup()

  def _close(self) -> None:
    if self._writer.is_open():
      self._writer.close()

  def commit(self) -> None:
    """Puts the files into the folder, and last the one that names them."""
    self._close()
    writer = secrets.token_hex(4)
    names, sizes = [], []
    lengths = os.path.join(self._temporary.name, 'lengths')
    with open(lengths, 'wb') as file:
      np.save(file, np.array(self._lengths, np.int32).reshape(-1, 2))
    for path, kind in ((self._records, 'records'), (lengths, 'lengths.npy')):
      names.append(f'part-{self._number:05d}-{writer}.{kind}')
      sizes.append(os.path.getsize(path))
      epath.Path(path).copy(self._folder / names[-1], overwrite=True)
    part = _Part(
        self._number, tuple(names), tuple(sizes), len(self._lengths),
        self._empty, self._skipped, self._crc,
    )  # fmt: skip
    _write_json(self._folder / _PART_FILE.format(self._number), part._asdict())


def _write_json(path: epath.Path, values: dict[str, Any]) -> None:
  """Writes a file at once: it is there as a whole, or not at all."""
  text = json.dumps(checksums.sealed({'format': FORMAT, **values})) + '\n'
  if _is_remote(path):
    path.write_text(text)  # buckets show a file when it is closed
    return
  temporary = f'{path}.{secrets.token_hex(4)}'
  with open(temporary, 'w') as file:
    file.write(text)
  os.replace(temporary, path)


def _read_json(path: epath.Path) -> dict[str, Any] | None:
  """The values; None where they are damaged, or of another version."""
  try:
    values = checksums.unsealed(json.loads(path.read_text()), path, '')
  except (errors.UserError, ValueError, OSError):
    return None
  return values if values.pop('format') == FORMAT else None


def _as_part(values: dict[str, Any]) -> _Part:
  part = _Part(**values)
  return part._replace(files=tuple(part.files), sizes=tuple(part.sizes))


def _parts(folder: epath.Path) -> list[_Part]:
  """The parts that are whole, in order."""
  markers = sorted(folder.glob('part-*.json'))
  return [_as_part(_read_json(m)) for m in markers if _is_there(m)]


def _is_there(marker: epath.Path) -> bool:
  """Whether a part is whole, which another host may have written just now."""
  values = _read_json(marker) if marker.exists() else None
  return values is not None and _is_whole(marker.parent, _as_part(values))


def _is_whole(folder: epath.Path, part: _Part) -> bool:
  return all(
      (folder / name).exists() and (folder / name).stat().length == size
      for name, size in zip(part.files, part.sizes)
  )


def _complete(folder: epath.Path, count: int) -> None:
  """Writes lengths.npy and complete.json of `count` parts."""
  parts = _parts(folder)
  if [part.number for part in parts] != list(range(count)):
    raise errors.UserError(
        f'{folder} has {len(parts)} parts of {count}: its files are changed'
        ' while they are written. Remove it, and start again.'
    )
  lengths = [np.load(_local(folder / part.files[1])) for part in parts]
  with tempfile.TemporaryDirectory() as temporary:
    path = os.path.join(temporary, _LENGTHS)
    np.save(path, np.concatenate(lengths))
    epath.Path(path).copy(folder / _LENGTHS, overwrite=True)
  values = {'parts': [part._asdict() for part in parts]}
  _write_json(folder / _COMPLETE, values)


# Reading.


def _opened(folder: epath.Path) -> examples_lib.Examples | None:
  """The examples in a complete folder; None, and a line, if it is not whole."""
  values = _read_json(folder / _COMPLETE)
  if values is None:
    why = 'was written by another version, or is damaged'
  elif not all(_is_whole(folder, _as_part(p)) for p in values['parts']):
    why = 'has lost some of its files'
  else:
    return Prepared(folder)
  _say(f'{folder} {why}; it is prepared again')
  (folder / _COMPLETE).unlink(missing_ok=True)
  return None


def _local(path: epath.Path) -> str:
  """A local copy of a file in a bucket, kept in the cache; else the file."""
  if not _is_remote(path):
    return str(path)
  parent = cache.folder('buckets')
  if parent is None:
    raise errors.UserError(
        f'{path} must be copied to this machine, but there is no cache folder;'
        ' set XDG_CACHE_HOME.'
    )
  copied = parent / path.parent.name / path.name
  size = path.stat().length
  if not copied.is_file() or copied.stat().st_size != size:
    copied.parent.mkdir(exist_ok=True)
    temporary = f'{copied}.{secrets.token_hex(4)}'
    path.copy(temporary, overwrite=True)
    os.replace(temporary, copied)
  return str(copied)


class _File(NamedTuple):
  """What array_record wants to know of a file."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


class Prepared(examples_lib.Examples):
  """The examples in a complete folder."""

  threads = _THREADS

  def __init__(self, folder: epath.Path):
    values = _read_json(folder / _COMPLETE)
    self._folder = folder
    self._parts = [_as_part(part) for part in values['parts']]
    self.empty = sum(part.empty for part in self._parts)
    self.skipped_lines = sum(part.skipped for part in self._parts)
    crcs = np.array([part.crc for part in self._parts], np.int64)
    self.fingerprint = f'crc {zlib.crc32(crcs.tobytes()):08x}'
    self._lengths = np.load(_local(folder / _LENGTHS), mmap_mode='r')
    key = json.loads((folder / _KEY).read_text())
    self._limits = key['lengths']
    self._dtype = np.dtype(
        np.uint16 if key['vocabulary_size'] <= 2**16 else np.int32
    )

  @functools.cached_property
  def _records(self) -> Any:
    from array_record.python import array_record_data_source

    files = [
        _File(_local(self._folder / p.files[0]), 0, p.examples, p.examples)
        for p in self._parts
        if p.examples
    ]
    return array_record_data_source.ArrayRecordDataSource(files)

  def __len__(self) -> int:
    return len(self._lengths)

  def __getitem__(self, number: Any) -> Any:
    if isinstance(number, slice):
      return self.many(range(*number.indices(len(self))))
    number = range(len(self))[number]
    tokens = np.frombuffer(self._records[number], self._dtype).astype(np.int32)
    split = min(int(self._lengths[number, 0]), self._limits[0])
    return examples_lib.Example(tokens[:split], tokens[split:])

  def many(self, numbers: Sequence[int]) -> Sequence[examples_lib.Example]:
    return [self[number] for number in numbers]

  def lengths(self, numbers: Any) -> np.ndarray:
    return self._lengths[numbers]
