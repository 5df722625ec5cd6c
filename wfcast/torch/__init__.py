"""Forecasts inside a training loop: everything that needs torch.

`Annealed` keeps averages beside a run and gives readouts of it, `Farcasting` jumps ahead while
training, `fit_to_loss` finds the best combination of recorded states. `AnnealedCallback` and
`FarcastingCallback` put the first two into the Hugging Face Trainer, those of
`wfcast.torch.lightning` into Lightning.
"""

from typing import TYPE_CHECKING, Any

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "wfcast.torch needs torch, which is not installed (the extra 'torch' of wfcast)",
        name="torch",
    ) from error

from ._history import FarcastingReport
from .annealed import Annealed
from .farcasting import Farcasting
from .loss_fit import fit_to_loss

if TYPE_CHECKING:
    from .transformers import AnnealedCallback, FarcastingCallback

__all__ = [
    "Annealed",
    "AnnealedCallback",
    "Farcasting",
    "FarcastingCallback",
    "FarcastingReport",
    "fit_to_loss",
]


if not TYPE_CHECKING:  # else every misspelling would pass for a name of this module

    def __getattr__(name: str) -> Any:
        if name in ("AnnealedCallback", "FarcastingCallback"):  # transformers is imported on use
            from . import transformers

            return getattr(transformers, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
