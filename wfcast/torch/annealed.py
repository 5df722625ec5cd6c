"""Readouts beside a run: the weights that it would have if its learning rate had been decayed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from .._errors import CheckpointError, WfcastError, warn
from .._live import distributed
from .._live.buffers import (
    buffers_restored,
    copies_of_buffers,
    persistent_buffers,
    put_buffers,
)
from .._live.span import States, restored, write
from .._live.tensors import Slot, Vector, bare, check_slot, combine, known, local, reshard
from .._operator import Operator
from .._parameters import ALL
from ._averages import Averages, Sums
from ._loop import Bound, evaluating, judged, modes_kept
from ._profiles import checked, coefficients, error, nearest
from ._settings import check_function
from .loss_fit import Feed, check_counts, check_judge, check_loss_fn, search

__all__ = ["Annealed"]

LATEST = "latest"
LARGEST = 1e30  # of a buffer's numbers: masks hold infinity, or the least number there is
Profile = float | str | Operator


class Annealed(Bound):
    r"""Power averages of a run, which they never touch: what it would be if training ended now.

    For each profile :math:`\gamma` an average whose weights grow as a power of the step,

    .. math:: \bar w_t = \frac{\sum_{s \le t} s^\gamma w_s}{\sum_{s \le t} s^\gamma}, \qquad
              \bar w \leftarrow \bar w + \Bigl(1 - \bigl(\tfrac{t - e}{t}\bigr)^{\gamma + 1}\Bigr)
              (w_t - \bar w)

    the second every e steps: each state stands for the steps since the one before it. It lags about
    :math:`t / \gamma` steps behind, and takes away the noise of so many batches, as a decay of the
    learning rate over them would. Of a run at a constant rate the best of a few such averages is
    about as good as a real decay; after a schedule that has decayed there is nothing left to gain.

    Parameters
    ----------
    model : torch.nn.Module
        Plain, compiled, DistributedDataParallel or FSDP2. Averaged are the trainable parameters,
        each process its own part, and the floating buffers, such as BatchNorm's statistics, but
        for masks (what begins with numbers beyond 1e30); a parameter that becomes trainable later
        joins with the weights that it has then.
    profiles : sequence of float, default=(2, 5, 10, 20, 40)
        The powers :math:`\gamma`, not below 0.
    every : int, default=10
        Steps between two looks at the weights, e.
    store : {"auto", "device", "cpu", "disk"} or path, default="auto"
        Where the averages live: beside each parameter, in memory of the CPU (the weights of a GPU
        are fetched beside the training), or in mapped files in a temporary folder or in that one.
        "auto" takes the device where they fill little of its memory.
    state_dtype : torch.dtype, optional
        float32, or float64; by default float64 for parameters in float64, else float32. An average
        in float32 is off by some 1e-6 of the weights. bfloat16 keeps the slowest average in float32
        and the others as differences from it: five averages take 12 bytes a weight instead of 20,
        and after a thousand looks each is off by 2 % of its difference, which grows with the square
        root of their number. On a CPU a sweep takes about ten times as long.
    refresh : callable, optional
        ``refresh(model)``, called once an average is in the model, as `torch.optim.swa_utils
        .update_bn` for BatchNorm; buffers have their own values back afterwards.

    Attributes
    ----------
    profiles : tuple of float
    chosen : float, "latest" or None
        What `choose` found.
    losses : dict
        What the judge gave then, by profile and for "latest".
    n_steps : int
        Steps so far.

    Raises
    ------
    WfcastError
        A parameter out of range, or a model without trainable parameters.

    See Also
    --------
    AnnealedCallback : The same in the Hugging Face Trainer.
    wfcast.annealed : The same average of stored checkpoints.
    fit_to_loss : Coefficients fitted to the loss, for stored states.

    References
    ----------
    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv
    2312.02696: the averages, and how others are made of a few that were kept.

    Examples
    --------
    >>> import torch
    >>> from wfcast.torch import Annealed
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    >>> annealed = Annealed(model, every=1)
    >>> def loss(x):
    ...     noise = 0.1 * torch.randn(len(x), 1)
    ...     return (model(x) - x.sum(1, keepdim=True) - noise).square().mean()
    >>> for step in range(200):
    ...     optimizer.zero_grad()
    ...     loss(torch.randn(8, 4)).backward()
    ...     optimizer.step()
    ...     _ = annealed.step()
    >>> held_out = torch.randn(1000, 4)
    >>> annealed.choose(lambda: loss(held_out)) != "latest"
    True
    >>> latest = loss(held_out)
    >>> with annealed.applied():
    ...     readout = loss(held_out)
    >>> bool(readout < latest)
    True
    """

    def __init__(
        self,
        model: torch.nn.Module,
        profiles: Sequence[float] = (2, 5, 10, 20, 40),
        every: int = 10,
        store: str | os.PathLike[str] = "auto",
        state_dtype: torch.dtype | None = None,
        *,
        refresh: Callable[[torch.nn.Module], Any] | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise WfcastError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
        if type(every) is not int or every < 1:
            raise WfcastError(f"every is {every!r}, expected an integer not below 1")
        check_function("refresh", refresh, "model")
        self.model, self.every, self.refresh = model, every, refresh
        self.profiles = checked(profiles)
        self.chosen: float | str | None = None
        self.losses: dict[float | str, float] = {}
        self.n_steps = 0
        slowest = self.profiles.index(min(self.profiles))
        self._averages = Averages(len(self.profiles), slowest, store, state_dtype)
        self._last = 0  # the step of the last look
        self._told = False
        self._swapped = False
        if not any(p.requires_grad for p in model.parameters()):
            raise WfcastError("the model has no trainable parameters")
        self._masks: frozenset[str] = frozenset()
        slots = self._slots()
        for slot in slots:
            check_slot(slot)
        buffers = {bare(name) for name, _ in model.named_buffers()}
        self._masks = frozenset(s.name for s in slots if s.name in buffers and _is_mask(s.local))

    def __repr__(self) -> str:
        chosen = self.chosen if self.chosen is None or self.chosen == LATEST else f"{self.chosen:g}"
        shown = ", ".join(f"{gamma:g}" for gamma in self.profiles)
        return f"Annealed(profiles=({shown}), n_steps={self.n_steps}, chosen={chosen})"

    def _parameters(self, kept: Container[str] | None = None) -> list[Slot]:
        """Those that are averaged; `kept` are the names of what was so far."""
        kept = self._averages.names if kept is None else kept
        return [
            Slot(bare(name), p)
            for name, p in self.model.named_parameters()
            if p.requires_grad or bare(name) in kept
        ]

    def _slots(self, kept: Container[str] | None = None) -> list[Slot]:
        """What is averaged, as the model holds it now; `kept` are the names of what was so far."""
        model, found = self.model, self._parameters(kept)
        persistent = model.state_dict(keep_vars=True).keys()
        found += [
            Slot(bare(name), b)
            for name, b in model.named_buffers()
            if name in persistent and b.is_floating_point() and known(b)
        ]
        return [s for s in found if s.name not in self._masks]

    @property
    def ready(self) -> bool:
        """Whether there is an average, as from step `every` on."""
        return bool(self._averages.names)

    def log(self) -> dict[str, float]:
        """What to log now: ``"annealed/profile"`` and the judge's losses, of the last choice.

        The latest weights, chosen, have no profile.
        """
        numbers = {}
        if isinstance(self.chosen, int | float):
            numbers["annealed/profile"] = float(self.chosen)
        for name, loss in self.losses.items():
            label = name if isinstance(name, str) else f"{name:g}"
            numbers[f"annealed/loss/{label}"] = loss
        return numbers

    # ---- averaging ----------------------------------------------------------------------------

    def step(self) -> bool:
        """Count one step of the optimizer, and every so many look at the weights.

        Returns
        -------
        bool
            Whether it looked.

        Warns
        -----
        UserWarning
            Once, where weights on a CPU hold NaN or infinity: no readout can be had any more.

        Raises
        ------
        WfcastError
            The model has the weights of a readout, inside `applied`.
        """
        self._outside("step")
        self.n_steps += 1
        if self.n_steps % self.every:
            self._averages.proceed()
            self._tell()
            return False
        t = self.n_steps
        shares = [1 - (self._last / t) ** (gamma + 1) for gamma in self.profiles]
        self._averages.take(self._slots(), shares, t)
        self._last = t
        self._tell()
        return True

    def _tell(self) -> None:
        """Warn, once, of weights that are no numbers any more."""
        name = self._averages.spoilt
        if name and not self._told:
            self._told = True
            warn(
                f"parameter {name!r} holds NaN or infinity by step {self._last}: so do its "
                "averages from now on, and there are no more readouts"
            )

    # ---- readouts -----------------------------------------------------------------------------

    def choose(self, judge: Callable[[], Any], *, maximize: bool = False) -> float | str:
        """Find the profile, or the latest weights, that a judge likes best.

        Parameters
        ----------
        judge : callable
            ``judge() -> float``, the held-out loss of the weights that are in the model; called in
            eval mode without gradients, once for each profile and for the latest weights. Of
            several processes the mean counts.
        maximize : bool, default=False
            Whether more is better, as of a reward or an accuracy.

        Returns
        -------
        float or "latest"
            Also kept as `chosen`, with the judge's numbers in `losses`. Of equals it is the latest
            weights, then the profile that comes first. NaN and infinity never win.

        Raises
        ------
        WfcastError
            No average yet, not one finite number, or a judge that returned no number.
        """
        check_judge(judge)
        losses: dict[float | str, float] = {}
        candidates: list[float | str] = [LATEST, *self.profiles]
        for name in candidates:
            with self.applied(name):
                with distributed.together(), evaluating(self.model):
                    value = judged(judge)
                losses[name] = distributed.mean([value])[0]
        finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
        if not finite:
            raise WfcastError(
                f"the judge gave no finite number, but {losses[LATEST]} for the latest weights and "
                f"{losses[self.profiles[0]]} for profile {self.profiles[0]:g}"
            )
        self.losses = losses
        self.chosen = (max if maximize else min)(finite, key=finite.__getitem__)
        return self.chosen

    @contextmanager
    def applied(self, profile: Profile | None = None) -> Iterator[torch.nn.Module]:
        """A context in which the model has the weights of a readout.

        ::

            with annealed.applied():
                evaluate(model)
                model.save_pretrained("annealed")

        Parameters
        ----------
        profile : float, "latest" or Operator, optional
            Another power than those kept is put together from them, as well as it can be; an
            Operator is one that `fit` returned. By default what was chosen, and before a choice the
            profile nearest to 10.

        Raises
        ------
        WfcastError
            No average yet; another profile; NaN or infinity in an average; or already inside.
        """
        coef = self._coefficients(profile)
        with self._inside("applied") as slots:
            if coef is not None:
                with distributed.together():
                    averages = self._averages.tensors()
                    reshard(self.model)
                    with torch.no_grad():
                        combine(
                            (
                                f"parameter {s.name!r}",
                                s.local,
                                [*averages[s.name], s.local],
                                (coef, 0.0),
                            )
                            for s in slots
                        )
                    self._refresh()
            yield self.model

    def write(self, profile: Profile | None = None) -> None:
        """Replace the weights in the model by a readout, as at the end of a run.

        Parameters
        ----------
        profile : float, "latest" or Operator, optional
            As in `applied`.

        Raises
        ------
        WfcastError
            As in `applied`; then the model is as it was.
        """
        with self.applied(profile), distributed.together():
            parameters = [(s.parameter, s.local.clone()) for s in self._parameters()]
            lasting, buffers = persistent_buffers(self.model), copies_of_buffers(self.model)
        reshard(self.model)
        with torch.no_grad():
            for tensor, values in parameters:
                local(tensor).copy_(values)
        put_buffers(self.model, buffers, lasting)

    @contextmanager
    def _inside(self, what: str) -> Iterator[list[Slot]]:
        """A context at whose end the model has its own weights and buffers again."""
        self._outside(what)
        if not self._averages.names:
            raise WfcastError(
                f"there is no average yet: the first comes with step {self.every}, and step() was "
                f"called {self.n_steps} times"
            )
        slots = [s for s in self._slots() if s.name in self._averages.names]
        with ExitStack() as back:
            with distributed.together():
                back.enter_context(restored(self.model, self._parameters()))
                back.enter_context(buffers_restored(self.model))
            self._swapped = True
            try:
                yield slots
            finally:
                self._swapped = False

    def _outside(self, what: str) -> None:
        if self._swapped:
            raise WfcastError(
                f"{what} was called inside applied(): the model has the weights of a readout there"
            )

    def _refresh(self) -> None:
        if self.refresh is not None:
            with modes_kept(self.model):
                self.refresh(self.model)

    def _coefficients(self, profile: Profile | None) -> Vector | None:
        """By average, and last the latest weights; None for the latest weights alone."""
        if profile is None:
            profile = self.chosen if self.chosen is not None else nearest(self.profiles, 10.0)
        if isinstance(profile, Operator):
            coef = profile.coef.get(ALL)
            if coef is None or coef.shape != (1, len(self.profiles) + 1):
                raise WfcastError(f"{profile!r} is none that fit has returned here")
            first: Vector = coef[0]
            return first
        if isinstance(profile, str):
            if profile != LATEST:
                raise WfcastError(
                    f"profile is {profile!r}, expected a power, 'latest' or what fit returned"
                )
            return None
        return coefficients(self.profiles, profile)

    def states(self) -> dict[int, dict[str, torch.Tensor]]:
        """The averages, numbered in the order of `profiles`, and last a copy of the latest weights.

        What the operator of `fit` goes by. Each process has its own part of a sharded tensor. The
        averages are not copies: the next look at the weights moves them.
        """
        averages = self._averages.tensors()
        states = {
            j: {name: kept[j] for name, kept in averages.items()} for j in range(len(self.profiles))
        }
        latest = {s.name: s.local.clone() for s in self._slots() if s.name in averages}
        return {**states, len(states): latest}

    # ---- fitting ------------------------------------------------------------------------------

    def fit(
        self,
        loss_fn: Callable[[Any, Any], torch.Tensor],
        batches: Iterable[Any],
        n_evals: int = 40,
        judge: Callable[[], Any] | None = None,
        *,
        n_judge: int = 8,
    ) -> Operator:
        r"""The combination of the averages and the latest weights with the least loss.

        ``min_a L(sum_j a_j avg_j + a_k w)`` with ``sum a = 1``, found by a few gradients as in
        `fit_to_loss`. The search begins at the best of the averages and the latest weights, and
        what it finds counts only where the judge prefers it: it is never worse than the best
        profile, by the judge.

        Parameters
        ----------
        loss_fn, batches, n_evals, judge, n_judge
            As in `fit_to_loss`.

        Returns
        -------
        Operator
            For `applied`. Its inputs are the averages, in the order of `profiles`, then the latest
            weights, as in `states`; its `info` says ``states``, ``n_evals``, ``loss_before`` (of
            the latest weights), ``loss_profile`` (of the best profile) and ``loss_after``.

        Raises
        ------
        WfcastError
            No average yet, no batches, a loss that is no finite scalar.
        """
        check_counts(n_evals=n_evals, n_judge=n_judge)
        check_loss_fn(loss_fn)
        check_function("judge", judge)
        with distributed.together():
            feed = Feed(batches, 0 if judge is not None else n_judge)
        model, k = self.model, len(self.profiles)
        ask = feed.judged(model, loss_fn, judge)
        with self._inside("fit") as slots, modes_kept(model):
            with distributed.together():
                states = States(self.states(), range(k + 1), slots)

            def put(coef: Vector) -> None:
                with distributed.together():
                    write(model, slots, states, lambda _: (coef, 0.0))

            def measure() -> float:
                with distributed.together():
                    self._refresh()
                return ask()

            model.eval()
            corners = np.eye(k + 1)
            found = search(
                model,
                [s for s in slots if s.parameter.requires_grad],
                states,
                put,
                measure,
                loss_fn,
                feed,
                rank=k,
                n_evals=n_evals,
                starts=[corners[-1], *corners[:-1]],
            )
        best = [loss for loss in found.losses[1 : k + 1] if math.isfinite(loss)]
        info = {
            "states": [*(f"{gamma:g}" for gamma in self.profiles), LATEST],
            "n_evals": found.n_evals,
            "loss_before": found.losses[0],
            "loss_profile": min(best, default=found.losses[0]),
            "loss_after": found.loss,
        }
        coef = found.coef[None, :]
        return Operator(range(k + 1), (k,), coef, strategy="annealed_fit", info=info)

    # ---- keeping ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, for `torch.save`; each process has its own part.

        The averages are not copies: save them before the next step.
        """
        return {
            "version": 1,
            "profiles": list(self.profiles),
            "n_steps": self.n_steps,
            "last": self._last,
            "chosen": self.chosen,
            "losses": dict(self.losses),
            "narrow": self._averages.narrow,
            "averages": dict(self._averages.raw()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave: to the bit, where the profiles are the same.

        Profiles that were not kept are put together from those that were, with a warning that says
        how far off they are.

        Raises
        ------
        CheckpointError
            No such state, or one of another model.
        """
        self._outside("load_state_dict")
        try:
            version, kept = state["version"], tuple(state["profiles"])
            n_steps, last, saved = state["n_steps"], state["last"], state["averages"]
            chosen, losses, narrow = state["chosen"], state["losses"], state["narrow"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this is no state of Annealed: {error!r}") from error
        if version != 1:
            raise CheckpointError(f"the state is of version {version!r}, expected 1")
        slots = [s for s in self._slots(saved) if s.name in saved]
        missing = saved.keys() - {s.name for s in slots}
        if missing:
            raise CheckpointError(
                f"the state holds {len(missing)} tensors that the model does not average, "
                f"{min(missing)!r} first"
            )
        for slot in slots:
            shapes = [list(average.shape) for average in saved[slot.name]]
            if shapes != [list(slot.local.shape)] * len(kept):
                odd = next((s for s in shapes if s != list(slot.local.shape)), None)
                what = f"{len(shapes)} averages of {len(kept)} profiles" if odd is None else odd
                raise CheckpointError(
                    f"{slot.name!r} is {list(slot.local.shape)} in the model, {what} in the state"
                )
        raw = kept == self.profiles and narrow == self._averages.narrow
        if narrow and not raw:
            saved = Sums(saved, kept.index(min(kept)))
        if kept != self.profiles:
            saved = self._synthesised(kept, saved)
        self._averages.load(saved, slots, raw=raw)
        self.n_steps, self._last, self._told = n_steps, last, False
        same = chosen in (None, LATEST, *self.profiles)
        self.chosen, self.losses = (chosen, dict(losses)) if same else (None, {})

    def _synthesised(
        self, kept: tuple[float, ...], saved: Mapping[str, list[torch.Tensor]]
    ) -> dict[str, list[torch.Tensor]]:
        off = {gamma: error(kept, gamma) for gamma in self.profiles if gamma not in kept}
        if off and saved:
            text = ", ".join(f"{gamma:g} ({value:.1%} off)" for gamma, value in off.items())
            source = ", ".join(f"{gamma:g}" for gamma in kept)
            warn(f"profiles that were not kept are put together from {source}: {text}")
        made: dict[str, list[torch.Tensor]] = {}
        for name, averages in saved.items():
            made[name] = [torch.empty_like(averages[0]) for _ in self.profiles]
            rows = [
                (name, out, averages, (coefficients(kept, gamma)[:-1], 0.0))
                for gamma, out in zip(self.profiles, made[name], strict=True)
            ]
            combine(rows)
        return made


def _is_mask(buffer: torch.Tensor) -> bool:
    """Whether a buffer holds numbers that are none to be averaged: -inf less -inf is NaN."""
    return not bool((buffer.abs() < LARGEST).all())
