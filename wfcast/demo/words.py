"""The report in words: tables for the terminal, and sentences that say who won and who lost."""

from __future__ import annotations

from typing import Any

from .._terminal import table

__all__ = ["tables", "verdict"]

_LEVEL = 2e-3  # a relative difference of losses up to this is called level
_TIE = 1e-3  # relative differences, and nats, below this are called a tie


def _percent(relative: float | None) -> str:
    return "-" if relative is None else f"{100 * (relative - 1):+.1f}%"


def tables(report: dict[str, Any]) -> str:
    """Tables and verdict for the terminal."""
    horizons, jump = report["horizons"], report["jump"]
    n = jump["from"]
    by_horizon = table(
        ("step", "ahead", "trained", "forecast", "persist.", "line", "forecast", "line"),
        [
            (
                str(h["step"]),
                f"+{h['ahead']}",
                f"{h['true_loss']:.3f}",
                *(f"{h['methods'][m]['loss']:.3f}" for m in ("forecast", "persistence", "line")),
                *(_percent(h["methods"][m]["error"]["relative"]) for m in ("forecast", "line")),
            )
            for h in horizons
        ],
        left=0,
    )
    kinds = list(horizons[0]["methods"]["forecast"]["kinds"])
    at = next(h for h in horizons if h["step"] == jump["to"])

    def kind_row(kind: str) -> tuple[str, ...]:
        size = at["methods"]["forecast"]["kinds"][kind]["n"]
        errors = (
            f"{_percent(h['methods']['forecast']['kinds'][kind]['relative'])} / "
            f"{_percent(h['methods']['line']['kinds'][kind]['relative'])}"
            for h in horizons
        )
        changes = (
            f"{at['methods'][m]['kinds'][kind]['loss'] - report['observed_loss']:+.3f}"
            for m in ("forecast", "line")
        )
        return (kind, f"{size:,}", *errors, " / ".join(changes))

    by_kind = table(
        ("tensors", "weights", *(f"+{h['ahead']}" for h in horizons), f"loss, +{at['ahead']}"),
        [kind_row(kind) for kind in kinds],
    )
    shown = jump["difference"]
    if len(shown) > 9:  # the jump itself, and eight more spread evenly
        shown = [shown[round(k * (len(shown) - 1) / 8)] for k in range(9)]
    jumped, plain = dict(map(tuple, jump["jumped"])), dict(map(tuple, jump["plain"]))
    after = table(
        ("step", "no jump", "jumped", "difference"),
        [(str(s), f"{plain[s]:.3f}", f"{jumped[s]:.3f}", f"{d:+.3f}") for s, d in shown],
        left=0,
    )
    model, threads = report["model"], report["machine"]["threads"]
    head = (
        f"Forecasts: a farcaster fitted on {len(report['seeds']['siblings'])} sibling runs; the "
        f"run observed at steps 0 and {n}"
    )
    return "\n\n".join(
        (
            f"{model['class']}, {model['parameters']:,} parameters",
            "If training ended now: held-out loss (nats) of a run at a constant rate, and where a\n"
            f"linear decay of the rate over its last steps really leads\n{_readouts(report)}",
            head,
            "By horizon: held-out loss (nats) of the weights, weight error against persistence\n"
            + by_horizon,
            "By kind of tensor: error against persistence, forecast / line; last column: "
            f"change of\nheld-out loss where only this kind is forecast\n{by_kind}",
            f"Jump from step {n} to the forecast of step {jump['to']}, then training on: "
            f"held-out loss\n{after}",
            "What this shows\n" + "\n".join(f"* {sentence}" for sentence in report["verdict"]),
            f"{report['seconds']['total']:.0f} s on {threads} "
            f"thread{'s' * (threads > 1)}; "
            f"report.json, readout.png, forecast.png and all checkpoints are in {report['out']}",
        )
    )


def verdict(report: dict[str, Any]) -> list[str]:
    """Who won, in sentences that follow from the numbers alone."""
    return [
        _readout(report),
        _weights(report),
        _kinds(report),
        _losses(report),
        *_jump(report),
    ]


def _profile(chosen: Any) -> str:
    return f"{chosen:g}" if isinstance(chosen, int | float) else str(chosen)


def _readouts(report: dict[str, Any]) -> str:
    rows = report["readout"]["rows"]
    shares = list(rows[0]["decays"])
    return table(
        ("step", "latest", "readout", "profile", *(f"last {float(s):.0%}" for s in shares)),
        [
            (
                str(row["step"]),
                f"{row['latest']:.3f}",
                f"{row['readout']:.3f}",
                _profile(row["profile"]),
                *(f"{row['decays'][share]:.3f}" for share in shares),
            )
            for row in rows
        ],
        left=0,
    )


def _readout(report: dict[str, Any]) -> str:
    readout = report["readout"]
    rows = readout["rows"]
    against = [row["readout"] / min(row["decays"].values()) - 1 for row in rows]
    level = sum(change <= _LEVEL for change in against)
    gains = [row["readout"] / row["latest"] - 1 for row in rows]
    return (
        f"Readout: {100 * min(gains):+.1f} to {100 * max(gains):+.1f} % against the latest "
        f"weights, {100 * min(against):+.1f} to {100 * max(against):+.1f} % against the better of "
        f"two real decays; level with it or below at {level} of {len(rows)} steps. The decays cost "
        f"{readout['decay_steps']} further steps, the averages none."
    )


def _steps(horizons: list[dict[str, Any]]) -> str:
    return ", ".join(f"+{h['ahead']}" for h in horizons)


def _split(
    horizons: list[dict[str, Any]], margin: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Horizons where `margin` (mine minus theirs) is a win, a loss, and a tie."""
    wins = [h for h in horizons if margin(h) < -_TIE]
    losses = [h for h in horizons if margin(h) > _TIE]
    return wins, losses, [h for h in horizons if h not in wins and h not in losses]


def _outcome(horizons: list[dict[str, Any]], margin: Any) -> str:
    wins, losses, ties = _split(horizons, margin)
    for group, word in ((wins, "wins"), (losses, "loses"), (ties, "ties")):
        if len(group) == len(horizons):
            return f"{word} at every horizon"
    parts = [
        f"{word} at {_steps(group)}"
        for group, word in ((wins, "wins"), (losses, "loses"), (ties, "ties"))
        if group
    ]
    return ", ".join(parts)


def _weights(report: dict[str, Any]) -> str:
    horizons = report["horizons"]

    def relative(h: dict[str, Any], method: str) -> float:
        return float(h["methods"][method]["error"]["relative"])

    best = min(horizons, key=lambda h: relative(h, "forecast"))
    worst = max(horizons, key=lambda h: relative(h, "forecast"))
    outcome = _outcome(horizons, lambda h: relative(h, "forecast") - 1)
    line = _outcome(horizons, lambda h: relative(h, "line") - 1)
    return (
        f"Weight error: the forecast {outcome} against persistence (from "
        f"{_percent(relative(worst, 'forecast'))} at +{worst['ahead']} to "
        f"{_percent(relative(best, 'forecast'))} at +{best['ahead']}); the line {line} "
        f"({_percent(relative(horizons[-1], 'line'))} at +{horizons[-1]['ahead']})."
    )


def _kinds(report: dict[str, Any]) -> str:
    at = next(h for h in report["horizons"] if h["step"] == report["jump"]["to"])
    kinds = {k: v["relative"] for k, v in at["methods"]["forecast"]["kinds"].items()}
    kinds = {k: v for k, v in kinds.items() if v is not None}
    best, worst = min(kinds, key=kinds.__getitem__), max(kinds, key=kinds.__getitem__)
    behind = [k for k, v in kinds.items() if v > 1 + _TIE]
    tail = f"behind persistence on: {', '.join(behind)}" if behind else "behind on none"
    return (
        f"By kind, at +{at['ahead']}: the forecast does best on {best} "
        f"({_percent(kinds[best])} against persistence) and worst on {worst} "
        f"({_percent(kinds[worst])}); {tail}."
    )


def _losses(report: dict[str, Any]) -> str:
    horizons, last = report["horizons"], report["horizons"][-1]

    def loss(h: dict[str, Any], method: str) -> float:
        return float(h["methods"][method]["loss"])

    return (
        "Held-out loss without further training: the forecast "
        f"{_outcome(horizons, lambda h: loss(h, 'forecast') - loss(h, 'persistence'))} against "
        f"persistence and {_outcome(horizons, lambda h: loss(h, 'forecast') - loss(h, 'line'))} "
        f"against the line. At +{last['ahead']}: forecast {loss(last, 'forecast'):.3f}, "
        f"persistence {loss(last, 'persistence'):.3f}, line {loss(last, 'line'):.3f}; really "
        f"training gave {last['true_loss']:.3f}, so a forecast does not replace training."
        if min(loss(h, "forecast") - h["true_loss"] for h in horizons) > 0
        else "Held-out loss without further training: the forecast "
        f"{_outcome(horizons, lambda h: loss(h, 'forecast') - loss(h, 'persistence'))} against "
        f"persistence and, at +{last['ahead']}, reaches {loss(last, 'forecast'):.3f} where really "
        f"training gave {last['true_loss']:.3f}."
    )


def _jump(report: dict[str, Any]) -> list[str]:
    jump = report["jump"]
    rise, final = jump["rise"], jump["final_difference"]
    steps = jump["jumped"][-1][0] - jump["from"]
    at_once = (
        f"rises by {rise:.3f}"
        if rise > _TIE
        else f"falls by {-rise:.3f}"
        if rise < -_TIE
        else "stays as it was"
    )
    first = f"Jump: right after loading the forecast of step {jump['to']}, held-out loss {at_once}"
    since = jump["below_since"]
    if since is None:
        then = f"; {steps} steps later it is {final:+.3f} against the run that did not jump"
    elif since == jump["from"]:
        then = f" and is below the run that did not jump from then on ({final:+.3f} at the end)"
    else:
        then = (
            f"; from step {since} on, {since - jump['from']} steps later, it stays below the run "
            f"that did not jump ({final:+.3f} at the end)"
        )
    mean = jump["mean_difference"]
    winner = "the jump" if mean < -_TIE else "not jumping" if mean > _TIE else "neither"
    ahead = jump["steps_ahead"]
    gain = (
        ""
        if abs(ahead) < 1
        else f", at the end about {abs(ahead):.0f} steps {'ahead' if ahead > 0 else 'behind'}"
    )
    seeds = "One run and one seed: repeat with --seed before believing a difference this small."
    return [
        f"{first}{then}.",
        f"Over the {steps} steps after it the difference is {mean:+.3f} nats on average{gain}: "
        f"{winner} wins. {seeds}",
    ]
