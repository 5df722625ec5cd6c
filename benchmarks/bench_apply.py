"""apply (`Farcaster.predict(X, out=...)`) against memory bandwidth, torch and NumPy.

    python benchmarks/bench_apply.py

The floor is ``wfcast._core.triad``, ``out = a + s b`` in C with non-temporal stores, over as many
bytes as the case moves, timed in turn with everything else in one process.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import common
import ml_dtypes
import numpy as np
import torch
from common import Target, median, number

import wfcast
from wfcast import _core

NAME = "bench_apply"
DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
LAYOUTS = ("columns", "rows", "step 2")
HEADLINE_ROWS = 64_000_000
CASE_BYTES = 512 << 20
PEERS = ("torch out", "torch plain", "np matmul", "np ufuncs", "np blocks")
SLOW = 2.0  # a contestant that needs longer than this (seconds) runs once, outside the rounds
BLOCK = 1 << 16

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    dtype: str
    layout: str
    p: int
    m: int
    rows: int

    @property
    def headline(self) -> bool:
        """Whether a target is stated for it."""
        return (self.layout, self.p, self.m) == ("columns", 2, 1)

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written once; of every second element, the cache lines they lie in."""
        step = 2 if self.layout == "step 2" else 1
        return (self.p + self.m) * self.rows * np.dtype(DTYPES[self.dtype]).itemsize * step


@dataclass(frozen=True, slots=True)
class Data:
    """X and Y of a case, as (columns, rows) views for NumPy, and as torch sees the same memory."""

    x: Any
    y: Any
    tx: torch.Tensor
    ty: torch.Tensor
    coef: Any
    intercept: Any


def matrix(case: Case, columns: int) -> Any:
    """Uninitialised memory, viewed as (columns, rows)."""
    dtype = DTYPES[case.dtype]
    if case.layout == "rows":
        return np.empty((case.rows, columns), dtype).T
    if case.layout == "step 2":
        whole = np.empty((columns, 2 * case.rows), dtype)
        whole[:] = 0
        return whole[:, ::2]
    return np.empty((columns, case.rows), dtype)


def as_torch(array: Any) -> torch.Tensor:
    """The same memory as a tensor."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def make(case: Case, rng: np.random.Generator) -> Data:
    """Weights near each other, and coefficients that add up to 1."""
    x, y = matrix(case, case.p), matrix(case, case.m)
    pattern = rng.standard_normal(min(case.rows, 1 << 20), dtype=np.float32)
    for k in range(case.p):
        for start in range(0, case.rows, pattern.size):
            part = x[k, start : start + pattern.size]
            part[:] = pattern[: part.size] * (1 + 0.01 * k)
    y[:] = 0
    coef = rng.standard_normal((case.m, case.p)) * 0.3
    coef[:, -1] += 1 - coef.sum(axis=1)
    return Data(x, y, as_torch(x), as_torch(y), coef, np.full(case.m, 0.01))


# ---- the contestants --------------------------------------------------------------------------


def apply_call(case: Case, data: Data, threads: int) -> Call:
    """What a user calls, checks included."""
    f = wfcast.Farcaster(n_threads=threads)
    f.coef_, f.intercept_, f.n_features_in_ = data.coef, data.intercept, case.p
    if case.layout == "rows":
        return lambda: f.predict(data.x.T, out=data.y.T)
    x, y = list(data.x), list(data.y)
    return lambda: f.predict(x, out=y)


def torch_calls(case: Case, data: Data) -> dict[str, Call]:
    """torch with a given output, and the plain expression."""
    x, y = data.tx, data.ty
    a = torch.from_numpy(data.coef).to(x.dtype)
    b = torch.from_numpy(data.intercept).to(x.dtype)
    calls: dict[str, Call] = {}
    if (case.p, case.m) == (2, 1):
        w = float(data.coef[0, 1])
        calls["torch out"] = lambda: torch.lerp(x[0], x[1], w, out=y[0])
    elif case.layout == "rows":
        calls["torch out"] = lambda: torch.addmm(b, x.T, a.T, out=y.T)
    else:
        calls["torch out"] = lambda: torch.addmm(b[:, None], a, x, out=y)
    if case.m == 1:
        weights, bias = [float(v) for v in data.coef[0]], float(data.intercept[0])

        def expression() -> torch.Tensor:
            total = weights[0] * x[0]
            for k in range(1, case.p):
                total = total + weights[k] * x[k]
            return total + bias

        calls["torch plain"] = expression
    elif case.layout == "rows":
        calls["torch plain"] = lambda: x.T @ a.T + b
    else:
        calls["torch plain"] = lambda: a @ x + b[:, None]
    return calls


def numpy_calls(case: Case, data: Data) -> dict[str, Call]:
    """NumPy with buffers made beforehand: ufuncs column by column (the same in blocks that stay in
    cache), and one matrix product, which needs all columns in one array."""
    x, y = data.x, data.y
    dtype = x.dtype
    half = dtype.itemsize == 2
    a, b = data.coef.astype(dtype), data.intercept.astype(dtype)
    calls: dict[str, Call] = {}
    if case.m == 1:
        scratch = np.empty(case.rows, dtype)

        def sums(start: int, stop: int) -> None:
            out, term = y[0, start:stop], scratch[: stop - start]
            np.multiply(x[0, start:stop], a[0, 0], out=out)
            for k in range(1, case.p):
                np.multiply(x[k, start:stop], a[0, k], out=term)
                np.add(out, term, out=out)
            np.add(out, b[0], out=out)

        def blocks() -> None:
            for start in range(0, case.rows, BLOCK):
                sums(start, min(start + BLOCK, case.rows))

        calls["np ufuncs"] = lambda: sums(0, case.rows)
        calls["np blocks"] = blocks
    wide = np.float32 if half else dtype
    a, b = data.coef.astype(wide), data.intercept.astype(wide)
    if case.layout == "rows":
        flip, left, right = np.transpose, None, a.T
    else:
        flip, left, right = (lambda v: v), a, None
    bias = b if case.layout == "rows" else b[:, None]
    x_in, y_out = flip(x), flip(y)
    x_wide = np.empty(x_in.shape, wide) if half else x_in
    y_wide = np.empty(y_out.shape, wide) if half else y_out

    def product() -> None:
        if half:
            np.copyto(x_wide, x_in)
        if left is None:
            np.matmul(x_wide, right, out=y_wide)
        else:
            np.matmul(left, x_wide, out=y_wide)
        np.add(y_wide, bias, out=y_wide)
        if half:
            np.copyto(y_out, y_wide, casting="same_kind")

    calls["np matmul"] = product
    return calls


def check(case: Case, data: Data, call: Call) -> None:
    """A benchmark of a wrong result would be worth nothing."""
    call()
    rows = slice(0, 1000)
    wanted = data.coef @ data.x[:, rows].astype(np.float64) + data.intercept[:, None]
    eps = {"float64": 1e-14, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}[case.dtype]
    if not np.allclose(data.y[:, rows].astype(np.float64), wanted, rtol=eps, atol=30 * eps):
        raise SystemExit(f"wrong result: {case}")


def once(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# ---- a case -----------------------------------------------------------------------------------


def run_case(case: Case, floor: Any, threads: int, repeats: int, budget: float) -> dict[str, Any]:
    """Time all contestants of one case in turn."""
    data = make(case, np.random.default_rng(0))
    n = case.bytes_moved // 12
    out, one, two = (floor[i * n : (i + 1) * n] for i in range(3))
    apply = apply_call(case, data, threads)
    check(case, data, apply)
    contestants: dict[str, Call] = {
        "triad": lambda: _core.triad(out, one, two, 2.0, threads),
        "apply": apply,
    }
    peers = {**torch_calls(case, data), **numpy_calls(case, data)}
    slow: dict[str, float] = {}
    for name, call in peers.items():
        took = once(call)
        if took > SLOW:
            slow[name] = took
        else:
            contestants[name] = call
    times = common.interleaved(contestants, repeats=repeats, budget=budget, twice=True)
    base = median(times["apply"])
    ratios = {
        name: common.ratio(times, name, "apply") if name in times else slow[name] / base
        for name in ("triad", *peers)
    }
    return {
        "dtype": case.dtype,
        "layout": case.layout,
        "p": case.p,
        "m": case.m,
        "rows": case.rows,
        "bytes_moved": case.bytes_moved,
        "rounds": len(times["apply"]),
        "seconds": {name: median(t) for name, t in times.items()} | slow,
        "run_once": sorted(slow),
        "of_bandwidth": ratios.pop("triad"),
        "apply_gb_per_s": case.bytes_moved / base / 1e9,
        "triad_gb_per_s": case.bytes_moved / median(times["triad"]) / 1e9,
        "times_faster_than": ratios,
    }


def cases(quick: bool) -> list[Case]:
    """The grid, the headlines first."""
    found = []
    headline_rows = 2_000_000 if quick else HEADLINE_ROWS
    sizes = ((2, 21), (1, 180)) if quick else ((2, 5, 21), (1, 10, 180))
    for dtype, layout, p, m in itertools.product(DTYPES, LAYOUTS, *sizes):
        size = np.dtype(DTYPES[dtype]).itemsize * (p + m) * (2 if layout == "step 2" else 1)
        rows = (8 << 20 if quick else CASE_BYTES) // size
        case = Case(dtype, layout, p, m, rows)
        found.append(Case(dtype, layout, p, m, headline_rows) if case.headline else case)
    return sorted(found, key=lambda c: not c.headline)


def print_row(result: dict[str, Any]) -> list[str]:
    """One line of the table."""
    times = result["times_faster_than"]
    return [
        result["dtype"],
        result["layout"],
        str(result["p"]),
        str(result["m"]),
        f"{result['rows'] / 1e6:.3g}M",
        number(result["seconds"]["apply"] * 1e3, ".1f"),
        number(result["apply_gb_per_s"], ".1f"),
        number(result["triad_gb_per_s"], ".1f"),
        number(result["of_bandwidth"], ".3f"),
        *(
            "-"
            if k not in times
            else number(times[k], ".2f") + ("*" if k in result["run_once"] else "")
            for k in PEERS
        ),
    ]


# ---- what rides on a sweep, and the other sweeps ------------------------------------------------


def reading(n_bytes: int, threads: int) -> Call:
    """The triad over as many bytes, a part at a time."""
    parts = 1 + n_bytes // (3 * 64 << 20)
    size = n_bytes // 12 // parts
    room = [np.ones(size, np.float32) for _ in range(3)]

    def call() -> None:
        for _ in range(parts):
            _core.triad(*room, 2.0, threads)

    return call


def states(dtype: str, count: int, rows: int) -> list[Any]:
    """Columns near each other as the core takes them."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(min(rows, 1 << 20), dtype=np.float32)
    found = [
        np.resize(base + 1e-3 * rng.standard_normal(base.size, dtype=np.float32), rows)
        for _ in range(count)
    ]
    if dtype == "bfloat16":
        return [c.astype(ml_dtypes.bfloat16).view(np.uint16) for c in found]
    return [c.astype(dtype) for c in found]


def moves_target(dtype: str, p: int, quick: bool, threads: int, repeats: int) -> Target:
    """The sums of moves on the sweep, against the sweep alone.

    The output begins on a cache line, as torch's do: one that does not is not streamed with moves,
    so that they cannot tell, and pays for the lines it is written to.
    """
    size = np.dtype(DTYPES[dtype]).itemsize
    x = states(dtype, p, (8 << 20 if quick else CASE_BYTES // 2) // size // (p + 1))
    room, coef, intercept = (
        np.zeros(x[0].size + 64, x[0].dtype),
        np.full((1, p), 1 / p),
        np.zeros(1),
    )
    y = room[-room.ctypes.data % 64 // size :][: x[0].size]
    times = common.interleaved(
        {
            "alone": lambda: _core.apply(x, [y], coef, intercept, True, threads),
            "moves": lambda: _core.apply(x, [y], coef, intercept, True, threads, True),
        },
        repeats=repeats,
        twice=True,
    )
    name = f"{dtype} p={p} m=1 with moves, against without"
    return Target(name, common.ratio(times, "moves", "alone"), 1.05, at_most=True, unit="x")


def blend_target(dtype: str, quick: bool, threads: int, repeats: int) -> Target:
    """Five float32 averages of DistilBERT's tensors, against the triad over as many bytes."""
    layer = [768 * 768] * 4 + [768 * 3072] * 2 + [768] * 10
    sizes = layer if quick else [30522 * 768, 512 * 768, *layer * 6]
    w = [states(dtype, 1, n)[0] for n in sizes]
    averages = [[np.ones(n, np.float32) for _ in range(5)] for n in sizes]
    c = np.linspace(0.1, 0.5, 5)
    n_bytes = sum(sizes) * (40 + w[0].itemsize)
    times = common.interleaved(
        {
            "triad": reading(n_bytes, threads),
            "blend": lambda: _core.blend(w, averages, c, threads),
        },
        repeats=repeats,
        twice=True,
    )
    name = f"five float32 averages of {sum(sizes) / 1e6:.3g}M {dtype} weights, against the triad"
    return Target(name, common.ratio(times, "blend", "triad"), 1.2, at_most=True, unit="x")


def gram_target(quick: bool, threads: int, repeats: int) -> Target:
    """What low_rank does with 16 states, a Gram matrix of differences and a sweep."""
    base, *others = x = states("float32", 16, 100_000 if quick else 4_000_000)
    y, coef, intercept = np.zeros_like(base), np.full((1, 16), 1 / 16), np.zeros(1)

    def both() -> None:
        _core.gram(others, None, threads, base)
        _core.apply(x, [y], coef, intercept, True, threads)

    times = common.interleaved(
        {"triad": reading(2 * sum(c.nbytes for c in x), threads), "both": both},
        repeats=repeats,
        twice=True,
    )
    name = f"Gram and sweep of 16 x {base.size / 1e6:g}M float32, against the triad"
    return Target(name, common.ratio(times, "both", "triad"), 1.5, at_most=True, unit="x")


def companions(quick: bool, threads: int, repeats: int) -> list[Target]:
    """All of them."""
    return [
        *(
            moves_target(dtype, p, quick, threads, repeats)
            for dtype in ("float32", "bfloat16")
            for p in (2, 5, 10)
        ),
        *(blend_target(dtype, quick, threads, repeats) for dtype in ("float32", "bfloat16")),
        gram_target(quick, threads, repeats),
    ]


HEADER = (
    "dtype",
    "layout",
    "p",
    "m",
    "rows",
    "ms",
    "GB/s",
    "triad GB/s",
    "of triad",
    *PEERS,
)


def targets(results: list[dict[str, Any]]) -> list[Target]:
    """What is wanted of the headlines."""
    found = []
    for r in results:
        if (r["layout"], r["p"], r["m"]) != ("columns", 2, 1):
            continue
        name = f"{r['dtype']} p=2 m=1 {r['rows'] / 1e6:g}M rows"
        if r["dtype"] == "float32":
            faster = r["times_faster_than"]
            found += [
                Target(f"{name}, of the bandwidth", r["of_bandwidth"], 0.95),
                Target(f"{name}, against torch.lerp(out=)", faster["torch out"], 1.3, unit="x"),
                Target(
                    f"{name}, against np.multiply and np.add", faster["np ufuncs"], 3.0, unit="x"
                ),
                Target(f"{name}, against np.matmul", faster["np matmul"], 3.0, unit="x"),
            ]
        if r["dtype"] == "bfloat16":
            found.append(Target(f"{name}, of the bandwidth", r["of_bandwidth"], 0.9))
    return found


def main() -> None:
    """Run the grid, print the table and the targets, write the JSON."""
    parser = common.parser(NAME, __doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21, help="rounds of a headline case")
    parser.add_argument("--headline", action="store_true", help="only the cases with targets")
    parser.add_argument(
        "--budget", type=float, default=3.0, help="seconds of rounds per other case"
    )
    options = parser.parse_args()
    common.limit_threads(options.threads)
    info = common.machine()
    common.print_machine(info, options.threads)
    grid = [c for c in cases(options.quick) if c.headline or not options.headline]
    floor = np.ones(max(c.bytes_moved for c in grid) // 4, np.float32)

    by_threads = {}
    third = min(floor.size // 3, HEADLINE_ROWS)
    parts = [floor[i * third : (i + 1) * third] for i in range(3)]
    for n in sorted({1, 2, options.threads}):
        call = partial(_core.triad, *parts, 2.0, n)
        by_threads[n] = 12 * third / median([once(call) for _ in range(7)]) / 1e9
    print("triad GB/s by threads:", ", ".join(f"{n}: {v:.1f}" for n, v in by_threads.items()))

    results, rows = [], []
    for case in grid:
        repeats = options.repeats if case.headline and not options.quick else 7
        budget = 120.0 if case.headline else options.budget
        result = run_case(case, floor, options.threads, 5 if options.quick else repeats, budget)
        results.append(result)
        rows.append(print_row(result))
        print(".", end="", file=sys.stderr, flush=True)
    print("\n" + common.table(HEADER, rows, left=2))
    print("torch and numpy columns: times faster than. * measured once, being slow.")
    goals = targets(results) + companions(
        options.quick, options.threads, 5 if options.quick else 15
    )
    common.print_targets(goals)
    common.write_json(
        options,
        NAME,
        {
            "machine": info,
            "threads": options.threads,
            "triad_gb_per_s_by_threads": by_threads,
            "cases": results,
            "targets": [t.as_dict() for t in goals],
        },
    )


if __name__ == "__main__":
    main()
