"""A checked forecast that has yet to be computed: which tensors, from which checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._adapters import FACTORS, Pair, Product, check_shapes, combine_product, pairs_in
from ._apply import apply, convert
from ._columns import Label
from ._errors import CheckpointError, WfcastError, warn
from ._parameters import ALL
from ._runs import check_alike, check_bases, check_filled, few, forecastable, has, open_run
from .checkpoint import Checkpoint, FileCheckpoint, Tensor, step_named

if TYPE_CHECKING:
    from ._operator import Operator

__all__ = ["Plan", "check_pair", "factors_of", "pairs_of", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What an operator is to compute.

    Attributes
    ----------
    operator : Operator
    inputs : dict of int to Checkpoint
        The opened inputs, in the order of steps; the last of them lends form and dtypes.
    forecast : list of Tensor
        All others are to be taken from the last input.
    horizon : int
        The index of the target.
    beyond : tuple of str
        Where it goes beyond what was fitted.
    """

    operator: Operator
    inputs: dict[int, Checkpoint]
    forecast: list[Tensor]
    horizon: int
    beyond: tuple[str, ...]

    @property
    def latest(self) -> Checkpoint:
        """The last input."""
        return list(self.inputs.values())[-1]

    @property
    def step(self) -> int:
        """The target."""
        return self.operator.targets[self.horizon]

    def apply(
        self,
        name: str,
        x: list[Any],
        y: Any,
        check_finite: bool,
        start: int = 0,
        moves: Any | None = None,
    ) -> None:
        """Forecast one tensor, or the block of its rows that begins at `start`, into `y`.

        ``sum (y - latest)^2`` and ``sum latest^2`` are added to the two of `moves`.
        """
        coef, intercept = self.operator.coefficients(name)
        here = slice(self.horizon, self.horizon + 1)
        apply(
            x,
            [y],
            np.ascontiguousarray(coef[here]),
            np.ascontiguousarray(intercept[here]),
            check_finite=check_finite,
            n_threads=self.operator.n_threads,
            inputs=[Label("", c.label(name)) for c in self.inputs.values()],
            outputs=[self._output(name)],
            shape=self.latest.tensors[name].shape,
            start=start,
            moves=moves,
        )

    def product(self, pair: Pair, factors: Sequence[tuple[Any, Any]]) -> Product:
        """Forecast the product of LoRA's factors, which are those of all inputs, in float64."""
        return combine_product(factors, self.operator.coefficients(pair.a)[0][self.horizon])

    def round(self, name: str, x: Any, y: Any, check_finite: bool, start: int = 0) -> None:
        """Round a forecast, or the block of it that begins at `start`, into `y`."""
        shape, threads = self.latest.tensors[name].shape, self.operator.n_threads
        output = self._output(name)
        convert(x, y, check_finite, threads, output=output, shape=shape, start=start)

    def _output(self, name: str) -> str:
        return f"tensor {name!r} at step {self.step}"


def plan(
    operator: Operator,
    run: Any,
    step: int | None,
    partial: bool = False,
    key: str | None = None,
) -> Plan:
    """Open the inputs and check that they go together, and with the operator.

    Parameters
    ----------
    operator : Operator
    run : {step: checkpoint}
    step : int or None
        The target; None where there is but one.
    partial : bool
        Whether to leave out tensors that not all inputs have alike, or that the operator does not
        know, instead of refusing them.
    key : str, optional
        The set of weights to take from files that hold several.
    """
    horizon = operator.horizon(step)
    inputs = open_run(run, operator.inputs, "the run", key)
    latest = list(inputs.values())[-1]
    for checkpoint in inputs.values():
        check_filled(checkpoint)
    wanted = forecastable(latest)
    if partial:
        for checkpoint in inputs.values():
            check_bases(latest, checkpoint)
        wanted = [
            t for t in wanted if operator.knows(t.name) and all(has(c, t) for c in inputs.values())
        ]
    else:
        for checkpoint in inputs.values():
            check_alike(latest, checkpoint)
        _check_known(operator, latest, wanted)
    wanted = [t for t in wanted if t.size]
    beyond = (*_steps_beyond(inputs), *_tensors_beyond(operator, latest, wanted))
    for text in beyond:
        warn(text)
    return Plan(operator, inputs, wanted, horizon, beyond)


# ---- LoRA ---------------------------------------------------------------------------------------


def pairs_of(plan: Plan, copied: dict[str, str]) -> dict[str, Pair]:
    """The factors that are forecast by their product, by name.

    Where one of two is `copied` from the last input, by name -> why, the other one becomes so.

    Raises
    ------
    CheckpointError
        A factor without the other one, or of another rank.
    WfcastError
        Coefficients that differ between the two, or an intercept.
    """
    tensors = plan.latest.tensors
    found = pairs_in(name for name in tensors if copied.get(name) != "not chosen")
    for pair in dict.fromkeys(found.values()):
        if why := copied.get(pair.a, copied.get(pair.b)):
            copied.update(dict.fromkeys(pair, why))
            continue
        check_pair(plan.latest, pair)
        (coef, intercept), (of_b, intercept_of_b) = map(plan.operator.coefficients, pair)
        if intercept.any() or intercept_of_b.any():
            raise WfcastError(
                f"the forecast has an intercept for {pair.a!r} and {pair.b!r}, which means "
                f"nothing for their product: fit with fit_intercept=False, or {FACTORS}"
            )
        if (coef != of_b).any():
            raise WfcastError(
                f"the coefficients of {pair.a!r} and {pair.b!r} differ, and their product needs "
                f"the same: fit with by='all', or {FACTORS}"
            )
    return {name: pair for name, pair in found.items() if name not in copied}


def check_pair(checkpoint: Checkpoint, pair: Pair) -> None:
    """Raise CheckpointError where two factors have no product B A of their own."""
    if checkpoint.stacked:
        raise CheckpointError(
            f"{checkpoint.what} adapts single parameters (target_parameters), and those of experts "
            f"have several products in one pair of factors: {FACTORS}"
        )
    a, b = (checkpoint.tensors[name].shape for name in pair)
    check_shapes(pair, a, b, checkpoint.what)


def factors_of(
    states: Iterable[Checkpoint], pair: Pair, check_finite: bool, n_threads: int | None
) -> list[tuple[Any, Any]]:
    """A and B of all states, as matrices of float64."""
    return [
        (
            _wide(state, pair.a, check_finite, n_threads),
            _wide(state, pair.b, check_finite, n_threads),
        )
        for state in states
    ]


def _wide(state: Checkpoint, name: str, check_finite: bool, n_threads: int | None) -> Any:
    x = state.column(name).array
    y = np.empty(x.shape)
    convert(x, y, check_finite, n_threads, input=state.label(name), shape=x.shape)
    return y.reshape(len(y), -1)


# ---- what is known ------------------------------------------------------------------------------


def _check_known(operator: Operator, latest: Checkpoint, wanted: list[Tensor]) -> None:
    if ALL in operator.coef:
        return
    new = [t.name for t in wanted if t.size and t.name not in operator.coef]
    buffers = {t.name for t in latest.tensors.values() if t.buffer}
    lost = operator.coef.keys() - {t.name for t in wanted} - buffers
    if new or lost:
        lines = [f"only in {latest.what}: {few(new)}"] if new else []
        if lost:
            lines.append(f"only in the fit: {few(lost)}")
        raise CheckpointError(
            "the fit, which is by tensor, does not have the tensors of "
            "the checkpoint:\n  " + ";\n  ".join(lines)
        )


def _steps_beyond(inputs: Mapping[int, Checkpoint]) -> Iterator[str]:
    """What is to be said of inputs of other steps than those of the fit."""
    for at, checkpoint in inputs.items():
        if not isinstance(checkpoint, FileCheckpoint):
            continue
        named = step_named(checkpoint.path)
        if named not in (None, at):
            yield (
                f"{str(checkpoint.path)!r} is taken as step {at}, but its name says {named}: "
                "the forecast goes beyond what was fitted unless the steps count differently"
            )


def _tensors_beyond(operator: Operator, latest: Checkpoint, wanted: list[Tensor]) -> Iterator[str]:
    """What is to be said of tensors, dtypes or adapted models that the fit did not see."""
    if not operator.tensors:
        return
    if None not in (operator.base, latest.base) and operator.base != latest.base:
        yield (
            f"{latest.what} adapts {latest.base!r}, and the fit saw adapters of "
            f"{operator.base!r}: the forecast goes beyond what was fitted"
        )
    seen = {name: (tuple(shape), dtype) for name, (shape, dtype) in operator.tensors.items()}
    new = [t for t in wanted if seen.get(t.name, (None, ""))[0] != t.shape]
    known = [t for t in wanted if seen.get(t.name, (None, ""))[0] == t.shape]
    other = [t for t in known if seen[t.name][1] != t.dtype]
    for tensors, text in (
        (new, "have a name or shape that the fit did not see"),
        (other, "have another dtype than in the fit"),
    ):
        if tensors:
            yield (
                f"{len(tensors)} tensors of {latest.what} {text}, {tensors[0].name!r} first: "
                "the forecast goes beyond what was fitted"
            )
