"""What is read from a program's text, on lines as XLA prints them for TPUs."""

import pytest

from distillspec_jax.planning import compiled
from distillspec_jax.planning import hlo

# Ten times x @ w[i], while weights are gathered, then an all-reduce.
PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (p0: bf16[16,256,512], p1: s32[], p2: bf16[8,256]) -> bf16[8,512] {
  %p0 = bf16[16,256,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %zero = s32[] constant(0)
  %slice = bf16[1,256,512]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero)
  %kernel = bf16[256,512]{1,0} bitcast(%slice)
  ROOT %product = bf16[8,512]{1,0} convolution(%p2, %kernel), \
dim_labels=bf_io->bf
}

%started (q0: bf16[64,512]) -> bf16[256,512] {
  %q0 = bf16[64,512]{1,0} parameter(0)
  ROOT %gathered = bf16[256,512]{1,0} all-gather(%q0), \
replica_groups=[1,4]<=[4], dimensions={0}
}

%condition (c: (s32[], bf16[8,512])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[8,512]{1,0:S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %ten = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)} compare(%i, %ten), direction=LT
}

%body (b: (s32[], bf16[8,512])) -> (s32[], bf16[8,512]) {
  %b = (s32[]{:T(128)}, bf16[8,512]{1,0:S(1)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%b), index=0
  %x = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%b), index=1
  %w = bf16[16,256,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=2
  %shard = bf16[64,512]{1,0} get-tuple-element(%b), index=3
  %async-collective-start.1 = bf16[256,512]{1,0} fusion(%shard), \
kind=kCustom, calls=%started
  %y = bf16[8,512]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %n, %x), kind=kOutput, \
calls=%fused, metadata={op_name="jit(f)/while/body/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"3000"}}
  ROOT %out = (s32[]{:T(128)}, bf16[8,512]{1,0:S(1)}) tuple(%n, %y)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b.1)
}

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x.1 = f32[1024]{0:T(1024)} parameter(0)
  %copy-start = (f32[1024]{0:S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) \
copy-start(%x.1)
  %copy-done = f32[1024]{0:S(1)} copy-done(%copy-start)
  %init = (s32[]{:T(128)}, bf16[8,512]{1,0:S(1)}) tuple(%copy-done, %copy-done)
  %while = (s32[]{:T(128)}, bf16[8,512]{1,0:S(1)}) while(%init), \
condition=%condition, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %reduced = f32[1024]{0:T(1024)} all-reduce(%x.1), \
replica_groups={{0,2},{1,3}}, to_apply=%sum, \
backend_config={"window_config":{"estimated_cycles":"500"}}
}
"""


@pytest.fixture(name='block', scope='module')
def _block():
  return hlo.block(hlo.parse(PROGRAM))


def test_loops_are_a_tree(block):
  (loop,) = block.inner
  assert (block.trips, loop.trips) == (1, 10)
  assert loop.op_name == 'jit(f)/while'
  assert (block.cycles, loop.cycles) == (500, 3000)
  assert loop.work[0].op_name == 'jit(f)/while/body/dot_general'


def test_products_in_fusions_are_counted(block):
  assert block.flops == 0
  assert block.inner[0].flops == 2 * 8 * 256 * 512


def test_of_hbm_counts_what_is_used_and_not_what_stands_in_fast_memory(block):
  (loop,) = block.inner
  gathered = (64 + 256) * 512 * 2
  # One slice of sixteen and its number; x and y are in S(1).
  assert loop.hbm_bytes == 256 * 512 * 2 + 4 + gathered
  # The copy reads x once, the all-reduce reads and writes it.
  assert block.hbm_bytes == 3 * 4096
  assert block.prefetched_bytes == 4096


def test_exchanges_have_kind_bytes_and_group(block):
  (reduced,) = block.collectives
  assert reduced[:5] == ('all-reduce', 'f32[1024]', 4096, (0, 2), False)
  (gathered,) = block.inner[0].collectives
  assert gathered.kind == 'all-gather' and gathered.hidden
  assert gathered.bytes == 256 * 512 * 2
  assert gathered.group == (0, 1, 2, 3)


def test_a_loop_that_ends_on_data_has_no_trips():
  text = PROGRAM.replace('compare(%i, %ten), direction=LT', 'not(%i)')
  assert hlo.block(hlo.parse(text)).inner[0].trips is None


def test_what_is_kept_on_disk_is_read_again(block):
  made = compiled.Compiled(1.5, block=block, places=((0, 0), (1, 0)))
  assert compiled.Compiled.from_dict(made.to_dict()) == made


def test_large_arrays_are_listed():
  first = compiled.largest(hlo.parse(PROGRAM))[0]
  assert (first.shape, first.bytes) == ('bf16[256,512]', 256 * 512 * 2)


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('HloModule empty\n')


@pytest.mark.parametrize(
    'attributes, devices',
    [
        ('replica_groups={{4,5},{6,7}}, x', (4, 5)),
        ('replica_groups=[2,4]<=[8], x', (0, 1, 2, 3)),
        ('replica_groups=[4,2]<=[2,4]T(1,0), x', (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", tuple(range(8))),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
            (0, 1, 2, 3),
        ),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, x", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x", (0, 1)),
        ('source_target_pairs={{3,5},{5,3}}, x', (3, 5)),
        ('channel_id=1', ()),
    ],
)
def test_the_first_group(attributes, devices):
  assert hlo.group(attributes) == devices


def test_a_batched_product_counts_its_batch_once():
  # Two products of 4 x 8 by 8 x 16, as a TPU writes them: the batch is a
  # spatial axis, dilated so that each kernel meets its own part alone.
  text = """ENTRY %main (a: f32[2,4,8], b: f32[2,8,16]) -> f32[2,4,16] {
  %a = f32[2,4,8]{2,1,0} parameter(0)
  %b = f32[2,8,16]{2,1,0} parameter(1)
  ROOT %c = f32[2,4,16]{2,1,0} convolution(%a, %b), window={size=2 stride=1 \
pad=0_0 lhs_dilate=2}, dim_labels=0bf_0io->0bf
}
"""
  assert hlo.block(hlo.parse(text)).flops == 2 * 2 * 4 * 8 * 16
