"""Reading compiled programs: lines as the three compilers write them."""

# ruff: noqa: E501

from mgjax.planning import program_text
from mgjax.planning.program_text import Traffic

# XLA:GPU, for an H100: cuDNN's convolutions, with room to work in; what starts
# and ends apart; a loop that runs five times; a transpose within a fusion.
GPU = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%region_0.0 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused_transpose (param_0: bf16[8,8,56,56,8]) -> bf16[8,8,8,56,56] {
  %param_0 = bf16[8,8,56,56,8]{4,3,2,1,0} parameter(0)
  ROOT %transpose.1 = bf16[8,8,8,56,56]{4,3,2,1,0} transpose(%param_0), dimensions={0,4,1,2,3}, metadata={op_name="jit(f)/transpose(jvp())/conv"}
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %all-gather-start = (f32[8,16]{1,0}, f32[64,16]{1,0}) all-gather-start(%x), channel_id=7, dimensions={0}
  %all-gather-done = f32[64,16]{1,0} all-gather-done(%all-gather-start)
  %custom-call.5 = (f32[8,16]{1,0}, s8[33554432]{0}) custom-call(%x, %all-gather-done), custom_call_target="__cublas$lt$matmul"
  %y = f32[8,16]{1,0} get-tuple-element(%custom-call.5), index=0
  ROOT %tuple.1 = (s32[], f32[8,16]{1,0}) tuple(%i, %y)
}

%condition (q: (s32[], f32[8,16])) -> pred[] {
  %q = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main.8_spmd (param.4: bf16[8,8,56,56,8], param.5: bf16[1,3,3,8,16]) -> f32[16] {
  %param.4 = bf16[8,8,56,56,8]{4,3,2,1,0} parameter(0), sharding={devices=[8,1,1,1,1]<=[8]}
  %param.5 = bf16[1,3,3,8,16]{4,3,2,1,0} parameter(1)
  %wrapped_transpose = bf16[8,8,8,56,56]{4,3,2,1,0} fusion(%param.4), kind=kInput, calls=%fused_transpose
  %cudnn-conv.1 = (bf16[8,16,8,56,56]{4,3,2,1,0}, u8[0]{0}) custom-call(%wrapped_transpose, %param.5), window={size=1x3x3 pad=0_0x1_1x1_1}, dim_labels=bf012_oi012->bf012, custom_call_target="__cudnn$convForward", backend_config={"device_type":"DEVICE_TYPE_INVALID"}
  %cudnn-conv-bw-filter.1 = (bf16[16,8,1,3,3]{4,3,2,1,0}, u8[0]{0}) custom-call(%wrapped_transpose, %cudnn-conv.1), dim_labels=bf012_oi012->bf012, custom_call_target="__cudnn$convBackwardFilter"
  %all-reduce-start = f32[16]{0} all-reduce-start(%param.5), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%region_0.0
  %all-reduce-done = f32[16]{0} all-reduce-done(%all-reduce-start)
  %another = f32[4]{0} all-reduce(%param.5), channel_id=2, to_apply=%region_0.0
  %tuple.20 = (s32[], f32[8,16]{1,0}) tuple(%all-reduce-done)
  %while.11 = (s32[], f32[8,16]{1,0}) while(%tuple.20), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
  ROOT %copy.1 = f32[16]{0} copy(%all-reduce-done)
}
"""

# XLA:TPU, for a v5e: one all-gather in two fusions, with one channel; a copy
# from one kind of memory to another; layouts that have blanks nowhere, but
# brackets.
TPU = """\
HloModule jit_step, is_scheduled=true

%fusion.a (p.1: f32[1,2,64]) -> (f32[1,2,64], f32[8,2,64], u32[]) {
  %p.1 = f32[1,2,64]{2,1,0:T(2,128)} parameter(0)
  %all-gather.96 = f32[8,2,64]{2,1,0:T(2,128)} all-gather(%p.1), channel_id=103, dimensions={0}
  ROOT %custom-call.60 = (f32[1,2,64]{2,1,0:T(2,128)S(1)}, f32[8,2,64]{2,1,0:T(2,128)S(1)}, u32[]{:S(2)}) custom-call(%all-gather.96), custom_call_target="AsyncCollectiveStart"
}

%fusion.b (p.2: f32[1,2,64]) -> f32[8,2,64] {
  %p.2 = f32[1,2,64]{2,1,0:T(2,128)} parameter(0)
  ROOT %all-gather.98 = f32[8,2,64]{2,1,0:T(2,128)S(1)} all-gather(%p.2), channel_id=103, dimensions={0}
}

%fusion.c (p.3: bf16[8,32,56,56,8], p.4: bf16[1,3,3,8,8]) -> bf16[8,32,56,56,8] {
  %p.3 = bf16[8,32,56,56,8]{4,0,3,2,1:T(8,128)(2,1)} parameter(0)
  %p.4 = bf16[1,3,3,8,8]{4,3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.429 = bf16[8,32,56,56,8]{4,0,3,2,1:T(8,128)(2,1)} convolution(%p.3, %p.4), window={size=1x3x3 pad=0_0x1_1x1_1}, dim_labels=b012f_012io->b012f
}

ENTRY %main.1 (x: bf16[8,32,56,56,8], k: bf16[1,3,3,8,8], n: f32[1,2,64]) -> bf16[8,32,56,56,8] {
  %x = bf16[8,32,56,56,8]{4,0,3,2,1:T(8,128)(2,1)} parameter(0)
  %k = bf16[1,3,3,8,8]{4,3,2,1,0:T(8,128)(2,1)} parameter(1)
  %n = f32[1,2,64]{2,1,0:T(2,128)} parameter(2)
  %async = (f32[1,2,64]{2,1,0:T(2,128)S(1)}, f32[8,2,64]{2,1,0:T(2,128)S(1)}, /*index=2*/u32[]{:S(2)}) fusion(%n), kind=kCustom, calls=%fusion.a
  %gathered = f32[8,2,64]{2,1,0:T(2,128)} fusion(%n), kind=kCustom, calls=%fusion.b
  %collective-permute-start = (f32[1,2,2]{2,1,0:T(2,128)S(1)}, f32[1,2,2]{2,1,0:T(2,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%n), channel_id=5, source_target_pairs={{0,7},{1,0}}
  %collective-permute-done = f32[1,2,2]{2,1,0:T(2,128)S(1)} collective-permute-done(%collective-permute-start)
  %copy-start.6 = (bf16[8,32,56,56,8]{4,0,3,2,1:T(8,128)(2,1)S(1)}, bf16[8,32,56,56,8]{4,0,3,2,1:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done.6 = bf16[8,32,56,56,8]{4,0,3,2,1:T(8,128)(2,1)S(1)} copy-done(%copy-start.6)
  %copy-start.7 = (bf16[8,32,56,56,8]{3,0,4,2,1:T(8,128)(2,1)}, bf16[8,32,56,56,8]{4,0,3,2,1:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done.7 = bf16[8,32,56,56,8]{3,0,4,2,1:T(8,128)(2,1)} copy-done(%copy-start.7)
  %product = f32[16,32]{1,0:T(8,128)} convolution(%n, %n), dim_labels=bf_io->bf
  ROOT %fusion.2 = bf16[8,32,56,56,8]{4,0,3,2,1:T(8,128)(2,1)} fusion(%copy-done.6, %k), kind=kOutput, calls=%fusion.c
}
"""

# XLA:CPU: several arrays in one exchange, inside of a call; a copy of no size.
CPU = """\
HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%parallel_part (p: f32[1000,500]) -> f32[500,1000] {
  %p = f32[1000,500]{1,0} parameter(0)
  ROOT %transpose.2 = f32[500,1000]{1,0} transpose(%p), dimensions={1,0}
}

ENTRY %main.2 (x: f32[1000,500], y: pred[8]) -> f32[500,1000] {
  %x = f32[1000,500]{1,0} parameter(0)
  %y = pred[8]{0} parameter(1)
  %all-reduce = (f32[1000,500]{1,0}, pred[8]{0}) all-reduce(%x, %y), channel_id=1, to_apply=%sum
  %z = f32[1000,500]{1,0} get-tuple-element(%all-reduce), index=0
  %convolution.1 = f32[16,8,8,4]{3,2,1,0} convolution(%z, %z), window={size=3x3}, dim_labels=b01f_01io->b01f
  %small = f32[10]{0} copy(%y)
  ROOT %call = f32[500,1000]{1,0} call(%z), to_apply=%parallel_part
}
"""


def test_a_program_for_a_gpu():
  found = program_text.read(GPU)
  video = 2 * 8 * 8 * 8 * 56 * 56
  assert found.collectives == {
    'all-reduce': Traffic(2, 4 * 16 + 4 * 4),  # Of one channel.
    'all-gather': Traffic(5, 5 * 4 * 64 * 16),  # In the loop.
  }
  assert found.convolutions == {'bf012_oi012->bf012 bf16': 2}
  assert found.copies == Traffic(1, video)
  # Without the room of cuBLAS; a fusion's inside counts as the fusion.
  kernel, wide = 2 * 9 * 8 * 16, 2 * video
  of_entry = 2 * video  # The transpose.
  of_entry += wide + video + kernel  # Forward: result, operands.
  of_entry += kernel + video + wide  # Gradient of the kernel.
  of_entry += 64 + kernel + 16 + kernel + 2 * 64  # All-reduces, copy.
  of_loop = (512 + 4096) + 512  # All-gather, its operand among the results.
  of_loop += 512 + 512 + 4096  # The product.
  condition = 0
  assert found.accessed_bytes == of_entry + 5 * (of_loop + condition)


def test_a_program_for_a_tpu():
  found = program_text.read(TPU)
  assert found.collectives == {
    'all-gather': Traffic(1, 4 * 8 * 2 * 64),
    'collective-permute': Traffic(1, 4 * 2 * 2),
  }
  assert found.convolutions == {
    'b012f_012io->b012f bf16': 1,
    'bf_io->bf f32': 1,
  }
  # The one that changes the layout, not the one to the other memory.
  assert found.copies == Traffic(1, 2 * 8 * 32 * 56 * 56 * 8)


def test_a_program_for_cpus():
  found = program_text.read(CPU)
  assert found.collectives == {'all-reduce': Traffic(1, 4 * 1000 * 500 + 8)}
  assert found.convolutions == {'b01f_01io->b01f f32': 1}
  assert found.copies == Traffic(1, 4 * 500 * 1000)


def test_what_never_runs_does_not_count():
  text = TPU.replace('calls=%fusion.c', 'calls=%fusion.b')
  assert 'b012f_012io->b012f bf16' not in program_text.read(text).convolutions
