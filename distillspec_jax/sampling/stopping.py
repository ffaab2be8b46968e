"""Stop strings on the device: an automaton that reads tokens.

Text is what the tokens' pieces spell, one after the other, so a stop string may
begin and end in the middle of a piece and be cut into pieces in many ways. The
automaton of Aho and Corasick (1975) reads bytes and knows after each how much
of a string it has seen; here its moves are joined, piece by piece, into a table
of (token, state) -> state, so that the loop on the device makes one look-up a
token and none is missed.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import errors

_LARGEST = 2**15  # states that int16 can number


@flax.struct.dataclass
class Automaton:
  """Which tokens complete a stop string, after which others.

  Attributes:
    table: int16[V, N] (token, state) -> state.
    start: int32[], or int32[B], the state before the first token.
    found: int32[] states from here on: a string is complete. They are final.
  """

  table: jax.Array
  start: jax.Array
  found: jax.Array

  def after(self, begun: np.ndarray) -> Automaton:
    """For rows whose text has begun, or has not, before the first token."""
    return self.replace(start=jnp.where(jnp.asarray(begun), 0, self.start))

  def read(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
    """int32[B, N] states after each of tokens int32[B, N], from int32[B]."""

    def one(state, token):
      state = self.table[token, state].astype(jnp.int32)
      return state, state

    _, states = jax.lax.scan(one, state, tokens.T)
    return states.T


def automaton(
    strings: Sequence[str],
    later: Sequence[bytes],
    first: Sequence[bytes | None] | None = None,
) -> Automaton:
  """The automaton of stop strings.

  Args:
    strings: any of them ends a row.
    later: what each token adds to a text, in UTF-8.
    first: what it adds at the text's beginning, None where the text has still
      to begin after it; default: the same.

  Raises:
    UserError: a string is empty, not Unicode or too long, or no sequence of
      tokens spells it.
  """
  # What has another string in it never ends a row that this has not ended.
  shortest = [
      string
      for string in dict.fromkeys(strings)
      if not any(other in string for other in strings if other != string)
  ]
  moves, ends = _byte_moves([_utf8(string) for string in shortest])
  trie = len(moves)
  found = trie + 1  # the state between is the start
  if found + len(shortest) > _LARGEST:
    raise errors.UserError(
        f'The stop strings have {trie - 1} bytes together; there may be'
        f' {_LARGEST - 2 - len(shortest)}.'
    )
  # Every string has a final state of its own.
  final = np.arange(found, found + len(shortest))
  moves = np.concatenate([moves, np.zeros((1 + len(shortest), 256), int)])
  moves[final] = final[:, None]
  for state, string in enumerate(ends):
    if string >= 0:
      moves[moves == state] = final[string]
  table = _token_moves(moves, later)
  if first is None:
    table[:, trie] = table[:, 0]
  else:
    shown = [surface or b'' for surface in first]
    table[:, trie] = _token_moves(moves, shown)[:, 0]
    table[[surface is None for surface in first], trie] = trie
  reached = _reachable(table, 0) | _reachable(table, trie)
  for string, state in zip(shortest, final):
    if state not in reached:
      raise errors.UserError(
          f'The stop string {string!r} can never come: no tokens of the'
          " model's vocabulary spell it."
      )
  return Automaton(
      jnp.asarray(table, jnp.int16), jnp.int32(trie), jnp.int32(found)
  )


def _utf8(string: str) -> bytes:
  if not string:
    raise errors.UserError(
        'A stop string is empty; it would end every row before it began.'
    )
  try:
    return string.encode()
  except UnicodeEncodeError as error:
    raise errors.UserError(
        f'The stop string {string!a} is not Unicode ({error.reason} at'
        f' character {error.start}); give it as UTF-8.'
    ) from error


def cut(text: str, strings: Sequence[str], start: int = 0) -> str:
  """The text before the first stop string that begins at `start` or later."""
  places = [text.find(string, start) for string in strings]
  return text[: min((p for p in places if p >= 0), default=len(text))]


def _byte_moves(strings: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
  """(state, byte) -> state int[N, 256], and the string each state ends or -1.

  A state stands for the longest suffix of what was read that begins a string.
  """
  children: list[dict[int, int]] = [{}]
  ends = [-1]
  for number, string in enumerate(strings):
    state = 0
    for byte in string:
      if byte not in children[state]:
        children[state][byte] = len(children)
        children.append({})
        ends.append(-1)
      state = children[state][byte]
    ends[state] = number
  moves = np.zeros((len(children), 256), int)
  shorter = [0] * len(children)  # the longest proper suffix that is a state
  queue = [0]
  for state in queue:  # by length, so that what is shorter is done
    if state:
      moves[state] = moves[shorter[state]]
      if ends[state] < 0:
        ends[state] = ends[shorter[state]]
    for byte, child in children[state].items():
      shorter[child] = moves[state, byte] if state else 0
      moves[state, byte] = child
      queue.append(child)
  return moves, ends


def _token_moves(moves: np.ndarray, surfaces: Sequence[bytes]) -> np.ndarray:
  """(token, state) -> state int[V, N] after all bytes of the token."""
  lengths = np.array([len(surface) for surface in surfaces])
  state = np.tile(np.arange(len(moves)), (len(surfaces), 1))
  for place in range(int(lengths.max(initial=0))):
    longer = np.flatnonzero(lengths > place)
    byte = np.array([surfaces[i][place] for i in longer])
    state[longer] = moves[state[longer], byte[:, None]]
  return state


def _reachable(table: np.ndarray, start: int) -> set[int]:
  reached, queue = {start}, [start]
  for state in queue:
    new = set(np.unique(table[:, state]).tolist()) - reached
    reached |= new
    queue += new
  return reached
