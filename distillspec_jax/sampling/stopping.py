"""Stop strings on the device: an automaton that reads tokens.

A stop string may begin and end in the middle of a token's text, and be split
into tokens in many ways. The automaton of Aho and Corasick (1975) reads bytes
and knows after each of them how much of a string it has seen. Here its moves
are composed, token by token, into a table (token, state) -> state, so that the
loop on the device makes one look-up per token and misses no string.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import errors

_MAX_STATES = 2**15  # states that int16 can number


class Automaton(flax.struct.PyTreeNode):
  """Which tokens complete a stop string, after which others.

  Attributes:
    table: int16[V, N] (token, state) -> state.
    start: int32[] the state before the first token of a text.
    complete: int32[] from this state on a string is complete; these states are
      final.
  """

  table: jax.Array
  start: jax.Array
  complete: jax.Array

  def is_complete(self, state: jax.Array) -> jax.Array:
    """bool[...] of states int32[...]: a stop string has been read."""
    return state >= self.complete

  def read(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
    """int32[B, N] states after each of tokens int32[B, N], from int32[B]."""

    def one(state, token):
      state = self.table[token, state].astype(jnp.int32)
      return state, state

    _, states = jax.lax.scan(one, state, tokens.T)
    return states.T


def start(
    stop: Automaton | None, stop_state: jax.Array | None, batch: int
) -> jax.Array | None:
  """int32[B] states before the first new token; None without stop strings.

  Args:
    stop: the automaton, if there are stop strings.
    stop_state: int32[B] where a text has begun already, or None.
    batch: B.
  """
  if stop is None or stop_state is not None:
    return None if stop is None else stop_state
  return jnp.full(batch, stop.start)


def automaton(
    strings: Sequence[str],
    later: Sequence[bytes],
    first: Sequence[bytes | None] | None = None,
) -> Automaton:
  """The automaton of stop strings.

  Args:
    strings: any of them ends a sequence.
    later: what each token adds to a text, in UTF-8.
    first: what it adds at the beginning of a text, None where it adds nothing
      and the next token is still at the beginning; default: as `later`.

  Raises:
    UserError: a string is empty, not Unicode or too long, or no sequence of
      tokens spells it.
  """
  # A string that contains another never ends a sequence first.
  shortest = [
      string
      for string in dict.fromkeys(strings)
      if not any(other in string for other in strings if other != string)
  ]
  moves, ends = _byte_moves([_utf8(string) for string in shortest])
  # States: 0 .. begin - 1 the trie, of which 0 is "no prefix of a string seen";
  # `begin`, before the first text; from `complete` on, one for each string.
  begin = len(moves)
  complete = begin + 1
  if complete + len(shortest) > _MAX_STATES:
    raise errors.UserError(
        f'The stop strings have {begin - 1} bytes together; the maximum is'
        f' {_MAX_STATES - 2 - len(shortest)}.'
    )
  final = np.arange(complete, complete + len(shortest))
  moves = np.concatenate([moves, np.zeros((1 + len(shortest), 256), int)])
  moves[final] = final[:, None]
  for state, number in enumerate(ends):
    if number >= 0:
      moves[moves == state] = final[number]
  table = _token_moves(moves, later)
  if first is None:
    table[:, begin] = table[:, 0]
  else:
    texts = [surface or b'' for surface in first]
    table[:, begin] = _token_moves(moves, texts)[:, 0]
    table[[surface is None for surface in first], begin] = begin
  reached = _reachable(table, 0) | _reachable(table, begin)
  for string, state in zip(shortest, final.tolist()):
    if state not in reached:
      raise errors.UserError(
          f'The stop string {string!r} can never occur: no tokens of the'
          " model's vocabulary spell it."
      )
  return Automaton(
      jnp.asarray(table, jnp.int16), jnp.int32(begin), jnp.int32(complete)
  )


def _utf8(string: str) -> bytes:
  if not string:
    raise errors.UserError(
        'A stop string is empty; it would end every sequence at once.'
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
  positions = [text.find(string, start) for string in strings]
  return text[: min((p for p in positions if p >= 0), default=len(text))]


def _byte_moves(strings: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
  """(state, byte) -> state int[N, 256], and the string each state ends or -1.

  A state is the longest suffix of the text so far that begins a string.
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
  suffix = [0] * len(children)  # the longest proper suffix that is a state
  queue = [0]
  # Breadth first: the moves of a suffix, which is shorter, are known before
  # those of the state that falls back on it.
  for state in queue:
    if state:
      moves[state] = moves[suffix[state]]
      if ends[state] < 0:
        ends[state] = ends[suffix[state]]
    for byte, child in children[state].items():
      suffix[child] = moves[state, byte] if state else 0
      moves[state, byte] = child
      queue.append(child)
  return moves, ends


def _token_moves(moves: np.ndarray, surfaces: Sequence[bytes]) -> np.ndarray:
  """(token, state) -> state int[V, N] after all bytes of the token."""
  lengths = np.array([len(surface) for surface in surfaces])
  state = np.tile(np.arange(len(moves)), (len(surfaces), 1))
  for position in range(int(lengths.max(initial=0))):
    longer = np.flatnonzero(lengths > position)
    byte = np.array([surfaces[int(i)][position] for i in longer])
    state[longer] = moves[state[longer], byte[:, None]]
  return state


def _reachable(table: np.ndarray, start: int) -> set[int]:
  reached, queue = {start}, [start]
  for state in queue:
    new = set(np.unique(table[:, state]).tolist()) - reached
    reached |= new
    queue += new
  return reached
