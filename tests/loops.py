"""Small training loops on real data, for the tests of wfcast.torch."""

import resource
import signal
import warnings
from contextlib import contextmanager

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

_X, _Y = load_digits(return_X_y=True)
X, Y = torch.tensor(_X / 16, dtype=torch.float32), torch.tensor(_Y)
TRAIN, HELD = slice(0, 1200), slice(1200, None)

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True, amsgrad=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
}


def mlp(width=16, norm=False, seed=0):
    torch.manual_seed(seed)
    middle = [torch.nn.BatchNorm1d(width)] if norm else []
    return torch.nn.Sequential(
        torch.nn.Linear(64, width), *middle, torch.nn.ReLU(), torch.nn.Linear(width, 10)
    )


def batch(step, size=32):
    """Depends on the step alone, so a resumed run sees what the other one saw."""
    picked = torch.randint(1200, (size,), generator=torch.Generator().manual_seed(step))
    return X[TRAIN][picked], Y[TRAIN][picked]


def loss_of(model, pair):
    x, y = pair
    return cross_entropy(model(x), y)


def held_out(model):
    with torch.no_grad():
        return float(loss_of(model, (X[HELD], Y[HELD])))


def optimize(model, optimizer, step, scheduler=None):
    """One optimizer step; the loss before it."""
    loss = loss_of(model, batch(step))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return loss


def run(farcasting, model, optimizer, steps, scheduler=None, judged=False):
    """Train over `steps` (an iterable); the steps at which weights were changed."""
    changed = []
    for step in steps:
        loss = optimize(model, optimizer, step, scheduler)
        if farcasting.step(None if judged else loss):
            changed.append(step)
    return changed


@contextmanager
def in_a_window():
    """A save while Farcasting judges a jump, of which it warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model is being saved", UserWarning)
        yield


def weights(model):
    """Copies of its parameters and buffers."""
    with in_a_window():
        return {k: v.detach().clone() for k, v in model.state_dict().items()}


def equal(a, b):
    """Equal bits, in dicts, lists and tuples of any depth."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@contextmanager
def files_of_at_most(size):
    """The limit on file sizes makes a write fail as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
