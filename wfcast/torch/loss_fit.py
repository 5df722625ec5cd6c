"""Coefficients fitted to the loss itself, in the span of a run's recorded states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from .._errors import WfcastError
from .._live.distributed import add_up, mean, together
from .._live.span import States, parameters, restored, write
from .._live.tensors import Slot, Vector, local, products, share
from .._operator import Operator
from .._runs import check_run
from ._loop import judged, modes_kept, returned
from ._settings import check_function

__all__ = [
    "Feed",
    "Found",
    "check_counts",
    "check_judge",
    "check_loss_fn",
    "fit_to_loss",
    "search",
]

RATE = 0.2  # of Adam, in units of the root mean square movement between states, decayed linearly
BETAS = (0.9, 0.95)


def fit_to_loss(
    model: torch.nn.Module,
    states: Any,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    batches: Iterable[Any],
    *,
    rank: int = 6,
    n_evals: int = 40,
    judge: Callable[[], Any] | None = None,
    n_judge: int = 8,
) -> Operator:
    r"""The combination of recorded states with the least loss, found by a few gradients.

    ``min_a L(sum_k a_k w_k)`` with ``sum_k a_k = 1``. The judge first compares the latest weights
    with the means of the last 2, 4, 8 and of all states. From the best of them on the search goes
    along the `rank` leading directions of the movements ``w_k - w_K`` (the eigenvectors u_j of
    their Gram matrix): the derivative along one of them is the dot product of the minibatch
    gradient with it. Adam takes `n_evals` steps whose length is set by the movements and falls
    linearly to 0. The judge decides between where that ends and the others. Where noise dominates
    the result averages the states, where drift dominates it goes beyond them.

    Use it to see, and to export, what the model would be if training ended now, while the run goes
    on untouched (`Operator.applied`), or as a jump. After a schedule that has decayed there
    is nothing left to gain.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights and gradients are the same afterwards.
    states : {step: state_dict, module or path}
        The run's last states, evenly spaced: a dozen, some 25 steps apart, do well.
    loss_fn : callable
        ``loss_fn(model, batch)``, a scalar tensor.
    batches : iterable
        Training batches: ``n_judge + n_evals`` of them, fewer are gone through again.
    rank : int, default=6
        Directions to search, at most one less than the states.
    n_evals : int, default=40
        Minibatch gradients: the cost, beside at most six judgements.
    judge : callable, optional
        ``judge() -> float``, the held-out loss of the weights that are in the model. By default the
        mean loss over the first `n_judge` batches, which the search does not see.
    n_judge : int, default=8
        See `judge`.

    Returns
    -------
    Operator
        One coefficient set, its single target the last state's step. Its `info` says ``n_evals``
        (gradients spent), ``loss_before`` and ``loss_after`` (of the latest weights and of the
        result, by the judge). Where nothing lowered the judge's loss, the result is the latest
        weights.

    Raises
    ------
    WfcastError
        Fewer than two states, no batches, a loss that is no finite scalar.
    CheckpointError
        States that lack parameters of the model or differ in shape.

    See Also
    --------
    wfcast.average : The mean of states: often about as good, and for nothing.
    Farcasting : Jumps while training.
    wfcast.Operator.applied : Puts the result into the model for the length of a block.

    Examples
    --------
    >>> import torch
    >>> from wfcast.torch import fit_to_loss
    >>> _ = torch.manual_seed(0)
    >>> def loss_fn(model, batch):
    ...     return (model(batch) - batch.sum(1, keepdim=True)).square().mean()
    >>> model, states = torch.nn.Linear(4, 1), {}
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> batches = [torch.randn(8, 4) for _ in range(60)]
    >>> for step, batch in enumerate(batches):
    ...     optimizer.zero_grad()
    ...     loss_fn(model, batch).backward()
    ...     optimizer.step()
    ...     if step % 10 == 0:
    ...         states[step] = {name: w.clone() for name, w in model.state_dict().items()}
    >>> operator = fit_to_loss(model, states, loss_fn, batches)
    >>> operator
    Operator(strategy='fit_to_loss', inputs=(0, 10, 20, 30, 40, 50), targets=(50,))
    >>> with torch.no_grad(), operator.applied(model, states):
    ...     ahead = loss_fn(model, batches[0])
    >>> bool(ahead < loss_fn(model, batches[0]))
    True
    """
    if not isinstance(model, torch.nn.Module):
        raise WfcastError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    check_counts(rank=rank, n_evals=n_evals, n_judge=n_judge)
    check_loss_fn(loss_fn)
    check_function("judge", judge)
    steps = tuple(check_run(states, (), "states"))
    if len(steps) < 2:
        raise WfcastError(f"states holds {len(steps)} steps, expected at least two")
    slots = [s for s in parameters(model) if s.parameter.requires_grad]
    if not slots:
        raise WfcastError("the model has no trainable parameters")
    with together():
        opened = States(states, steps, slots)
        feed = Feed(batches, 0 if judge is not None else n_judge)

    def put(coef: Vector) -> None:
        with together():
            write(model, slots, opened, lambda _: (coef, 0.0))

    k = len(steps)
    means = [np.where(np.arange(k) < k - n, 0.0, 1 / n) for n in sorted({2, 4, 8, k}) if n <= k]
    with modes_kept(model), ExitStack() as back:
        with together():
            back.enter_context(restored(model, slots))
        model.eval()
        found = search(
            model,
            slots,
            opened,
            put,
            feed.judged(model, loss_fn, judge),
            loss_fn,
            feed,
            rank=rank,
            n_evals=n_evals,
            starts=[np.eye(k)[-1], *means],
        )
    info = {
        "n_evals": found.n_evals,
        "loss_before": found.losses[0],
        "loss_after": found.loss,
    }
    return Operator(steps, steps[-1:], found.coef[None, :], strategy="fit_to_loss", info=info)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes
    ----------
    coef : (k,) array
        Of the states.
    n_evals : int
        Gradients spent.
    losses : tuple of float
        The judge's, of every start and of where the search ended.
    """

    coef: Vector
    n_evals: int
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Of `coef`."""
        return min(loss for loss in self.losses if math.isfinite(loss))


def search(
    model: torch.nn.Module,
    slots: list[Slot],
    states: States,
    put: Callable[[Vector], None],
    measure: Callable[[], float],
    loss_fn: Callable[[Any, Any], torch.Tensor],
    feed: Feed,
    *,
    rank: int,
    n_evals: int,
    starts: Sequence[Vector],
) -> Found:
    """From the best of some combinations of states on, along their movements, to the least loss.

    Parameters
    ----------
    model, slots, states
        The parameters that gradients are taken of, and their states.
    put : callable
        ``put(coef)`` writes a combination into the model.
    measure : callable
        The judge's loss of what is in the model.
    loss_fn, feed, rank, n_evals
        See `fit_to_loss`.
    starts : sequence of (k,) arrays
        The first of them the latest weights.
    """
    tried: list[tuple[float, Vector]] = []

    def consider(coef: Vector) -> None:
        put(coef)
        tried.append((measure(), coef))

    def best() -> Vector:
        return min(tried, key=lambda found: found[0] if math.isfinite(found[0]) else math.inf)[1]

    def found(spent: int) -> Found:
        return Found(best(), spent, tuple(loss for loss, _ in tried))

    consider(starts[0])
    if not math.isfinite(tried[0][0]):
        raise WfcastError(
            f"the loss of the latest weights is {tried[0][0]}, expected a finite number"
        )
    basis, length = _basis(slots, states, rank)
    if length == 0:
        return found(0)
    for coef in starts[1:]:
        consider(coef)
    start = best()
    put(start)
    z = np.zeros(basis.shape[1])
    first, second = np.zeros_like(z), np.zeros_like(z)
    for t in range(1, n_evals + 1):
        with together():  # by itself: a sharded model meets the others in its forward pass
            batch = next(feed)
        with together():
            rows = _derivatives(model, slots, states, loss_fn, batch)
        gradient = basis.T @ _sum(*rows)[0]
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        scaled = (first / (1 - BETAS[0] ** t)) / (
            np.sqrt(second / (1 - BETAS[1] ** t)) + 1e-12 * np.abs(gradient).max() + 1e-300
        )
        z -= RATE * length * (1 - (t - 1) / n_evals) * scaled
        put(start + basis @ z)
    consider(start + basis @ z)
    return found(n_evals)


def _basis(slots: list[Slot], states: States, rank: int) -> tuple[Vector, float]:
    """Coefficients (k, r) of orthonormal directions, each summing to 0; the movements' length."""
    k = len(states.steps)
    with together():
        sums = products((f"parameter {s.name!r}", states.of(s), None) for s in slots)
    gram = _sum(slots, sums)
    to_latest = np.eye(k)[:-1] - np.eye(k)[-1]  # w_k - w_K
    values, vectors = np.linalg.eigh(to_latest @ gram @ to_latest.T)
    order = np.argsort(values)[::-1][:rank]
    order = order[values[order] > 1e-12 * max(values[-1], 1e-300)]
    basis: Vector = to_latest.T @ (vectors[:, order] / np.sqrt(values[order]))
    steps = np.diff(np.eye(k), axis=0)
    movements = np.einsum("ik,kl,il->i", steps, gram, steps)
    return basis, float(np.sqrt(max(movements.mean(), 0.0))) if len(order) else 0.0


def _derivatives(
    model: torch.nn.Module,
    slots: list[Slot],
    states: States,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    batch: Any,
) -> tuple[list[Slot], Vector]:
    """The gradient's dot products with every state, (n, 1, k), of the parameters that have one.

    The parameters' own gradients stay.
    """
    parameters = [s.parameter for s in slots]
    kept = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        with torch.enable_grad():
            loss = loss_fn(model, batch)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
                many = isinstance(loss, torch.Tensor) and loss.numel() != 1
                found = f"a tensor of shape {list(loss.shape)}" if many else f"{loss!r:.80}"
                raise WfcastError(
                    f"loss_fn returned {found}, expected a tensor of one number that depends on "
                    "the parameters of the model"
                )
            loss.backward()
        slots = [slot for slot in slots if slot.parameter.grad is not None]
        if not slots:
            return slots, np.zeros((0, 1, len(states.steps)))
        try:
            return slots, products((s.name, [_gradient(s)], states.of(s)) for s in slots)
        except ValueError as error:
            if isinstance(error, WfcastError):
                raise
            raise WfcastError("a gradient of the loss holds NaN or infinity") from error
    finally:
        for parameter, then in zip(parameters, kept, strict=True):
            parameter.grad = then


def _gradient(slot: Slot) -> torch.Tensor:
    gradient: Any = slot.parameter.grad
    return local(gradient.to_dense() if gradient.is_sparse else gradient)


def _sum(slots: list[Slot], sums: Vector) -> Vector:
    """The sum over tensors, and over the processes that hold them."""
    shares = np.array([share(slot.parameter) for slot in slots])
    total = np.einsum("i,ijk->jk", shares, sums)
    return add_up(total.ravel()).reshape(total.shape)


class Feed(Iterator[Any]):
    """Batches without end, and some of them set aside to judge by.

    Parameters
    ----------
    batches : iterable
    n_held : int
        How many to set aside, the first ones.
    """

    def __init__(self, batches: Iterable[Any], n_held: int) -> None:
        if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
            raise WfcastError(
                f"batches is a {type(batches).__name__}, expected an iterable, such as a DataLoader"
            )
        stream = iter(batches)
        self.held = list(islice(stream, n_held))
        if n_held and not self.held:
            raise WfcastError("batches is empty")
        self._endless = self._repeat(stream)

    def _repeat(self, stream: Iterator[Any]) -> Iterator[Any]:
        seen: list[Any] = []
        for batch in stream:
            seen.append(batch)
            yield batch
        if not seen:
            raise WfcastError(
                f"batches held {len(self.held)}, all of them taken to judge by: give more, or a "
                "judge"
            )
        while True:
            yield from seen

    def __next__(self) -> Any:
        return next(self._endless)

    def judged(
        self,
        model: torch.nn.Module,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        judge: Callable[[], Any] | None,
    ) -> Callable[[], float]:
        """The judge, or the mean loss over what was set aside; one number for all processes."""

        def measure() -> float:
            with together(), torch.no_grad():
                if judge is not None:
                    value = judged(judge)
                else:
                    losses = (loss_fn(model, batch) for batch in self.held)
                    value = float(np.mean([returned(loss, "loss_fn") for loss in losses]))
            return mean([value])[0]

        return measure


def check_counts(**counts: Any) -> None:
    """Raise WfcastError for what is no integer above 0."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise WfcastError(f"{name} is {value!r}, expected an integer not below 1")


def check_judge(judge: Any) -> None:
    """Raise WfcastError for what is no judge."""
    if judge is None:
        raise WfcastError("judge is None, expected a function that returns a held-out loss")
    check_function("judge", judge)


def check_loss_fn(loss_fn: Any) -> None:
    """Raise WfcastError for what cannot be called with a model and a batch."""
    if loss_fn is None:
        raise WfcastError("loss_fn is None, expected a function of a model and a batch")
    check_function("loss_fn", loss_fn, "model", "batch")
