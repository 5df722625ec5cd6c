"""Forecasts inside a training loop: everything that needs torch.

`Farcasting` jumps ahead while training, `fit_to_loss` finds the best combination of recorded
states, `FarcastingCallback` puts the former into the Hugging Face Trainer;
`wfcast.torch.lightning.FarcastingCallback` does so for Lightning.
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
    from .transformers import FarcastingCallback

__all__ = ["Annealed", "Farcasting", "FarcastingCallback", "FarcastingReport", "fit_to_loss"]


if not TYPE_CHECKING:  # else every misspelling would pass for a name of this module

    def __getattr__(name: str) -> Any:
        if name == "FarcastingCallback":  # transformers is imported on use
            from .transformers import FarcastingCallback

            return FarcastingCallback
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
