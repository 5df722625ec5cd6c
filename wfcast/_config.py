"""What this build of wfcast runs on this machine."""

from __future__ import annotations

import sys
from typing import Any

from . import _core
from ._version import __version__


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show the versions, instruction sets, BLAS and threads in use.

    Instruction sets are chosen at run time; the environment variable
    ``WFCAST_DISABLE_CPU_FEATURES="avx512,avx2"`` switches some of them off.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default="stdout"
        Print, or return a dict, as `numpy.show_config` does.

    Returns
    -------
    dict or None
        With keys wfcast, python, numpy, isa, available, disabled, blas, n_threads.

    See Also
    --------
    Farcaster : Whose `n_threads` says how many threads a fit takes.

    Examples
    --------
    >>> import wfcast
    >>> config = wfcast.show_config("dicts")
    >>> config["wfcast"] == wfcast.__version__
    True
    >>> config["n_threads"] >= 1
    True
    """
    import numpy as np

    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode is {mode!r}, expected 'stdout' or 'dicts'")
    config = {
        "wfcast": __version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        **_core.config(),
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        print(f"{key + ':':<11} {shown or 'none'}")
    return None
