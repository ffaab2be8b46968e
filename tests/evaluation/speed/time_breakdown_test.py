"""The parts of a block are those of the loop, and add up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.evaluation.speed import stopwatch
from distillspec_jax.evaluation.speed import time_breakdown
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification
from tests import tiny

L, G = 12, 3


DECODING = decoding_lib.Decoding(
    drafting=decoding_lib.Drafting(length=G), max_new_tokens=L
)


class Fake:
  """A stopwatch that is not one; `carries` are those of two steps, if any."""

  def __init__(self, programs=(), carries=()):
    self.programs, self.carries = programs, carries


@pytest.fixture
def watches(monkeypatch):
  """What `measure` would time, by name; every step takes a second."""
  timed = {}

  def loop(step, arguments, carry):
    carries, step = [carry], jax.jit(step)
    for i in range(2):
      carries.append(step(arguments, carries[-1], jnp.int32(i)))
    return Fake(carries=carries)

  def read(these):
    timed.update(these)
    return dict.fromkeys(these, 1.0)

  monkeypatch.setattr(stopwatch, "loop", loop)
  monkeypatch.setattr(stopwatch, "Stopwatch", lambda *args: Fake(args))
  monkeypatch.setattr(stopwatch, "read", read)
  return timed


def measure(draft=tiny.draft, **changes):
  return time_breakdown.measure(
      tiny.target().model,
      draft().model,
      jax.device_put(tiny.batch(2).prompt),
      DECODING.replace(**changes),
      seed=0,
  )


def test_parts_are_called_as_often_as_in_a_block(watches):
  breakdown = measure()
  assert {part.name: part.calls for part in breakdown.parts} == {
      "draft's first read": 1,
      "draft's reads": G - 1,
      "draft's output layer": G,
      "draft's choice": G,
      "target's read": 1,
      "target's output layer": 1,
      "verification": 1,
      "commit": 1,
  }
  assert breakdown.parts_s == 1 + (G - 1) + 2 * G + 4
  assert breakdown.block_s == 1.0
  metrics = breakdown.metrics()
  assert metrics["block_ms"].value == 1000.0
  assert metrics["block_draft_output_layer_ms"].value == 3000.0
  assert metrics["prefill_target_ms"].value == 1000.0


def test_a_parallel_draft_has_one_read(watches):
  breakdown = measure(tiny.parallel_draft, parallel=True, temperature=1.0)
  calls = {part.name: part.calls for part in breakdown.parts}
  draft = ["draft's read", "draft's output layer", "draft's choice"]
  assert list(calls)[:3] == draft and set(calls.values()) == {1}
  assert breakdown.parts_s == 3 + 4
  shape = lambda name, at: watches[name].carries[1][at].shape
  assert shape("draft's read", 1) == (2, 2 * G)
  assert shape("draft's output layer", 1) == (2, G, tiny.V)
  assert shape("draft's choice", 1) == (2 * G,)


@pytest.mark.parametrize(
    "temperature, draft", [(0.0, tiny.draft), (1.0, tiny.trimmed_draft)]
)
def test_every_step_is_another_one(watches, temperature, draft):
  """What does not change from step to step could be done before the loop."""
  parts = measure(draft, temperature=temperature).parts
  loops = {n: watch for n, watch in watches.items() if watch.carries}
  assert set(loops) == {part.name for part in parts}
  for name, watch in loops.items():
    _, first, second = watch.carries
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for once, twice in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
      assert (once.shape, once.dtype) == (twice.shape, twice.dtype), name
  for name in ("draft's first read", "draft's reads", "target's read"):
    _, first, second = loops[name].carries
    assert not np.array_equal(first[2], second[2]), name  # hidden states
  _, first, second = loops["verification"].carries
  assert not np.array_equal(first[0], second[0])
  assert first[2][0, 0, 0] != second[2][0, 0, 0]
  assert loops["target's output layer"].carries[1][1].shape == (
      2,
      G + 1,
      tiny.V,
  )


def test_a_block_is_taken_from_the_loop_itself(watches):
  measure()
  few, many, blocks = watches["block"].programs
  counts = [int(np.max(call().statistics.blocks)) for call in (few, many)]
  assert counts[0] == 1
  assert counts[1] - counts[0] == blocks > 1
  np.testing.assert_array_equal(many().lengths, [L, L])


@pytest.mark.parametrize(
    "changes",
    [{"paths": 2}, {"adaptive": adaptive_length.Confidence(0.4)}],
    ids=lambda changes: next(iter(changes)),
)
def test_blocks_without_fixed_parts_are_refused(changes):
  assert not time_breakdown.can_measure(DECODING.replace(**changes))
  with pytest.raises(errors.UserError, match="have no fixed parts"):
    measure(**changes)


@dataclasses.dataclass(frozen=True)
class Recorded(verification.Block):
  """Says when it is traced."""

  def sampled(self, *args):
    TRACED.append(len(args))
    return super().sampled(*args)


TRACED = []


def test_verification_is_that_of_the_decoding(watches):
  TRACED.clear()
  time_breakdown._verify(2, DECODING.replace(temperature=1.0), tiny.V)
  assert not TRACED
  decoding = DECODING.replace(temperature=1.0, verifier=Recorded())
  time_breakdown._verify(2, decoding, tiny.V)
  assert TRACED
