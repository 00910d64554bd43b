"""HBM bytes of the hand-written program, added up by hand."""

from score_jax.planning import hlo
from score_jax.planning.course import Course
from score_jax.planning.traffic import hbm_traffic
from tests.planning.hlo_text import PROGRAM


def test_slices_updates_and_vector_memory_are_charged_for_what_moves():
    found = hbm_traffic(hlo.parse(PROGRAM))
    # A loop's iteration: one layer's 128 bytes read into vector memory (its write is free),
    # one row of 128 bytes written into the cache, a flag read and written by the all-reduce,
    # the flag's negation in the condition, and the index that both fusions read.
    step = 128 + 128 + 2 + 2 + 2 * 4
    assert found.in_loop == step
    assert hbm_traffic(hlo.parse(PROGRAM), Course(loops=[[7]])).in_loop == 7 * step
    gather = 32 + 128  # start: the part and the whole
    send = 128 + 256 + 128 + 256  # as a fusion of its own, and the collective in it
    wait = 64 + 64 + 64  # noise made, read and doubled; the gather under way is handed on
    loop = 5 * (400 + 400 + 4 + 4 + 1)  # all-reduce; the compare of the condition
    copy = 2 * 128
    assert found.once == gather + send + wait + loop + copy
