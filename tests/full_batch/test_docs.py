"""The code of docs/full_batch.md runs as it stands, one block after the other."""

import pytest
import torch

from steepest import full_batch
from tests.blocks import blocks, paste, text

PAGE = text("docs/full_batch.md")


def test_the_page_runs_and_names_every_method():
    torch.set_num_threads(1)
    names = {"__name__": "page"}
    for block in blocks("docs/full_batch.md"):
        paste(block, "docs/full_batch.md", names)
    assert names["loss"] < 1
    for name in set(full_batch.__all__) - {"LinearFit"}:
        assert f"full_batch.{name}(" in PAGE, name


@pytest.mark.parametrize("name", full_batch.__all__)
def test_public_names_say_what_they_are(name):
    assert len(getattr(full_batch, name).__doc__) > 100
