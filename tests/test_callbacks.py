"""Farcasting inside the real trainers of transformers and Lightning."""

import pytest

torch = pytest.importorskip("torch")  # an extra: wfcast itself does without
pytest.importorskip("transformers")  # the same
pytest.importorskip("accelerate")  # what the Trainer needs
pytest.importorskip("lightning")

import loops  # noqa: E402  only with them
from models import small  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402

from wfcast.torch import FarcastingCallback  # noqa: E402

FAST = {"spacing": 5, "period": 10, "recovery": 5}


class Counting(torch.utils.data.Dataset):
    """Sequences that count up: something to learn."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        tokens = (torch.arange(12) + i) % 64
        return {"input_ids": tokens, "labels": tokens}


def train(folder, callback, steps=50, resume=None, **arguments):
    settings = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        save_steps=13,
        logging_steps=10,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    trainer = Trainer(small("distilbert"), settings, train_dataset=Counting(), callbacks=[callback])
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


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of many kinds
def test_lightning_jumps_and_resumes(tmp_path):
    import lightning.pytorch as pl

    from wfcast.torch.lightning import FarcastingCallback as Callback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = loops.mlp()

        def training_step(self, batch, index):
            # Lightning does not put the loader back to where it was: the step says which batch
            return loops.loss_of(self.net, loops.batch(self.trainer.global_step))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    class Batches(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, step):
            return loops.batch(step)

    class SaveAt23(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 23:
                trainer.save_checkpoint(tmp_path / "part.ckpt")

    def train(callback, steps, checkpoint=None, accumulate=1):
        module = Module()
        trainer = pl.Trainer(
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            callbacks=[callback, SaveAt23()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = torch.utils.data.DataLoader(Batches(), batch_size=None, shuffle=False)
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
        return module

    callback = Callback(**FAST)
    module = train(callback, 40)
    assert len(callback.farcasting.history) >= 3
    again = Callback(**FAST)
    other = train(again, 40, tmp_path / "part.ckpt")
    assert loops.equal(other.state_dict(), module.state_dict())
    accumulating = Callback(**FAST)
    train(accumulating, 16, accumulate=2)
    assert accumulating.farcasting.history[0]["step"] == 10


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


def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(64)}
    plain = Tokenizer(WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="w1", eos_token="w2")
