"""The examinations as a pytest suite, for the tests of any package that has an optimizer.

    from steepest.check.suite import Suite

    class TestMine(Suite):
        optimizer = Mine

Each examination is a test. If an examination does not apply, its test is skipped with the reason.
If an examination fails, its test prints what was found and a script that reproduces the failure.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from .doctor import examinations, examine


class Suite:
    """A test for each examination. A subclass sets the optimizer.

    optimizer: the class, or anything else that `examine` takes.
    options: arguments of the class's constructor.
    known: name of an examination -> why its failure is accepted. If this examination passes, its
    test fails.
    """

    optimizer: ClassVar[Any]
    options: ClassVar[dict[str, Any]] = {}
    known: ClassVar[dict[str, str]] = {}

    @pytest.mark.parametrize("name", [each.name for each in examinations()])
    def test_examination(self, name: str) -> None:
        """The test of one examination. `-k NAME` selects it."""
        (finding,) = examine(self.optimizer, name, self.options)
        reason = self.known.get(name)
        if finding.outcome == "not applicable":
            pytest.skip(finding.detail)
        if reason and finding.outcome == "pass":
            pytest.fail(f"{name} passes now; remove it from `known`", pytrace=False)
        if reason and finding.outcome == "fail":
            pytest.xfail(reason)
        if finding.outcome == "fail":
            pytest.fail(
                f"{finding.about}\n{finding.detail}\n\n{finding.reproduction}", pytrace=False
            )
