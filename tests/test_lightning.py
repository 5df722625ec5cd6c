"""Farcasting inside the real trainer of Lightning."""

from datetime import timedelta

import pytest

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
pl = pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")  # trainers imports it
pytest.importorskip("accelerate")

import loops  # noqa: E402  only with them
from trainers import FAST, WINDOW, Module, Spy, Watched, fit, the_jump, weights  # noqa: E402

import wfcast  # noqa: E402
from wfcast import WfcastError  # noqa: E402
from wfcast.torch.lightning import FarcastingCallback as Lightning  # noqa: E402


@pytest.fixture
def spied(monkeypatch):
    monkeypatch.setattr("wfcast.torch.lightning.Farcasting", Spy)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_jumps_and_resumes(tmp_path):
    """From a checkpoint that was saved under a jump, which is taken back for that."""

    class SaveAt18(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 18:
                trainer.save_checkpoint(tmp_path / "part.ckpt")

    module, other = Module(), Module()
    callback = Lightning(**FAST)
    fit(module, callback, SaveAt18())
    assert callback.farcasting.history[0]["step"] == 16
    again = Lightning(**FAST)
    fit(other, again, checkpoint=tmp_path / "part.ckpt")
    assert loops.equal(other.state_dict(), module.state_dict())
    steps = [[e["step"] for e in c.farcasting.history] for c in (callback, again)]
    assert steps[0] == steps[1]


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_accumulates_and_stops_early():
    """The loss is that of the whole step; a jump under way at the end is taken back."""
    callback = Lightning(**FAST)

    class Losses(pl.Callback):
        seen = ()

        def on_train_batch_end(self, trainer, module, outputs, *_):
            self.seen = (*self.seen, float(trainer.callback_metrics["loss"]))

    class StopAt18(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 18

    losses = Losses()
    module = Module(offset=100)  # a batch of its own for each part of a step
    trainer = fit(module, callback, losses, StopAt18(), accumulate_grad_batches=2)
    assert trainer.global_step == 18
    (entry,) = callback.farcasting.history
    assert entry["step"] == 16
    assert entry["loss_before"] == pytest.approx(sum(losses.seen[30:32]) / 2, rel=1e-5)
    assert entry["outcome"] == "rolled back"


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_after_an_error():
    """The module may be trained again, with another callback, and keeps what it was given."""

    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 18:
                raise RuntimeError("broken off")

    module = Module()
    watch, first = Watched(), Lightning(**FAST)
    with pytest.raises(RuntimeError, match="broken off"):
        fit(module, watch, first, Breaks())
    assert loops.equal(weights(module), watch.weights[the_jump(first, 18)])
    second = Lightning(**FAST)
    fit(module, second)
    assert second.farcasting.history


class Validated(Module):
    """Notes the steps after which it is validated."""

    def __init__(self, callback):
        super().__init__()
        self.callback, self.steps = callback, set()

    def validation_step(self, batch, index):
        assert self.callback.farcasting is None or self.callback.farcasting.settled
        self.steps.add(self.trainer.global_step)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(range(2), batch_size=None)


class Acts(pl.Callback):
    """Does something at the end of a step: ``action(trainer)``."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.action(trainer)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
@pytest.mark.parametrize("step", WINDOW)
@pytest.mark.parametrize("validated", [False, True])
def test_lightning_stops_at_each_step_of_a_window(step, validated, tmp_path):
    """Whatever is validated and saved after that is of before the jump."""
    watch, callback = Watched(), Lightning(**FAST)
    module = Validated(callback) if validated else Module()

    def stop(trainer):
        trainer.should_stop = True

    saves = pl.callbacks.ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1)
    trainer = fit(module, watch, callback, Acts(step, stop), saves, enable_checkpointing=True)
    assert trainer.global_step == step
    before = watch.weights[the_jump(callback, step)]
    assert loops.equal(weights(module), before)
    assert not validated or module.steps == {0, step}  # a check before training, and the last one
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert loops.equal(dict(saved), before)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_stops_before_a_jump():
    def stop(trainer):
        trainer.should_stop = True

    callback = Lightning(**FAST)
    fit(Module(), Acts(16, stop), callback)
    assert callback.farcasting.history == []


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_saves_where_no_setting_announces_it(tmp_path, caplog):
    module, watch, callback = Module(), Watched(), Lightning(**FAST)

    def save(trainer):
        trainer.save_checkpoint(tmp_path / "bare.ckpt", weights_only=True)

    fit(module, watch, callback, Acts(18, save))
    saved = torch.load(tmp_path / "bare.ckpt", weights_only=True)["state_dict"]
    assert loops.equal(dict(saved), watch.weights[callback.farcasting.history[0]["step"]])
    assert "taken back before its verdict" in caplog.text


class Kept(pl.callbacks.ModelCheckpoint):
    """Notes the steps after which it saves."""

    def __init__(self, callback, *given, **settings):
        super().__init__(*given, **settings)
        self.callback, self.steps = callback, set()

    def _save_checkpoint(self, trainer, path):
        assert self.callback.farcasting.settled
        self.steps.add(trainer.global_step)
        super()._save_checkpoint(trainer, path)


@pytest.mark.usefixtures("spied")
@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_knows_the_steps_that_are_left(tmp_path):
    until = {name: value for name, value in FAST.items() if name != "stop"}

    def span(steps, *callbacks, checkpoint=None):
        trainer = fit(Module(), *callbacks, steps=steps, checkpoint=checkpoint)
        path = tmp_path / f"{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        stops = [callback.farcasting.parameters["stop"] for callback in callbacks]
        return path, *stops

    (plain,) = span(10)
    anew, stop = span(20, Lightning(**until), checkpoint=plain)
    assert stop == 10
    _, stop = span(40, Lightning(**until), checkpoint=anew)
    assert stop == 30


@pytest.mark.usefixtures("spied")
@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
@pytest.mark.parametrize(
    ("settings", "saves"),
    [
        ({"limit_val_batches": 0}, {"every_n_train_steps": 7}),
        ({"limit_val_batches": 0}, {"every_n_epochs": 2}),
        ({}, {"every_n_epochs": 1}),
        ({"val_check_interval": 0.3}, {"every_n_train_steps": 9}),
        ({"check_val_every_n_epoch": 2, "val_check_interval": 4}, {"every_n_epochs": 1}),
        ({"check_val_every_n_epoch": None, "val_check_interval": 7}, {"save_top_k": 0}),
        ({"val_check_interval": 3, "accumulate_grad_batches": 4}, {"save_top_k": 0}),
        (
            {
                "check_val_every_n_epoch": None,
                "val_check_interval": 7,
                "accumulate_grad_batches": 3,
            },
            {"every_n_train_steps": 5},
        ),
    ],
)
def test_lightning_has_room_up_to_the_next_look(settings, saves, tmp_path):
    callback = Lightning(**FAST)
    module, keeps = Validated(callback), Kept(callback, tmp_path, **saves)
    settings = {"limit_train_batches": 11, "num_sanity_val_steps": 0, **settings}
    trainer = fit(module, callback, keeps, enable_checkpointing=True, **settings)
    last = trainer.global_step
    looks = sorted(module.steps | keeps.steps | {last})
    expected = [min(s for s in looks if s >= step) - step for step in range(1, last + 1)]
    assert callback.farcasting.rooms == expected


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_says_what_it_cannot_know(tmp_path):
    callback = Lightning(**FAST)
    timed = pl.callbacks.ModelCheckpoint(tmp_path, train_time_interval=timedelta(hours=1))
    with pytest.warns(UserWarning, match=r"ModelCheckpoint\(train_time_interval=.* at any step"):
        fit(Module(), callback, timed, enable_checkpointing=True)
    callback = Lightning(**FAST)
    often = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=4)
    with pytest.warns(UserWarning, match=r"ModelCheckpoint\(every_n_train_steps=4\) there are 3"):
        fit(Module(), callback, often, enable_checkpointing=True)
    assert callback.farcasting.history == []


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_with_several_optimizers():
    with pytest.raises(WfcastError, match="the module has 2 optimizers, expected one"):
        fit(Module(optimizers=2), Lightning(**FAST))


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_names_its_checkpoints(tmp_path):
    """With losses behind the steps and the last one twice; and with copies, of another run."""
    saving = {"every_n_train_steps": 2, "save_top_k": -1, "monitor": "loss", "save_last": True}
    for name, form in (
        ("named", "{epoch}-{step}-{loss:.2f}"),
        ("copied", None),
        ("copied", None),
    ):
        save = pl.callbacks.ModelCheckpoint(tmp_path / name, form, **saving)
        fit(Module(), save, steps=6, enable_checkpointing=True)
    names = sorted(path.name for path in (tmp_path / "named").iterdir())
    assert names[0].startswith("epoch=0-step=2-loss=")
    assert names[-1] == "last.ckpt"
    assert wfcast.inspect(tmp_path / "named").steps == (2, 4, 6)
    assert (tmp_path / "copied" / "epoch=0-step=4-v1.ckpt").is_file()
    with pytest.raises(wfcast.CheckpointError, match=r"step 2 twice: .*-v1\.ckpt.*remove one"):
        wfcast.inspect(tmp_path / "copied")
