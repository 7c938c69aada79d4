"""The README's code runs as it stands."""

import re

import pytest

from tests.blocks import ROOT, blocks, paste, text

README = text("README.md")
BLOCKS = blocks("README.md")


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_code_runs(block):
    paste(block, "README.md")


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert not re.search(r"\b(SPEED|TODO|TBD|FIRST_\w+)\b", README)


def test_the_readme_names_commands_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\$ make (\w+)", README):
        assert f"\n{target}: " in makefile
    for script in re.findall(r"python (bench/\w+\.py)", README):
        assert (ROOT / script).is_file()
