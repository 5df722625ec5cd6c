"""Farcasting inside the real trainers of transformers and Lightning."""

import pytest

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
pytest.importorskip("transformers")  # the same
pytest.importorskip("accelerate")  # what the Trainer needs
pl = pytest.importorskip("lightning.pytorch")

import loops  # noqa: E402  only with them
from models import small  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from trainers import Counting, Module, fit, make, tokenizer  # noqa: E402
from transformers import EarlyStoppingCallback, TrainerCallback  # noqa: E402

from wfcast import WfcastError  # noqa: E402
from wfcast.torch import FarcastingCallback  # noqa: E402
from wfcast.torch.lightning import FarcastingCallback as Lightning  # noqa: E402

FAST = {"spacing": 5, "period": 10, "recovery": 5, "max_loss": 0.9}


def train(folder, callback, steps=50, resume=None, **arguments):
    trainer = make(folder, callback, steps=steps, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_trainer_jumps_and_resumes(tmp_path):
    callback = FarcastingCallback(**FAST)
    trainer = train(tmp_path / "run", callback)
    history = callback.farcasting.history
    assert len(history) >= 3
    assert all(e["outcome"] in ("kept", "rolled back") for e in history)  # none left under way
    assert "farcasting/horizon" in trainer.state.log_history[0]
    for step in (13, 26, 39):
        again = FarcastingCallback(**FAST)
        folder = tmp_path / "run" / f"checkpoint-{step}"
        other = train(tmp_path / "run", again, resume=str(folder))
        assert loops.equal(other.model.state_dict(), trainer.model.state_dict())
        assert [e["step"] for e in again.farcasting.history] == [e["step"] for e in history]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_trainer_with_accumulation(tmp_path):
    callback = FarcastingCallback(**FAST)
    train(tmp_path / "run", callback, steps=22, gradient_accumulation_steps=2)
    assert callback.farcasting.history[0]["step"] == 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_resumed_without_a_saved_state(tmp_path):
    train(tmp_path / "run", FarcastingCallback(**FAST), steps=13)
    folder = tmp_path / "run" / "checkpoint-13"
    (folder / "farcasting.pt").unlink()
    with pytest.warns(UserWarning, match="Farcasting begins anew"):
        train(tmp_path / "run", FarcastingCallback(**FAST), steps=15, resume=str(folder))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["distilbert", "gpt2"])
def test_the_loss_of_an_accumulated_step(kind, tmp_path):
    """Whether the model's losses are means of their own or shares of the step's, as GPT-2's are."""
    callback = FarcastingCallback(**FAST)
    settings = {"gradient_accumulation_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    trainer = train(tmp_path, callback, steps=16, kind=kind, **settings)
    logged = [e["loss"] for e in trainer.state.log_history if e["step"] == 10]
    assert callback.farcasting.history[0]["step"] == 10
    assert callback.farcasting.history[0]["loss_before"] == pytest.approx(logged[0], rel=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_best_model_is_loaded_at_the_end(tmp_path):
    """Training stops early while a bad jump is under way: the best weights are not taken back."""
    callback = FarcastingCallback(**{**FAST, "recovery": 50}, horizon=1e5)
    trainer = make(
        tmp_path,
        callback,
        EarlyStoppingCallback(1),
        steps=80,
        save_steps=6,
        eval_strategy="steps",
        eval_steps=6,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    assert trainer.state.global_step == 12
    assert callback.farcasting.history[-1]["outcome"] == "pending"
    best = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    weights = trainer.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in best.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_judge_beside_evaluations_and_early_stopping(tmp_path):
    """The evaluation loop as a judge takes no evaluation's place and counts for none."""
    judged = []

    def judge():
        loader = trainer.get_eval_dataloader()
        judged.append(trainer.evaluation_loop(loader, "judge").metrics["eval_loss"])
        return judged[-1]

    callback = FarcastingCallback(**FAST, judge=judge)
    trainer = make(
        tmp_path,
        callback,
        EarlyStoppingCallback(3),
        steps=30,
        save_steps=5,
        eval_strategy="steps",
        eval_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    assert len(judged) >= 4
    evaluated = [e["step"] for e in trainer.state.log_history if "eval_loss" in e]
    assert evaluated == [5, 10, 15, 20, 25, 30]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_resumed_after_an_interruption_and_from_elsewhere(tmp_path):
    """The weights of the checkpoint stay, whatever jump the broken off training was in."""
    whole = train(tmp_path / "whole", FarcastingCallback(**FAST))

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            history = callback.farcasting.history
            if state.global_step == 17 and history and history[-1]["outcome"] == "pending":
                raise KeyboardInterrupt

    # a jump at step 16 that is far too long: it is under way when the training is broken off
    callback = FarcastingCallback(**{**FAST, "recovery": 20}, start=6, horizon=1e5)
    trainer = make(tmp_path / "other", callback, Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    callback.parameters = FAST
    folder = tmp_path / "whole" / "checkpoint-13"
    with pytest.warns(UserWarning, match="of this run: Farcasting begins anew"):
        trainer.train(resume_from_checkpoint=str(folder))
    trainer = make(tmp_path / "other", callback, resume_from_checkpoint=str(folder))
    trainer.train(resume_from_checkpoint=str(folder))
    assert loops.equal(trainer.model.state_dict(), whole.model.state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_nothing_is_saved_beside_bare_models(tmp_path):
    train(tmp_path, FarcastingCallback(**FAST), steps=13, save_only_model=True)
    assert (tmp_path / "checkpoint-13" / "model.safetensors").is_file()
    assert not (tmp_path / "checkpoint-13" / "farcasting.pt").exists()


# ---- Lightning ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_jumps_and_resumes(tmp_path):
    class SaveAt23(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 23:
                trainer.save_checkpoint(tmp_path / "part.ckpt")

    module, other = Module(), Module()
    callback = Lightning(**FAST)
    fit(module, callback, SaveAt23())
    assert len(callback.farcasting.history) >= 3
    again = Lightning(**FAST)
    fit(other, again, checkpoint=tmp_path / "part.ckpt")
    assert loops.equal(other.state_dict(), module.state_dict())
    steps = [[e["step"] for e in c.farcasting.history] for c in (callback, again)]
    assert steps[0] == steps[1]


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_accumulates_and_stops_early():
    """The loss is that of the whole step; a jump under way at the end is judged."""
    callback = Lightning(**{**FAST, "recovery": 20})

    class Losses(pl.Callback):
        seen = ()

        def on_train_batch_end(self, trainer, module, outputs, *_):
            self.seen = (*self.seen, float(trainer.callback_metrics["loss"]))

    class StopAt13(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 13

    losses = Losses()
    module = Module(offset=100)  # a batch of its own for each part of a step
    trainer = fit(module, callback, losses, StopAt13(), accumulate_grad_batches=2)
    assert trainer.global_step == 13
    (entry,) = callback.farcasting.history
    assert entry["step"] == 10
    assert entry["loss_before"] == pytest.approx(sum(losses.seen[18:20]) / 2, rel=1e-5)
    assert entry["outcome"] in ("kept", "rolled back")


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_after_an_error():
    """The module may be trained again, with another callback, and keeps what it was given."""

    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 12:
                raise RuntimeError("broken off")

    module = Module()
    first = Lightning(**{**FAST, "recovery": 20})
    with pytest.raises(RuntimeError, match="broken off"):
        fit(module, first, Breaks())
    assert first.farcasting.history[-1]["outcome"] == "pending"
    second = Lightning(**FAST)
    fit(module, second)
    assert second.farcasting.history


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_with_several_optimizers():
    with pytest.raises(WfcastError, match="the module has 2 optimizers, expected one"):
        fit(Module(optimizers=2), Lightning(**FAST))


@pytest.mark.parametrize("callback", [FarcastingCallback, Lightning])
@pytest.mark.parametrize("name", ["perod", "model"])
def test_a_parameter_that_farcasting_lacks(callback, name):
    with pytest.raises(TypeError, match=f"there is no parameter '{name}', expected some of"):
        callback(**{name: 3})


# ---- TRL ----------------------------------------------------------------------------------------


@pytest.mark.slow  # to import
@pytest.mark.filterwarnings("ignore")  # TRL's own and those of what it imports
def test_trl(tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": Counting()[i]["input_ids"].tolist()} for i in range(64)]
    callback = FarcastingCallback(**FAST)
    settings = SFTConfig(
        str(tmp_path),
        max_steps=25,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        small("gpt2"),
        settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[callback],
    )
    trainer.train()
    assert [entry["step"] for entry in callback.farcasting.history] == [10, 20]
