"""Parts that react to the validation metric: they stop training, or restore the best weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steepest.errors import BadCall
from steepest.training.parts.part import Part, Script, Stop, first_setup

if TYPE_CHECKING:
    from steepest.tasks.task import Task
    from steepest.training.steps import Training

PATIENCE = 3
"""`+early-stopping` stops, and `+restarts` restarts, after this many evaluations in a row without a
new best metric."""


class Stopping(Part):
    kind = "stopping"
    needs = "the race's loop, test data"

    def check(self, entry: str, task: Task) -> None:
        if not first_setup(task).test_data:
            raise BadCall(
                f"entry {entry!r}: +{self.name} chooses weights by the validation data, and "
                f"{task.name} has no test data to judge that choice: add test data, by "
                f"evaluate(model, split), or leave +{self.name} out"
            )


class EarlyStopping(Stopping):
    name, about = "early-stopping", "stops, and ends with the best weights"
    source = "Prechelt 1998"

    def on_evaluation(self, training: Training) -> Stop | None:
        from steepest import strategies

        early = strategies.EarlyStopping(training.setup.model, PATIENCE, mode=training.mode)

        def stop(metric: float, last: bool) -> bool:
            over = early.step(metric) or last
            if over and early.best is not None:
                early.restore()
            return over

        return stop

    def code(self, script: Script) -> list[str]:
        options = f'patience={PATIENCE}, mode="{script.mode}"'
        return [
            f"stopping = steepest.strategies.EarlyStopping(model, {options})",
            "# at each evaluation: stop if stopping.step(metric); at the end: stopping.restore()",
        ]


class Restarts(Stopping):
    name, about = "restarts", "back to the best weights, with half the lr"
    source = "arXiv:1706.09733"
    needs_rate = True
    conflicts, why = ("rate", "batch-growth"), "sets the learning rate"

    def on_evaluation(self, training: Training) -> Stop | None:
        from steepest.schedules import RestartFromBest

        best = RestartFromBest(
            training.optimizer, training.setup.model, mode=training.mode, patience=PATIENCE
        )

        def restart(metric: float, last: bool) -> bool:
            best.step(metric)
            return best.stopped

        return restart

    def code(self, script: Script) -> list[str]:
        return [
            "restarts = steepest.schedules.RestartFromBest(",
            f'    optimizer, model, mode="{script.mode}", patience={PATIENCE}',
            ")",
            "# at each evaluation: restarts.step(metric), then stop if restarts.stopped",
        ]
