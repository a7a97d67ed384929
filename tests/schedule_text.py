"""A compiled program with its estimates."""

# Cut down from what the compiler of v5e wrote.
TEXT = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/irepa_jax/models/layers.py"
2 "/usr/lib/python3/site-packages/flax/linen/module.py"

FunctionNames
1 "Dense.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=43 end_line=43 column=1 end_column=9}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%inside (p: f32[8]) -> f32[8] {
  ROOT %m = f32[8]{0} multiply(%p, %p), backend_config={"estimated_cycles":"9"}
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %limit = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%inner_body (s: (s32[])) -> (s32[]) {
  %e = f32[8]{0} fusion(%s), kind=kLoop, calls=%inside, backend_config={"estimated_cycles":"1"}
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} fusion(%b), kind=kOutput, calls=%inside, metadata={op_name="jit(step)/transpose(jvp())/while/body/checkpoint/Block/dot_general" stack_frame_id=2}, backend_config={"window":1,"estimated_cycles":"100"}
  %w = (s32[]) while(%t), condition=%other, body=%inner_body, backend_config={"known_trip_count":{"n":"3"}}
  %k = f32[8]{0} custom-call(%f), custom_call_target="tpu_custom_call"
  %a = f32[8]{0} custom-call(%f), custom_call_target="AllocateBuffer"
}

%left (l: f32[8]) -> f32[8] {
  %n = f32[8]{0} copy(%l), backend_config={"estimated_cycles":"5"}
}

%taken (t: f32[8]) -> f32[8] {
  %u = f32[8]{0} fusion(%t), calls=%inside, metadata={op_name="jit(step)/cond/add"}, backend_config={"estimated_cycles":"50"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %g = f32[8]{0} fusion(%x), calls=%inside, metadata={op_name="jit(step)/jvp()/dot_general" stack_frame_id=1}, backend_config={"estimated_cycles":"1000"}
  %loop = (s32[], f32[8]) while(%t), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  ROOT %choice = f32[8]{0} conditional(%p, %x, %x), branch_computations={%left, %taken}
}
"""
