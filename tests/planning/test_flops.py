"""Operations of traced programs, against numbers by hand and against the model's shape."""

import jax
import jax.numpy as jnp
import pytest

from score_jax.model.decoder import Decoder
from score_jax.planning import flops
from tests.tiny import MODEL


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
