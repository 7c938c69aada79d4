"""The code of docs/whole.md runs as it stands, one block after the other."""

import pytest
import torch

from steepest import whole
from tests.blocks import blocks, paste, text

PAGE = text("docs/whole.md")


def test_the_page_runs_and_names_every_method():
    torch.set_num_threads(1)
    names = {"__name__": "page"}
    for block in blocks("docs/whole.md"):
        paste(block, "docs/whole.md", names)
    assert names["loss"] < 1
    for name in set(whole.__all__) - {"LinearFit"}:
        assert f"whole.{name}(" in PAGE, name


@pytest.mark.parametrize("name", whole.__all__)
def test_public_names_say_what_they_are(name):
    assert len(getattr(whole, name).__doc__) > 100
