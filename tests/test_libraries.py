"""Checkpoints that the Hugging Face Trainer, Accelerate and PEFT write in real training."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import wfcast
from wfcast.checkpoint import open_checkpoint

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
transformers = pytest.importorskip("transformers")  # the same
accelerate = pytest.importorskip("accelerate")  # only the tests use it
peft = pytest.importorskip("peft")  # the same

from models import Opened, small  # noqa: E402  only with them

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(wfcast.__file__).parents[1])}
LINE = wfcast.linear_trend((2, 4), (8,))


def wf(*args):
    """The command line in a process of its own; its JSON, and what it logged."""
    command = [sys.executable, "-m", "wfcast", *map(str, args), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def texts():
    rows = torch.randint(5, 64, (64, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row.clone()} for row in rows]


def state(path):
    """Names -> float64 arrays of a checkpoint of any kind."""
    found = open_checkpoint(path)
    return {name: np.asarray(found.value(name)).astype(np.float64) for name in found.tensors}


def trained(folder, seed):
    """A run folder as the Trainer leaves it: checkpoint-2, -4, ... -8."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        save_steps=2,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=seed,
    )
    trainer = transformers.Trainer(
        model=small("distilbert", seed), args=arguments, train_dataset=texts()
    )
    trainer.train()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("trainer")
    return [trained(root / f"run-{seed}", seed) for seed in range(3)]


@pytest.mark.slow
def test_the_trainer(runs, tmp_path):
    *earlier, fresh = runs
    for folder in runs:
        assert {p.name for p in folder.iterdir()} == {f"checkpoint-{n}" for n in (2, 4, 6, 8)}
    saved = tmp_path / "farcaster.safetensors"
    fit = ("fit", *earlier, "--inputs", "2,4", "--targets", "6,8", "-o", saved)
    assert wf(*fit)[0]["runs"] == 2
    # a pickle that would make a file: it must not be opened
    ran = tmp_path / "ran"
    for step in (2, 4):
        torch.save(Opened(ran), fresh / f"checkpoint-{step}" / "training_args.bin")
    out = tmp_path / "forecast"
    done, _ = wf(
        "forecast",
        *(fresh / f"checkpoint-{step}" for step in (2, 4)),
        *("--farcaster", saved, "--step", 8, "-o", out),
    )
    assert not ran.exists()
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin"} <= set(
        done["left"]
    )
    assert any(name.startswith("rng_state") for name in done["left"])
    assert {p.name for p in out.iterdir()} == {"model.safetensors", *done["carried"]}
    op = wfcast.load(saved)
    a, b = (state(fresh / f"checkpoint-{step}") for step in (2, 4))
    model, loading = transformers.AutoModelForMaskedLM.from_pretrained(
        out, output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for name in a:
        c = op.coef[name][-1]
        expected = c[0] * a[name] + c[1] * b[name] + op.intercept[name][-1]
        got = model.state_dict()[name].double().numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
    words = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is words
    errors, _ = wf("compare", out, fresh / "checkpoint-8")
    assert errors["total"]["n"] == sum(v.size for v in a.values())


@pytest.mark.slow
def test_an_unfinished_checkpoint_of_the_trainer(runs, tmp_path):
    unfinished = runs[1] / "checkpoint-10"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    mf = wfcast.ModelFarcaster((2, 4), (6, 8))
    with pytest.warns(UserWarning, match=r"left out.*checkpoint-10' holds no finished checkpoint"):
        mf.fit([runs[0], runs[1]])
    with pytest.raises(wfcast.CheckpointError, match="checkpoint-10' holds no finished checkpoint"):
        wfcast.forecast_checkpoint(LINE, {2: runs[1] / "checkpoint-2", 4: unfinished}, 8, tmp_path)
    unfinished.joinpath("config.json").unlink()
    unfinished.rmdir()


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "torch"])
def test_accelerate(tmp_path, safe):
    accelerator = accelerate.Accelerator(cpu=True)
    model = small("distilbert", 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    states = {}
    for step in range(1, 5):
        batch = {k: torch.stack([t[k] for t in texts()[:8]]) for k in ("input_ids", "labels")}
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
        if step in (2, 4):
            accelerator.save_state(str(tmp_path / f"step_{step}"), safe_serialization=safe)
            states[step] = {k: v.clone() for k, v in model.state_dict().items()}
    out = tmp_path / "out"
    report = wfcast.forecast_checkpoint(LINE, {s: tmp_path / f"step_{s}" for s in (2, 4)}, 8, out)
    assert "optimizer.bin" in report.left
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors" if safe else "pytorch_model.bin",
        *report.carried,
    }
    fresh = small("distilbert", 1)
    accelerate.load_checkpoint_in_model(fresh, str(out))
    for name, value in fresh.state_dict().items():
        expected = 3 * states[4][name].double() - 2 * states[2][name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    accelerate.Accelerator().free_memory()


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "torch"])
def test_accelerate_with_several_models(tmp_path, safe):
    """`save_state` numbers the files of all models but the first."""
    accelerator = accelerate.Accelerator(cpu=True)
    models = accelerator.prepare(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    states = {}
    for step in (2, 4):
        with torch.no_grad():
            for p in (p for model in models for p in model.parameters()):
                p.mul_(1.5).add_(step)
        accelerator.save_state(str(tmp_path / f"step_{step}"), safe_serialization=safe)
        states[step] = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    run = {s: tmp_path / f"step_{s}" for s in (2, 4)}
    report = wfcast.forecast_checkpoint(LINE, run, 8, tmp_path / "out")
    second = "model_1" if safe else "pytorch_model_1"
    assert set(report.forecast) == {"weight", "bias", f"{second}/weight", f"{second}/bias"}
    for path in run[4].glob("random_states*"):  # which load_state asks for
        (tmp_path / "out" / path.name).write_bytes(path.read_bytes())
    accelerator.load_state(str(tmp_path / "out"))
    for k, model in enumerate(models):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, 3 * states[4][k][name] - 2 * states[2][k][name])
    accelerator.free_memory()
    with pytest.raises(wfcast.CheckpointError, match="is a folder of several modules"):
        wfcast.forecast_checkpoint(LINE, run, 8, tmp_path / "one.safetensors")


@pytest.mark.parametrize("jump", ["forecast", "anneal"])
def test_sentence_transformers(tmp_path, jump):
    """A model of several modules, each of which has a folder, with weights or without."""
    sentence = pytest.importorskip("sentence_transformers")  # an extra of the tests
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    small("distilbert").base_model.save_pretrained(tmp_path / "base")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "base")
    text = Transformer(str(tmp_path / "base"), max_seq_length=16)
    width = text.get_embedding_dimension()
    model = sentence.SentenceTransformer(
        modules=[text, Pooling(width), Dense(width, 8)], device="cpu"
    )
    states = {}
    for step in (2, 4):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1).add_(0.01)
        model.save(str(tmp_path / f"run/checkpoint-{step}"))
        states[step] = {k: v.clone() for k, v in model.state_dict().items()}
    out, run = tmp_path / "out", {s: tmp_path / f"run/checkpoint-{s}" for s in (2, 4)}
    if jump == "forecast":
        report = wfcast.forecast_checkpoint(LINE, run, 8, out)
        assert "2_Dense/linear.weight" in report.forecast
        assert "1_Pooling/config.json" in report.carried
    else:
        wfcast.anneal_run(run, out, "mean")
    loaded = sentence.SentenceTransformer(str(out), device="cpu")
    a, b = (-2, 3) if jump == "forecast" else (0.5, 0.5)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, a * states[2][name] + b * states[4][name])
    assert loaded.encode(["a b c"]).shape == (1, 8)


FSDP = """
    import os, sys
    from types import SimpleNamespace

    import accelerate
    import torch
    import torch.distributed as dist
    from accelerate.utils import FullyShardedDataParallelPlugin, load_fsdp_model, save_fsdp_model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind, folder, tests = sys.argv[1:]
    sys.path.insert(0, tests)
    from models import small
    import wfcast

    # Accelerate itself shards only on accelerators; what saves and loads does its work on CPUs too
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind)
    alone = SimpleNamespace(
        is_fsdp2=True, is_main_process=True, process_index=0, num_processes=1,
        wait_for_everyone=lambda: None, state=accelerate.Accelerator(cpu=True).state,
    )
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    model, fresh = small("llama"), small("llama", 1)
    for one in (model, fresh):
        fully_shard(one, mesh=init_device_mesh("cpu", (1,)))
    run, states = {}, {}
    for step in (2, 4):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.01).add_(0.01)
        run[step] = f"{folder}/checkpoint-{step}"
        save_fsdp_model(plugin, alone, model, run[step])
        os.mkdir(f"{run[step]}/optimizer_0")
        states[step] = {n: v.full_tensor().double() for n, v in model.state_dict().items()}
    report = wfcast.forecast_checkpoint(wfcast.linear_trend((2, 4), (8,)), run, 8, f"{folder}/out")
    assert report.left == ("optimizer_0",), report.left
    load_fsdp_model(plugin, alone, fresh, f"{folder}/out")
    for name, value in fresh.state_dict().items():
        wanted = 3 * states[4][name] - 2 * states[2][name]
        torch.testing.assert_close(value.full_tensor().double(), wanted, rtol=1e-5, atol=1e-6)
    print(sorted(os.listdir(f"{folder}/out")), flush=True)
    os._exit(0)  # threads of gloo now and then abort an interpreter that ends
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "made"),
    [("SHARDED_STATE_DICT", "pytorch_model_fsdp_0"), ("FULL_STATE_DICT", "pytorch_model_fsdp.bin")],
)
def test_accelerate_with_fsdp(tmp_path, kind, made):
    """As Accelerate, and the Trainer with it, keep the weights of a sharded model."""
    code, tests = textwrap.dedent(FSDP), str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, kind, str(tmp_path), tests],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([made])
    report = wfcast.inspect(tmp_path)
    assert [c["name"] for c in report.checkpoints] == ["checkpoint-2", "checkpoint-4"]
    mf = wfcast.ModelFarcaster((2,), (4,), beta=0.0).fit([tmp_path])
    assert "lm_head.weight" in mf.coef_


def adapter(base_seed, path, base):
    """A LoRA adapter, trained for two steps, then for two more."""
    small("distilbert", base_seed).save_pretrained(base)
    model = transformers.AutoModelForMaskedLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_lin", "v_lin"])
    adapted = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    batch = {k: torch.stack([t[k] for t in texts()[:8]]) for k in ("input_ids", "labels")}
    for step in range(1, 5):
        adapted(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (2, 4):
            adapted.save_pretrained(path / f"checkpoint-{step}")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT's own
def test_peft(tmp_path):
    """Factor by factor, where asked for: A and B are the lines through A and B, not through BA."""
    adapter(0, tmp_path / "run", tmp_path / "base-model")
    run = {step: tmp_path / "run" / f"checkpoint-{step}" for step in (2, 4)}
    out = tmp_path / "out"
    report = wfcast.forecast_checkpoint(LINE, run, 8, out, adapters="factors")
    assert "adapter_config.json" in report.carried
    a, b, c = (state(path) for path in (*run.values(), out))
    assert len(c) == 2 * 2 * 2
    for name in c:
        assert ".lora_A." in name or ".lora_B." in name
        np.testing.assert_allclose(c[name], 3 * b[name] - 2 * a[name], rtol=1e-5, atol=1e-7)
    loaded = peft.PeftModel.from_pretrained(small("distilbert", 0), out)
    got = peft.get_peft_model_state_dict(loaded)
    for name, value in got.items():
        np.testing.assert_array_equal(value.double().numpy(), c[name])
    adapter(0, tmp_path / "other", tmp_path / "another-model")
    mixed = {2: run[2], 4: tmp_path / "other" / "checkpoint-4"}
    with pytest.raises(wfcast.CheckpointError, match=r"another-model'.*base-model'"):
        wfcast.forecast_checkpoint(LINE, mixed, 8, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# ---- tied weights, by file and by state dict -----------------------------------------------------


def moving(seed, keep):
    """A GPT-2 that drifts; what `keep(model, step)` makes of it at steps 0, 10, 20 and 30."""
    model = small("gpt2", seed)
    drift = [torch.randn_like(p) / 100 for p in model.parameters()]
    kept = {}
    for step in (0, 10, 20, 30):
        with torch.no_grad():
            for parameter, change in zip(model.parameters(), drift, strict=True):
                parameter.add_(change)
        kept[step] = keep(model, step)
    return model, kept


@pytest.mark.parametrize("fitted", ["files", "modules"])
@pytest.mark.parametrize("used", ["files", "modules"])
def test_tied_weights_go_by_file_and_by_state_dict(tmp_path, fitted, used):
    """A file has a tied tensor once, a state dict twice: neither minds the other."""

    def runs(kind, seed):
        def keep(model, step):
            if kind == "files":
                model.save_pretrained(tmp_path / f"{seed}-{step}")
                return tmp_path / f"{seed}-{step}"
            twin = type(model)(model.config)
            twin.load_state_dict(model.state_dict())
            return twin.state_dict()

        return moving(seed, keep)

    mf = wfcast.ModelFarcaster((0, 10), (20, 30)).fit([runs(fitted, 1)[1], runs(fitted, 2)[1]])
    model, run = runs(used, 3)
    future = mf.predict(run, 30)
    assert ("lm_head.weight" in future) == (used == "modules")
    if used == "modules":
        model.load_state_dict(future)
        assert model.lm_head.weight is model.transformer.wte.weight
        assert torch.equal(model.lm_head.weight, future["lm_head.weight"])


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_loads_what_was_forecast(tmp_path):
    """Its hyperparameters and its version go along; the optimizer and the loops do not."""
    pl = pytest.importorskip("lightning.pytorch")

    class Net(pl.LightningModule):
        def __init__(self, hidden, rate=0.01):
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, hidden), torch.nn.BatchNorm1d(hidden))

        def training_step(self, batch, _):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.hparams.rate)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"step={trainer.global_step}.ckpt")

    trainer = pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Save()],
        default_root_dir=tmp_path,
    )
    rows = torch.utils.data.TensorDataset(torch.randn(32, 4))
    trainer.fit(Net(hidden=24), torch.utils.data.DataLoader(rows, batch_size=4))
    run = {s: tmp_path / f"step={s}.ckpt" for s in (2, 4)}
    report = wfcast.forecast_checkpoint(LINE, run, 8, tmp_path / "out.ckpt")
    assert {"optimizer_states", "lr_schedulers", "loops", "callbacks"} <= set(report.left)
    assert {"hyper_parameters", "pytorch-lightning_version"} <= set(report.carried)
    loaded = Net.load_from_checkpoint(tmp_path / "out.ckpt", map_location="cpu")
    assert loaded.hparams == {"hidden": 24, "rate": 0.01}
    a, b = (torch.load(run[s], weights_only=True)["state_dict"] for s in (2, 4))
    torch.testing.assert_close(
        loaded.net[0].weight.detach(), 3 * b["net.0.weight"] - 2 * a["net.0.weight"]
    )
