"""Farcasting in a loop of Hugging Face Accelerate that accumulates gradients, saves and resumes.

    python examples/accelerate_farcasting.py --out run
    python examples/accelerate_farcasting.py --out run --resume

A run that was killed and resumed on the same machine ends with the same weights, to the bit, as
one in one go. Of registered objects Accelerate saves those of the main process: where models are
sharded over processes, as by FSDP, save ``farcasting.state_dict()`` of every process instead.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from wfcast.torch import Farcasting

TRAIN, HELD_OUT = slice(0, 1344), slice(1344, None)
ACCUMULATED = 2  # batches per step; the 42 of an epoch make whole steps


class Progress:
    """The batches so far: what a resumed run needs beside what Accelerate saves."""

    batches = 0

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches = state["batches"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from its latest save")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=50, help="steps between saves")
    parser.add_argument("--rate", type=float, default=1e-4, help="of Adam")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    args = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(
        cpu=args.cpu,
        gradient_accumulation_steps=ACCUMULATED,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),
    )
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=args.rate)
    batches = DataLoader(TensorDataset(images[TRAIN], labels[TRAIN]), batch_size=32, shuffle=True)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    held_out = images[HELD_OUT].to(accelerator.device), labels[HELD_OUT].to(accelerator.device)

    def held_out_loss() -> float:
        x, y = held_out
        return cross_entropy(model(x), y).item()

    # made after prepare(), which may replace or move the parameters
    farcasting = Farcasting(model, optimizer, judge=held_out_loss, stop=args.steps)
    progress = Progress()
    accelerator.register_for_checkpointing(farcasting, progress)

    def save(step: int) -> None:
        """A save has its name only when it is whole: a kill in the middle leaves the one before."""
        accelerator.save_state(str(args.out / "partial"))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (args.out / "partial").rename(args.out / f"step-{step:06}")

    if args.resume:
        latest = max(args.out.glob("step-*"), default=None)
        if latest is None:
            parser.error(f"{args.out} holds no save to resume from")
        accelerator.load_state(str(latest))
        accelerator.print(f"resumed from {latest.name}")

    while progress.batches < args.steps * ACCUMULATED:
        epoch, done = divmod(progress.batches, len(batches))
        rest = accelerator.skip_first_batches(batches, done)
        rest.set_epoch(epoch)
        for x, y in rest:
            with accelerator.accumulate(model):
                accelerator.backward(cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
            farcasting.step()  # knows that batches which only add to gradients are no steps
            progress.batches += 1
            step, part = divmod(progress.batches, ACCUMULATED)
            if part == 0 and step % args.save_every == 0:
                save(step)
            if step == args.steps:
                break

    accelerator.save_model(model, args.out)
    if accelerator.is_main_process:
        (args.out / "history.json").write_text(json.dumps(farcasting.history))
    accelerator.print(farcasting.summary())


if __name__ == "__main__":
    main()
