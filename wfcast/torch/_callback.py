"""What the callbacks of all training libraries share."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any


def check_names(parameters: Mapping[str, Any], made: type, given: Sequence[str]) -> None:
    """Raise TypeError for what is no parameter of a class, or one of those `given` to it."""
    known = [name for name in inspect.signature(made).parameters if name not in given]
    odd = [name for name in parameters if name not in known]
    if odd:
        raise TypeError(f"there is no parameter {odd[0]!r}, expected some of {', '.join(known)}")
