"""Code in Markdown between comments, so that what is shown is what is tested."""

from __future__ import annotations

import re
from pathlib import Path


def marked(name: str, page: Path) -> str:
    """The one block of code between the page's markers of this name."""
    found = re.findall(
        rf"^<!-- {name} -->\n```\w+\n(.*?)\n```\n<!-- /{name} -->$",
        page.read_text(encoding="utf-8"),
        re.S | re.M,
    )
    assert len(found) == 1, f"{page.name} marks {name!r} {len(found)} times"
    return str(found[0])
