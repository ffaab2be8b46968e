"""What flows between the stages: batches, prompts, and means that add up."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

# Parameters of a network: nested dictionaries of arrays, named as in t5x.
Params = Any


class Prompt(NamedTuple):
  """What a model reads before its first token, one example in each row.

  Attributes:
    tokens: int32[B, S] encoder input; decoder-only: the text before the output.
    segments: int32[B, S], 0 is padding, at the end of a row.
    encoded: float[B, S, E] the encoder's output, where it is already computed;
      a draft that shares its target's encoder needs it.
  """

  tokens: jax.Array
  segments: jax.Array
  encoded: jax.Array | None = None


class Batch(flax.struct.PyTreeNode):
  """Token sequences of one step, padded or packed.

  Segments tell which example a slot belongs to: 0 is padding, and slots attend
  to each other only within a segment. An unpacked row has segment 1 up to its
  length and 0 after it, so a mask and packing are the same thing.

  Attributes:
    inputs: int32[B, S] encoder tokens (decoder-only: the prompt); S may be 0.
    input_segments: int32[B, S].
    labels: int32[B, T] what the decoder should emit, EOS included, not shifted.
    segments: int32[B, T].
    mask: bool[B, T] positions that count in the loss; inside segments > 0.
  """

  inputs: jax.Array
  input_segments: jax.Array
  labels: jax.Array
  segments: jax.Array
  mask: jax.Array

  @property
  def prompt(self) -> Prompt:
    return Prompt(self.inputs, self.input_segments)


class Mean(NamedTuple):
  """A mean that adds up correctly over micro-batches, hosts and log windows."""

  total: jax.Array  # float32[]
  count: jax.Array  # type: ignore[assignment]  # float32[], positions

  def merge(self, other: Mean) -> Mean:
    """The mean over both, as if they had been counted together."""
    return Mean(self.total + other.total, self.count + other.count)

  def value(self) -> jax.Array:
    """float32[]; 0 where nothing was counted."""
    return self.total / jnp.maximum(self.count, 1.0)
