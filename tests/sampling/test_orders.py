"""T1: how fast each rule's error falls with its steps, on a mixture whose probability-flow ODE scipy solves."""

import itertools
import math

import pytest

import adm
from odes import even_in_log, even_in_root, root_mean_square_error

INF = math.inf
HIGH = 20.0
FAR = 80.0
"""Noise-to-signal ratios to begin at. A multistep rule's first step, of first order, costs h^2 times the slope of x_0,
which falls as 1 / ratio^2: from 20 down that would hide the third order of what follows."""


def slopes(sampler, grid, high, counts):
    """log2 of how much smaller the error becomes at each doubling of the steps: the order, once steps are short."""
    errors = [root_mean_square_error(sampler, grid(high, count)) for count in counts]
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


ORDERS = {
    "ddim": (adm.DDIM(), 1.0, 0.1),
    "euler": (adm.Euler(), 1.0, 0.1),
    "heun": (adm.Heun(), 2.0, 0.15),
    "ipndm": (adm.IPNDM(), 2.0, 0.3),  # from below: its weights' errors for uneven steps take over late
}
"""rule -> (sampler, order, within)."""


@pytest.mark.parametrize("rule", ORDERS)
@pytest.mark.parametrize("grid", [even_in_log, even_in_root])
def test_t1_the_error_falls_with_the_order_of_the_rule(rule, grid):
    sampler, order, within = ORDERS[rule]
    assert slopes(sampler, grid, HIGH, (128, 256)) == pytest.approx([order], abs=within)


@pytest.mark.parametrize(
    ("rule", "order", "within", "steps"),
    [
        (adm.DPMSolver2M(), 2, 0.15, 128),
        (adm.DPMSolver3M("published"), 2, 0.15, 256),  # half of the second difference is no third order
        (adm.DPMSolver3M("corrected"), 3, 0.2, 128),
        (adm.UniPC(), 3, 0.2, 128),
        (adm.UniPC(b="bh1"), 3, 0.2, 128),
        (adm.UniPC(order=3), 4, 0.3, 128),
    ],
    ids=str,
)
def test_t1_so_it_does_with_that_of_a_multistep_rule_for_x_0(rule, order, within, steps):
    assert slopes(rule, even_in_log, FAR, (steps, 2 * steps)) == pytest.approx([order], abs=within)


@pytest.mark.parametrize(
    ("rule", "order", "within"),
    [
        (adm.DPMSolver3M("corrected", reach=INF), 3, 0.3),
        (adm.UniPC(order=3, reach=INF), 4, 0.3),
        (adm.DPMSolver2M(reach=1.0), 2, 0.15),  # whatever the reach
        (adm.DPMSolver2M(reach=INF), 2, 0.15),
    ],
    ids=str,
)
def test_orders_hold_on_karras_grid_where_the_reach_has_no_end(rule, order, within):
    assert slopes(rule, even_in_root, FAR, (128, 256)) == pytest.approx([order], abs=within)


def test_at_few_steps_ipndm_is_far_nearer_than_its_order_says():
    """Where both are of second order or less, at 16 evaluations: a tenth of DDIM's error, a third of Heun's."""
    ipndm, ddim, heun = (
        root_mean_square_error(sampler, even_in_log(HIGH, num))
        for sampler, num in ((adm.IPNDM(), 16), (adm.DDIM(), 16), (adm.Heun(), 8))
    )
    assert ipndm < ddim / 10 and ipndm < heun / 3
