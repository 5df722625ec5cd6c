"""Drawing, with Matplotlib where it is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ._errors import WfcastError
from ._kinds import KINDS, kind_of

# Okabe and Ito's palette: told apart with any kind of colour vision, and by marker besides
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def axes(given: Any) -> Any:
    """`given`, or those of a new figure."""
    if given is not None:
        return given
    try:
        from matplotlib import pyplot
    except ImportError:
        raise WfcastError(
            "plots need matplotlib, which is not installed (the extra 'plot' of wfcast)"
        ) from None
    new = pyplot.subplots(layout="constrained", figsize=(8, 4.5))[1]
    new.spines[["top", "right"]].set_visible(False)
    new.grid(color="#e6e6e6", linewidth=0.8)
    new.set_axisbelow(True)
    return new


def natural(name: str) -> list[tuple[bool, int | str]]:
    """A key that sorts layer 10 after layer 9."""
    parts = re.split(r"([0-9]+)", name)
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in parts]


def name_axis(ax: Any, names: list[str]) -> None:
    """Tensors along the x axis: by name where there is room for it."""
    if len(names) <= 24:
        ax.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    else:
        ax.set_xlabel(f"tensors, from {names[0]} to {names[-1]}")


def by_layer(ax: Any, values: Mapping[str, float], *, scale: str = "log") -> None:
    """One point per tensor in the order of the layers, told apart by kind."""
    names = sorted(values, key=natural)
    for kind, colour, marker in zip(KINDS, COLOURS, MARKERS, strict=True):
        at = [i for i, name in enumerate(names) if kind_of(name) == kind]
        if at:
            ys = [values[names[i]] for i in at]
            ax.plot(at, ys, marker, color=colour, markersize=5, label=kind)
    if any(value > 0 for value in values.values()):
        ax.set_yscale(scale)
    name_axis(ax, names)
    legend(ax)


def by_input(ax: Any, values: Mapping[str, Sequence[float]], steps: Sequence[int]) -> None:
    """The coefficients of each input step, by tensor in the order of the layers."""
    names = sorted(values, key=natural)
    for k, step in enumerate(steps):
        style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        ys = [values[name][k] for name in names]
        ax.plot(range(len(names)), ys, linestyle="", markersize=5, **style, label=f"w_{step}")
    name_axis(ax, names)
    legend(ax)


def legend(ax: Any) -> None:
    """Beside the axes, where it hides nothing."""
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
