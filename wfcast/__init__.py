"""wfcast forecasts the weights of a neural network in the middle of its training."""

from importlib.util import find_spec
from types import ModuleType

if find_spec("._core", __name__) is None:
    raise ImportError(
        f"the C core of wfcast is not in {__path__[0]!r}: that is its source folder, which hides "
        "an installed wfcast while Python runs beside it. Start Python in another folder, or build "
        "the core in place: pip install -e ."
    )

from ._config import show_config
from ._errors import CheckpointError, ConvergenceError, DtypeError, RankWarning, WfcastError
from ._evaluate import Evaluation, evaluate
from ._inspect import inspect
from ._persist import load
from ._version import __version__
from .farcaster import Farcaster
from .forecast import ForecastReport, forecast_checkpoint
from .model import ModelFarcaster
from .operators import average, linear_trend, persistence
from .report import Comparison, compare_checkpoints

__all__ = [
    "CheckpointError",
    "Comparison",
    "ConvergenceError",
    "DtypeError",
    "Evaluation",
    "Farcaster",
    "ForecastReport",
    "ModelFarcaster",
    "RankWarning",
    "WfcastError",
    "__version__",
    "average",
    "compare_checkpoints",
    "evaluate",
    "forecast_checkpoint",
    "inspect",
    "linear_trend",
    "load",
    "persistence",
    "show_config",
]


def __getattr__(name: str) -> ModuleType:
    if name == "torch":  # imported on use
        import importlib

        return importlib.import_module(".torch", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
