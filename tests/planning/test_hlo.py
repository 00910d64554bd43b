"""A hand-written program, counted by hand."""

import pytest

from score_jax.planning import hlo
from score_jax.planning.course import Course
from score_jax.planning.hlo import Collective
from score_jax.planning.traffic import hbm_traffic
from tests.planning.hlo_text import PROGRAM


@pytest.fixture(scope="module")
def module():
    return hlo.parse(PROGRAM)


def test_computations_and_the_entry_are_found(module):
    assert module.entry == "main"
    assert set(module.computations) == {
        "add", "five_condition", "five_body", "fused_slice", "fused_update", "fused_send",
        "fused_wait", "open_condition", "open_body", "main",
    }  # fmt: skip


def test_a_line_is_read_part_by_part():
    shape = "(f32[2]{0:T(8,128)S(1)}, /*index=1*/u32[])"
    line = f"  ROOT %out.1 = {shape} all-reduce-start(%a, %b.2), x={{1}}"
    found = hlo.parse_line(line)
    assert (found.name, found.kind, found.root) == ("out.1", "all-reduce-start", True)
    assert found.operands == ("a", "b.2") and found.attributes == ", x={1}"
    assert hlo.array_bytes(found.shape) == 2 * 4 + 4
    assert hlo.array_bytes(found.shape, hbm_only=True) == 4  # S(1) is on the chip
    assert hlo.parse_line("  // nothing") is None


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4), ("bf16[26,32,4]{2,1,0:T(4,128)(2,1)}", 26 * 32 * 4 * 2), ("pred[7]", 7),
        ("(s32[], f32[100]{0})", 404), ("s4[10]", 5), ("token[]", 0),
    ],
)  # fmt: skip
def test_sizes_in_bytes(shape, size):
    assert hlo.array_bytes(shape) == size


def test_loops_with_a_constant_end_have_their_number(module):
    loops = [i for i in module.computations["main"] if i.kind == "while"]
    assert [hlo.trip_count(module, loop) for loop in loops] == [5, None]


def test_a_number_that_the_compiler_has_noted_is_taken():
    note = 'backend_config={"known_trip_count":{"n":"3"}}'
    line = f"  %l = (s32[]) while(%s), condition=%c, body=%b, {note}"
    assert hlo.trip_count(hlo.Module(), hlo.parse_line(line)) == 3


def test_collectives_by_kind_group_and_place(module):
    """All-gathers send (n-1)/n of the whole, all-reduces twice that."""
    found = set(hlo.collectives(module, Course(loops=[[7]])))
    assert found == {
        Collective("all-gather", 4, False, False, 1, 4 * 8 * 4 * 3 / 4),
        Collective("all-gather", 2, False, False, 1, 8 * 8 * 4 * 1 / 2),  # in two fusions
        Collective("all-reduce", 2, False, False, 5, 5 * 2 * 400 / 2),
        Collective("all-reduce", 4, True, False, 7, 7 * 2 * 1 * 3 / 4),
    }


PEELED = """\
%more (state: (s32[], f32[100])) -> pred[] {
  %limit = s32[] constant(4)
  %state = (s32[], f32[100]{0}) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%at, %limit), direction=LT
}

%layer (state: (s32[], f32[100])) -> (s32[], f32[100]) {
  %state.1 = (s32[], f32[100]{0}) parameter(0)
  %at.1 = s32[] get-tuple-element(%state.1), index=0
  %x = f32[100]{0} get-tuple-element(%state.1), index=1
  %sum = f32[100]{0} all-reduce(%x), channel_id=7, replica_groups={{0,1}}, to_apply=%add
  ROOT %next = (s32[], f32[100]{0}) tuple(%at.1, %sum)
}

ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  %one = s32[] constant(1)
  %first = f32[100]{0} all-reduce(%p), channel_id=7, replica_groups={{0,1}}, to_apply=%add
  %begin = (s32[], f32[100]{0}) tuple(%one, %first)
  %rest = (s32[], f32[100]{0}) while(%begin), condition=%more, body=%layer
  ROOT %out = f32[100]{0} get-tuple-element(%rest), index=1
}
"""


def test_an_iteration_taken_out_of_a_loop_counts_beside_the_others():
    """Four layers; the first stands before the loop, under the same channel."""
    found = hlo.collectives(hlo.parse(PEELED))
    assert found == [Collective("all-reduce", 2, False, False, 4, 4 * 400)]


def test_steps_are_for_every_open_loop(module):
    with pytest.raises(AssertionError, match="1 of 2 loops are not in the program"):
        list(hlo.runs(module, Course(loops=[[7], [7]])))


SENDS = """\
ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %then = token[] after-all()
  %within = f32[256]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %one = (f32[256]{0}, u32[], token[]) send(%x, %then), channel_id=1, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:3}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %got = (f32[256]{0}, u32[], token[]) recv(%then), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:3}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %two = (f32[256]{0}, u32[], token[]) send(%x, %then), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target={{100000,200000},{100001,200001}},\
_xla_megascale_transfer_type="ALL_TO_ALL"}
  %three = (f32[256]{0}, u32[], token[]) send(%x, %then), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target={{100001->200000},{200000->100001}},\
_xla_megascale_transfer_type="ONE_TO_ONE"}
  %four = (f32[256]{0}, u32[], token[]) send(%x, %then), channel_id=5, is_host_transfer=true
  ROOT %out = f32[256]{0} copy(%x)
}
"""


def test_what_leaves_a_slice_is_sent_by_the_host():
    """1,024 bytes each; the received half of a pair, and what goes to the host only, are not."""
    assert set(hlo.collectives(hlo.parse(SENDS))) == {
        Collective("all-reduce", 2, False, False, 1, 1024 * 2 / 2),
        Collective("all-reduce", 4, False, True, 1, 1024 * 2 * 3 / 4),
        Collective("all-to-all", 2, False, True, 1, 1024 / 2),
        Collective("collective-permute", 2, False, True, 1, 1024),
    }


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[3,2]<=[2,3]T(1,0)", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'b'}", [[0, 1, 2], [3, 4, 5]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        # Chip 2a + b stands at (b, a) of the grid.
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{3,0}}", [[0, 1], [3, 0]]),
        ("to_apply=%add", [[0]]),
    ],
)
def test_group_notations(text, members):
    assert hlo.groups(f", channel_id=1, {text}, dimensions={{0}}").tolist() == members


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 75), ("reduce-scatter", 75), ("all-reduce", 150), ("all-to-all", 75),
     ("collective-permute", 100)],
)  # fmt: skip
def test_bytes_on_the_wire_of_a_ring_of_four(kind, sent):
    assert hlo.wire_bytes(kind, 100, 4) == sent
    assert kind == "collective-permute" or hlo.wire_bytes(kind, 100, 1) == 0


TWO_KERNELS = """\
HloModule jit_layers

%whole (q: bf16[4,8]) -> bf16[4,8] {
  %q = bf16[4,8]{1,0} parameter(0)
  ROOT %splash_mha_fwd_no_residuals.1 = bf16[4,8]{1,0} custom-call(%q), custom_call_target="x"
}

%local (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %far = bf16[4,8]{1,0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
  ROOT %splash_mha_fwd_no_residuals.2 = bf16[4,8]{1,0} custom-call(%far), custom_call_target="x"
}

%other (o: bf16[4,8]) -> bf16[4,8] {
  %o = bf16[4,8]{1,0} parameter(0)
  ROOT %negated = bf16[4,8]{1,0} negate(%o)
}

ENTRY %main (index: s32[], x: bf16[4,8]) -> bf16[4,8] {
  %index = s32[] parameter(0)
  %x = bf16[4,8]{1,0} parameter(1)
  %mixed = bf16[4,8]{1,0} conditional(%index, %x, %x), branch_computations={%whole, %local}
  ROOT %last = bf16[4,8]{1,0} conditional(%index, %mixed, %mixed), \
branch_computations={%other, %other}
}
"""


def test_a_conditional_between_kernels_runs_each_branch_for_its_share_of_layers():
    module = hlo.parse(TWO_KERNELS)
    times = {}
    course = Course(kernels=(0.25, 0.75))
    for run in hlo.runs(module, course):
        times[run.instruction.name] = times.get(run.instruction.name, 0) + run.times
    assert times["splash_mha_fwd_no_residuals.1"] == 0.25
    assert times["splash_mha_fwd_no_residuals.2"] == times["far"] == 0.75
    assert times["negated"] == 1  # another conditional
    assert [c.count for c in hlo.collectives(module, course)] == [0.75]
    assert [c.count for c in hlo.collectives(module)] == [1]
    passed = 2 * 4 * 8 * 2  # bytes read and written by each instruction
    assert hbm_traffic(module, course).once == passed * (0.25 + 2 * 0.75 + 1)


DRAWN = """\
HloModule m

%undone (s: (pred[], f32[8])) -> pred[] {
  %s = (pred[], f32[8]) parameter(0)
  ROOT %due = pred[] get-tuple-element(%s), index=0
}

%draw (s: (pred[], f32[8])) -> (pred[], f32[8]) {
  %s = (pred[], f32[8]) parameter(0)
  %due = pred[] get-tuple-element(%s), index=0
  %old = f32[8]{0} get-tuple-element(%s), index=1
  %drawn = f32[8]{0} negate(%old)
  ROOT %next = (pred[], f32[8]) tuple(%due, %drawn)
}

%skipped (s: (pred[], f32[8])) -> (pred[], f32[8]) {
  ROOT %s = (pred[], f32[8]) parameter(0)
}

%taken (s: (pred[], f32[8])) -> (pred[], f32[8]) {
  %s = (pred[], f32[8]) parameter(0)
  %due = pred[] get-tuple-element(%s), index=0
  %old = f32[8]{0} get-tuple-element(%s), index=1
  %moved = f32[8]{0} negate(%old)
  %begin = (pred[], f32[8]) tuple(%due, %moved)
  ROOT %loop = (pred[], f32[8]) while(%begin), condition=%undone, body=%draw
}

ENTRY %main (index: s32[], s: (pred[], f32[8])) -> (pred[], f32[8]) {
  %index = s32[] parameter(0)
  %s = (pred[], f32[8]) parameter(1)
  ROOT %c = (pred[], f32[8]) conditional(%index, %s, %s), branch_computations={%skipped, %taken}
}
"""


def test_a_loop_behind_a_condition_runs_where_the_condition_holds():
    """In one of four turns, ten times; what is done before the loop is done once in four."""
    module = hlo.parse(DRAWN)
    runs = list(hlo.runs(module, Course(loops=[[0, 10, 0, 0]])))
    times = {run.instruction.name: run.times for run in runs}
    assert times["drawn"] == 10 / 4 and times["moved"] == 1 / 4
    assert all(run.in_loop for run in runs if run.instruction.name in ("drawn", "moved"))
    never, once = hlo.runs(module, Course(loops=[[0, 0]])), hlo.runs(module)
    assert {run.instruction.name: run.times for run in never}["drawn"] == 0
    assert {run.instruction.name: run.times for run in once}["drawn"] == 1


def test_chunks_that_are_skipped_do_not_count():
    text = DRAWN.replace("while(%begin), condition=%undone, body=%draw", "copy(%begin)")
    runs = hlo.runs(hlo.parse(text), Course(chunks=0.25))
    assert {run.instruction.name: run.times for run in runs}["moved"] == 0.25
