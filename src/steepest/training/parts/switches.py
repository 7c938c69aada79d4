"""Parts that switch something on in the task's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from steepest.errors import BadCall
from steepest.training.parts.part import Knob, Knobs, Part, Script

if TYPE_CHECKING:
    from steepest.tasks.task import Task


class Switch(Part):
    needs, switches = "a bundled task with the switch", True

    def check(self, entry: str, task: Task) -> None:
        if self.name not in task.switches:
            raise BadCall(
                f"entry {entry!r}: the task {task.name} has no +{self.name}: expected a bundled "
                f"task with such layers, or an entry without +{self.name}"
            )

    def model_options(self, hyper: Mapping[str, float]) -> dict[str, float]:
        return {self.name: True}


class BatchNorm(Switch):
    name, kind = "batchnorm", "norm"
    about, source = "batch normalisation in the task's model", "arXiv:1502.03167"
    conflicts, why = ("one-sample", "adaptive-batch"), "needs several samples at once"

    def code(self, script: Script) -> list[str]:
        return ["# the model: with torch.nn.BatchNorm1d or BatchNorm2d before each activation"]


class Dropout(Switch):
    name, kind = "dropout", "dropout"
    about, source = "dropout in the task's model", "Srivastava 2014"
    knobs: ClassVar[Knobs] = {"p": Knob(0.05, 0.2, 0.6, "[0, 1)")}

    def model_options(self, hyper: Mapping[str, float]) -> dict[str, float]:
        return {self.name: self.value(hyper, "p")}

    def code(self, script: Script) -> list[str]:
        p = self.value(script.hyper, "p")
        return [f"# the model: with torch.nn.Dropout({p!r}) before its last layer"]
