"""The Python of a page of the documentation, as a reader would paste it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def text(page):
    """A page by its path from the root, such as "docs/full_batch.md"."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    return re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)


def paste(block, page, names=None):
    """Run a block; those that follow each other share their names."""
    exec(compile(block, page, "exec"), {"__name__": "page"} if names is None else names)
