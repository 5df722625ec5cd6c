"""Shell patterns of names, for whatever is included and excluded by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from ._errors import DtypeError, WfcastError

__all__ = ["Patterns", "chosen"]

Patterns = str | Sequence[str]
"""One pattern or several; ``*`` stands for anything, as in the shell. Case matters."""


def chosen(
    names: Mapping[str, Sequence[str]],
    include: Patterns | None,
    exclude: Patterns | None,
    what: str,
) -> set[str]:
    """The keys that some pattern includes and none excludes.

    Parameters
    ----------
    names : mapping of str to sequence of str
        Each key with all names that it goes by, itself among them: a tied tensor is included, or
        excluded, by any of its names.
    include : str, sequence of str or None
        None includes everything, an empty sequence nothing.
    exclude : str, sequence of str or None
        None excludes nothing, as an empty sequence does.
    what : str
        What the names are, for messages: "parameters of the model".

    Raises
    ------
    DtypeError
        `include` or `exclude` is neither a string nor a sequence of strings.
    WfcastError
        A pattern matches no name: it is likely misspelt.
    """
    known = list(dict.fromkeys(name for every in names.values() for name in every))
    included = None if include is None else _listed(include, "include", known, what)
    excluded = [] if exclude is None else _listed(exclude, "exclude", known, what)
    return {
        key
        for key, every in names.items()
        if (included is None or _match(every, included)) and not _match(every, excluded)
    }


def _listed(given: Patterns, argument: str, known: Sequence[str], what: str) -> list[str]:
    """The patterns of an argument, each of which matches a known name."""
    if not isinstance(given, Iterable):
        raise DtypeError(f"{argument} is {given!r}, expected a pattern or a list of patterns")
    patterns = [given] if isinstance(given, str) else list(given)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise DtypeError(f"{argument} is {patterns!r}, expected a pattern or a list of patterns")
    for pattern in patterns:
        if not _match(known, [pattern]):
            example = f", such as {known[0]!r}" if known else ""
            raise WfcastError(
                f"{argument}: the pattern {pattern!r} matches none of the {len(known)} {what}"
                f"{example}; * stands for anything"
            )
    return patterns


def _match(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches one of the names; a name matches itself."""
    return any(
        name == pattern or fnmatchcase(name, pattern) for name in names for pattern in patterns
    )
