"""LoRA: the products of factors, combined and factored again, in arrays and from disk to disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import wfcast
from wfcast._adapters import Pair, _leading, _nearest, combine_product, pairs_in, product_gram

A, B = "q.lora_A.weight", "q.lora_B.weight"
STEPS = (0, 10, 20)
LINE = wfcast.linear_trend(STEPS, (30,))
COEF = LINE.coef["*"][0]

State = tuple[np.ndarray, np.ndarray]


def factors(n: int, out: int, rank: int, width: int, seed: int = 0) -> list[State]:
    """States (A, B) that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(rank, width)), rng.normal(size=(out, rank))) for _ in range(n)]


def training(n: int, out: int = 24, rank: int = 4, width: int = 40) -> list[State]:
    """States as of a fine-tuning: A is large and drifts little, B grows from 0, both with noise."""
    rng = np.random.default_rng(0)
    start = rng.uniform(-1, 1, size=(rank, width)) / np.sqrt(width)
    drift = rng.normal(size=(rank, width)) / 800, rng.normal(size=(out, rank)) / 100
    noise = rng.normal(size=(n, rank, width)) / 1000, rng.normal(size=(n, out, rank)) / 1000
    return [
        (start + t * drift[0] + noise[0][t], t * drift[1] + (t > 0) * noise[1][t]) for t in range(n)
    ]


def of(state: Any) -> np.ndarray:
    """The product of a state, or of factors that were made."""
    a, b = state[0], state[1]
    return np.asarray(b, np.float64) @ np.asarray(a, np.float64)


def best(states: Sequence[State], coefficients: Sequence[float]) -> tuple[np.ndarray, float]:
    """The best product of the last state's rank, and what it leaves out: by the dense matrix."""
    total = sum(c * of(state) for c, state in zip(coefficients, states, strict=True))
    u, s, vt = np.linalg.svd(total)
    rank = min(len(states[-1][0]), len(s))
    return (u[:, :rank] * s[:rank]) @ vt[:rank], np.square(s[rank:]).sum() / np.square(s).sum()


def distance(made: Any, last: State) -> float:
    return float(np.sqrt(sum(np.square(x - y).sum() for x, y in zip(made[:2], last, strict=True))))


# ---- the product --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "out", "rank", "width"),
    [(2, 30, 4, 20), (3, 20, 1, 30), (9, 30, 4, 20), (3, 2, 8, 20), (3, 20, 8, 3), (1, 9, 2, 7)],
    ids=["two", "rank-1", "many", "few-outputs", "few-inputs", "one"],
)
def test_the_best_of_the_rank(n: int, out: int, rank: int, width: int) -> None:
    states = factors(n, out, rank, width)
    coefficients = np.random.default_rng(1).normal(size=n)
    made = combine_product(states, coefficients)
    wanted, cut = best(states, coefficients)
    assert (made.a.shape, made.b.shape) == ((rank, width), (out, rank))
    np.testing.assert_allclose(of(made), wanted, atol=1e-12 * np.abs(wanted).max())
    assert made.cut == pytest.approx(cut, abs=1e-15)
    last = of(states[-1])
    moved = np.linalg.norm(wanted - last) / np.linalg.norm(last)
    assert made.moved == pytest.approx(moved, rel=1e-12)


def test_states_of_other_ranks() -> None:
    states = [*factors(2, 12, 3, 9), *factors(1, 12, 2, 9, seed=1)]
    made = combine_product(states, (-0.5, 0.5, 1))
    assert made.a.shape == (2, 9)
    np.testing.assert_allclose(of(made), best(states, (-0.5, 0.5, 1))[0], atol=1e-13)


def test_the_last_state_alone_is_itself() -> None:
    states = factors(3, 12, 3, 9)
    made = combine_product(states, (0, 0, 1))
    assert made[:2] == states[-1]
    assert made[2:] == (0, 0)


def with_dead_rows(scale: float) -> list[State]:
    """Half of A is 0 and all of it frozen, while B learns."""
    states = factors(3, 24, 4, 30)
    a = states[0][0] * [[1], [1], [0], [0]]
    return [(a, b * scale) for _, b in states]


def with_dead_columns(scale: float) -> list[State]:
    """The same with A and B in each other's place."""
    return [(b.T, a.T) for a, b in with_dead_rows(scale)]


@pytest.mark.parametrize(
    "states",
    [
        training(12),
        factors(3, 5, 3, 5),
        factors(3, 2, 8, 20),
        factors(3, 20, 8, 3),
        factors(3, 2, 8, 3),
        [(a, b * 1e-9) for a, b in training(3)],
        *(dead(scale) for dead in (with_dead_rows, with_dead_columns) for scale in (30, 1 / 30)),
    ],
    ids=[
        *("training", "any", "few-outputs", "few-inputs", "few", "tiny-b"),
        *("dead-rows", "dead-rows-small-b", "dead-columns", "dead-columns-small-a"),
    ],
)
def test_little_of_another_state_moves_the_factors_little(states: list[State]) -> None:
    last = states[-1]
    size = max(np.linalg.norm(factor) for factor in last)
    for share in (1e-3, 1e-6):
        made = combine_product(states, [share, *[0] * (len(states) - 2), 1 - share])
        assert distance(made, last) < 5 * share * size
        a, b = (made.a.T, made.b), (last[0].T, last[1])
        for one, other in ((0, 1), (1, 0)):  # what one factor takes to 0 is free in the other
            _, s, vt = np.linalg.svd(a[one])
            free = vt[np.count_nonzero(s > 1e-12 * s[0]) :].T
            np.testing.assert_allclose(a[other] @ free, b[other] @ free, atol=1e-12 * size)


def test_a_step_that_would_end_at_0_is_shortened() -> None:
    one, two = np.ones((1, 1)), np.full((1, 1), 2.0)
    a, b = _nearest(one, one, two, one * 0)
    assert a * b == pytest.approx(1)
    assert distance((a, b), (two, one * 0)) < distance((one, one), (two, one * 0))


def test_no_factors_of_the_product_are_nearer() -> None:
    states = training(12)
    last = states[-1]
    coefficients = wfcast.linear_trend(range(12), (17,)).coef["*"][0]
    made = combine_product(states, coefficients)
    least = distance(made, last)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            mix = np.eye(4) + size * rng.normal(size=(4, 4)) / 4
            assert distance((np.linalg.solve(mix, made.a), made.b @ mix), last) > least
    u, s, vt = np.linalg.svd(of(made))
    a, b = np.sqrt(s[:4, None]) * vt[:4], u[:, :4] * np.sqrt(s[:4])
    p, _, qt = np.linalg.svd(b.T @ last[1] + a @ last[0].T)
    rotated = (p @ qt).T @ a, b @ p @ qt
    assert distance(rotated, last) > 1.2 * least


def test_what_has_not_learned_yet_can_still() -> None:
    """Where B is 0 so far, A stays as it is; and no direction has two small factors later."""
    states = [(a, np.zeros_like(b)) for a, b in factors(3, 12, 3, 9)]
    made = combine_product(states, COEF)
    np.testing.assert_allclose(made.a, states[-1][0], rtol=1e-12)
    assert not made.b.any()
    assert (made.cut, made.moved) == (0, 0)
    only = [states[0], (states[0][0], np.eye(12, 3) * [1, 1e-6, 0])]
    made = combine_product(only, (-0.5, 1.5))
    assert np.linalg.svd(made.a)[1].min() > 0.5 * np.linalg.svd(only[1][0])[1].min()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_go_through(value: float) -> None:
    states = factors(2, 5, 2, 4)
    states[0][1][1, 1] = value
    made = combine_product(states, (0.5, 0.5))
    assert all(np.isnan(x).all() for x in made)
    assert np.isfinite(combine_product(states, (0, 0.5)).a).all()


def test_the_gram_matrix_of_products() -> None:
    states = factors(4, 6, 2, 5)
    moves = np.stack([(of(state) - of(states[0])).ravel() for state in states])
    np.testing.assert_allclose(product_gram(states), moves @ moves.T, atol=1e-12)


def test_the_gram_matrix_of_small_moves() -> None:
    first, *others = factors(4, 6, 2, 5)
    near = [first, *((first[0] + 1e-9 * a, first[1] + 1e-9 * b) for a, b in others)]
    products = [b.astype(np.longdouble) @ a.astype(np.longdouble) for a, b in near]
    moves = np.stack([(product - products[0]).ravel() for product in products])
    np.testing.assert_allclose(product_gram(near), moves @ moves.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("least", [1e-3, 1e-9, 0])
def test_leading_directions_of_any_size(least: float) -> None:
    """Also where the squares in a Gram matrix do not tell them from rounding."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 20)))[0] for n in (30, 20))
    sizes = np.append(np.geomspace(1, least, 5) if least else [1, 0.1, 0, 0, 0], np.zeros(15))
    sizes[5:] = sizes[4] / 10
    left, s, right = _leading((u * sizes) @ v.T, 5)
    np.testing.assert_allclose(s, sizes[:5], rtol=1e-5, atol=1e-15)
    best = (u[:, :5] * sizes[:5]) @ v[:, :5].T
    np.testing.assert_allclose((left * s) @ right, best, atol=1e-13)


def test_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    from wfcast.torch._adapters import product

    states = training(6, 24, 4, 36)
    coefficients = wfcast.linear_trend(range(6), (8,)).coef["*"][0]
    wanted = combine_product(states, coefficients)
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        tensors = [tuple(torch.from_numpy(x).to(dtype) for x in state) for state in states]
        made = product(tensors, coefficients)
        for tensor, array in zip(made, wanted, strict=False):
            assert tensor.dtype == dtype
            scale = np.abs(array).max()
            np.testing.assert_allclose(tensor.double().numpy(), array, atol=error * scale)
        same = product(tensors, (*[0] * 5, 1))
        assert all(torch.equal(x, y) for x, y in zip(same, tensors[-1], strict=True))
    conv = [
        (torch.from_numpy(a).reshape(4, 4, 3, 3), torch.from_numpy(b)[..., None, None])
        for a, b in states
    ]
    a, b = product(conv, coefficients)
    np.testing.assert_allclose(a.flatten(1).numpy(), wanted.a, atol=1e-12)
    assert b.shape == (24, 4, 1, 1)


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "name"),
    [
        ("m.q.lora_A.weight", "m.q.lora_B.weight", "m.q.lora.weight"),
        ("m.q.lora_A.default.weight", "m.q.lora_B.default.weight", "m.q.lora.default.weight"),
        ("e.lora_embedding_A", "e.lora_embedding_B", "e.lora_embedding"),
        ("e.lora_embedding_A.x", "e.lora_embedding_B.x", "e.lora_embedding.x"),
        ("lora_A.weight", "lora_B.weight", "lora.weight"),
        ("lora_A.q.lora_A.weight", "lora_A.q.lora_B.weight", "lora_A.q.lora.weight"),
    ],
)
def test_a_pair(a: str, b: str, name: str) -> None:
    others = ["m.q.lora_B.bias", "m.q.lora_magnitude_vector", "m.q.weight", "m.lora_A.weight.x"]
    found = pairs_in([b, *others, a])
    assert found == {a: Pair(a, b), b: Pair(a, b)}
    assert str(found[a]) == name


def test_adapters_of_one_layer_are_told_apart() -> None:
    names = [f"q.lora_{side}.{adapter}.weight" for side in "AB" for adapter in ("x", "y")]
    assert pairs_in(names)[names[0]] == Pair(names[0], names[2])
    with pytest.raises(wfcast.CheckpointError, match=r"'q\.lora_B\.y\.weight' .* without .*_A\.y"):
        pairs_in([*names[:1], *names[2:]])


@pytest.mark.parametrize("inside", ["experts", "experts.base_layer"])
def test_stacked_experts_are_told_by_name(inside: str) -> None:
    name = f"m.mlp.{inside}.lora_A.default.weight"
    with pytest.raises(wfcast.CheckpointError, match=r"all experts of a layer.*adapters='factors'"):
        pairs_in([name, name.replace("_A", "_B")])


def test_each_expert_has_its_own_product(out: Path) -> None:
    own = {"m.experts.0.w1": training(3), "m.experts.1.w1": factors(3, 20, 4, 30)}
    run = {
        step: {
            f"{name}.lora_{side}.weight": state[side == "B"].astype(np.float32)
            for name, states in own.items()
            for side, state in (("A", states[k]), ("B", states[k]))
        }
        for k, step in enumerate(STEPS)
    }
    wfcast.forecast_checkpoint(LINE, run, 30, out)
    found = load_file(out)
    for name, states in own.items():
        made = found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"]
        wanted = best(states, COEF)[0]
        np.testing.assert_allclose(of(made), wanted, atol=1e-5 * np.abs(wanted).max())


def test_factors_in_three_dimensions_are_refused(out: Path) -> None:
    """A stack of factors, one pair for each expert, has several products, too."""
    run = run_of(training(3))
    stacked = {
        step: {name: np.stack([w, w]) for name, w in tensors.items()}
        for step, tensors in run.items()
    }
    with pytest.raises(wfcast.CheckpointError, match=r"is \[2, 4, 40\] .* which have a product"):
        wfcast.forecast_checkpoint(LINE, stacked, 30, out)
    assert not out.exists()


# ---- file to file -------------------------------------------------------------------------------


def run_of(states: Sequence[State], **more: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
    return {
        step: {A: a.astype(np.float32), B: b.astype(np.float32), **more}
        for step, (a, b) in zip(STEPS, states, strict=True)
    }


def written(path: Path) -> State:
    found = load_file(path)
    return found[A], found[B]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


def test_a_forecast_of_files(tmp_path: Path, out: Path) -> None:
    run = run_of(training(3))
    paths = {step: tmp_path / f"step-{step}.safetensors" for step in run}
    for step, tensors in run.items():
        save_file({**tensors, "w": np.full(3, step, np.float32)}, paths[step])
    report = wfcast.forecast_checkpoint(LINE, paths, 30, out)
    wanted, cut = best(list(map(written, paths.values())), COEF)
    np.testing.assert_allclose(of(written(out)), wanted, atol=1e-6 * np.abs(wanted).max())
    np.testing.assert_allclose(load_file(out)["w"], [30, 30, 30], rtol=1e-6)
    assert report.rank_cut == {"q.lora.weight": pytest.approx(cut)}
    assert report.moves[A] == report.moves[B] > 0
    assert report.to_dict()["rank_cut"] == report.rank_cut
    assert f"LoRA's products forecast: 1; their rank cuts off {cut:.2g} of" in str(report)
    with safe_open(out, "numpy") as file:
        assert json.loads(file.metadata()["wfcast.forecast"])["adapters"] == "product"


def test_factors_go_by_themselves_where_asked_for(out: Path) -> None:
    run = run_of(training(3))
    report = wfcast.forecast_checkpoint(LINE, run, 30, out, adapters="factors")
    for name, found in load_file(out).items():
        wanted = sum(c * run[step][name] for c, step in zip(COEF, STEPS, strict=True))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    assert report.rank_cut == {}
    assert "LoRA" not in str(report)
    with safe_open(out, "numpy") as file:
        assert "adapters" not in json.loads(file.metadata()["wfcast.forecast"])


def test_persistence_copies_the_factors(out: Path) -> None:
    run = run_of(factors(3, 6, 2, 5))
    report = wfcast.forecast_checkpoint(wfcast.persistence(STEPS, (30,)), run, 30, out)
    for made, last in zip(written(out), run[20].values(), strict=True):
        np.testing.assert_array_equal(made, last)
    assert report.rank_cut == {"q.lora.weight": 0}


def test_large_factors_are_written_in_blocks(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(training(3))
    wfcast.forecast_checkpoint(LINE, run, 30, out)
    whole = written(out)
    monkeypatch.setattr("wfcast._forecast.BLOCK_BYTES", 64)
    wfcast.forecast_checkpoint(LINE, run, 30, out)
    for block, once in zip(written(out), whole, strict=True):
        np.testing.assert_array_equal(block, once)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype: str, out: Path) -> None:
    kind = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    states = [tuple(x.astype(kind) for x in state) for state in training(3)]
    run = {
        step: dict(zip((A, B), state, strict=True))
        for step, state in zip(STEPS, states, strict=True)
    }
    wfcast.forecast_checkpoint(LINE, run, 30, out)
    exact = combine_product([tuple(x.astype(np.float64) for x in s) for s in states], COEF)
    for made, wanted in zip(written(out), exact, strict=False):
        assert made.dtype == kind
        np.testing.assert_array_equal(made, wanted.astype(kind))


def test_an_overflow_is_an_error_that_names_the_factor(out: Path) -> None:
    run = {
        step: {
            A: np.full((1, 2), 3000 * step, np.float16),
            B: np.full((2, 1), 3000 * step, np.float16),
        }
        for step in STEPS
    }
    with pytest.raises(wfcast.WfcastError, match=r"overflows float16 in tensor 'q\.lora_A"):
        wfcast.forecast_checkpoint(LINE, run, 30, out)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["embedding", "convolution"])
def test_other_layers(kind: str, out: Path) -> None:
    states = training(3, 24, 4, 36)
    if kind == "embedding":
        names = ("e.lora_embedding_A", "e.lora_embedding_B")
        run = {t: dict(zip(names, s, strict=True)) for t, s in zip(STEPS, states, strict=True)}
    else:
        names = (A, B)
        run = {
            t: {A: a.reshape(4, 4, 3, 3), B: b[..., None, None]}
            for t, (a, b) in zip(STEPS, states, strict=True)
        }
    wfcast.forecast_checkpoint(LINE, run, 30, out)
    found = load_file(out)
    for name in names:
        assert found[name].shape == run[20][name].shape
    a, b = (found[name].reshape(len(found[name]), -1) for name in names)
    np.testing.assert_allclose(b @ a, best(states, COEF)[0], atol=1e-13)


def test_pairs_that_do_not_follow_each_other(out: Path) -> None:
    """As those of two adapters in a state dict: each name of a pair finds its own factor."""
    names = [f"q.lora_{side}.{adapter}.weight" for side in "AB" for adapter in ("x", "y")]
    both = factors(3, 6, 2, 5), factors(3, 6, 2, 5, seed=1)
    run = {
        step: dict(zip(names, (x[0], y[0], x[1], y[1]), strict=True))
        for step, x, y in zip(STEPS, *both, strict=True)
    }
    wfcast.forecast_checkpoint(LINE, run, 30, out)
    found = load_file(out)
    for k, states in enumerate(both):
        made = found[names[k]], found[names[k + 2]]
        np.testing.assert_allclose(of(made), best(states, COEF)[0], atol=1e-12)


# ---- what is refused, and what is copied --------------------------------------------------------


def by_tensor(coef_of_b: Sequence[float], intercept: float = 0.0) -> wfcast.Operator:
    """Coefficients of A and of B, and an intercept of B."""
    return wfcast.Operator(
        STEPS,
        (30,),
        {A: [COEF], B: [coef_of_b]},
        {A: [0.0], B: [intercept]},
    )


def test_coefficients_by_tensor_may_be_alike(out: Path) -> None:
    states = factors(3, 6, 2, 5)
    wfcast.forecast_checkpoint(by_tensor(COEF), run_of(states), 30, out)
    np.testing.assert_allclose(of(written(out)), best(states, COEF)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (by_tensor((0, 0, 1)), "coefficients of .*lora_A.* and .*lora_B.* differ"),
        (by_tensor(COEF, 0.5), "an intercept for .*lora_A.* and .*lora_B"),
    ],
    ids=["coefficients", "intercept"],
)
def test_what_means_nothing_for_a_product(
    operator: wfcast.Operator, reason: str, out: Path
) -> None:
    run = run_of(factors(3, 6, 2, 5))
    with pytest.raises(wfcast.WfcastError, match=reason + ".*adapters='factors'"):
        wfcast.forecast_checkpoint(operator, run, 30, out)
    assert not out.exists()
    wfcast.forecast_checkpoint(operator, run, 30, out, adapters="factors")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({B: None}, r"'q\.lora_A\.weight' .* without 'q\.lora_B\.weight'"),
        ({A: None}, r"'q\.lora_B\.weight' .* without 'q\.lora_A\.weight'"),
        ({B: np.ones((6, 3))}, r"is \[2, 5\] and 'q\.lora_B\.weight' \[6, 3\]"),
        ({B: np.ones((6, 2, 3))}, r"is \[2, 5\] and 'q\.lora_B\.weight' \[6, 2, 3\]"),
        ({A: np.ones(2)}, r"is \[2\] and 'q\.lora_B\.weight' \[6, 2\]"),
        ({"q.lora_E": np.ones((2, 1))}, "'q.lora_E' is of AdaLoRA"),
    ],
    ids=["no-b", "no-a", "ranks", "kernel", "vector", "adalora"],
)
def test_factors_without_a_product(
    change: dict[str, np.ndarray | None], reason: str, out: Path
) -> None:
    run = {
        step: {k: v for k, v in {**tensors, **change}.items() if v is not None}
        for step, tensors in run_of(factors(3, 6, 2, 5)).items()
    }
    with pytest.raises(wfcast.CheckpointError, match=reason + ".*adapters='factors'"):
        wfcast.forecast_checkpoint(LINE, run, 30, out)
    assert not out.exists()
    wfcast.forecast_checkpoint(LINE, run, 30, out, adapters="factors")


def test_ranks_that_differ_between_checkpoints(out: Path) -> None:
    run = run_of([*factors(2, 6, 2, 5), *factors(1, 6, 3, 5)])
    with pytest.raises(wfcast.CheckpointError, match=r"'q\.lora_A\.weight' is float32 \[3, 5\]"):
        wfcast.forecast_checkpoint(LINE, run, 30, out)


def test_an_unknown_way(out: Path) -> None:
    with pytest.raises(wfcast.WfcastError, match="adapters is 'sum', expected 'product' or"):
        wfcast.forecast_checkpoint(LINE, run_of(factors(3, 6, 2, 5)), 30, out, adapters="sum")


def test_both_factors_are_chosen_or_neither(out: Path) -> None:
    run = run_of(factors(3, 6, 2, 5), w=np.ones(3, np.float32))
    with pytest.raises(wfcast.CheckpointError, match=r"lora_A.* without .*lora_B"):
        wfcast.forecast_checkpoint(LINE, run, 30, out, exclude="*lora_B*")
    report = wfcast.forecast_checkpoint(LINE, run, 30, out, exclude="*lora*")
    assert report.copied == {A: "not chosen", B: "not chosen"}
    assert report.rank_cut == {}


def test_where_one_is_copied_so_is_the_other(out: Path) -> None:
    run = run_of(factors(3, 6, 2, 5), w=np.ones(3, np.float32))
    run[10][B][0, 0] = np.nan
    with pytest.raises(wfcast.WfcastError, match=r"NaN or infinity: tensor 'q\.lora_B\.weight' of"):
        wfcast.forecast_checkpoint(LINE, run, 30, out)
    assert not out.exists()
    report = wfcast.forecast_checkpoint(LINE, run, 30, out, nonfinite="copy")
    assert report.copied == {A: "not finite", B: "not finite"}
    np.testing.assert_array_equal(load_file(out)[A], run[20][A])
    del run[10][B]
    report = wfcast.forecast_checkpoint(LINE, run, 30, out, partial=True)
    assert report.copied == {A: "not alike", B: "not alike"}
    assert report.forecast == ("w",)


def test_nan_goes_through_unchecked(out: Path) -> None:
    run = run_of(factors(3, 6, 2, 5))
    run[10][B][0, 0] = np.nan
    report = wfcast.forecast_checkpoint(LINE, run, 30, out, check_finite=False)
    assert all(np.isnan(factor).all() for factor in written(out))
    assert report.to_dict()["rank_cut"] == {"q.lora.weight": None}


# ---- readouts -----------------------------------------------------------------------------------


def test_profiles_and_a_judge(out: Path) -> None:
    states = training(3)
    run = run_of(states)
    report = wfcast.anneal_run(
        run, out, ("mean", 3), judge=lambda path: -np.abs(of(written(path)) - of(states[1])).max()
    )
    assert report.chosen in ("profile 3", "latest")
    report = wfcast.anneal_run(
        run, out, ("mean", 3), judge=lambda path: np.abs(of(written(path)) - of(states[1])).max()
    )
    assert report.chosen == "profile mean"
    wanted, cut = best(states, [1 / 3] * 3)
    np.testing.assert_allclose(of(written(out)), wanted, atol=1e-7)
    assert report.written.rank_cut == {"q.lora.weight": pytest.approx(cut, rel=1e-3)}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_main_directions_are_those_of_the_product(rank: int, out: Path) -> None:
    states = training(3)
    report = wfcast.extrapolate_run(run_of(states), out, strategy="low-rank", rank=rank)
    assert report.step == 30
    moves = np.stack([(of(state) - of(states[0])).ravel() for state in states])
    _, s, vt = np.linalg.svd(moves, full_matrices=False)
    ahead = of(states[0]).ravel() + COEF @ moves @ vt[:rank].T @ vt[:rank]
    u, s, vt = np.linalg.svd(ahead.reshape(24, 40))
    wanted = (u[:, :4] * s[:4]) @ vt[:4]
    np.testing.assert_allclose(of(written(out)), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.filterwarnings("ignore:lines through this run")  # that it walks is not the point
def test_low_rank_refuses_and_copies_as_others_do(out: Path) -> None:
    run = run_of(training(3), w=np.ones(3, np.float32))
    broken = {
        step: {**tensors, B: np.full((24, 3), step, np.float32)} for step, tensors in run.items()
    }
    with pytest.raises(wfcast.CheckpointError, match=r"'q\.lora_B\.weight' \[24, 3\]"):
        wfcast.extrapolate_run(broken, out, strategy="low-rank")
    del run[10][B]
    report = wfcast.extrapolate_run(run, out, strategy="low-rank", partial=True)
    assert report.written.copied == {A: "not alike", B: "not alike"}
    run = run_of(training(3), w=np.ones(3, np.float32))
    run[10][B][0, 0] = np.nan
    report = wfcast.extrapolate_run(run, out, strategy="low-rank", nonfinite="copy")
    assert report.written.copied == {A: "not finite", B: "not finite"}


# ---- the command line ---------------------------------------------------------------------------


def wf(*args: object, cwd: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "wfcast", *map(str, args), "--json"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


COMMANDS = {
    "forecast": ["0=step-0.safetensors", "10=step-10.safetensors", "20=step-20.safetensors"],
    "extrapolate": ["."],
    "anneal": ["."],
}
COMMANDS["forecast"] += ["--farcaster", "line", "--step", "30"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(command: str, tmp_path: Path, out: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    states = training(3)
    for step, tensors in run_of(states).items():
        save_file(tensors, run / f"step-{step}.safetensors")
    coef = wfcast.annealed(STEPS).coef["*"][0] if command == "anneal" else COEF
    said = wf(command, *COMMANDS[command], "-o", out, cwd=run)
    np.testing.assert_allclose(of(written(out)), best(states, coef)[0], atol=1e-6)
    assert list(said["rank_cut"]) == ["q.lora.weight"]
    said = wf(command, *COMMANDS[command], "-o", out, "--adapters", "factors", cwd=run)
    wanted = sum(c * a for c, (a, _) in zip(coef, states, strict=True))
    np.testing.assert_allclose(load_file(out)[A], wanted, atol=1e-6)
    assert said["rank_cut"] == {}


# ---- PEFT ---------------------------------------------------------------------------------------


def adapted(peft: Any, **settings: Any) -> Any:
    from models import small

    config = peft.LoraConfig(r=2, lora_alpha=4, **settings)
    return peft.get_peft_model(small("llama"), config)


def updates(model: Any) -> dict[str, np.ndarray]:
    """What the adapter adds to each layer, as PEFT has it."""
    return {
        name: module.get_delta_weight("default").detach().double().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT's own
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_a_run_of_peft(use_dora: bool, tmp_path: Path) -> None:
    """What is forecast are the updates of the weights, and PEFT loads the result."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    from models import small

    targets = ["q_proj", "down_proj"] if use_dora else ["q_proj", "down_proj", "embed_tokens"]
    model = adapted(peft, target_modules=targets, use_dora=use_dora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.randint(5, 64, (8, 8), generator=torch.Generator().manual_seed(0))
    seen = {}
    for step in range(31):
        if step % 10 == 0:
            folder = tmp_path / "run" / f"checkpoint-{step}"
            model.save_pretrained(folder, save_embedding_layers=False)
            seen[step] = updates(model)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    out = tmp_path / "out"
    report = wfcast.extrapolate_run(tmp_path / "run", out, ahead=1 / 3)
    coefficients = list(report.weights.values())
    found = updates(peft.PeftModel.from_pretrained(small("llama"), out))
    assert len(found) == len(report.written.rank_cut) == (4 if use_dora else 5)
    for name, update in found.items():
        whole = sum(c * s[name] for c, s in zip(coefficients, seen.values(), strict=True))
        u, s, vt = np.linalg.svd(whole)
        wanted = (u[:, :2] * s[:2]) @ vt[:2]
        np.testing.assert_allclose(update, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
    assert ("lora_magnitude_vector" in str(report.written.forecast)) == use_dora


def test_adapters_of_experts_are_refused(tmp_path: Path) -> None:
    """One pair of factors has the products of all experts of a layer there."""
    for step, tensors in run_of(training(3)).items():
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"base_model_name_or_path": "base", "target_parameters": ["experts.up"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    with pytest.raises(wfcast.CheckpointError, match=r"target_parameters.*adapters='factors'"):
        wfcast.extrapolate_run(tmp_path / "run", out)
    assert not out.exists()
    report = wfcast.extrapolate_run(tmp_path / "run", out, adapters="factors")
    assert report.written.forecast == (A, B)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT's own
def test_jumps_refuse_stacked_experts() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    from wfcast.torch import Farcasting

    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = transformers.MixtralForCausalLM(config)
    stacked = [n for n, w in model.named_parameters() if "experts" in n and w.ndim == 3]
    if not stacked:
        pytest.skip("this release of transformers has a module for each expert")
    adapters = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=stacked)
    model = peft.get_peft_model(model, adapters)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(wfcast.WfcastError, match="all experts of a layer"):
        Farcasting(model, optimizer)
    Farcasting(model, optimizer, exclude="*experts*").close()
