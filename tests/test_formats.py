"""Checkpoints of every format, written by the real libraries and read back by them."""

import copy
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import wfcast
from wfcast._atomic import atomic_file, atomic_folder
from wfcast.checkpoint import open_checkpoint

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
pytest.importorskip("transformers")  # the same

from models import ConvNet, Opened, small  # noqa: E402  only with both
from safetensors.torch import load_model  # noqa: E402

STEPS = (0, 500)
LINE = wfcast.linear_trend(STEPS, (1500,))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(wfcast.__file__).parents[1])}


def move(model, size=0.1):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn_like(p))


def recorded(model, save):
    """The state at both steps, each saved by `save(step)`."""
    states = {}
    for step in STEPS:
        if step:
            move(model)
        states[step] = {name: value.clone() for name, value in model.state_dict().items()}
        save(step)
    return states


def assert_forecast(got, states, copied=()):
    """The line at step 1500 is 3 w_500 - 2 w_0; the rest is as at step 500."""
    for name, value in got.items():
        last = states[500][name]
        assert value.dtype == last.dtype
        if name in copied or not last.is_floating_point():
            assert torch.equal(value, last)
        else:
            wanted = 3 * last.double() - 2 * states[0][name].double()
            torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["distilbert", "bert", "gpt2", "llama", "vit"])
@pytest.mark.parametrize("shards", ["1KB", "1GB"])
def test_hugging_face_folders(tmp_path, kind, shards):
    model = small(kind)
    paths = {step: tmp_path / f"checkpoint-{step}" for step in STEPS}
    states = recorded(model, lambda step: model.save_pretrained(paths[step], max_shard_size=shards))
    ran = tmp_path / "ran"
    for folder in paths.values():
        (folder / "optimizer.pt").write_bytes(b"state")
        (folder / "source.spm").write_bytes(b"a vocabulary")
        (folder / "trainer_state.json").write_text("{}")
        with open(folder / "training_args.bin", "wb") as file:
            pickle.dump(Opened(ran), file)
    out = tmp_path / "out"
    report = wfcast.forecast_checkpoint(LINE, paths, 1500, out)
    assert {"config.json", "source.spm"} <= set(report.carried)
    assert set(report.left) == {"optimizer.pt", "trainer_state.json", "training_args.bin"}
    assert not ran.exists()
    for name in report.carried:
        assert (out / name).read_bytes() == (paths[500] / name).read_bytes()
    weights = {p.name for p in paths[500].glob("model*")}
    assert {p.name for p in out.iterdir()} == weights | set(report.carried)
    loaded = type(model).from_pretrained(out)
    assert_forecast(loaded.state_dict(), states)
    if kind in ("distilbert", "bert", "gpt2"):
        embedding = loaded.get_input_embeddings().weight
        assert loaded.get_output_embeddings().weight.data_ptr() == embedding.data_ptr()


WRAPS = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "lightning": lambda state: {"state_dict": state, "epoch": 3},
    "parallel": lambda state: {"model": {"module." + k: v for k, v in state.items()}},
    "compiled": lambda state: {"_orig_mod." + k: v for k, v in state.items()},
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_torch_files(tmp_path, wrap, suffix):
    model = small("bert")
    paths = {step: tmp_path / f"{step}{suffix}" for step in STEPS}
    states = recorded(model, lambda step: torch.save(WRAPS[wrap](model.state_dict()), paths[step]))
    out = tmp_path / f"out{suffix}"
    report = wfcast.forecast_checkpoint(LINE, paths, 1500, out)
    assert report.left == (("optimizer",) if wrap == "model" else ())
    source = torch.load(paths[500], weights_only=True)
    got = torch.load(out, weights_only=True)
    assert got.get("epoch") == source.get("epoch")
    for key in ("model", "state_dict"):
        if key in got:
            source, got = source[key], got[key]
    assert list(got) == list(source)
    prefix = {"parallel": "module.", "compiled": "_orig_mod."}.get(wrap, "")
    named = {name.removeprefix(prefix): value for name, value in got.items()}
    assert_forecast(named, states)
    model.load_state_dict(named)
    decoder = named["cls.predictions.decoder.weight"]
    assert decoder.data_ptr() == named["bert.embeddings.word_embeddings.weight"].data_ptr()
    assert got._metadata["wfcast.forecast"]["step"] == 1500
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f"0{suffix}", f"500{suffix}", f"out{suffix}"]
    )


def test_sharded_torch_files(tmp_path):
    model = small("bert")
    paths = {step: tmp_path / f"checkpoint-{step}" for step in STEPS}

    def save(step):
        paths[step].mkdir()
        state = model.state_dict()
        halves = {"a.bin": {}, "b.bin": {}}
        for i, name in enumerate(state):
            tied = "decoder" in name or "embeddings.word" in name or name == "cls.predictions.bias"
            halves["a.bin" if tied or i % 2 else "b.bin"][name] = state[name]
        for file, half in halves.items():
            torch.save(half, paths[step] / file)
        names = {name: file for file, half in halves.items() for name in half}
        index = {"metadata": {}, "weight_map": names}
        (paths[step] / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    states = recorded(model, save)
    out = tmp_path / "out"
    wfcast.forecast_checkpoint(LINE, paths, 1500, out)
    assert {p.name for p in out.iterdir()} == {p.name for p in paths[500].iterdir()}
    index = "pytorch_model.bin.index.json"
    mine, given = (json.loads((p / index).read_text())["weight_map"] for p in (out, paths[500]))
    assert mine == given
    got = {}
    for file in ("a.bin", "b.bin"):
        got.update(torch.load(out / file, weights_only=True))
    assert_forecast(got, states)
    model.load_state_dict(got)
    words = got["bert.embeddings.word_embeddings.weight"]
    assert got["cls.predictions.decoder.weight"].data_ptr() == words.data_ptr()
    again = open_checkpoint(out)
    assert "cls.predictions.decoder.weight" in again.tied


def test_distributed_checkpoints(tmp_path):
    from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

    model = ConvNet()
    paths = {step: tmp_path / f"dcp-{step}" for step in STEPS}

    def save(step):
        with pytest.warns(UserWarning, match="single process"):
            state_dict_saver.save(model.state_dict(), checkpoint_id=paths[step], no_dist=True)

    states = recorded(model, save)
    out = tmp_path / "out"
    report = wfcast.forecast_checkpoint(LINE, paths, 1500, out)
    got = {name: torch.empty_like(value) for name, value in states[500].items()}
    with pytest.warns(UserWarning, match="single process"):
        state_dict_loader.load(got, checkpoint_id=out, no_dist=True)
    assert_forecast(got, states, report.copied)
    assert set(report.copied) == {n for n in got if "running" in n or "batches" in n}


SHARDED = """
    import os, sys, torch
    import torch.distributed as dist
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    rank, folder, shape = int(sys.argv[1]), sys.argv[2], tuple(map(int, sys.argv[3:]))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for step in (0, 500):
        whole = (torch.arange(shape[0] * shape[1]) % 1000).float().reshape(shape) * (1 + step)
        state = {
            "rows": distribute_tensor(whole, mesh, [Shard(0)]),
            "columns": distribute_tensor(whole.bfloat16(), mesh, [Shard(1)]),
            "both": distribute_tensor(whole, mesh, [Replicate()]),
        }
        state_dict_saver.save(state, checkpoint_id=f"{folder}/dcp-{step}")
    dist.barrier()
    os._exit(0)  # threads of gloo now and then abort an interpreter that ends
"""


PEAK = """
    import sys, threading, psutil, torch.distributed.checkpoint, wfcast
    me, peak, done = psutil.Process(), [0], threading.Event()

    def own():
        memory = me.memory_info()
        return memory.rss - memory.shared

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], own())

    start = own()
    watcher = threading.Thread(target=watch)
    watcher.start()
    line = wfcast.linear_trend((0, 500), (1500,))
    wfcast.forecast_checkpoint(line, {0: sys.argv[1], 500: sys.argv[2]}, 1500, sys.argv[3])
    done.set()
    watcher.join()
    print((peak[0] - start) >> 20)
"""


@pytest.mark.slow
@pytest.mark.memory
@pytest.mark.parametrize("shape", [(7, 5), (8191, 5003)])
def test_what_two_processes_wrote(tmp_path, shape):
    """Tensors in pieces, by rows and by columns, as FSDP and tensor parallelism leave them."""
    pytest.importorskip("psutil")  # only measures
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SHARDED)]
    size = [str(n) for n in shape]
    ranks = [subprocess.Popen([*command, rank, tmp_path, *size]) for rank in "01"]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    paths = {step: tmp_path / f"dcp-{step}" for step in STEPS}
    assert len(list(paths[0].glob("*.distcp"))) == 2
    command = [sys.executable, "-c", textwrap.dedent(PEAK), *paths.values()]
    peak = subprocess.check_output([*command, tmp_path / "out.safetensors"], env=ENVIRONMENT)
    assert int(peak) < 100  # one of the tensors takes 156 MiB in each of the checkpoints
    few = (torch.arange(shape[0] * shape[1]) % 1000).float().reshape(shape)
    whole = {step: few * (1 + step) for step in STEPS}
    got = open_checkpoint(tmp_path / "out.safetensors")
    exact = 3 * whole[500] - 2 * whole[0]
    for name in ("rows", "both"):
        assert torch.equal(torch.as_tensor(got.value(name)), exact)
    halves = {step: w.bfloat16().float() for step, w in whole.items()}
    columns = (3 * halves[500] - 2 * halves[0]).bfloat16()
    assert torch.equal(
        torch.as_tensor(np.asarray(got.value("columns")).astype("f")), columns.float()
    )


def test_every_format_keeps_scalars_and_what_has_no_elements(tmp_path):
    state = {
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
        "none": torch.zeros(2, 0, dtype=torch.int64),
        "w": torch.ones(3),
    }
    for step in STEPS:
        torch.save(state, tmp_path / f"{step}.pt")
    source = {step: tmp_path / f"{step}.pt" for step in STEPS}
    for out, options in (
        ("a.safetensors", {}),
        ("b", {"shard_size": 8}),
        ("c.pt", {}),
        ("d", {"format": "torch", "shard_size": 8}),
        ("e", {"format": "dcp"}),
    ):
        for again in (source, {0: source[0], 500: tmp_path / out}):  # and from each of them
            wfcast.forecast_checkpoint(LINE, again, 1500, tmp_path / out, overwrite=True, **options)
            found = open_checkpoint(tmp_path / out)
            assert found.tensors.keys() == state.keys()
            for name, value in state.items():
                got = torch.as_tensor(found.value(name))
                assert (got.shape, got.dtype) == (value.shape, value.dtype), (out, name)
                assert torch.equal(got, value)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_hundred_thousand_tensors(tmp_path):
    from safetensors.numpy import load_file

    values = np.random.default_rng(0).normal(size=(2, 100_000, 3)).astype(np.float32)
    for step, rows in zip(STEPS, values, strict=True):
        save_file({f"t{i}": row for i, row in enumerate(rows)}, tmp_path / f"{step}.safetensors")
    paths = {step: tmp_path / f"{step}.safetensors" for step in STEPS}
    report = wfcast.forecast_checkpoint(LINE, paths, 1500, tmp_path / "out.safetensors")
    assert len(report.forecast) == 100_000
    got = load_file(tmp_path / "out.safetensors")
    whole = np.stack([got[f"t{i}"] for i in range(100_000)])
    np.testing.assert_allclose(whole, 3 * values[1] - 2 * values[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("source", ["folder", "shards", "file", "module"])
@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("o.safetensors", {}),
        ("o", {"shard_size": 9000}),
        ("o.pt", {}),
        ("o", {"shard_size": 9000, "format": "torch"}),
        ("o", {"format": "dcp"}),
    ],
)
def test_tied_weights_are_tied_in_every_format(tmp_path, source, out, options):
    """GPT-2, whose head is its embedding; loaded as one would load the format."""
    model = small("gpt2")

    def save(step):
        if source == "module":
            run[step] = small("gpt2")
            run[step].load_state_dict(model.state_dict())
        elif source == "file":
            run[step] = tmp_path / f"{step}.pt"
            torch.save(model.state_dict(), run[step])
        else:
            run[step] = tmp_path / f"checkpoint-{step}"
            size = "9KB" if source == "shards" else "1GB"
            model.save_pretrained(run[step], max_shard_size=size)

    run = {}
    states = recorded(model, save)
    report = wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / out, **options)
    assert "lm_head.weight" not in report.forecast
    fresh, form = small("gpt2", 7), options.get("format")
    if out == "o.safetensors":
        load_model(fresh, tmp_path / out)
    elif form == "dcp":
        from torch.distributed.checkpoint import DefaultLoadPlanner, state_dict_loader

        # a file of Hugging Face's does not have the other name
        planner = DefaultLoadPlanner(allow_partial_load=True)
        with pytest.warns(UserWarning, match="single process"):
            state_dict_loader.load(
                fresh.state_dict(), checkpoint_id=tmp_path / out, planner=planner, no_dist=True
            )
    elif out == "o":
        model.config.save_pretrained(tmp_path / out)
        kind = {"use_safetensors": form != "torch"}
        fresh = type(model).from_pretrained(tmp_path / out, **kind)
    else:
        got = torch.load(tmp_path / out, weights_only=True)
        assert not fresh.load_state_dict(got, strict=False).unexpected_keys
        if source in ("file", "module"):
            ends = "transformer.wte.weight", "lm_head.weight"
            assert len({got[name].data_ptr() for name in ends}) == 1
    assert fresh.lm_head.weight is fresh.transformer.wte.weight
    assert_forecast(fresh.state_dict(), states)


@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("o.safetensors", {}),
        ("o", {"shard_size": 10}),
        ("o.pt", {}),
        ("o", {"format": "dcp"}),
    ],
)
def test_a_forecast_says_where_it_comes_from(tmp_path, out, options):
    for step in STEPS:
        torch.save({"w": torch.ones(3), "v": torch.ones(4)}, tmp_path / f"step-{step}.pt")
    run = {step: tmp_path / f"step-{step}.pt" for step in STEPS}
    wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / out, **options)
    report = wfcast.inspect(tmp_path / out)
    said = json.loads(report.to_dict()["metadata"]["wfcast.forecast"])
    assert said["forecaster"] == LINE.fingerprint()
    assert {k: Path(v).name for k, v in said["inputs"].items()} == {
        "0": "step-0.pt",
        "500": "step-500.pt",
    }
    assert said["step"] == 1500
    assert said["wfcast"] == wfcast.__version__
    assert f"wfcast.forecast: {json.dumps(said)}" in str(report)
    again = {0: tmp_path / out, 500: tmp_path / "step-500.pt"}  # one of a forecast says so, too
    wfcast.forecast_checkpoint(LINE, again, 1500, tmp_path / "z.safetensors")
    metadata = open_checkpoint(tmp_path / "z.safetensors").metadata
    assert Path(json.loads(metadata["wfcast.forecast"])["inputs"]["0"]).name in (
        out,
        "model.safetensors.index.json",
    )


@pytest.mark.parametrize("out", ["o.safetensors", "o.pt", "o"])
@pytest.mark.parametrize("exclude", [(), "t1*"])
def test_more_tensors_than_files_may_be_open(tmp_path, out, exclude):
    run = {step: tmp_path / f"{step}.safetensors" for step in STEPS}
    for step, path in run.items():
        save_file({f"t{i}": np.full(3, step + i, np.float32) for i in range(600)}, path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 32, before[1]))
    try:
        form = {} if "." in out else {"format": "dcp"}
        wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / out, exclude=exclude, **form)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    got = open_checkpoint(tmp_path / out)
    for i in range(0, 600, 7):
        step = 500 if exclude and f"t{i}".startswith("t1") else 1500
        assert np.asarray(got.value(f"t{i}")).tolist() == [step + i] * 3


@pytest.mark.parametrize(
    ("out", "options", "made"),
    [
        ("f.safetensors", {}, None),
        ("f.pt", {}, None),
        ("f", {"format": "dcp"}, {".metadata", "__0_0.distcp"}),
        ("f", {"shard_size": 10_000}, None),
        ("f", {"shard_size": 10_000, "format": "torch"}, None),
    ],
)
def test_from_one_format_to_another(tmp_path, out, options, made):
    model = small("distilbert")
    paths = {step: tmp_path / f"{step}.pth" for step in STEPS}
    states = recorded(model, lambda step: torch.save(model.state_dict(), paths[step]))
    wfcast.forecast_checkpoint(LINE, paths, 1500, tmp_path / out, **options)
    if made:
        assert {p.name for p in (tmp_path / out).iterdir()} == made
    if "shard_size" in options:
        stem = "pytorch_model.bin" if "format" in options else "model.safetensors"
        index = json.loads((tmp_path / out / f"{stem}.index.json").read_text())
        assert len(set(index["weight_map"].values())) > 1
    checkpoint = open_checkpoint(tmp_path / out)
    got = {name: torch.as_tensor(checkpoint.value(name)) for name in checkpoint.tensors}
    assert_forecast(got, states)
    assert got.keys() | checkpoint.tied.keys() >= states[500].keys() - {"vocab_projector.weight"}


def test_a_name_and_a_format_that_go_together(tmp_path):
    run = {0: tmp_path / "a", 500: tmp_path / "b"}
    for step, path in run.items():
        path.mkdir()
        save_file({"w": np.full(3, step, np.float32)}, path / "model.safetensors")
    wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / "f.safetensors", format="safetensors")
    assert (tmp_path / "f.safetensors").is_file()
    for out, format in (("g.safetensors", "torch"), ("g.pt", "safetensors"), ("g.bin", "dcp")):
        with pytest.raises(wfcast.CheckpointError, match=f"a name that ends in .{out[2:]} asks"):
            wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / out, format=format)


ODD = {
    "qint8": lambda: torch.quantize_per_tensor(torch.arange(4.0), 0.1, 3, torch.qint8),
    "per channel": lambda: torch.quantize_per_channel(
        torch.ones(2, 3), torch.tensor([0.5, 0.25]), torch.tensor([0, 1]), 0, torch.quint8
    ),
    "uint16": lambda: torch.arange(4).to(torch.uint16),
    "float8": lambda: torch.arange(4.0).to(torch.float8_e5m2),
    "float4": lambda: torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "complex32": lambda: torch.arange(4.0).to(torch.complex32),
    "conjugate": lambda: torch.full((3,), 1 + 2j).conj(),
    "bool": lambda: torch.tensor([True, False]),
    "bits8": lambda: torch.arange(4, dtype=torch.uint8).view(torch.bits8),
    "no elements": lambda: torch.zeros(0, 3),
    "no integers": lambda: torch.zeros(2, 0, dtype=torch.int64),
    "integer": lambda: torch.tensor(7),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of quantized and half complex
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("out", ["out.pt", "out"])
def test_what_is_not_forecast_is_copied_as_it_is(tmp_path, kind, out):
    value = ODD[kind]()
    paths = {step: tmp_path / f"{step}.pt" for step in STEPS}
    for step, path in paths.items():
        torch.save(
            {"w": torch.full((3,), float(step)), "scalar": torch.tensor(1.5), "x": value}, path
        )
    form = {"format": "dcp"} if out == "out" else {}
    if kind == "bits8" and form:
        with pytest.raises(wfcast.CheckpointError, match="cannot write such tensors"):
            wfcast.forecast_checkpoint(LINE, paths, 1500, tmp_path / out, **form)
        assert {p.name for p in tmp_path.iterdir()} == {"0.pt", "500.pt"}
        return
    report = wfcast.forecast_checkpoint(LINE, paths, 1500, tmp_path / out, **form)
    assert list(report.copied) == ["x"]
    if form:
        from torch.distributed.checkpoint import state_dict_loader

        into = torch.empty(value.shape, dtype=value.dtype) if not value.is_quantized else None
        if into is None:  # torch reads a quantized tensor only into one of its kind
            into = value.clone().copy_(torch.zeros(value.shape))
            assert not torch.equal(into.int_repr(), value.int_repr())
        state_dict_loader.load({"x": into}, checkpoint_id=tmp_path / out, no_dist=True)
        got = into
    else:
        got = torch.load(tmp_path / out, weights_only=True)
        assert torch.equal(got["w"], torch.full((3,), 1500.0))
        assert torch.equal(got["scalar"], torch.tensor(1.5))
        got = got["x"]
    assert (got.dtype, got.shape) == (value.dtype, value.shape)
    plain = [t.int_repr() if t.is_quantized else t.resolve_conj() for t in (got, value)]
    assert torch.equal(*(t.contiguous().view(torch.uint8) for t in map(torch.atleast_1d, plain)))
    if value.is_quantized:
        assert torch.equal(got.dequantize(), value.dequantize())


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
def test_kinds_of_tensors_that_cannot_be():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for value, message in (
        (nested, "is a nested tensor, expected a dense one"),
        (torch.eye(3).to_sparse(), "is a sparse tensor"),
        (torch.empty(3, device="meta"), "on the meta device"),
    ):
        with pytest.raises(wfcast.WfcastError, match=f"tensor 'x' of step 0.*{message}"):
            LINE.predict({0: {"x": value}, 500: {"x": value}})


def test_a_live_module():
    """BatchNorm's running statistics and counters are copied, tied weights stay one tensor."""
    net, language = ConvNet(), small("gpt2")
    got = LINE.predict({0: copy.deepcopy(net), 500: net})
    assert got.keys() == net.state_dict().keys()
    assert torch.equal(got["features.1.running_var"], net.features[1].running_var)
    tied = LINE.predict({0: copy.deepcopy(language), 500: language})
    assert tied["lm_head.weight"] is tied["transformer.wte.weight"]


class Scaled(torch.nn.Module):
    """With a buffer that no name gives away."""

    def __init__(self, scale):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), scale))
        self.register_buffer("scale", torch.full((2,), scale))
        self.register_buffer("again", self.scale)


@pytest.mark.filterwarnings("ignore:forecast to stay as they are")
def test_a_module_says_which_of_its_tensors_are_buffers(tmp_path):
    run = {step: Scaled(1.0 + step) for step in (0, 1, 2)}
    out = tmp_path / "out.safetensors"
    line = wfcast.linear_trend((0, 1), (2,))
    assert wfcast.forecast_checkpoint(line, run, 2, out).copied == {"scale": "buffer"}
    got = line.predict(run)
    assert (got["weight"].tolist(), got["scale"].tolist()) == ([3.0] * 3, [2.0] * 2)
    mf = wfcast.ModelFarcaster((0, 1), (2,), beta=0.0).fit([run])
    assert list(mf.coef_) == ["weight"]
    # a state dict does not say so; who fitted to it may still forecast a module
    by_name = wfcast.ModelFarcaster((0, 1), (2,), beta=0.0)
    by_name.fit([{step: module.state_dict() for step, module in run.items()}])
    assert sorted(by_name.coef_) == ["scale", "weight"]
    assert by_name.predict(run)["again"].tolist() == [2.0] * 2


def test_what_comes_from_a_module_can_be_loaded(tmp_path):
    """With what safetensors.torch writes beside the tensors, which from_pretrained asks for."""
    run = {step: small("gpt2", step) for step in STEPS}
    run[500].config.save_pretrained(tmp_path)
    wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / "model.safetensors")
    metadata = open_checkpoint(tmp_path).metadata
    assert metadata["format"] == "pt"
    assert metadata["lm_head.weight"] == "transformer.wte.weight"
    loaded = type(run[0]).from_pretrained(tmp_path)
    states = {step: model.state_dict() for step, model in run.items()}
    assert_forecast(loaded.state_dict(), states)


def test_what_is_forecast_can_be_chosen(tmp_path):
    model = small("distilbert").bfloat16()
    paths = {step: tmp_path / f"{step}" for step in STEPS}
    recorded(model, lambda step: model.save_pretrained(paths[step]))

    def names(**options):
        out = tmp_path / "out"
        return set(
            wfcast.forecast_checkpoint(LINE, paths, 1500, out, overwrite=True, **options).forecast
        )

    everything = names()
    attention = {n for n in everything if ".attention." in n}
    assert attention
    assert names(include=["*.attention.*"]) == attention
    assert names(exclude=["*.attention.*"]) == everything - attention
    assert names(norms="copy") == {n for n in everything if "norm" not in n.lower()}
    report = wfcast.forecast_checkpoint(
        LINE, paths, 1500, tmp_path / "one.safetensors", exclude="*.ffn.*", norms="copy"
    )
    assert {report.copied[n] for n in everything if ".ffn." in n} == {"not chosen"}
    assert {w for n, w in report.copied.items() if ".ffn." not in n} == {"normalization"}
    assert report.left == ("config.json",)  # which one file cannot take along
    assert "not carried along: config.json" in str(report)
    with pytest.raises(wfcast.WfcastError, match="norms is 'keep', expected 'forecast' or 'copy'"):
        names(norms="keep")
    with pytest.raises(wfcast.CheckpointError, match=r"something in it; overwrite=True"):
        wfcast.forecast_checkpoint(LINE, paths, 1500, tmp_path / "out")


@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_tensor_is_chosen_by_any_of_its_names(tmp_path, name):
    run = {step: small("gpt2") for step in STEPS}
    out = tmp_path / "out.pt"
    report = wfcast.forecast_checkpoint(LINE, run, 1500, out, exclude=name)
    assert report.copied == {"transformer.wte.weight": "not chosen"}
    report = wfcast.forecast_checkpoint(LINE, run, 1500, out, include=name)
    assert report.forecast == ("transformer.wte.weight",)


def test_values_and_names_that_differ(tmp_path):
    run = {t: {"a": torch.ones(3), "b": torch.ones(2), "n": torch.tensor([t])} for t in STEPS}
    run[0]["b"][1] = float("nan")
    del run[0]["a"]
    out = tmp_path / "out.safetensors"
    with pytest.raises(wfcast.CheckpointError, match=r"only in the run, step 500|only in step 500"):
        wfcast.forecast_checkpoint(LINE, run, 1500, out)
    with pytest.raises(wfcast.WfcastError, match=r"'b' of step 0.*nan"):
        wfcast.forecast_checkpoint(LINE, run, 1500, out, partial=True)
    assert not out.exists()
    with pytest.warns(UserWarning, match="no tensor is forecast"):
        report = wfcast.forecast_checkpoint(LINE, run, 1500, out, partial=True, nonfinite="copy")
    assert report.forecast == ()
    assert report.copied == {"a": "not alike", "b": "not finite", "n": "int64"}


def test_runs_are_folders_of_checkpoints(tmp_path):
    model = small("distilbert")
    run = tmp_path / "run"
    for step in (0, 10, 20, 30):
        model.save_pretrained(run / f"checkpoint-{step}", max_shard_size="10KB")
        move(model)
    next((run / "checkpoint-30").glob("model-00002*")).unlink()  # as after a crash
    mf = wfcast.ModelFarcaster(inputs=(0, 10), targets=(20,), beta=0.0)
    with pytest.warns(UserWarning, match=r"left out.*'model-00002-of.*which is not there"):
        mf.fit([run])
    assert mf.coef_
    with pytest.raises(wfcast.CheckpointError, match=r"'model-00002-of.*which is not there"):
        open_checkpoint(run / "checkpoint-30")
    with pytest.raises(wfcast.CheckpointError, match=r"is a folder of checkpoints .checkpoint-0"):
        open_checkpoint(run)


def test_a_checkpoint_that_was_saved_twice_in_other_sizes(tmp_path):
    """transformers leaves the index, or the single file, of the save before where it is."""
    model = small("distilbert")
    for sizes in (("10KB", "5GB"), ("5GB", "10KB")):
        folder = tmp_path / sizes[0]
        for size in sizes:
            model.save_pretrained(folder, max_shard_size=size)
            move(model)
        names = {path.name for path in folder.iterdir()}
        if {"model.safetensors", "model.safetensors.index.json"} <= names:
            with pytest.raises(wfcast.CheckpointError, match=r"both 'model\.safetensors\.index"):
                open_checkpoint(folder)
        else:  # a version of transformers that clears up
            open_checkpoint(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "cannot be read as an index"),
        (b"[]", "has no weight_map"),
        (b'{"weight_map": {"a": "../secret"}}', "expected a file name in its own folder"),
        (b'{"weight_map": {"a": "gone.safetensors"}}', "'gone.safetensors', which is not there"),
    ],
)
def test_bad_indexes(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(wfcast.CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["w.pt", "dcp"])
def test_code_in_a_pickle_does_not_run(tmp_path, name):
    ran, path = tmp_path / "ran", tmp_path / name
    if name == "dcp":
        path.mkdir()
        (path / ".metadata").write_bytes(pickle.dumps(Opened(ran)))
    else:
        torch.save({"w": torch.ones(2), "evil": Opened(ran)}, path)
    with pytest.raises(wfcast.CheckpointError, match="refused"):
        open_checkpoint(path)
    assert not ran.exists()


def test_adapters_of_different_bases(tmp_path):
    from safetensors.torch import save_file

    for step, base in zip(STEPS, ("one", "two"), strict=True):
        folder = tmp_path / str(step)
        folder.mkdir()
        save_file({"lora_A": torch.ones(20)}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        shutil.copytree(folder, tmp_path / f"{step}-again")
    run = {step: tmp_path / str(step) for step in STEPS}
    later = {step: tmp_path / f"{step}-again" for step in STEPS}
    for partial in (False, True):
        with pytest.raises(wfcast.CheckpointError, match=r"adapts 'one'|adapts 'two'"):
            wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / "out", partial=partial)
    mf = wfcast.ModelFarcaster((0,), (500,), beta=0.0)
    with pytest.raises(wfcast.CheckpointError, match=r"adapts 'one'.*adapts 'two'"):
        mf.fit([{0: run[0], 500: later[0]}, {0: run[500], 500: later[500]}])
    mf.fit([{0: run[0], 500: later[0]}]).save(tmp_path / "mf")
    with pytest.warns(UserWarning, match=r"adapts 'two', and the fit saw adapters of 'one'"):
        wfcast.load(tmp_path / "mf").predict({0: run[500]})
    wfcast.forecast_checkpoint(LINE, {0: run[0], 500: later[0]}, 1500, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }


def test_empty_shells_are_refused(tmp_path):
    """ZeRO-3 without gathering saves the names, and none of the values."""
    from safetensors.torch import save_file

    run = {step: tmp_path / f"{step}.safetensors" for step in STEPS}
    for step, path in run.items():
        save_file({"embed.weight": torch.zeros(0), "norm.weight": torch.ones(8) * step}, path)
    with pytest.raises(wfcast.CheckpointError, match=r"'embed.weight' .* has shape \[0\].* 1 of 2"):
        wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / "out.safetensors")
    with pytest.raises(wfcast.CheckpointError, match="zero_to_fp32"):
        LINE.predict(run)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lora_alpha", (4, 64)),
        ("use_rslora", (False, True)),
        ("use_dora", (False, True)),
        ("alpha_pattern", ({}, {"c_attn": 99})),
        ("target_modules", (["q", "v"], ["q"])),
        ("r", (4, 8)),
    ],
)
def test_adapters_whose_weights_mean_different_things(tmp_path, name, values):
    from safetensors.torch import save_file

    run = {step: tmp_path / str(step) for step in STEPS}
    for step, value in zip(STEPS, values, strict=True):
        run[step].mkdir()
        save_file({"w": torch.ones(20) * step}, run[step] / "adapter_model.safetensors")
        config = {"base_model_name_or_path": "one", "peft_type": "LORA", name: value}
        (run[step] / "adapter_config.json").write_text(json.dumps(config))
    for partial in (False, True):
        with pytest.raises(
            wfcast.CheckpointError, match=rf"{name} is .* in .*step .*, .* in .*step"
        ):
            wfcast.forecast_checkpoint(LINE, run, 1500, tmp_path / "out", partial=partial)


# ---- appearing complete or not at all -----------------------------------------------------------


def test_leftovers_go_and_living_ones_stay(tmp_path, system):
    target = tmp_path / "out"
    (tmp_path / ".out.0123456789ab.tmp").mkdir()
    (tmp_path / ".other.0123456789ab.tmp").touch()  # of another target
    with atomic_folder(target) as first, atomic_folder(target) as second:
        assert {p.name for p in tmp_path.iterdir()} == {
            first.name,
            second.name,
        }
        (first / "a").touch()
        (second / "b").touch()
    assert [p.name for p in target.iterdir()] == ["a"]  # the last to end
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    with atomic_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_that_another_process_sweeps_at_once_is_made_again(tmp_path, monkeypatch):
    """Between its making and its opening it has no lock, as what a killed process left."""
    swept, open_ = [], os.open

    def sweep_first(path, flags, *mode):
        if path != tmp_path and not swept:
            swept.append(path)
            os.rmdir(path)
        return open_(path, flags, *mode)

    monkeypatch.setattr(os, "open", sweep_first)
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert len(swept) == 1
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "new"]


def test_a_folder_that_came_meanwhile_is_kept(tmp_path, system):
    run = {step: {"w": np.full(3, step, np.float32)} for step in STEPS}
    out = tmp_path / "checkpoint-1500"

    def put(*_):
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"a trainer's")

    with pytest.raises(wfcast.CheckpointError, match="something was put there meanwhile"):
        wfcast.forecast_checkpoint(LINE, run, 1500, out, shard_size=10**9, progress=put)
    assert (out / "model.safetensors").read_bytes() == b"a trainer's"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_the_longest_names_there_may_be(tmp_path):
    name = "\N{CJK UNIFIED IDEOGRAPH-6F22}" * 85  # of three bytes each
    left = tmp_path / f".{name[:66]}\udce6\udcbc.0123456789ab.tmp"
    left.touch()
    with atomic_file(tmp_path / name) as file:
        file.write(b"new")
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """SIGKILL leaves the old folder or the new one, and the next run leaves nothing behind."""
    paths = {step: tmp_path / str(step) for step in STEPS}
    rng = np.random.default_rng(0)
    state = {f"w{k}": torch.from_numpy(rng.normal(size=1 << 19).astype("f4")) for k in range(12)}
    from safetensors.torch import save_file

    for step, path in paths.items():
        path.mkdir()
        save_file({k: v + step for k, v in state.items()}, path / "model.safetensors")
    out = tmp_path / "out"
    new = wfcast.persistence(STEPS, (1500,))
    new.save(tmp_path / "persistence.safetensors")

    def forecast(farcaster, *, kill_after=None):
        command = [sys.executable, "-P", "-m", "wfcast", "forecast", *map(str, paths.values())]
        command += ["--farcaster", str(farcaster), "--step", "1500", "--out", str(out)]
        command += ["--overwrite", "--shard-size", "5MB"]
        process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        return process.wait()

    LINE.save(tmp_path / "line.safetensors")
    begun = time.monotonic()
    assert forecast(tmp_path / "line.safetensors") == 0
    whole = time.monotonic() - begun
    killed = 0
    for k in range(20):
        farcaster = tmp_path / ("persistence" if k % 2 else "line")
        code = forecast(
            farcaster.with_suffix(".safetensors"), kill_after=whole * rng.uniform(0.3, 1.1)
        )
        killed += code == -signal.SIGKILL
        checkpoint = open_checkpoint(out)
        values = [checkpoint.value(name) for name in sorted(state)]
        is_line = np.allclose(values[0], state["w0"].numpy() + 1500, atol=1e-2)
        shift = 1500 if is_line else 500
        for name, value in zip(sorted(state), values, strict=True):
            np.testing.assert_allclose(value, state[name].numpy() + shift, atol=1e-2)
    assert killed > 5
    assert forecast(tmp_path / "line.safetensors") == 0
    assert not list(tmp_path.glob(".*.tmp"))


def test_partial_says_what_is_left_out(tmp_path):
    a = {"x": np.zeros(3, np.float32), "y": np.zeros(2, np.float32)}
    b = {"x": np.ones(3, np.float32)}
    mf = wfcast.linear_trend((0, 1), (2,))
    out = tmp_path / "o.safetensors"
    with pytest.warns(UserWarning, match="left out, as step 1 lacks them: y"):
        report = wfcast.forecast_checkpoint(mf, {0: a, 1: b}, 2, out, partial=True)
    assert report.skipped == ("y",)
    assert report.to_dict()["skipped"] == ["y"]
    assert "0 copied, 1 skipped\nskipped, as the last input lacks them: y" in str(report)


def test_arguments_of_another_kind(tmp_path):
    run = {t: {"x.weight": np.full(3, t, np.float32), "x.bias": np.zeros(2)} for t in (0, 1)}
    mf = wfcast.linear_trend((0, 1), (2,))
    out = tmp_path / "o.safetensors"
    for wrong, message in [
        ({"format": "pt"}, "format is 'pt', expected 'safetensors', 'torch' or 'dcp'"),
        ({"shard_size": "5GB"}, "shard_size is '5GB', expected a number of bytes"),
        ({"mf": "fc.safetensors"}, "mf is a str, expected an Operator or a fitted ModelFarcaster"),
    ]:
        with pytest.raises(wfcast.WfcastError, match=message):
            wfcast.forecast_checkpoint(**{"mf": mf, "run": run, "step": 2, "out": out, **wrong})
    report = wfcast.forecast_checkpoint(mf, run, 2, out, include="*.weight")  # one pattern
    assert report.forecast == ("x.weight",)
    report = wfcast.forecast_checkpoint(mf, run, 2, out, exclude="*.weight")
    assert report.forecast == ("x.bias",)
