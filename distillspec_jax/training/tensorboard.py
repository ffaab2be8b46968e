"""Scalars of a run for TensorBoard, complete however often it is stopped.

Each start of a run writes a file that begins with all that earlier starts wrote
up to the step from which it resumes, and removes theirs. A step is then in one
file, once.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
import pathlib
import struct
import time
from typing import Any

from google.protobuf import message
import jax
from tensorboardX import record_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2


class MetricsWriter:
  """Writes scalars into a folder; only the first process writes."""

  def __init__(self, folder: str | os.PathLike[str], resumed_at: float = -1):
    """Keeps the scalars of steps up to `resumed_at` that are there already."""
    self._records: record_writer.RecordWriter | None = None
    if jax.process_index() != 0:
      return
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = sorted(folder.glob('*tfevents*'))
    temporary = folder / 'events.new'
    self._records = record_writer.RecordWriter(str(temporary))
    self._add(file_version='brain.Event:2')
    # A TensorBoard that is running forgets what it has read of the run.
    self._add(
        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    )
    if before:  # the last one has what is in the others
      for event in _events(before[-1]):
        if event.HasField('summary') and event.step <= resumed_at:
          self._records.write(event.SerializeToString())
    self.flush()
    # TensorBoard reads files in the order of their names.
    os.replace(temporary, folder / f'events.out.tfevents.{time.time_ns():020d}')
    for old in before:
      old.unlink()

  def _add(self, **content: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), **content)
    self._records.write(event.SerializeToString())

  def write(self, step: int, values: dict[str, float]) -> None:
    if self._records is not None:
      for name, value in values.items():
        self._add(step=step, summary=summary.scalar(name, value))

  def flush(self) -> None:
    """Writes to disk what a kill would lose."""
    if self._records is not None:
      self._records.flush()

  def close(self) -> None:
    if self._records is not None:
      self._records.close()


def _events(path: pathlib.Path) -> Iterator[event_pb2.Event]:
  """The events of a file, up to one that is not complete."""
  data, at = path.read_bytes(), 0
  while at + 12 <= len(data):
    (size,) = struct.unpack_from('<Q', data, at)
    # The size and its checksum, the event and its checksum.
    record = data[at : at + 16 + size]
    at += len(record)
    try:
      if len(record) == 16 + size:
        yield event_pb2.Event.FromString(record[12:-4])
    except message.DecodeError:
      return
