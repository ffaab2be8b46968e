"""What is read from a program, on text as XLA prints it for TPUs."""

from jaxlib import _hlo
import pytest

from distillspec_jax.planning import hlo

# Ten times x @ w[i], while weights are gathered, then an all-reduce.
PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (p0: bf16[16,256,512], p1: s32[], p2: bf16[8,256]) -> bf16[8,512] {
  %p0 = bf16[16,256,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %zero = s32[] constant(0)
  %slice = bf16[1,256,512]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), \
dynamic_slice_sizes={1,256,512}
  %kernel = bf16[256,512]{1,0} bitcast(%slice)
  ROOT %product = bf16[8,512]{1,0} convolution(%p2, %kernel), \
dim_labels=bf_io->bf
}

%started (q0: bf16[64,512]) -> bf16[256,512] {
  %q0 = bf16[64,512]{1,0} parameter(0)
  ROOT %gathered = bf16[256,512]{1,0} all-gather(%q0), \
replica_groups=[1,4]<=[4], dimensions={0}
}

%condition (c: LOOP) -> pred[] {
  %c = LOOP parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %last = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %last), direction=LT
}

%body (b: LOOP) -> LOOP {
  %b = LOOP parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%b), index=0
  %x = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%b), index=2
  %w = bf16[16,256,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=3
  %shard = bf16[64,512]{1,0} get-tuple-element(%b), index=4
  %async-collective-start.1 = bf16[256,512]{1,0} fusion(%shard), \
kind=kCustom, calls=%started
  %y = bf16[8,512]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %n, %x), kind=kOutput, \
calls=%fused, metadata={op_name="jit(f)/while/body/dot_general"}, \
backend_config={"window_config":{"estimated_cycles":"3000"}}
  ROOT %out = LOOP tuple(%n, %y, %x, %w, %shard)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b.1)
}

ENTRY %main (x: f32[1024], s: LOOP) -> f32[1024] {
  %x.1 = f32[1024]{0:T(1024)} parameter(0)
  %s = LOOP parameter(1)
  %copy-start = (f32[1024]{0:S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) \
copy-start(%x.1)
  %copy-done = f32[1024]{0:S(1)} copy-done(%copy-start)
  %slice-start = ((f32[1024]{0:T(1024)}), f32[256]{0:S(1)}, s32[]{:S(2)}) \
slice-start(%x.1), slice={[0:256]}
  %slice-done = f32[256]{0:S(1)} slice-done(%slice-start)
  %two = s32[] constant(2)
  %first = s32[]{:T(128)} copy(%two)
  %y0 = bf16[8,512]{1,0:S(1)} get-tuple-element(%s), index=1
  %x0 = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%s), index=2
  %w0 = bf16[16,256,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%s), index=3
  %shard0 = bf16[64,512]{1,0} get-tuple-element(%s), index=4
  %init = LOOP tuple(%first, %y0, %x0, %w0, %shard0)
  %while = LOOP while(%init), condition=%condition, body=%body, \
metadata={op_name="jit(f)/while"}
  ROOT %reduced = f32[1024]{0:T(1024)} all-reduce(%x.1), \
replica_groups={{0,2},{1,3}}, to_apply=%sum, \
backend_config={"window_config":{"estimated_cycles":"500"}}
}
""".replace(
    'LOOP',
    """(s32[]{:T(128)}, bf16[8,512]{1,0:S(1)}, \
bf16[8,256]{1,0:T(8,128)(2,1)S(1)}, bf16[16,256,512]{2,1,0:T(8,128)(2,1)}, \
bf16[64,512]{1,0})""",
)


def parse(text):
  """As the compiler hands out the program of the text."""
  module = _hlo.hlo_module_from_text(text)
  return hlo.parse(module.as_serialized_hlo_module_proto())


@pytest.fixture(name='block', scope='module')
def _block():
  return hlo.block(parse(PROGRAM))


def test_loops_are_a_tree(block):
  (loop,) = block.inner
  assert (block.trips, loop.trips) == (1, 10)  # it counts from 2 to 12
  assert loop.op_name == 'jit(f)/while'
  assert (block.cycles, loop.cycles) == (500, 3000)
  assert loop.work[0].op_name == 'jit(f)/while/body/dot_general'


def test_products_in_fusions_are_counted(block):
  assert block.flops == 0
  assert block.inner[0].flops == 2 * 8 * 256 * 512


def test_of_hbm_counts_what_is_used_and_not_what_is_in_fast_memory(block):
  (loop,) = block.inner
  gathered = (64 + 256) * 512 * 2
  # One slice of sixteen and its number; x and y are in S(1).
  assert loop.hbm_bytes == 256 * 512 * 2 + 4 + gathered
  # The copy reads x once, the slice a quarter of it, and the all-reduce reads
  # and writes it; the start of the loop is copied, too.
  assert block.hbm_bytes == 3 * 4096 + 1024 + 2 * 4


KERNEL = """HloModule kernel

ENTRY %main (x: f32[1024], y: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0:T(1024)} parameter(0)
  %y = f32[1024]{0:T(1024)S(1)} parameter(1)
  ROOT %z = f32[1024]{0:T(1024)} custom-call(%x, %y), \
custom_call_target="tpu_custom_call", backend_config={"custom_call_config":\
{"body":"TUzv","cost_estimate":{"flops":"77","transcendentals":"5",\
"bytes_accessed":"ACCESSED","remote_bytes_transferred":"0"}}}
}
"""


@pytest.mark.parametrize(
    'accessed, counted',
    # y is in fast memory; what is updated in place is not moved as a whole.
    [('0', 2 * 4096), ('12288', 2 * 4096), ('512', 512)],
)
def test_a_kernel_counts_as_its_author_says(accessed, counted):
  block = hlo.block(parse(KERNEL.replace('ACCESSED', accessed)))
  assert block.kernels == [(77, counted)]
  assert (block.flops, block.hbm_bytes) == (77, counted)


def test_exchanges_have_kind_bytes_and_group(block):
  (reduced,) = block.collectives
  assert reduced == ('all-reduce', 'f32[1024]', 4096, (0, 2), False)
  (gathered,) = block.inner[0].collectives
  assert gathered == (
      ('all-gather', 'bf16[256,512]', 256 * 512 * 2, (0, 1, 2, 3), True)
  )


# As the compiler writes a product with an output layer: both of its operands
# come through a fusion that does nothing.
THROUGH_BITCASTS = """HloModule output_layer

%same (p0: bf16[256,512]) -> bf16[256,512] {
  %p0 = bf16[256,512]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %as = bf16[256,512]{1,0:T(8,128)(2,1)} bitcast(%p0)
}

%fused (q0: bf16[8,256], q1: bf16[256,512]) -> bf16[8,512] {
  %q0 = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %q1 = bf16[256,512]{1,0:T(8,128)(2,1)} parameter(1)
  %kernel = bf16[256,512]{1,0:T(8,128)(2,1)} fusion(%q1), kind=kLoop, \
calls=%same
  ROOT %product = USED
}

ENTRY %main (x: bf16[8,256], w: bf16[256,512]) -> bf16[8,512] {
  %x = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %w = bf16[256,512]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %y = bf16[8,512]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %w), kind=kOutput, \
calls=%fused
}
"""


@pytest.mark.parametrize(
    'used, read',
    [
        ('convolution(%q0, %kernel), dim_labels=bf_io->bf', 256 * 512 * 2),
        ('slice(%kernel), slice={[0:8], [0:512]}', 8 * 512 * 2),
    ],
)
def test_reads_through_a_bitcast_in_a_fusion_count(used, read):
  text = THROUGH_BITCASTS.replace('USED', 'bf16[8,512]{1,0} ' + used)
  assert hlo.block(parse(text)).hbm_bytes == read


@pytest.mark.parametrize(
    'before, after',
    [
        (
            'compare(%i, %last), direction=LT',
            'compare(%last, %i), direction=LT',
        ),
        ('compare(%i, %last), direction=LT', 'compare(%i, %i), direction=LT'),
        (
            'compare(%i, %last), direction=LT',
            'compare(%i, %last), direction=NE',
        ),
    ],
)
def test_a_loop_that_ends_on_data_has_no_trips(before, after):
  assert before in PROGRAM
  loop = hlo.block(parse(PROGRAM.replace(before, after))).inner[0]
  assert loop.trips is None


def test_large_arrays_are_listed():
  first, second = hlo.largest(parse(PROGRAM), 2)
  assert (first.shape, first.bytes) == ('bf16[256,512]', 256 * 512 * 2)
  assert second.bytes <= first.bytes


def test_bytes_without_a_program_are_refused():
  with pytest.raises(ValueError, match='entry'):
    hlo.parse(b'')


EXCHANGE = """HloModule exchange

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64] parameter(0)
  ROOT %y = f32[64] OPCODE(%x), channel_id=1, ATTRIBUTES
}
"""


@pytest.mark.parametrize(
    'groups, devices',
    [
        ('{{4,5},{6,7}}', (4, 5)),
        ('[2,4]<=[8]', (0, 1, 2, 3)),
        ('[4,2]<=[2,4]T(1,0)', (0, 4)),
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'a'}", (3, 2)),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
        ('{}', ()),
    ],
)
def test_the_first_group(groups, devices):
  text = EXCHANGE.replace('OPCODE', 'all-reduce').replace(
      'ATTRIBUTES',
      f'use_global_device_ids=true, replica_groups={groups}, to_apply=%sum',
  )
  (exchange,) = hlo.block(parse(text)).collectives
  assert exchange.group == devices


def test_a_permutation_is_between_pairs():
  text = EXCHANGE.replace('OPCODE', 'collective-permute').replace(
      'ATTRIBUTES', 'source_target_pairs={{3,5},{5,3}}'
  )
  (exchange,) = hlo.block(parse(text)).collectives
  assert exchange.group == (3, 5)


def test_a_batched_product_counts_its_batch_once():
  # Two products of 4 x 8 by 8 x 16, as a TPU writes them: the batch is a
  # spatial axis, dilated so that each kernel meets its own part alone.
  text = """HloModule product

ENTRY %main (a: f32[2,4,8], b: f32[2,8,16]) -> f32[2,4,16] {
  %a = f32[2,4,8]{2,1,0} parameter(0)
  %b = f32[2,8,16]{2,1,0} parameter(1)
  ROOT %c = f32[2,4,16]{2,1,0} convolution(%a, %b), window={size=2 stride=1 \
pad=0_0 lhs_dilate=2}, dim_labels=0bf_0io->0bf
}
"""
  assert hlo.block(parse(text)).flops == 2 * 2 * 4 * 8 * 16
