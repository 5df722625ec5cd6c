"""Short runs in the trainers of transformers and Lightning, for the tests of callbacks."""

import lightning.pytorch as pl
import loops
import torch
from models import small
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.optim.lr_scheduler import StepLR
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from wfcast.torch import Farcasting

# a jump of ten steps at step 16, or at the first step after it from which looks are far enough
FAST = {"spacing": 5, "period": 16, "recovery": 4, "horizon": 10, "stop": 60}
WINDOW = range(16, 20)


class Counting(torch.utils.data.Dataset):
    """Sequences that count up: something to learn."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        tokens = (torch.arange(12) + i) % 64
        return {"input_ids": tokens, "labels": tokens}


def make(folder, *callbacks, steps=50, kind="distilbert", **arguments):
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "save_steps": 13,
        "logging_steps": 10,
        "learning_rate": 1e-3,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **arguments,
    }
    return Trainer(
        small(kind),
        TrainingArguments(str(folder), **settings),
        train_dataset=Counting(),
        eval_dataset=Counting(),
        callbacks=list(callbacks),
    )


def weights(model):
    """Of all parameters, without asking the model for a ``state_dict``: that would be a look."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Watch(TrainerCallback):
    """The weights that each step led to, before a jump where it stands before Farcasting."""

    def __init__(self):
        self.weights, self.first = {}, {}  # the latest of each step, and those it led to first

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights[state.global_step] = weights(model)
        self.first.setdefault(state.global_step, self.weights[state.global_step])


class At(TrainerCallback):
    """Does something at the end of a step: ``action(control)``."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.action(control)


def tokenizer():
    words = {f"w{i}": i for i in range(64)}
    plain = Tokenizer(WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="w1", eos_token="w2")


class Watched(pl.Callback):
    """`Watch` in Lightning."""

    def __init__(self):
        self.weights = {}

    def on_train_batch_end(self, trainer, module, *_):
        self.weights[trainer.global_step] = weights(module)


class Module(pl.LightningModule):
    def __init__(self, optimizers=1, offset=0):
        super().__init__()
        self.net, self.optimizers_, self.offset = loops.mlp(), optimizers, offset
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch, index):
        # Lightning does not put the loader back to where it was: the step says which batch
        loss = loops.loss_of(self.net, loops.batch(self.trainer.global_step + self.offset * index))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        made = [torch.optim.Adam(self.parameters(), lr=1e-3) for _ in range(self.optimizers_)]
        if self.optimizers_ > 1:
            return made
        return made, [{"scheduler": StepLR(made[0], 15), "interval": "step"}]


def fit(module, *callbacks, steps=40, checkpoint=None, **arguments):
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=list(callbacks),
        accelerator="cpu",
        **{
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **arguments,
        },
    )
    loader = torch.utils.data.DataLoader(range(40), batch_size=None)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return trainer


def the_jump(callback, step):
    """The step of the one jump, of which `step` lies within the window."""
    (jump,) = callback.farcasting.history
    assert jump["step"] <= step < jump["step"] + callback.farcasting.window
    return jump["step"]


class Spy(Farcasting):
    """Keeps what its callback makes it with and hands to it."""

    def __init__(self, *given, **parameters):
        super().__init__(*given, **parameters)
        self.parameters, self.losses, self.rooms = parameters, [], []

    def step(self, loss=None, *, room=None):
        self.losses.append(loss)
        self.rooms.append(room)
        return super().step(loss, room=room)
