"""Farcasting inside the real trainers of transformers and TRL."""

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
pytest.importorskip("transformers")  # the same
pytest.importorskip("accelerate")  # what the Trainer needs
pytest.importorskip("lightning")  # trainers imports it

import loops  # noqa: E402  only with them
from models import small  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from trainers import (  # noqa: E402
    FAST,
    WINDOW,
    At,
    Counting,
    Spy,
    Watch,
    make,
    the_jump,
    tokenizer,
    weights,
)
from transformers import EarlyStoppingCallback, TrainerCallback  # noqa: E402

from wfcast import WfcastError  # noqa: E402
from wfcast.torch import FarcastingCallback  # noqa: E402
from wfcast.torch.lightning import FarcastingCallback as Lightning  # noqa: E402


def stop(control):
    control.should_training_stop = True


def interrupt(control):
    raise KeyboardInterrupt


def train(folder, callback, steps=50, resume=None, **arguments):
    trainer = make(folder, callback, steps=steps, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_trainer_jumps_and_resumes(tmp_path):
    callback = FarcastingCallback(**FAST)
    trainer = train(tmp_path / "run", callback)
    history = callback.farcasting.history
    assert [e["step"] for e in history][:2] == [16, 32]  # saves are at 13, 26, 39
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
    assert callback.farcasting.history[0]["step"] == 16


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_resumed_without_a_saved_state(tmp_path):
    train(tmp_path / "run", FarcastingCallback(**FAST), steps=13)
    folder = tmp_path / "run" / "checkpoint-13"
    (folder / "farcasting.pt").unlink()
    with pytest.warns(UserWarning, match="Farcasting begins anew"):
        train(tmp_path / "run", FarcastingCallback(**FAST), steps=20, resume=str(folder))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["distilbert", "gpt2"])
def test_the_loss_of_an_accumulated_step(kind, tmp_path):
    """Whether the model's losses are means of their own or shares of the step's, as GPT-2's are."""
    callback = FarcastingCallback(**FAST)
    settings = {"gradient_accumulation_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    trainer = train(tmp_path, callback, steps=20, kind=kind, **settings)
    logged = [e["loss"] for e in trainer.state.log_history if e["step"] == 16]
    assert callback.farcasting.history[0]["step"] == 16
    assert callback.farcasting.history[0]["loss_before"] == pytest.approx(logged[0], rel=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("end", [16, 18])
def test_the_best_model_is_loaded_at_the_end(end, tmp_path):
    """Training stops under a jump, at the end of an epoch or within one: the best is what stays."""

    class StopsEpoch(TrainerCallback):
        def on_epoch_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= end

    callback = FarcastingCallback(**FAST)
    trainer = make(
        tmp_path,
        callback,
        StopsEpoch() if end == 16 else At(end, stop),
        steps=80,
        save_steps=15,
        eval_strategy="steps",
        eval_steps=15,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    assert (trainer.state.global_step, the_jump(callback, end)) == (end, 16)
    best = load_file(tmp_path / "checkpoint-15" / "model.safetensors")
    left = trainer.model.state_dict()
    assert all(torch.equal(left[name], value) for name, value in best.items())


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
        save_steps=15,
        eval_strategy="steps",
        eval_steps=15,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    assert len(judged) >= 4
    evaluated = [e["step"] for e in trainer.state.log_history if "eval_loss" in e]
    assert evaluated == [15, 30]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_resumed_after_an_interruption_and_from_elsewhere(tmp_path):
    """The weights of the checkpoint stay, whatever jump the broken off training was in."""
    whole = train(tmp_path / "whole", FarcastingCallback(**FAST))
    callback = FarcastingCallback(**FAST)
    trainer = make(tmp_path / "other", callback, At(18, interrupt), save_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert the_jump(callback, 18) == 16
    trainer.remove_callback(At)
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


# ---- never a damaged keep -----------------------------------------------------------------------


class Seen(TrainerCallback):
    """The steps after which the trainer saved or evaluated, and whether a jump was under way."""

    def __init__(self, callback):
        self.callback, self.steps = callback, set()

    def look(self, args, state, control, **_):
        assert self.callback.farcasting.settled
        self.steps.add(state.global_step)

    on_save = on_evaluate = on_prediction_step = look


def under_a_jump(folder, *others, between=(), steps=30, **arguments):
    """A trainer, and what watches it: `others` act while a jump waits for its verdict."""
    watch, callback = Watch(), FarcastingCallback(**FAST)
    settings = {"save_strategy": "no", "logging_strategy": "no", **arguments}
    trainer = make(folder, watch, *between, callback, *others, steps=steps, **settings)
    return trainer, watch, callback


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("step", WINDOW)
def test_a_stop_at_each_step_of_a_window(step, tmp_path):
    """What is kept at the end is of before the jump, for callbacks that run earlier, too."""
    kept = []

    class Keep(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **_):
            kept.append(weights(model))

    trainer, watch, callback = under_a_jump(tmp_path, At(step, stop), between=[Keep()])
    trainer.train()
    assert trainer.state.global_step == step
    before = watch.weights[the_jump(callback, step)]
    assert loops.equal(weights(trainer.model), before)
    assert loops.equal(kept, [before])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_stop_that_is_known_before(tmp_path):
    """A callback that runs earlier stops the training: no jump is made then."""
    trainer, watch, callback = under_a_jump(tmp_path, between=[At(16, stop)])
    trainer.train()
    assert callback.farcasting.history == []
    assert loops.equal(weights(trainer.model), watch.weights[16])


class Broken(Exception):
    pass


def broken(*_):
    raise Broken


class TearsEpoch(TrainerCallback):
    """Between the epochs before and after step 16, where a jump was made."""

    def on_epoch_begin(self, args, state, control, **_):
        if state.global_step == 16:
            raise Broken


def added_later(folder, *callbacks, **arguments):
    """A trainer that got its callbacks after it was made."""
    settings = {"save_strategy": "no", "logging_strategy": "no", "steps": 30, **arguments}
    trainer = make(folder, **settings)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("later", [False, True], ids=["given", "added"])
@pytest.mark.parametrize("where", ["callback", "data", "model", "Ctrl-C"])
def test_training_that_breaks_off(where, later, tmp_path):
    """A callback that was added to the trainer later covers it, too."""

    def act(control):
        if where == "data":
            trainer.train_dataset.__class__ = type("Torn", (Counting,), {"__getitem__": broken})
        elif where == "model":
            trainer.model.register_forward_pre_hook(broken)
        else:
            raise KeyboardInterrupt if where == "Ctrl-C" else Broken

    trainer, watch, callback = under_a_jump(tmp_path, At(18, act))
    if later:
        trainer = added_later(tmp_path, watch, callback, At(18, act))
    with pytest.raises(KeyboardInterrupt if where == "Ctrl-C" else Broken):
        trainer.train()
    last = max(watch.weights)
    assert loops.equal(weights(trainer.model), watch.weights[the_jump(callback, last)])
    assert callback.summary().to_dict()["jumps"]
    assert not trainer.model._forward_hooks


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("later", [False, True], ids=["given", "added"])
def test_training_that_breaks_off_between_epochs(later, tmp_path):
    trainer, watch, callback = under_a_jump(tmp_path, TearsEpoch())
    if later:
        trainer = added_later(tmp_path, watch, callback, TearsEpoch())
    with pytest.raises(Broken):
        trainer.train()
    assert loops.equal(weights(trainer.model), watch.weights[the_jump(callback, 16)])


class Begun(TrainerCallback):
    """The weights that each training began with."""

    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, model=None, **_):
        self.weights.append(weights(model))


class Deaf(FarcastingCallback):
    """Misses an error, as one that is added later does where Ctrl-C hits the loop over epochs."""

    def _break_off(self):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("resumed", [False, True])
def test_training_again_after_a_jump_that_stayed(resumed, tmp_path):
    """It is undone when training begins again, unless a checkpoint was loaded."""
    watch, begun, callback = Watch(), Begun(), Deaf(**FAST)
    tears, settings = TearsEpoch(), {"save_strategy": "steps", "save_steps": 15}
    trainer = added_later(tmp_path, watch, callback, begun, tears, **settings)
    with pytest.raises(Broken):
        trainer.train()
    trainer.remove_callback(tears)
    trainer.train(resume_from_checkpoint=resumed)
    assert loops.equal(begun.weights[1], watch.first[15 if resumed else 16])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("other", [False, True])
def test_training_twice_and_broken_off_then(other, tmp_path):
    """With the same callback, or with another one in its place."""
    trainer, watch, first = under_a_jump(tmp_path)
    trainer.train()
    assert first.farcasting.history
    second = first
    if other:
        second = FarcastingCallback(**FAST)
        trainer.remove_callback(first)
        trainer.add_callback(second)
    trainer.add_callback(At(18, interrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert loops.equal(weights(trainer.model), watch.weights[the_jump(second, 18)])
    assert other or inspect.ismethod(trainer.train.method)  # it is wrapped once


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_that_begins_again_with_smaller_batches(tmp_path):
    begun = Begun()

    def lack(control):
        if len(begun.weights) == 1:
            raise RuntimeError("CUDA out of memory.")

    settings = {"auto_find_batch_size": True}
    trainer, watch, _ = under_a_jump(tmp_path, begun, At(18, lack), **settings)
    trainer.train()
    assert len(begun.weights) == 2
    assert loops.equal(begun.weights[1], watch.first[16])
    assert trainer.state.global_step == 30


@pytest.mark.slow  # to import everything anew
@pytest.mark.parametrize("kind", ["trainer", "lightning"])
def test_a_real_interrupt(kind, tmp_path):
    script = Path(__file__).with_name("interrupted.py")
    command = [sys.executable, script, kind, tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(script.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert any(line == "waiting\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0].split()[-1] == "kept"
    assert process.returncode == 0


def ask_for(what):
    def action(control):
        setattr(control, f"should_{what}", True)

    return action


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("earlier", [False, True])
def test_a_save_that_no_setting_announces(earlier, tmp_path, caplog):
    """It holds the weights of before the jump, and training resumes from it to the bit."""

    def made():
        asks = [At(18, ask_for("save"))]
        later, between = ([], asks) if earlier else (asks, [])
        return under_a_jump(tmp_path, *later, between=between)

    trainer, watch, callback = made()
    trainer.train()
    assert callback.farcasting.history[0]["step"] == 16
    saved = load_file(tmp_path / "checkpoint-18" / "model.safetensors")
    assert all(torch.equal(watch.weights[16][name], value) for name, value in saved.items())
    assert caplog.text.count("taken back before its verdict") == 1
    resumed, _, again = made()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-18"))
    assert loops.equal(weights(resumed.model), weights(trainer.model))
    steps = [[e["step"] for e in c.farcasting.history] for c in (callback, again)]
    assert steps[0] == steps[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_evaluation_that_no_setting_announces(tmp_path):
    callback = FarcastingCallback(**FAST)
    seen = Seen(callback)
    asks = At(18, ask_for("evaluate"))
    make(tmp_path, callback, seen, asks, steps=20, save_strategy="no").train()
    assert the_jump(callback, 18) == 16
    assert seen.steps == {18}


# ---- looks that settings announce ---------------------------------------------------------------


@pytest.fixture
def spied(monkeypatch):
    monkeypatch.setattr("wfcast.torch.transformers.Farcasting", Spy)


@pytest.mark.usefixtures("spied")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Farcasting. no jump")
@pytest.mark.parametrize(
    "settings",
    [
        {"save_steps": 7},
        {"save_steps": 0.3, "eval_strategy": "steps", "eval_steps": 5, "eval_delay": 12},
        {"save_strategy": "epoch", "eval_strategy": "steps", "eval_steps": 7},
        {"save_strategy": "no", "eval_strategy": "epoch", "eval_delay": 2},
        {"save_strategy": "epoch", "gradient_accumulation_steps": 3},
        {"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3},
        {
            "save_strategy": "best",
            "eval_strategy": "steps",
            "eval_steps": 6,
            "metric_for_best_model": "loss",
        },
    ],
)
def test_room_is_up_to_the_next_save_evaluation_or_the_end(settings, tmp_path):
    callback = FarcastingCallback(**FAST)
    seen = Seen(callback)
    trainer = make(tmp_path, callback, seen, steps=25, **settings)
    trainer.train()
    last = trainer.state.global_step
    looks = sorted(seen.steps | {last})
    expected = [min(s for s in looks if s >= step) - step for step in range(1, last + 1)]
    assert callback.farcasting.rooms == expected


@pytest.mark.usefixtures("spied")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("skip", [False, True])
def test_room_after_resuming_within_an_epoch(skip, tmp_path):
    """The epoch begins anew at the step where training resumes if the data are not skipped."""
    train(tmp_path, FarcastingCallback(**FAST), save_steps=13, steps=13)
    callback = FarcastingCallback(**FAST)
    seen = Seen(callback)
    settings = {"save_strategy": "epoch", "ignore_data_skip": skip, "steps": 40}
    trainer = make(tmp_path, callback, seen, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-13"))
    looks = sorted(seen.steps | {40})
    expected = [min(s for s in looks if s >= step) - step for step in range(14, 41)]
    assert callback.farcasting.rooms == expected


UNTIL = {name: value for name, value in FAST.items() if name != "stop"}


@pytest.mark.usefixtures("spied")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_steps_that_are_left_when_jumps_begin_anew(tmp_path):
    """The controller counts from 0 then, the training does not; nor does it later."""

    def span(steps, resume=None, **parameters):
        callback = FarcastingCallback(**UNTIL, **parameters)
        train(tmp_path, callback, steps=steps, resume=resume, save_steps=10)
        made = callback.farcasting.parameters
        return made["start"], made["stop"]

    assert span(10) == (0, 10)
    first, second = (str(tmp_path / f"checkpoint-{step}") for step in (10, 20))
    assert span(40, first) == (0, 40)
    (tmp_path / "checkpoint-10" / "farcasting.pt").unlink()
    assert span(25, first, start=15, stop=22) == (5, 12)
    assert span(25, first, start=2, stop=8) == (0, 1)  # no room for a jump
    assert span(40, first) == (0, 30)
    assert span(40, second) == (0, 30)  # of a controller that began at step 10


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_room_is_said_once(tmp_path):
    callback = FarcastingCallback(**FAST)
    trainer = make(tmp_path, callback, steps=30, save_steps=4)
    with pytest.warns(UserWarning, match="with save_steps=4 there are 3 at most") as said:
        trainer.train()
    assert sum("Farcasting" in str(one.message) for one in said) == 1
    assert callback.farcasting.history == []
    assert "with save_steps=4 there are 3 at most" in callback.farcasting.stopped
    summary = " ".join(str(callback.summary()).split())
    assert f"stopped: {callback.farcasting.stopped}" in summary


class Stream(torch.utils.data.IterableDataset):
    """Data without a length."""

    def __iter__(self):
        return iter([Counting()[i] for i in range(8 * 18)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_epochs_of_unknown_length(tmp_path, caplog):
    """The model that is saved at the end of one is that of before the jump."""
    watch, callback = Watch(), FarcastingCallback(**FAST)
    trainer = make(tmp_path, watch, callback, steps=30, save_strategy="epoch")
    trainer.train_dataset = Stream()
    with pytest.warns(UserWarning, match="save_strategy='epoch' may save or evaluate at any step"):
        trainer.train()
    assert callback.farcasting.history[0]["step"] == 16
    saved = load_file(tmp_path / "checkpoint-18" / "model.safetensors")
    assert all(torch.equal(watch.weights[16][name], value) for name, value in saved.items())
    assert "taken back before its verdict" in caplog.text


def test_a_summary_before_training():
    for callback in (FarcastingCallback(), Lightning()):
        with pytest.raises(WfcastError, match="training has not begun"):
            callback.summary()


@pytest.mark.parametrize("callback", [FarcastingCallback, Lightning])
@pytest.mark.parametrize("name", ["perod", "model"])
def test_a_parameter_that_farcasting_lacks(callback, name):
    with pytest.raises(TypeError, match=f"there is no parameter '{name}', expected some of"):
        callback(**{name: 3})


# ---- TRL ----------------------------------------------------------------------------------------


QUIET = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False}


@pytest.mark.slow  # to import
@pytest.mark.filterwarnings("ignore")  # TRL's own and those of what it imports
def test_supervised_fine_tuning(tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": Counting()[i]["input_ids"].tolist()} for i in range(64)]
    watch, callback = Watch(), FarcastingCallback(**FAST)
    settings = SFTConfig(
        str(tmp_path),
        max_steps=40,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": True},
        **QUIET,
    )
    trainer = SFTTrainer(
        small("gpt2"),
        settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=[watch, callback, At(34, stop)],
    )
    trainer.train()
    assert [entry["step"] for entry in callback.farcasting.history] == [16, 32]
    assert loops.equal(weights(trainer.model), watch.weights[32])


def grpo(folder, *callbacks, **settings):
    """Policy optimization of a tiny model, rewarded for saying one of three words."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def three(completions, **_):
        return [sum(word in ("w3", "w4", "w5") for word in text.split()) for text in completions]

    config = GRPOConfig(
        str(folder),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        learning_rate=1e-3,
        save_strategy="no",
        **{"logging_steps": 1, **QUIET, **settings},
    )
    prompts = Dataset.from_list([{"prompt": f"w{i} w{i + 1}"} for i in range(32)])
    small("gpt2").save_pretrained(folder / "model")  # a reference model is read from there
    return GRPOTrainer(
        str(folder / "model"),
        three,
        config,
        train_dataset=prompts,
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


@pytest.mark.slow  # to import
@pytest.mark.usefixtures("spied")
@pytest.mark.filterwarnings("ignore")  # TRL's own and those of what it imports
@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("logging", [1, 3])
def test_policy_optimization_is_judged_by_the_reward(logging, uses, tmp_path):
    """Each batch of completions counts once, however often it is learned from or logged."""
    pytest.importorskip("trl")
    callback = FarcastingCallback(**FAST)
    trainer = grpo(tmp_path, callback, max_steps=24, num_iterations=uses, logging_steps=logging)
    trainer.train()
    losses = callback.farcasting.losses
    assert callback.farcasting.parameters["maximize"] is True
    assert [loss is not None for loss in losses] == [step % uses == 0 for step in range(24)]
    logged = [e["reward"] for e in trainer.state.log_history if "loss" in e and "reward" in e]
    steps = range(0, 24, logging)
    counted = [[r for r in losses[i : i + logging] if r is not None] for i in steps]
    assert logged == pytest.approx([sum(rewards) / len(rewards) for rewards in counted if rewards])


@pytest.mark.slow  # to import
@pytest.mark.filterwarnings("ignore")  # TRL's own and those of what it imports
def test_policy_optimization_that_breaks_off(tmp_path):
    pytest.importorskip("trl")
    watch, callback = Watch(), FarcastingCallback(**FAST)
    trainer = grpo(tmp_path, watch, callback, At(18, interrupt), max_steps=30)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert loops.equal(weights(trainer.model), watch.weights[the_jump(callback, 18)])


@pytest.mark.slow  # to import
@pytest.mark.usefixtures("spied")
@pytest.mark.filterwarnings("ignore")  # TRL's own and those of what it imports
def test_a_reference_model_takes_no_jump_in(tmp_path):
    pytest.importorskip("trl")
    callback = FarcastingCallback(**FAST)
    settings = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 5}
    grpo(tmp_path, callback, max_steps=12, **settings).train()
    assert callback.farcasting.rooms == [4, 3, 2, 1, 0, 4, 3, 2, 1, 0, 1, 0]


@pytest.mark.slow  # to import
@pytest.mark.usefixtures("spied")
@pytest.mark.filterwarnings("ignore")  # TRL's own and those of what it imports
def test_a_judge_by_the_name_of_what_is_logged(tmp_path):
    pytest.importorskip("trl")
    callback = FarcastingCallback(**FAST, judge="entropy", maximize=False)
    trainer = grpo(tmp_path, callback, max_steps=5)
    trainer.train()
    logged = [e["entropy"] for e in trainer.state.log_history if "loss" in e]
    assert callback.farcasting.losses == pytest.approx(logged)
    assert callback.farcasting.parameters["maximize"] is False
    with pytest.raises(WfcastError, match=r"judge='rewards' is no number .* one of .*entropy"):
        grpo(tmp_path, FarcastingCallback(**FAST, judge="rewards"), max_steps=5).train()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_name_where_no_metrics_are_noted(tmp_path):
    trainer = make(tmp_path, FarcastingCallback(**FAST, judge="reward"), steps=5)
    with pytest.raises(WfcastError, match=r"judge='reward' names a number .* Trainer is none"):
        trainer.train()
