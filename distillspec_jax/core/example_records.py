"""examples.jsonl: one line for each example and decoding of an evaluation.

A line says what was decoded, in the words of `core.results`, and what came of
it for a single example; absent is what was not measured.

  run, target, draft, draft_folder, task, split, decoding
                   those of the line in results.jsonl; `decoding` has the entry
                   `model` where a model decodes alone
  seed             of the measurement
  inputs           identifies the inputs and their order: records with the same
                   `inputs` and `example` are of the same input
  example          its number in the split, from 0
  emitted          tokens of the output, EOS included
  blocks           target calls; emitted / blocks is block efficiency
  drafted          tokens that the draft proposed
  accepted         drafted tokens that were emitted
  reached_at       [G] how often the token at this place of a block was judged
  accepted_at      [G] how often it was then accepted
  expected         sum over emitted tokens of sum_v min(p, q), so that
                   expected / emitted is the acceptance alpha(x) of DistillSpec,
                   equation 3, of one output
  draft_emitted    tokens of a text that the draft alone sampled for the input
  draft_variation  sum over these tokens of the total variation of p and q
  label_nats       -log-probability of the label under the model that decodes
  label_tokens     tokens of the label, EOS included
  quality          metric -> value; a statistic of the corpus, such as BLEU, is
                   the mean of what its examples contribute

A file is appended to as results.jsonl is: by the first process, and all or
nothing within `results.together`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from distillspec_jax.core import errors
from distillspec_jax.core import results

FILE = 'examples.jsonl'
# What two lines share that measure the same.
_SAME = (
    'run', 'target', 'draft', 'draft_folder', 'task', 'split', 'decoding',
    'seed', 'inputs', 'example',
)  # fmt: skip
_COLUMNS = (
    'emitted', 'blocks', 'drafted', 'accepted', 'reached_at', 'accepted_at',
    'expected', 'draft_emitted', 'draft_variation', 'label_nats',
    'label_tokens',
)  # fmt: skip


def write(
    folder: str | os.PathLike[str],
    line: Mapping[str, Any],
    inputs: str,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    quality: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Appends a line per example.

  Args:
    folder: of the run.
    line: of results.jsonl, with what the examples have in common.
    inputs: as `results.Examples.inputs`.
    columns: name -> [n] or [n, G]; other names than those above are left out.
    quality: metric -> float64[n].
  """
  shared = {name: line[name] for name in _SAME[:7]}
  shared |= {'seed': line['provenance']['seed'], 'inputs': inputs}
  known = [name for name in _COLUMNS if name in columns]
  plain = {name: _plain(columns[name]) for name in known}
  values = {name: _plain(each) for name, each in (quality or {}).items()}
  number = len(next(iter({**plain, **values}.values())))
  results.append(
      pathlib.Path(folder) / FILE,
      [
          {
              **shared,
              'example': i,
              **{name: column[i] for name, column in plain.items()},
              'quality': {name: each[i] for name, each in values.items()},
          }
          for i in range(number)
      ],
  )


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The records of a file; of what was measured repeatedly, the newest.

  Raises:
    UserError: the file is absent, or a line is not a record.
  """
  records: dict[str, dict[str, Any]] = {}
  for number, record in results.json_lines(path):
    if not isinstance(record, dict) or any(x not in record for x in _SAME):
      raise errors.UserError(
          f'{path}, line {number} is not a record of an example. Remove the'
          ' line.'
      )
    key = json.dumps([record[name] for name in _SAME], sort_keys=True)
    records.pop(key, None)
    records[key] = record
  return list(records.values())


def _plain(column: Sequence[Any] | np.ndarray) -> list[Any]:
  """Numbers for JSON, which knows no nan and no infinity: None."""
  array = np.asarray(column)
  if np.issubdtype(array.dtype, np.floating):
    rounded = np.round(array.astype(np.float64), 6)
    return [x if math.isfinite(x) else None for x in rounded.tolist()]
  return array.tolist()
