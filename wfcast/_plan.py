"""A checked forecast that has yet to be computed: which tensors, from which checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._adapters import Pair, Product, combine_product
from ._apply import apply
from ._columns import Label
from ._errors import CheckpointError, warn
from ._parameters import ALL
from ._runs import check_alike, check_bases, forecastable, has, open_run
from .checkpoint import Checkpoint, FileCheckpoint, Tensor, step_named

if TYPE_CHECKING:
    from ._operator import Operator

__all__ = ["Plan", "plan"]


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

    def factors(self, pair: Pair, check_finite: bool) -> list[tuple[Any, Any]]:
        """LoRA's A and B of all inputs, as matrices of float64."""
        found = []
        for checkpoint in self.inputs.values():
            wide = []
            for name in pair:
                x = checkpoint.column(name).array
                y = np.empty(x.shape)
                self._convert(x, y, checkpoint.label(name), "", check_finite, x.shape, 0)
                wide.append(y.reshape(len(y), -1))
            found.append((wide[0], wide[1]))
        return found

    def product(self, pair: Pair, factors: Sequence[tuple[Any, Any]]) -> Product:
        """The forecast of their product, of what `factors` gives."""
        return combine_product(factors, self.operator.coefficients(pair.a)[0][self.horizon])

    def round(self, name: str, x: Any, y: Any, check_finite: bool, start: int = 0) -> None:
        """Round a forecast, or the block of it that begins at `start`, into `y`."""
        shape = self.latest.tensors[name].shape
        self._convert(x, y, "", self._output(name), check_finite, shape, start)

    def _convert(
        self,
        x: Any,
        y: Any,
        what: str,
        output: str,
        check_finite: bool,
        shape: tuple[int, ...],
        start: int,
    ) -> None:
        apply(
            [x],
            [y],
            np.ones((1, 1)),
            np.zeros(1),
            check_finite=check_finite,
            n_threads=self.operator.n_threads,
            inputs=[Label("", what)],
            outputs=[output],
            shape=shape,
            start=start,
        )

    def _output(self, name: str) -> str:
        return f"tensor {name!r} at step {self.step}"


def plan(operator: Operator, run: Any, step: int | None, partial: bool = False) -> Plan:
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
    """
    horizon = operator.horizon(step)
    inputs = open_run(run, operator.inputs, "the run")
    latest = list(inputs.values())[-1]
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


def _check_known(operator: Operator, latest: Checkpoint, wanted: list[Tensor]) -> None:
    if ALL in operator.coef:
        return
    new = sorted(t.name for t in wanted if t.size and t.name not in operator.coef)
    buffers = {t.name for t in latest.tensors.values() if t.buffer}
    lost = sorted(operator.coef.keys() - {t.name for t in wanted} - buffers)
    if new or lost:
        lines = [f"only in {latest.what}: {', '.join(map(repr, new[:5]))}"] if new else []
        if lost:
            lines.append(f"only in the fit: {', '.join(map(repr, lost[:5]))}")
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
