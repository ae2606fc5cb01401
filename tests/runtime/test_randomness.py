"""Every draw is a function of (seed, stream, index, step), with the distribution that it claims."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy import stats

from adm.runtime import randomness
from adm.runtime.randomness import fork, integers, normal, normal_rows, permutation, uniform, uniform_rows
from tiny_runs import global_states

MASK = 2**64 - 1
DRAWS = {
    "normal": lambda **k: normal((7,), **k),
    "uniform": lambda **k: uniform((7,), **k),
    "integers": lambda **k: integers((7,), 1000, **k),
    "permutation": lambda **k: permutation(50, **k),
}


def philox4x64(counter: list[int], key: list[int], rounds: int = 10) -> list[int]:
    """The cipher as Salmon et al. 2011 give it (Random123's constants), in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def words(n: int, seed: int, stream: str, index: int, step: int) -> list[int]:
    """The words that the module's docstring promises; numpy counts up before each block of four."""
    key = [seed, int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")]
    out: list[int] = []
    for block in range(1, n // 4 + 2):
        out += philox4x64([block, step, index & MASK, index >> 64], key)
    return out[:n]


def test_the_cipher_of_this_test_gives_the_published_vectors() -> None:
    """Known answers of Random123's kat_vectors for philox4x64 10."""
    assert philox4x64([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    assert philox4x64([MASK] * 4, [MASK] * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seed", "index", "step"), [(0, 0, 0), (5, 0, 0), (5, 3, 0), (5, 0, 3), (2**64 - 1, 2**70 + 1, 2**63)]
)
def test_uniforms_are_the_upper_52_bits_of_philox_at_the_stated_counter(seed: int, index: int, step: int) -> None:
    ours = uniform((3, 5), seed=seed, stream="x_T", index=index, step=step).flatten().tolist()
    assert ours == [((word >> 12) + 0.5) / 2**52 for word in words(15, seed, "x_T", index, step)]


def test_normals_are_the_inverse_cdf_of_the_uniforms() -> None:
    u = uniform((1000,), seed=1, stream="a")
    z = normal((1000,), seed=1, stream="a", dtype=torch.float64)
    np.testing.assert_allclose(z.numpy(), stats.norm.ppf(u.numpy()), rtol=1e-12, atol=1e-14)
    assert torch.equal(normal((1000,), seed=1, stream="a"), z.float())


def test_permutations_order_the_words() -> None:
    w = words(100, 4, "data order", 2, 0)
    expected = sorted(range(100), key=w.__getitem__)
    assert permutation(100, seed=4, stream="data order", index=2).tolist() == expected


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_depends_on_all_four_and_on_nothing_else(name: str) -> None:
    draw = DRAWS[name]
    at = {"seed": 5, "stream": "a", "index": 1, "step": 1}
    first = draw(**at)
    for change in (
        {"seed": 2**32 + 5},
        {"seed": 6},
        {"stream": "b"},
        {"index": 2},
        {"step": 2},
        {"index": 0, "step": 2},
    ):
        assert not torch.equal(draw(**at | change), first), change
    assert torch.equal(draw(**at), first)


def test_a_longer_draw_begins_with_the_shorter() -> None:
    assert torch.equal(uniform((9,), seed=3, stream="a")[:5], uniform((5,), seed=3, stream="a"))


@pytest.mark.parametrize(("rows", "one"), [(normal_rows, normal), (uniform_rows, uniform)])
def test_rows_are_single_draws(rows, one) -> None:
    indices = [7, 0, 7, 2**40]
    many = rows((2, 3), seed=9, stream="a", indices=indices, step=4)
    assert many.shape == (4, 2, 3)
    for row, index in zip(many, indices, strict=True):
        assert torch.equal(row, one((2, 3), seed=9, stream="a", index=index, step=4))
    assert rows((), seed=9, stream="a", indices=range(3)).shape == (3,)
    assert rows((2,), seed=9, stream="a", indices=[]).shape == (0, 2)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 2**64}, {"index": -1}, {"step": -1}])
def test_numbers_outside_their_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        uniform((1,), **{"seed": 0, "stream": "a"} | bad)  # type: ignore[arg-type]


def test_a_negative_seed_is_named() -> None:
    with pytest.raises(ValueError, match=r"seed -1 is outside 0..2\*\*64-1"):
        normal((1,), seed=-1, stream="a")


# ---- distribution ---------------------------------------------------------------------------------
# The draws are fixed, so these tests do not flicker; p-values above 1e-3 are what a true sample has.


def across(what: str) -> np.ndarray:
    """4000 numbers: many of one call, or one of each of many calls along a counter."""
    if what == "one call":
        return uniform((4000,), seed=11, stream="test").numpy()
    if what == "seed":
        return np.array([uniform((), seed=k, stream="test").item() for k in range(4000)])
    if what == "index":
        return uniform_rows((), seed=11, stream="test", indices=range(4000)).numpy()
    return np.array([uniform((), seed=11, stream="test", step=k).item() for k in range(4000)])


@pytest.mark.parametrize("what", ["one call", "seed", "index", "step"])
def test_uniforms_are_uniform_and_independent_along_every_counter(what: str) -> None:
    u = across(what)
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 3.3 / np.sqrt(len(u))
    assert u.min() > 0 and u.max() < 1


def test_normals_are_standard_normal() -> None:
    n = 200_000
    z = normal((n,), seed=0, stream="test", dtype=torch.float64).numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(z.mean()) < 3.3 / np.sqrt(n)
    assert abs(z.var() - 1) < 3.3 * np.sqrt(2 / n)
    assert abs(stats.skew(z)) < 3.3 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(z)) < 3.3 * np.sqrt(24 / n)
    assert np.isfinite(z).all() and z.max() > 4


def test_two_streams_are_uncorrelated() -> None:
    a, b = (normal((20_000,), seed=0, stream=s).numpy() for s in ("training noise", "training timestep"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 3.3 / np.sqrt(20_000)


def test_integers_fall_evenly_and_permutations_are_permutations() -> None:
    counts = np.bincount(integers((70_000,), 7, seed=0, stream="test").numpy(), minlength=7)
    assert len(counts) == 7 and stats.chisquare(counts).pvalue > 1e-3
    for n in (0, 1, 2, 1000):
        assert sorted(permutation(n, seed=0, stream="test").tolist()) == list(range(n))
    first = np.bincount([int(permutation(7, seed=0, stream="t", index=k)[0]) for k in range(7000)], minlength=7)
    assert stats.chisquare(first).pvalue > 1e-3


# ---- fork -----------------------------------------------------------------------------------------


def dropout_mask(**at) -> torch.Tensor:
    with fork(**at):
        return torch.nn.functional.dropout(torch.ones(200), 0.5)


def test_within_a_fork_torch_draws_as_a_function_of_seed_stream_and_step() -> None:
    at = {"seed": 5, "stream": "dropout", "step": 3}
    first = dropout_mask(**at)
    torch.manual_seed(77)
    assert torch.equal(dropout_mask(**at), first)
    for change in ({"seed": 2**32 + 5}, {"stream": "initial weights"}, {"step": 4}):
        assert not torch.equal(dropout_mask(**at | change), first), change


@pytest.mark.parametrize("fails", [False, True])
def test_a_fork_leaves_the_generators_as_they_were_also_after_an_error(fails: bool) -> None:
    before = global_states()
    with pytest.raises(KeyError) if fails else nullcontext(), fork(seed=1, stream="a"):
        torch.rand(3)
        if fails:
            raise KeyError
    assert global_states() == before
    torch.rand(3)
    assert global_states() != before  # the twin: a draw outside shows


def test_draws_leave_the_generators_as_they_were() -> None:
    before = global_states()
    for draw in DRAWS.values():
        draw(seed=1, stream="a")
    normal_rows((3,), seed=1, stream="a", indices=range(4))
    assert global_states() == before


def test_seeds_of_the_whole_range_are_told_apart() -> None:
    """A generator seeded by 32 bits would repeat itself at 2**32 + 5."""
    seeds = [5, 2**32 + 5, 2**63 + 5, randomness.MAX_SEED]
    assert len({float(normal((), seed=seed, stream="a")) for seed in seeds}) == 4
