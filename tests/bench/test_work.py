import jax
import jax.numpy as jnp
import pytest

from scalezero.bench.measure import Measurement, timing
from scalezero.bench.work import Work, work
from scalezero.nets.experts import experts

A, B = jnp.ones((2, 3)), jnp.ones((3, 5))
FLOPS, BYTES = 2.0 * 2 * 3 * 5, 4.0 * (2 * 3 + 3 * 5 + 2 * 5)


def test_experts_apart_count_as_in_a_stack():
    layer, x = experts(8, 4, 6, 6, 1, "trained", key=jax.random.key(0)), jnp.ones((10, 8))
    through = lambda layer, x: layer(x)[0]
    assert work(through, layer.apart(), x) == work(through, layer, x)


def test_a_product_counts_its_operations_and_what_it_touches():
    assert work(jnp.matmul, A, B) == Work(FLOPS, BYTES)
    assert work(jax.jit(jnp.matmul), A, B) == Work(FLOPS, BYTES)


def test_a_loop_counts_each_of_its_rounds():
    def loop(a, b):
        return jax.lax.fori_loop(0, 7, lambda i, c: c + a @ b, jnp.zeros((2, 5)))

    assert work(loop, A, B) == Work(7 * FLOPS, 7 * BYTES)


def test_of_a_switch_the_cheapest_way_counts():
    def switch(a, b):
        twice = lambda: a @ b + jnp.tanh(a) @ b
        return jax.lax.cond(a[0, 0] > 0, twice, lambda: a @ b)

    assert work(switch, A, B) == Work(FLOPS, BYTES)


def test_a_batch_of_products_counts_each():
    stacked = jnp.ones((4, 2, 3))
    assert work(jax.vmap(lambda a: a @ B), stacked).flops == 4 * FLOPS


def test_a_convolution_counts_its_kernel_for_every_output():
    picture, kernel = jnp.ones((1, 2, 6, 6)), jnp.ones((3, 2, 3, 3))
    convolve = lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME")
    assert work(convolve, picture, kernel).flops == 2 * (3 * 6 * 6) * (2 * 3 * 3)


def test_a_gradient_is_two_more_products():
    loss = lambda a, b: jnp.sum(jnp.square(a @ b))
    assert work(jax.grad(loss, argnums=(0, 1)), A, B).flops == 3 * FLOPS


def test_the_limit_is_whichever_takes_longer():
    assert Work(6.0, 8.0).seconds(2.0, 4.0) == 3.0
    assert Work(6.0, 8.0).seconds(6.0, 4.0) == 2.0


def test_a_timing_is_the_median_and_where_most_calls_lie():
    made = timing([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (made.median, made.calls) == (3.0, 5)
    assert made.low == pytest.approx(1.4) and made.high == pytest.approx(4.6)
    assert Measurement("x", made, 6, "things").rate == 2.0


def test_a_loop_of_unknown_length_counts_as_often_as_is_said():
    loop = lambda a, b: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ b @ b.T, a)
    assert work(loop, A, B).flops == 2 * FLOPS
    assert work(loop, A, B, rounds=(2.5,)).flops == 5 * FLOPS
    with pytest.raises(ValueError, match="more loops with products"):
        work(loop, A, B, rounds=())
