"""The demo's pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .._atomic import atomic_file

__all__ = ["plot_forecast", "plot_readout"]

# Okabe and Ito's palette: told apart with any kind of colour vision, and by marker besides
_READOUT, _DECAYS = "#D55E00", ("#56B4E9", "#0072B2")
_TRUTH, _FORECAST, _PERSISTENCE, _LINE = "#000000", "#D55E00", "#0072B2", "#009E73"
_GREY = "#999999"
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}  # behind text that crosses a grid


def plot_readout(report: dict[str, Any], path: Path) -> None:
    """Draw the readout beside real decays into a PNG; it appears complete or not at all."""
    figure = _figure(11.5, 4.6)
    losses, changes = figure.subplots(1, 2)
    _readout_losses(losses, report)
    _readout_changes(changes, report)
    model = report["model"]
    _finish(
        figure,
        f"{model['class']} ({model['parameters']:,} parameters) at a constant rate: "
        "what if training ended now?",
        path,
    )


def plot_forecast(report: dict[str, Any], path: Path) -> None:
    """Draw the forecasts and the jump into a PNG; it appears complete or not at all."""
    figure = _figure(12.5, 9.4)
    (by_horizon, by_kind), (curves, difference) = figure.subplots(2, 2)
    _horizons(by_horizon, report)
    _kinds(by_kind, report)
    _curves(curves, report)
    _difference(difference, report)
    model, n = report["model"], report["jump"]["from"]
    _finish(
        figure,
        f"Forecasting the weights of {model['class']} ({model['parameters']:,} parameters) "
        f"from its steps 0 and {n}",
        path,
    )


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
    FigureCanvasAgg(figure)
    return figure


def _finish(figure: Figure, title: str, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="both", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    with atomic_file(path) as file:
        file.write(buffer.getvalue())


def _readout_losses(axes: Axes, report: dict[str, Any]) -> None:
    rows = report["readout"]["rows"]
    fresh = next(r for r in report["runs"] if r["role"] == "fresh")["held_out_loss"]
    first = rows[0]["step"] / 2
    axes.plot(
        *zip(*[point for point in fresh if point[0] >= first], strict=True),
        color=_TRUTH,
        label="the run, its latest weights",
    )
    steps = [row["step"] for row in rows]
    for share, colour, marker in zip(rows[0]["decays"], _DECAYS, "v^", strict=True):
        axes.plot(
            steps,
            [row["decays"][share] for row in rows],
            linestyle="none",
            marker=marker,
            markersize=7,
            color=colour,
            label=f"rate really decayed, last {float(share):.0%}",
        )
    axes.plot(
        steps,
        [row["readout"] for row in rows],
        color=_READOUT,
        marker="o",
        markerfacecolor="white",
        label="readout: an average, no training",
    )
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("held-out loss, nats per masked token")
    axes.legend(fontsize=9, frameon=False, loc="lower left")
    _title(axes, "Held-out loss (lower is better)")


def _readout_changes(axes: Axes, report: dict[str, Any]) -> None:
    rows = report["readout"]["rows"]
    series = [
        (f"decay, {float(share):.0%}", colour, [row["decays"][share] for row in rows])
        for share, colour in zip(rows[0]["decays"], _DECAYS, strict=True)
    ]
    series.append(("readout", _READOUT, [row["readout"] for row in rows]))
    width = 0.8 / len(series)
    for k, (label, colour, losses) in enumerate(series):
        change = [100 * (v / row["latest"] - 1) for v, row in zip(losses, rows, strict=True)]
        at = [x + (k - (len(series) - 1) / 2) * width for x in range(len(rows))]
        bars = axes.bar(at, change, width * 0.92, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.axhline(0, color=_TRUTH, linewidth=1)
    axes.set_xticks(range(len(rows)), [str(row["step"]) for row in rows])
    axes.margins(y=0.15)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("held-out loss against the latest weights, %")
    axes.legend(fontsize=9, frameon=False, loc="lower left")
    _title(axes, "What ending now gains")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=11, loc="left")


def _horizons(axes: Axes, report: dict[str, Any]) -> None:
    horizons = report["horizons"]
    ahead = [h["ahead"] for h in horizons]
    for method, colour, marker in (("line", _LINE, "^"), ("forecast", _FORECAST, "o")):
        change = [100 * (h["methods"][method]["error"]["relative"] - 1) for h in horizons]
        axes.plot(ahead, change, marker=marker, color=colour, label=method)
        for x, y in zip(ahead, change, strict=True):
            above = method == "line"
            axes.annotate(
                f"{y:+.1f}%",
                (x, y),
                xytext=(-6, 6) if above else (0, -14),
                textcoords="offset points",
                ha="right" if above else "center",
                fontsize=9,
                color=colour,
            )
    axes.axhline(0, color=_PERSISTENCE, linestyle="--", label="persistence")
    axes.set_xticks(ahead, [f"+{a}" for a in ahead])
    axes.margins(x=0.2, y=0.2)
    axes.set_xlabel("steps ahead of the last observed one")
    axes.set_ylabel("weight error against persistence, %")
    axes.legend(frameon=False, loc="upper left")
    _title(axes, "Weight error by horizon (lower is better)")


def _kinds(axes: Axes, report: dict[str, Any]) -> None:
    at = next(h for h in report["horizons"] if h["step"] == report["jump"]["to"])
    kinds = list(at["methods"]["forecast"]["kinds"])
    rows = range(len(kinds))
    change = [100 * (at["methods"]["forecast"]["kinds"][k]["relative"] - 1) for k in kinds]
    axes.barh(rows, change, height=0.55, color=_FORECAST)
    axes.axvline(0, color=_PERSISTENCE, linestyle="--")
    for row, kind, value in zip(rows, kinds, change, strict=True):
        line = 100 * (at["methods"]["line"]["kinds"][kind]["relative"] - 1)
        axes.annotate(
            f"{value:+.1f}%  (line {line:+.0f}%)",
            (max(value, 0.0), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox=_PAPER,
        )
    axes.set_yticks(rows, kinds)
    axes.invert_yaxis()
    low, high = min(*change, 0.0), max(*change, 0.0)
    width = max(high - low, 1e-9)
    axes.set_xlim(low - 0.05 * width, high + 0.45 * width)
    axes.set_xlabel("weight error of the forecast against persistence, %")
    _title(axes, f"Weight error by kind of tensor, +{at['ahead']} steps")


def _curves(axes: Axes, report: dict[str, Any]) -> None:
    jump, n = report["jump"], report["jump"]["from"]
    for k, run in enumerate(r for r in report["runs"] if r["role"] == "sibling"):
        axes.plot(
            *zip(*run["held_out_loss"], strict=True),
            color=_GREY,
            linestyle="none",
            marker=".",
            label="sibling runs" if k == 0 else None,
        )
    fresh = next(r for r in report["runs"] if r["role"] == "fresh")["held_out_loss"]
    axes.plot(*zip(*fresh, strict=True), color=_TRUTH, label="fresh run")
    axes.plot(
        *zip(*jump["jumped"], strict=True),
        color=_FORECAST,
        linestyle="--",
        label=f"jumped at step {n}",
    )
    axes.axvline(n, color=_GREY, linestyle=":", linewidth=1)
    steps = [h["step"] for h in report["horizons"]]
    ceiling = max(loss for _, loss in fresh)
    for method, colour, marker in (
        ("forecast", _FORECAST, "o"),
        ("persistence", _PERSISTENCE, "s"),
        ("line", _LINE, "^"),
    ):
        losses = [h["methods"][method]["loss"] for h in report["horizons"]]
        inside = [(s, v) for s, v in zip(steps, losses, strict=True) if v <= ceiling]
        label = f"{method}, no training" + (
            ""
            if len(inside) == len(steps)
            else f" (off scale: {', '.join(f'{v:.1f}' for v in losses if v > ceiling)})"
        )
        axes.plot(
            [s for s, _ in inside],
            [v for _, v in inside],
            linestyle="none",
            marker=marker,
            color=colour,
            markerfacecolor="none",
            markersize=7,
            label=label,
        )
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("held-out loss, nats per masked token")
    axes.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    _title(axes, "Held-out loss, with and without the jump")


def _difference(axes: Axes, report: dict[str, Any]) -> None:
    jump = report["jump"]
    steps, values = zip(*jump["difference"], strict=True)
    axes.axhline(0, color=_TRUTH, linewidth=1)
    axes.plot(steps, values, color=_FORECAST, linestyle="--", marker="o", markersize=4)
    axes.fill_between(
        steps,
        values,
        0,
        where=[v < 0 for v in values],
        interpolate=True,
        color=_FORECAST,
        alpha=0.15,
        linewidth=0,
    )
    axes.annotate(
        f"right after the jump {values[0]:+.3f}",
        (steps[0], values[0]),
        xytext=(10, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        bbox=_PAPER,
    )
    axes.margins(y=0.15)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("jumped minus not jumped, nats")
    _title(axes, f"What the jump to step {jump['to']} changed (below 0: ahead)")
