"""wfcast forecasts the weights of a neural network in the middle of its training."""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING

if _find_spec("._core", __name__) is None:
    raise ImportError(
        f"the C core of wfcast is not in {__path__[0]!r}: that is its source folder, which hides "
        "an installed wfcast while Python runs beside it. Start Python in another folder, or build "
        "the core in place: pip install -e ."
    )

from ._version import __version__

if TYPE_CHECKING:
    from . import torch as torch
    from ._config import show_config
    from ._errors import CheckpointError, ConvergenceError, DtypeError, RankWarning, WfcastError
    from ._forecast import ForecastReport, forecast_checkpoint
    from ._operator import Operator, load
    from .farcaster import Farcaster
    from .model import ModelFarcaster
    from .operators import (
        annealed,
        average,
        extrapolate,
        linear_trend,
        low_rank,
        persistence,
    )
    from .readout import ReadoutReport, anneal_run, extrapolate_run
    from .report import (
        CheckpointReport,
        Comparison,
        Drift,
        Errors,
        Evaluation,
        FarcasterReport,
        RunReport,
        compare_checkpoints,
        drift,
        evaluate,
        inspect,
    )

# Each name is imported when it is first asked for: the estimators bring scikit-learn and SciPy,
# which take ten times as long as all the rest, and most uses of wfcast need neither.
_HOME = {
    "CheckpointError": "_errors",
    "CheckpointReport": "report",
    "Comparison": "report",
    "ConvergenceError": "_errors",
    "Drift": "report",
    "DtypeError": "_errors",
    "Errors": "report",
    "Evaluation": "report",
    "Farcaster": "farcaster",
    "FarcasterReport": "report",
    "ForecastReport": "_forecast",
    "ModelFarcaster": "model",
    "Operator": "_operator",
    "RankWarning": "_errors",
    "ReadoutReport": "readout",
    "RunReport": "report",
    "WfcastError": "_errors",
    "anneal_run": "readout",
    "annealed": "operators",
    "average": "operators",
    "compare_checkpoints": "report",
    "drift": "report",
    "evaluate": "report",
    "extrapolate": "operators",
    "extrapolate_run": "readout",
    "forecast_checkpoint": "_forecast",
    "inspect": "report",
    "linear_trend": "operators",
    "load": "_operator",
    "low_rank": "operators",
    "persistence": "operators",
    "show_config": "_config",
}

_MODULES = (
    "checkpoint",
    "farcaster",
    "model",
    "operators",
    "readout",
    "report",
    "torch",
)

__all__ = [
    "CheckpointError",
    "CheckpointReport",
    "Comparison",
    "ConvergenceError",
    "Drift",
    "DtypeError",
    "Errors",
    "Evaluation",
    "Farcaster",
    "FarcasterReport",
    "ForecastReport",
    "ModelFarcaster",
    "Operator",
    "RankWarning",
    "ReadoutReport",
    "RunReport",
    "WfcastError",
    "__version__",
    "anneal_run",
    "annealed",
    "average",
    "compare_checkpoints",
    "drift",
    "evaluate",
    "extrapolate",
    "extrapolate_run",
    "forecast_checkpoint",
    "inspect",
    "linear_trend",
    "load",
    "low_rank",
    "persistence",
    "show_config",
]


if not TYPE_CHECKING:  # a type checker is to find what is misspelt

    def __getattr__(name):
        if name in _MODULES:
            return _import_module(f".{name}", __name__)
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(_import_module(f".{_HOME[name]}", __name__), name)
        return value


def __dir__() -> list[str]:
    special = [name for name in globals() if name.startswith("__")]
    return sorted({*special, *__all__, *(["torch"] if _find_spec("torch") else [])})
