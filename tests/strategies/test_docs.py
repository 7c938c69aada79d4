"""docs/strategies.md: its blocks run one after the other, and name all that there is."""

import subprocess
import sys

import torch

from steepest import strategies
from tests.blocks import blocks, paste, text

PAGE = text("docs/strategies.md")


def test_the_blocks_of_the_page_run():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two wait for each other on a busy machine; conftest sets it back
    names = {"__name__": "strategies"}
    found = blocks("docs/strategies.md")
    assert len(found) == PAGE.count("\n## ") + 1
    for block in found:
        paste(block, "strategies.md", names)


def test_the_page_names_every_strategy():
    for name in strategies.__all__:
        if name[0].isupper() and name != "Shuffled":  # what a Loader does without a sampler
            assert f"strategies.{name}(" in PAGE, name


def test_steepest_does_not_import_the_room_nor_the_room_the_extras():
    code = (
        "import sys, steepest; assert 'steepest.strategies' not in sys.modules; "
        "import steepest.strategies; "
        "assert not {'scipy', 'sklearn', 'optuna'} & {*sys.modules}"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
