"""Configurations near one that does not fit, and what they should need."""

import pytest

from distillspec_jax.losses import objective
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import search
from tests.planning import tiny


def config(changes=None, **of_training):
  changes = {'decode_batch_size': 32, **(changes or {})}
  return tiny.config(changes, **{'batch_size': 32, **of_training})


@pytest.fixture(name='asked')
def _asked():
  return config()


def test_near_ones_come_first(asked):
  candidates = list(search.candidates(asked))
  distances = [search._distance(asked, each) for each in candidates]
  assert distances == sorted(distances)
  # One doubling, one step of the remat policy, one of the mesh.
  assert [each.micro_batches for each in candidates[:3]].count(2) == 1
  assert {each.remat for each in candidates[:3]} == {'none', 'attention'}
  assert asked not in candidates


def test_all_of_them_divide(asked):
  for each in search.candidates(asked):
    each.check()
    assert each.draft.num_heads % each.training.mesh.tensor == 0


def test_smaller_micro_batches_should_need_less(asked):
  per_row = 1e6
  less = search.estimated_bytes(asked, per_row) - search.estimated_bytes(
      config(micro_batches=2), per_row
  )
  rows = 32 // 4 // 2
  logits = rows * 8 * 256 * 4 * 6
  assert less == rows * per_row + logits


def test_the_chunk_is_that_of_the_loss(asked, monkeypatch):
  whole = search.estimated_bytes(asked, 0.0)
  monkeypatch.setattr(objective, '_MAX_LOGITS', 0)
  monkeypatch.setattr(objective, '_MIN_CHUNK', 3)
  less = whole - search.estimated_bytes(asked, 0.0)
  assert less == 8 * (8 - 3) * 256 * 4 * 6


def test_samplers_alone_have_other_meshes_and_nothing_else():
  asked = config({'train': False})
  candidates = list(search.candidates(asked))
  assert candidates
  for candidate in candidates:
    assert candidate.training.steps == asked.training.steps
    assert candidate.training.start == asked.training.start or (
        candidate.remat == asked.remat
    )
  # Parameters that are sharded over fsdp are gathered for as long as they
  # decode.
  replicated, gathered = (
      search.estimated_bytes(config({'train': False}, sizes=sizes), 0.0)
      for sizes in ((4, 1, 1), (1, 4, 1))
  )
  assert replicated < gathered


def test_the_first_that_fits_is_taken(asked, monkeypatch):
  asked_for = []

  def ask(config, programs):
    exceeds = '' if len(asked_for) == 1 else 'too large'
    if programs:
      asked_for.append(config)
    program = compiled_program.CompiledProgram(1.0, exceeds)
    return compiled_program.Compilation({'activations': 0}, {'step': program})

  monkeypatch.setattr(search.compiler, 'ask', ask)
  near, compilation = search.nearest(asked)
  assert compilation.fits
  assert [near] == asked_for[1:]
  assert asked_for == list(search.candidates(asked))[:2]
