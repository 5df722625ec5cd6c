"""A forecast from disk to disk, against plain reads and writes, and beside mergekit.

Two sharded bfloat16 checkpoints of a Llama-like model are made; the second differs from the first
by updates of 0.3 % of the weights' size. Every contestant runs in a fresh process, whose memory is
read from outside every 5 ms, and begins with none of the files in the page cache:

    plain     reads both inputs, writes as many bytes as one of them has, in blocks, and syncs them
    wfcast    the straight line through steps 0 and 2 at step 5: -1.5 a + 2.5 b
    mergekit  the same by mergekit-pytorch, method linear, where --mergekit says where that is; it
              takes no sharded inputs, so there are two single files for it

Then the readout of a run: ten single bfloat16 checkpoints (`--run-size`) averaged into one, with
warm and with cold page cache:

    read 1    reads all of them in blocks by one thread; read 2: by two
    write     writes as many bytes as one has in the fastest plain way: reserved, from an aligned
              block, past the page cache, synced; the floor is this and the faster read
    wfcast    forecast_checkpoint with wfcast.annealed
    script    safetensors and torch: tensor by tensor a sum in float32, then save_file
    mergekit  the same weights by the method linear

Then a fit, tensor by tensor, to a run folder of three such checkpoints of a quarter of the size:

    read      reads all files, as often as the fit passes over them
    fit       ModelFarcaster.fit, exact, one target

Errors are those of the results against float64, in units of the error of rounding float64 to
bfloat16 (1 is the best there can be), over a part of every tensor.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import Target, median, number, seconds, table

from wfcast.checkpoint import Layout, Tensor, create_checkpoint, open_checkpoint, output_layout

NAME = "bench_checkpoint"
BLOCK = 16 << 20
SHARD = 10**9
UPDATE = 0.003
WEIGHTS = (-1.5, 2.5)
SAMPLE = 1 << 16
FIT_STEPS = (0, 1, 2)
PASSES = 2  # of a fit to such data
PARTS = ("pair", "ten", "fit")
RUN_STEPS = tuple(range(1000, 11000, 1000))


# ---- the pair --------------------------------------------------------------------------------


def tensors_of(size: int) -> list[Tensor]:
    """Those of a Llama of about `size` bytes: hidden 2048, vocabulary 32000."""
    hidden, inner, vocabulary = 2048, 5632, 32000
    layer = {
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.k_proj.weight": (hidden // 4, hidden),
        "self_attn.v_proj.weight": (hidden // 4, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    ends = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    found = [Tensor(name, shape, "bfloat16") for name, shape in ends.items()]
    per_layer = sum(2 * int(np.prod(shape)) for shape in layer.values())
    layers = max(1, round((size - sum(t.nbytes for t in found)) / per_layer))
    for i in range(layers):
        found += [
            Tensor(f"model.layers.{i}.{name}", shape, "bfloat16") for name, shape in layer.items()
        ]
    return found


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of finite float64 values, rounded once to the nearest even."""
    size = np.ascontiguousarray(values, np.float64).view(np.uint64)
    # 7 of 52 bits of the fraction stay; the exponent of anything that is no subnormal fits
    rounded = size + np.uint64((1 << 44) - 1) + ((size >> np.uint64(45)) & np.uint64(1))
    back = (rounded & ~np.uint64((1 << 45) - 1)).view(np.float64)
    return (back.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def make_run(folder: Path, size: int, shard_size: int | None, steps: tuple[int, ...]) -> list[Path]:
    """Checkpoints that follow each other; they are the same for the same size."""
    rng = np.random.default_rng(0)
    pool = 0.02 * rng.standard_normal(1 << 22)
    tensors = tensors_of(size)
    paths = []
    for step in steps:
        bits = to_bfloat16(pool)
        pool = as_float64(bits) + UPDATE * 0.02 * rng.standard_normal(pool.size)
        name = f"step-{step}"
        path = folder / (name if shard_size else f"{name}.safetensors")
        layout = output_layout(Layout(), path, tensors, shard_size=shard_size)
        with create_checkpoint(path, layout, tensors, {"format": "pt"}, {}) as writer:
            for i, tensor_name in enumerate(writer.order):
                tensor = next(t for t in tensors if t.name == tensor_name)
                for piece in pieces(bits, 7919 * i, tensor.size):
                    writer.write(tensor_name, piece)
        paths.append(path)
    return paths


def pieces(bits: np.ndarray, start: int, size: int) -> Iterator[np.ndarray]:
    """`size` values of the pool, from `start` on and round and round."""
    start %= bits.size
    while size:
        piece = bits[start : start + size]
        yield piece
        size -= piece.size
        start = 0


def files_of(path: Path) -> list[Path]:
    """The weight files of a checkpoint."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def forget(paths: list[Path]) -> None:
    """Put files on the disk and out of the page cache."""
    for file in (f for path in paths for f in files_of(path)):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# ---- contestants: each in a process of its own -------------------------------------------------


def plain(inputs: list[Path], out: Path) -> None:
    """Read every byte of the inputs, and write as many as the last of them has."""
    buffer = bytearray(BLOCK)
    out.mkdir()
    for a, b in zip(*map(files_of, inputs), strict=True):
        with (
            open(a, "rb", buffering=0) as first,
            open(b, "rb", buffering=0) as second,
            open(out / b.name, "wb", buffering=0) as target,
        ):
            while first.readinto(buffer):
                n = second.readinto(buffer)
                target.write(memoryview(buffer)[:n])
            os.fsync(target.fileno())


def wfcast_line(inputs: list[Path], out: Path, threads: int) -> None:
    """The forecast."""
    import wfcast

    line = wfcast.linear_trend((0, 2), (5,))
    line.n_threads = threads
    wfcast.forecast_checkpoint(line, dict(zip((0, 2), inputs, strict=True)), 5, out)


def read(inputs: list[Path], times: int) -> None:
    """Read every byte so many times."""
    buffer = bytearray(BLOCK)
    for path in (f for _ in range(times) for p in inputs for f in files_of(p)):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def read_beside(inputs: list[Path], threads: int) -> None:
    """Read every byte once, each thread its share of the files."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda share: read(share, 1), (inputs[i::threads] for i in range(threads))))


def write_direct(size: int, out: Path) -> None:
    """Write so many bytes in the fastest plain way."""
    block = mmap.mmap(-1, BLOCK)
    block[:] = os.urandom(1 << 20) * (BLOCK >> 20)
    descriptor = os.open(out, os.O_CREAT | os.O_WRONLY | getattr(os, "O_DIRECT", 0))
    os.posix_fallocate(descriptor, 0, size)
    for start in range(0, size, BLOCK):  # the last block may reach beyond
        os.pwrite(descriptor, block, start)
    os.fsync(descriptor)
    os.close(descriptor)


def wfcast_anneal(inputs: list[Path], out: Path, threads: int) -> None:
    """The readout."""
    import wfcast

    operator = wfcast.annealed(RUN_STEPS)
    operator.n_threads = threads
    wfcast.forecast_checkpoint(operator, dict(zip(RUN_STEPS, inputs, strict=True)), None, out)


def script(inputs: list[Path], out: Path, weights: Sequence[float], threads: int) -> None:
    """What one writes oneself."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    torch.set_num_threads(threads)
    opened = [safe_open(path, framework="pt") for path in inputs]
    result = {}
    for name in opened[0].keys():  # noqa: SIM118  it is no mapping
        total = torch.zeros(opened[0].get_slice(name).get_shape())
        for weight, file in zip(weights, opened, strict=True):
            total.add_(file.get_tensor(name), alpha=weight)
        result[name] = total.to(torch.bfloat16)
    save_file(result, out)
    descriptor = os.open(out, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def fit(inputs: list[Path], threads: int) -> int:
    """The fit; gives the most passes of any tensor."""
    import wfcast

    mf = wfcast.ModelFarcaster(FIT_STEPS[:2], FIT_STEPS[2:], beta=0.0, n_threads=threads)
    mf.fit([inputs[0].parent])
    return max(mf.n_passes_.values())


def child(task: dict[str, Any]) -> None:
    """Run one contestant and print its seconds, without what starting Python takes."""
    inputs, out = [Path(p) for p in task["inputs"]], Path(task["out"])
    import wfcast  # noqa: F401  not part of the time

    kind, passes = task["kind"], 1
    if kind == "script":
        import torch  # noqa: F401  neither
    start = time.perf_counter()
    if kind == "plain":
        plain(inputs, out)
    elif kind == "read":
        read(inputs, PASSES)
    elif kind.startswith("read "):
        read_beside(inputs, int(kind[5:]))
    elif kind == "write":
        write_direct(inputs[0].stat().st_size, out)
    elif kind == "anneal":
        wfcast_anneal(inputs, out, task["threads"])
    elif kind == "script":
        script(inputs, out, task["weights"], task["threads"])
    elif kind == "fit":
        passes = fit(inputs, task["threads"])
    else:
        wfcast_line(inputs, out, task["threads"])
    print(json.dumps({"seconds": time.perf_counter() - start, "passes": passes}))


def run(
    kind: str,
    inputs: list[Path],
    out: Path,
    options: argparse.Namespace,
    weights: Sequence[float] = WEIGHTS,
    cache: str = "cold",
) -> dict[str, Any]:
    """Time and peak memory of one contestant."""
    if cache == "cold":
        forget(inputs)
    else:
        read(inputs, 1)
    if kind == "mergekit":
        config = out.with_suffix(".json")  # JSON is YAML
        models = [
            {"model": str(p), "parameters": {"weight": w}}
            for p, w in zip(inputs, weights, strict=True)
        ]
        parameters = {"normalize": False}
        config.write_text(
            json.dumps({"merge_method": "linear", "models": models, "parameters": parameters})
        )
        shard = ["--lazy-unpickle", "--out-shard-size", str(SHARD // 2)]  # counts parameters
        command = [str(options.mergekit), str(config), str(out), *shard]
    else:
        task = {
            "kind": kind,
            "inputs": [str(p) for p in inputs],
            "out": str(out),
            "threads": options.threads,
            "weights": list(weights),
        }
        command = [sys.executable, __file__, "--child", json.dumps(task)]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peak = mapped = 0.0
    while process.poll() is None:
        anonymous, file = resident_mib(process.pid)
        peak, mapped = max(peak, anonymous), max(mapped, file)
        time.sleep(0.005)
    whole = time.perf_counter() - start
    assert process.stdout is not None
    answer = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{kind} failed: {' '.join(command)}")
    inside = json.loads(answer) if kind != "mergekit" else {"seconds": whole}
    return {**inside, "whole_seconds": whole, "peak_mib": peak, "mapped_mib": mapped}


def resident_mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process that no file backs, and that of mapped files, in MiB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0, 0.0
    found = {line.split(":")[0]: line.split() for line in text.splitlines() if "Rss" in line}
    size = {key: int(words[1]) / 1024 for key, words in found.items()}
    return size.get("RssAnon", 0.0) + size.get("RssShmem", 0.0), size.get("RssFile", 0.0)


# ---- errors ------------------------------------------------------------------------------------


def as_float64(bits: np.ndarray) -> np.ndarray:
    """Values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def errors(inputs: list[Path], out: Path, weights: Sequence[float] = WEIGHTS) -> dict[str, float]:
    """Of the written weights against float64, as multiples of rounding's own error."""
    *given, result = (open_checkpoint(path) for path in (*inputs, out))
    squares = np.zeros(2)
    right = count = 0
    for name in result.tensors:
        *x, z = (c.column(name).array.reshape(-1)[:SAMPLE] for c in (*given, result))
        exact = sum(w * as_float64(one) for w, one in zip(weights, x, strict=True))
        rounded = to_bfloat16(exact)
        squares += [
            ((as_float64(z) - exact) ** 2).sum(),
            ((as_float64(rounded) - exact) ** 2).sum(),
        ]
        right += int((z == rounded).sum())
        count += z.size
    return {
        "error": float(np.sqrt(squares[0] / squares[1])),
        "correctly_rounded": right / count,
    }


# ---- the whole ---------------------------------------------------------------------------------


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds of all contestants: on the pair, on ten checkpoints, on a run folder."""
    size = int((0.02 if options.quick else options.size) * 1e9)
    shard = SHARD if not options.quick else 10**7
    parts = (options.part,) if options.part else PARTS
    results = []
    if "pair" in parts:
        results += contest("sharded", folder, size, shard, (0, 2), ("plain", "wfcast"), options)
        if options.mergekit:
            kinds = ("plain", "wfcast", "mergekit")
            results += contest("single", folder, size, None, (0, 2), kinds, options)
    if "ten" in parts:
        each = int((0.02 if options.quick else options.run_size) * 1e9)
        results += readout(folder, each, options)
    if "fit" in parts:
        kinds = ("read", "fit")
        results += contest("run", folder, size // 4, shard, FIT_STEPS, kinds, options)
    return results


def readout(folder: Path, size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Ten checkpoints into one, with warm and cold page cache; the least of all rounds counts."""
    import wfcast

    inputs = make_run(folder, size, None, RUN_STEPS)
    weights = [float(w) for w in wfcast.annealed(RUN_STEPS).coefficients("*")[0][0]]
    results = []
    for cache in ("warm", "cold"):
        times, found = rounds_of(inputs, weights, cache, folder / "readout", options)
        least = {kind: min(t["seconds"] for t in took) for kind, took in times.items()}
        floor = min(least["read 1"], least["read 2"]) + least["write"]
        for kind, took in times.items():
            results.append(
                {
                    "layout": f"ten, {cache}",
                    "kind": "wfcast" if kind == "anneal" else kind,
                    "bytes_each": sum(t.nbytes for t in tensors_of(size)),
                    "passes": 1,
                    "seconds": least[kind],
                    "all_seconds": [t["seconds"] for t in took],
                    "of_floor": least[kind] / floor,
                    "whole_seconds": min(t["whole_seconds"] for t in took),
                    "peak_mib": max(t["peak_mib"] for t in took),
                    "mapped_mib": max(t["mapped_mib"] for t in took),
                    **found.get(kind, {}),
                }
            )
    for path in inputs:
        path.unlink()
    return results


def rounds_of(
    inputs: list[Path],
    weights: Sequence[float],
    cache: str,
    out: Path,
    options: argparse.Namespace,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, float]]]:
    """What each contestant of the readout took, round by round, and the errors of the first."""
    kinds = ("read 1", "read 2", "write", "anneal", "script")
    times: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    if options.mergekit:
        times["mergekit"] = []
    found: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for kind, took in times.items():
            target = out if kind == "mergekit" else out.with_suffix(".safetensors")
            took.append(run(kind, inputs, target, options, weights, cache))
            print(".", end="", file=sys.stderr, flush=True)
            if kind in ("anneal", "script", "mergekit") and kind not in found:
                files = (*target.glob("*.index.json"), *target.glob("*.safetensors"), target)
                found[kind] = errors(inputs, files[0], weights)
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    return times, found


def contest(
    layout: str,
    folder: Path,
    size: int,
    shard_size: int | None,
    steps: tuple[int, ...],
    kinds: tuple[str, ...],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Make checkpoints, let the contestants run in turn, the first of them being the floor."""
    inputs = make_run(folder, size, shard_size, steps)
    times: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    found: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        for kind in kinds:
            out = folder / f".out-{kind}"
            times[kind].append(run(kind, inputs, out, options))
            print(".", end="", file=sys.stderr, flush=True)
            if kind in ("wfcast", "mergekit") and kind not in found:
                target = out
                if kind == "mergekit":
                    target = next(p for p in (*out.glob("*.index.json"), *out.glob("*.safe*")))
                found[kind] = errors(inputs, target)
            if out.is_dir():
                shutil.rmtree(out)
            else:
                out.unlink(missing_ok=True)
    for path in inputs:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    floor = [t["seconds"] for t in times[kinds[0]]]
    results = []
    for kind in kinds:
        took = [t["seconds"] for t in times[kind]]
        results.append(
            {
                "layout": layout,
                "kind": kind,
                "bytes_each": sum(t.nbytes for t in tensors_of(size)),
                "passes": times[kind][0].get("passes"),
                "seconds": median(took),
                "all_seconds": took,
                "of_floor": median([t / f for t, f in zip(took, floor, strict=True)]),
                "whole_seconds": median([t["whole_seconds"] for t in times[kind]]),
                "peak_mib": max(t["peak_mib"] for t in times[kind]),
                "mapped_mib": max(t["mapped_mib"] for t in times[kind]),
                **found.get(kind, {}),
            }
        )
    return results


def main() -> None:
    """Measure, print, write."""
    options = common.parser(NAME, __doc__.splitlines()[0])
    options.add_argument("--size", type=float, default=8.0, help="GB of each checkpoint (8)")
    options.add_argument("--run-size", type=float, default=2.0, help="GB of each of the ten (2)")
    options.add_argument("--part", choices=PARTS, help="one of the three alone")
    options.add_argument("--rounds", type=int, default=3, help="times each contestant runs (3)")
    options.add_argument("--folder", type=Path, help="for about four times the size (temporary)")
    options.add_argument("--mergekit", type=Path, help="the program mergekit-pytorch")
    options.add_argument("--child", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.child:
        child(json.loads(arguments.child))
        return
    info = common.machine()
    common.print_machine(info, arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder), arguments)
    titles = (
        *("files", "", "GB each", "time", "x plain", "whole", "peak MiB", "mapped MiB"),
        *("error", "right"),
    )
    rows = [
        (
            r["layout"],
            r["kind"],
            number(r["bytes_each"] / 1e9),
            seconds(r["seconds"]),
            number(r["of_floor"], ".2f"),
            seconds(r["whole_seconds"]),
            number(r["peak_mib"], ".0f"),
            number(r["mapped_mib"], ".0f"),
            number(r.get("error"), ".6f"),
            number(r.get("correctly_rounded"), ".5%"),
        )
        for r in results
    ]
    print(table(titles, rows))
    print("whole: with the start of the process. error: 1 is that of rounding alone.")
    targets = []
    for r in results:
        if r["kind"] == "wfcast":
            limit = 1.15 if r["layout"].startswith("ten") else 1.3
            name = f"{r['layout']}: time over plain reads and writes"
            targets.append(Target(name, r["of_floor"], limit, True, "x"))
            name = f"{r['layout']}: peak memory that no file backs"
            targets.append(Target(name, r["peak_mib"], 512, True, "MiB"))
        elif r["kind"] == "fit":
            targets += [
                Target("passes of the fit", r["passes"], PASSES, True),
                Target("time of the fit over plain reads", r["of_floor"], 1.6, True, "x"),
                Target("peak memory of the fit", r["peak_mib"], 512, True, "MiB"),
            ]
    common.print_targets(targets)
    payload = {"machine": info, "results": results, "targets": [t.as_dict() for t in targets]}
    common.write_json(arguments, NAME, payload)


if __name__ == "__main__":
    main()
