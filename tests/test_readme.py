"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_code_runs(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_nothing_in_the_readme_waits_to_be_filled_in():
    assert not re.search(r"\b(SPEED|TODO|TBD|FIRST_\w+)\b", README)


def test_the_readme_names_commands_that_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"\$ make (\w+)", README):
        assert f"\n{target}: " in makefile
    for script in re.findall(r"python (bench/\w+\.py)", README):
        assert (Path(__file__).parent.parent / script).is_file()
