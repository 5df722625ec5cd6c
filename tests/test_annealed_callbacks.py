"""Readouts inside the real trainers of transformers and Lightning."""

import pytest

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
pytest.importorskip("transformers")  # the same
pytest.importorskip("accelerate")  # what the Trainer needs
pl = pytest.importorskip("lightning.pytorch")

import loops  # noqa: E402  only with them
import transformers  # noqa: E402
from models import small  # noqa: E402
from trainers import Counting, Module, fit, make, tokenizer  # noqa: E402

from wfcast import WfcastError  # noqa: E402
from wfcast.torch import AnnealedCallback  # noqa: E402
from wfcast.torch.lightning import AnnealedCallback as Lightning  # noqa: E402

quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def evaluated(trainer):
    loader = trainer.get_eval_dataloader()
    return trainer.evaluation_loop(loader, "x").metrics["eval_loss"]


def readout_of(annealed):
    with annealed.applied():
        return loops.weights(annealed.model)


@quiet
def test_trainer(tmp_path):
    """The run is that without the callback; evaluations and checkpoints have the readout, too."""
    plain = make(tmp_path / "plain", steps=26, eval_strategy="steps", eval_steps=13)
    plain.train()
    callback = AnnealedCallback(every=2)
    trainer = make(tmp_path / "run", callback, steps=26, eval_strategy="steps", eval_steps=13)
    trainer.processing_class = tokenizer()
    trainer.train()
    assert loops.equal(trainer.model.state_dict(), plain.model.state_dict())
    logs = [{**e} for e in trainer.state.log_history if "eval_annealed_loss" in e]
    assert [e["step"] for e in logs] == [13, 26]
    own = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert own == [e["eval_loss"] for e in plain.state.log_history if "eval_loss" in e]
    assert trainer.evaluate()["eval_annealed_loss"] == logs[-1]["eval_annealed_loss"] != own[-1]
    with callback.annealed.applied():
        assert evaluated(trainer) == logs[-1]["eval_annealed_loss"]

    folder = tmp_path / "run" / "checkpoint-26" / "annealed"
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    assert loops.equal(loaded.state_dict(), readout_of(callback.annealed))
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == 64
    names = sorted(path.name for path in folder.parent.glob("annealed*"))
    assert names == ["annealed", "annealed.pt"]
    outside = transformers.AutoModelForMaskedLM.from_pretrained(folder.parent)
    assert loops.equal(outside.state_dict(), trainer.model.state_dict())

    again = AnnealedCallback(every=2)
    other = make(tmp_path / "run", again, steps=26, eval_strategy="steps", eval_steps=13)
    other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-13"))
    assert loops.equal(again.annealed.state_dict(), callback.annealed.state_dict())


@quiet
def test_trainer_chooses_and_ends_with_the_readout(tmp_path):
    """A judge may be an evaluation of the trainer; the best checkpoint may be the readout's."""
    callback = AnnealedCallback(
        judge=lambda: trainer.evaluate(metric_key_prefix="judge")["judge_loss"], final=True, every=1
    )
    trainer = make(tmp_path, callback, steps=26, eval_strategy="steps", eval_steps=13)
    trainer.train()
    logs = [e for e in trainer.state.log_history if "eval_annealed_loss" in e]
    assert logs[-1]["eval_annealed_loss"] == logs[-1]["annealed/loss/latest"] or (
        logs[-1]["eval_annealed_loss"]
        == min(value for name, value in logs[-1].items() if name.startswith("annealed/loss"))
    )
    readout = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "checkpoint-26" / "annealed"
    )
    assert loops.equal(trainer.model.state_dict(), readout.state_dict())
    assert "eval_annealed_loss" not in trainer.evaluate()  # the model is the readout

    trainer = make(
        tmp_path / "best",
        AnnealedCallback(every=3),
        eval_strategy="steps",
        eval_steps=13,
        steps=26,
        load_best_model_at_end=True,
        metric_for_best_model="eval_annealed_loss",
    )
    trainer.train()
    assert trainer.state.best_metric == min(
        e["eval_annealed_loss"] for e in trainer.state.log_history if "eval_annealed_loss" in e
    )
    trainer.add_callback(AnnealedCallback(final=True))
    with pytest.raises(WfcastError, match="would both decide"):
        trainer.train()


@quiet
def test_trainer_fails_in_a_save(tmp_path, monkeypatch):
    """No half of a readout is left, and the run has its own weights."""
    callback = AnnealedCallback(every=1)
    trainer = make(tmp_path, callback, steps=13)
    save = trainer.save_model
    kept = []

    def failing(folder, **settings):
        save(folder, **settings)
        if "annealed" in folder:
            kept.append(loops.weights(trainer.model))
            raise OSError("no space left")

    monkeypatch.setattr(trainer, "save_model", failing)
    with pytest.raises(OSError, match="no space left"):
        trainer.train()
    assert not list((tmp_path / "checkpoint-13").glob("annealed*"))
    saved = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint-13")
    assert loops.equal(trainer.model.state_dict(), saved.state_dict())
    assert not loops.equal(kept[0], saved.state_dict())


@quiet
def test_trainer_before_there_is_an_average(tmp_path):
    trainer = make(tmp_path, AnnealedCallback(every=100, final=True), steps=13)
    trainer.train()
    assert "eval_annealed_loss" not in trainer.evaluate()
    assert not (tmp_path / "checkpoint-13" / "annealed").exists()


@pytest.mark.parametrize("callback", [AnnealedCallback, Lightning])
def test_a_parameter_that_annealed_lacks(callback):
    with pytest.raises(TypeError, match="there is no parameter 'profile', expected some of profi"):
        callback(profile=3)


# ---- Lightning ----------------------------------------------------------------------------------


class Validated(Module):
    def validation_step(self, batch, index):
        self.log("held_out", loops.held_out(self.net), batch_size=1)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(range(1), batch_size=None)


class SaveAt(pl.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning(tmp_path):
    """The run is that without the callback; validations and checkpoints have the readout."""
    plain, module = Validated(), Validated()
    fit(plain)
    callback = Lightning(every=3)
    trainer = fit(module, callback, SaveAt(23, tmp_path / "part"), SaveAt(40, tmp_path / "whole"))
    assert loops.equal(module.state_dict(), plain.state_dict())
    with callback.annealed.applied():
        readout = loops.weights(module)
        assert float(trainer.callback_metrics["held_out"]) == pytest.approx(
            loops.held_out(module.net)
        )
    loaded = Validated.load_from_checkpoint(tmp_path / "whole", weights_only=True)
    assert loops.equal(loaded.state_dict(), readout)
    other, again = Validated(), Lightning(every=3)
    fit(other, again, checkpoint=tmp_path / "part")
    assert loops.equal(other.state_dict(), module.state_dict())
    assert loops.equal(again.annealed.state_dict(), callback.annealed.state_dict())


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_ends_with_the_readout_or_an_error():
    module, callback = Validated(), Lightning(every=3, final=True)
    fit(module, callback)
    own = Validated()
    fit(own)
    assert not loops.equal(module.state_dict(), own.state_dict())
    assert loops.equal(module.state_dict(), readout_of(callback.annealed))

    class Breaks(Validated):
        def validation_step(self, batch, index):
            if self.trainer.global_step:
                raise RuntimeError("broken off")

    module = Breaks()
    with pytest.raises(RuntimeError, match="broken off"):
        fit(module, Lightning(every=3))
    assert loops.equal(module.state_dict(), own.state_dict())


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_accumulates():
    callback = Lightning(every=1)
    fit(Module(offset=100), callback, steps=13, accumulate_grad_batches=2)
    assert callback.annealed.n_steps == 13


# ---- TRL ----------------------------------------------------------------------------------------


@pytest.mark.slow  # to import
@pytest.mark.filterwarnings("ignore")  # TRL's own and those of what it imports
def test_trl(tmp_path):
    """What TRL counts by itself is told apart."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list(
        [{"input_ids": Counting()[i]["input_ids"].tolist()} for i in range(64)]
    )
    settings = SFTConfig(
        str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=10,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        small("gpt2"),
        settings,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer(),
        callbacks=[AnnealedCallback(every=1)],
    )
    trainer.train()
    own, readout = (
        [e for e in trainer.state.log_history if f"{prefix}loss" in e]
        for prefix in ("eval_", "eval_annealed_")
    )
    assert [e["step"] for e in own] == [e["step"] for e in readout] == [10, 20]
    assert own[-1]["eval_mean_token_accuracy"] > 0
    assert readout[-1]["eval_annealed_mean_token_accuracy"] > 0
    assert "eval_mean_token_accuracy" not in readout[-1]
