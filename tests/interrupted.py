"""A training that waits for Ctrl-C under a jump, and says which weights that leaves.

Run as ``python interrupted.py trainer|lightning FOLDER``: it prints "waiting" while it waits, then
"kept" where the weights are those of before the jump.
"""

import signal
import sys
import warnings

import lightning.pytorch as pl
import loops
from trainers import FAST, At, Module, Watch, Watched, fit, make, weights

from wfcast.torch import FarcastingCallback
from wfcast.torch.lightning import FarcastingCallback as Lightning


def wait(_=None):
    print("waiting", flush=True)
    while True:
        signal.pause()


class Waits(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 18:
            wait()


def in_trainer(folder):
    watch, callback = Watch(), FarcastingCallback(**FAST)
    trainer = make(folder, watch, callback, At(18, wait), steps=30, save_strategy="no")
    try:
        trainer.train()
    except KeyboardInterrupt:
        return trainer.model, watch, callback
    raise AssertionError("it was not interrupted")


def in_lightning(_):
    module, watch, callback = Module(), Watched(), Lightning(**FAST)
    try:
        fit(module, watch, callback, Waits())
    except SystemExit:  # Lightning's answer to Ctrl-C
        return module, watch, callback
    raise AssertionError("it was not interrupted")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    model, watch, callback = {"trainer": in_trainer, "lightning": in_lightning}[sys.argv[1]](
        sys.argv[2]
    )
    (jump,) = callback.farcasting.history
    assert (jump["step"], callback.farcasting.window) == (16, 4)
    print("kept" if loops.equal(weights(model), watch.weights[jump["step"]]) else "damaged")
