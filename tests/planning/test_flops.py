"""Operations of traced programs, against numbers by hand and against the model's shape."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from score_jax.model.decoder import Decoder
from score_jax.model.fused_attention import splash_rows
from score_jax.planning import flops
from score_jax.planning.course import Course
from tests.tiny import MODEL

KERNELS = Course(kernels=(0.25, 0.75))


def counted(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return flops.count(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_a_product_counts_two_per_pair():
    assert counted(lambda a, b: a @ b, (3, 4), (4, 5)) == (2 * 3 * 4 * 5, [])


def test_loops_count_as_often_as_they_run():
    def scanned(a, b):
        return jax.lax.scan(lambda carry, _: (carry @ b, None), a, None, length=7)[0]

    assert counted(jax.jit(scanned), (4, 4), (4, 4)) == (7 * 2 * 64, [])


def test_loops_of_unknown_length_count_one_iteration_each_apart():
    def until(a, b):
        a = jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ b, a @ b)
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ b @ b, a)

    assert counted(until, (4, 4), (4, 4)) == (2 * 64, [2 * 64, 2 * 2 * 64])


def test_what_no_result_needs_does_not_count():
    """Also where it stands in a branch or a loop: here only the derivative of a product is used."""

    def derivative(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: jax.vjp(jnp.matmul, a, b)[1](a)[0], lambda: a)

    def until(a, b):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: derivative(x, b), a)

    shapes = [jax.ShapeDtypeStruct((4, 4), jnp.float32)] * 2
    jaxpr, looped = (jax.make_jaxpr(function)(*shapes).jaxpr for function in (derivative, until))
    once = 2 * 64
    assert flops.count(jaxpr) == (3 * once, []) and flops.count(flops.live(jaxpr)) == (once, [])
    assert flops.count(looped) == (0, [once])


def test_of_branches_the_dearest_counts():
    def either(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b @ b, lambda: a @ b)

    assert counted(either, (4, 4), (4, 4)) == (2 * 2 * 64, [])


def test_recomputation_and_the_backward_pass_are_counted():
    """Forward 1, recomputed 1, gradients of both operands 2 products."""

    def loss(a, b):
        return jnp.sum(jax.checkpoint(lambda a, b: jnp.sin(a @ b))(a, b))

    found = counted(jax.grad(loss, argnums=(0, 1)), (4, 4), (4, 4))
    assert found[0] in (3 * 128, 4 * 128)  # the first forward's value may be unused


def test_the_models_shape_gives_what_its_program_multiplies():
    decoder, tokens = Decoder(MODEL), jax.ShapeDtypeStruct((2, 5), jnp.int32)
    params = jax.eval_shape(decoder.init, jax.random.key(0), tokens, tokens)
    jaxpr = jax.make_jaxpr(lambda p, t: decoder.apply(p, t, t))(params, tokens).jaxpr
    assert flops.count(jaxpr)[0] == pytest.approx(flops.forward_flops(MODEL, 10, 5, 0))


@pytest.mark.parametrize("window", [None, 128, 129, 200, 600])
def test_a_kernels_products_are_those_of_the_blocks_that_hold_a_visible_pair(window):
    """Forward 2 products a block; dq 3, dk and dv 4, and the sum of values times gradients."""
    rows, heads, length, size, block = 2, 4, 640, 8, 128
    at = np.arange(length)
    seen = (at[:, None] >= at) & (at[:, None] - at < (window or length))
    blocks = seen.reshape(5, block, 5, block).any(axis=(1, 3)).sum()
    product = 2 * block * block * size * rows * heads * blocks
    shapes = [(rows, n, length, size) for n in (heads, 2, 2)]
    attend = partial(splash_rows, block, window, None, segments=None)
    assert counted(attend, *shapes) == (2 * product, [])
    both = counted(jax.grad(lambda *x: attend(*x).sum(), argnums=(0, 1, 2)), *shapes)
    assert both[0] == 9 * product + 2 * rows * heads * length * size


def test_what_a_conditional_between_kernels_chooses_counts_by_layer():
    short, long = (partial(splash_rows, 128, window, None) for window in (100, None))
    shapes = [jax.ShapeDtypeStruct((1, 2, 640, 8), jnp.float32)] * 3

    def either(*x):
        return jax.lax.cond(x[0][0, 0, 0, 0] > 0, short, long, *x, None)

    def product(layer, *x):
        return layer(*x, None)

    ends = [
        flops.count(jax.make_jaxpr(partial(product, f))(*shapes).jaxpr)[0] for f in (long, short)
    ]
    jaxpr = jax.make_jaxpr(either)(*shapes).jaxpr
    assert ends[0] > ends[1]
    assert flops.count(jaxpr)[0] == max(ends)
    assert flops.count(jaxpr, KERNELS)[0] == 0.25 * ends[0] + 0.75 * ends[1]


def test_of_other_conditionals_the_dearest_branch_counts():
    def either(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: b @ a @ b)

    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert flops.count(jax.make_jaxpr(either)(shape, shape).jaxpr, KERNELS)[0] == 2 * 128
    seldom = Course(chunks=0.25)
    assert flops.count(jax.make_jaxpr(either)(shape, shape).jaxpr, seldom)[0] == 64


def test_every_device_counts_under_shard_map():
    auto = (jax.sharding.AxisType.Auto,) * 2  # JAX 0.11 takes Explicit unless told
    mesh = jax.sharding.AbstractMesh((4, 2), ("x", "y"), axis_types=auto)
    over = jax.shard_map(
        lambda a, b: a @ b, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"), check_vma=False
    )
    # Each of the eight multiplies two of the eight rows: both along y do the same.
    assert counted(over, (8, 4), (4, 4)) == (8 * 2 * 2 * 16, [])


def test_the_shares_of_layers_are_those_of_the_branches():
    config = dataclasses.replace(MODEL, layers=4, window=3, local_layers=(True, True, True, False))
    assert flops.layer_shares(config) == (0.25, 0.75)
    assert flops.layer_shares(MODEL) == (1.0, 0.0)
