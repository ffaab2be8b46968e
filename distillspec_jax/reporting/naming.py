"""Short, unique names of folders; folders that differ in a seed share one."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
import json
import re
from typing import Any

Run = tuple[str, int]  # a folder, and the seed of what is in it


def names(runs: Mapping[Run, Any]) -> dict[Run, str]:
  """The name of each run: its last folder, or what distinguishes it.

  Runs that differ in nothing but their seeds, in their folders' names and in
  what is known about them, have one name: they are averaged. Example:

    kd_0/draft, kd_1/draft, jsd_0/draft, jsd_1/draft -> kd, kd, jsd, jsd

  Args:
    runs: run -> how it was made, as JSON; None where that is not known.
  """
  groups: list[list[Run]] = []
  for run in runs:
    for group in groups:
      if _differ_in_seed(group[0], run, runs):
        group.append(run)
        break
    else:
      groups.append([run])
  paths = [_path(group) for group in groups]
  short = _shortest(paths)
  for longer in (
      ['/'.join(path) for path in paths],
      [group[0][0] for group in groups],
      [f'{group[0][0]} (seed {group[0][1]})' for group in groups],
  ):
    counts = collections.Counter(short)
    short = [a if counts[a] == 1 else b for a, b in zip(short, longer)]
  return {
      run: name.replace('_', ' ')
      for name, group in zip(short, groups)
      for run in group
  }


def _differ_in_seed(one: Run, other: Run, runs: Mapping[Run, Any]) -> bool:
  """Whether all that differs are numbers that are the runs' seeds."""
  if one[1] == other[1]:
    return False
  parts = [
      re.split(r'(\d+)', f'{run[0]}\n{json.dumps(runs[run], sort_keys=True)}')
      for run in (one, other)
  ]
  seeds = str(one[1]), str(other[1])
  return len(parts[0]) == len(parts[1]) and all(
      a == b or (a, b) == seeds for a, b in zip(*parts)
  )


def _path(group: Sequence[Run]) -> list[str]:
  """The folders of a group's path, without the numbers that differ in it."""
  split = [re.split(r'(\d+)', folder) for folder, _ in group]
  common = ''.join(
      parts[0] if len(set(parts)) == 1 else '' for parts in zip(*split)
  )
  return [part.strip('_-. ') or part for part in common.split('/')]


def _shortest(paths: Sequence[list[str]]) -> list[str]:
  """The last folder of each path; where several have it, what differs."""
  clusters = collections.defaultdict(list)
  for path in paths:
    clusters[path[-1]].append(path)
  found = []
  for path in paths:
    cluster = clusters[path[-1]]
    depth = min(map(len, cluster))
    parts = [
        path[-i]
        for i in range(depth, 0, -1)
        if len({other[-i] for other in cluster}) > 1
    ]
    found.append('/'.join(parts) or path[-1])
  return found
