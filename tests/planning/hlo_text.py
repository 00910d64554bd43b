"""A program as the TPU compiler writes it, small enough to count by hand.

Four chips. The entry gathers a parameter of f32[4,8] from f32[1,8], has another gather
go on during two fusions (under one channel), runs a loop of five
iterations with an all-reduce in it, then a loop whose end the data decide, in which each
iteration reads one of ten layers of a stack and writes one row of a cache.
"""

PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[1,8]{1,0})->f32[4,8]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%five_condition (state: (s32[], f32[100])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %state.1 = (s32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  %count = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%count, %five), direction=LT
}

%five_body (state: (s32[], f32[100])) -> (s32[], f32[100]) {
  %state.2 = (s32[], f32[100]{0:T(128)}) parameter(0)
  %count.2 = s32[] get-tuple-element(%state.2), index=0
  %vector = f32[100]{0:T(128)} get-tuple-element(%state.2), index=1
  %summed = f32[100]{0:T(128)} all-reduce(%vector), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %next = (s32[], f32[100]{0}) tuple(%count.2, %summed)
}

%fused_slice (stack: bf16[10,64], index: s32[]) -> bf16[1,64] {
  %stack = bf16[10,64]{1,0:T(8,128)(2,1)} parameter(0)
  %index = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,64]{1,0} dynamic-slice(%stack, %index, %zero), dynamic_slice_sizes={1,64}
}

%fused_update (cache: bf16[32,64], row: bf16[1,64], index: s32[]) -> bf16[32,64] {
  %cache = bf16[32,64]{1,0} parameter(0)
  %row = bf16[1,64]{1,0} parameter(1)
  %index.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %updated = bf16[32,64]{1,0} dynamic-update-slice(%cache, %row, %index.1, %zero.1)
}

%fused_send (part: f32[4,8]) -> f32[8,8] {
  %part = f32[4,8]{1,0} parameter(0)
  ROOT %inner = f32[8,8]{1,0} all-gather(%part), channel_id=9, \
replica_groups=mesh['x'=2,'y'=2] {'x'}, dimensions={0}
}

%fused_wait (half: f32[8,8], other: f32[16]) -> (f32[16], f32[8,8]) {
  %half = f32[8,8]{1,0} parameter(0)
  %other = f32[16]{0} parameter(1)
  %on = f32[8,8]{1,0} all-gather(%half), channel_id=9, \
replica_groups=mesh['x'=2,'y'=2] {'x'}, dimensions={0}
  %double = f32[16]{0} add(%other, %other)
  ROOT %both = (f32[16]{0}, f32[8,8]{1,0}) tuple(%double, %on)
}

%open_condition (state: (pred[], bf16[32,64], bf16[10,64])) -> pred[] {
  %state.3 = (pred[], bf16[32,64], bf16[10,64]) parameter(0)
  %done = pred[] get-tuple-element(%state.3), index=0
  ROOT %go_on = pred[] not(%done)
}

%open_body (state: (pred[], bf16[32,64], bf16[10,64])) -> (pred[], bf16[32,64], bf16[10,64]) {
  %state.4 = (pred[], bf16[32,64]{1,0}, /*index=2*/bf16[10,64]{1,0}) parameter(0)
  %done.1 = pred[] get-tuple-element(%state.4), index=0
  %cache.1 = bf16[32,64]{1,0} get-tuple-element(%state.4), index=1
  %stack.1 = bf16[10,64]{1,0} get-tuple-element(%state.4), index=2
  %at = s32[] constant(3)
  %layer = bf16[1,64]{1,0:T(8,128)S(1)} fusion(%stack.1, %at), kind=kLoop, calls=%fused_slice
  %new = bf16[32,64]{1,0} fusion(%cache.1, %layer, %at), kind=kLoop, calls=%fused_update
  %all.1 = pred[] all-reduce(%done.1), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %out = (pred[], bf16[32,64]{1,0}, bf16[10,64]{1,0}) tuple(%all.1, %new, %stack.1)
}

ENTRY %main (x: f32[1,8], v: (s32[], f32[100]), w: (pred[], bf16[32,64], bf16[10,64])) -> f32[4,8] {
  %x = f32[1,8]{1,0} parameter(0)
  %v = (s32[], f32[100]{0}) parameter(1)
  %w = (pred[], bf16[32,64]{1,0}, bf16[10,64]{1,0}) parameter(2)
  %start = (f32[1,8]{1,0}, f32[4,8]{1,0}) all-gather-start(%x), replica_groups=[1,4]<=[4], \
dimensions={0}
  %whole = f32[4,8]{1,0} all-gather-done(%start)
  %sent = f32[8,8]{1,0} fusion(%whole), kind=kCustom, calls=%fused_send
  %noise = f32[16]{0} custom-call()
  %waited = (f32[16]{0}, f32[8,8]{1,0}) fusion(%sent, %noise), kind=kCustom, calls=%fused_wait, \
output_to_operand_aliasing={{1}: (0, {})}
  %five_loop = (s32[], f32[100]{0}) while(%v), condition=%five_condition, body=%five_body
  %open_loop = (pred[], bf16[32,64]{1,0}, bf16[10,64]{1,0}) while(%w), \
condition=%open_condition, body=%open_body
  ROOT %copy = f32[4,8]{1,0} copy(%whole)
}
"""
