"""Trains an entry once, and measures the run."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn

from steepest import tasks
from steepest.errors import BadCall, Diverged
from steepest.processes import tell
from steepest.race import halving
from steepest.race.protocol import FRESH, PILOT, Result, Trial
from steepest.tasks.randomness import begin, put_back
from steepest.tasks.task import Task, on_eval, two_points
from steepest.tasks.user_file import described, number, told
from steepest.training.loop import Ask, turns
from steepest.training.pairing import Seen, states
from steepest.training.parts.around import SlowAtEvaluation
from steepest.training.parts.rates import Undone
from steepest.training.randomness import OwnRandomness
from steepest.training.recipe import Recipe, backends
from steepest.training.timing import synchronizer

ROUNDING = 1e-6
"""How far below 0 or above 1 rounding may move a share."""
HUGE = 1e8
"""A weight beyond this counts as infinite: if a task then raises an error, the run has diverged."""
NOTES = 0.5
"""Least seconds between two messages on the progress of a run."""
OWN_LOOP = "the task has its own training loop, which orders the data"


class Ended(BaseException):
    """Ends a training loop of the user. No `except Exception` catches it: it is a BaseException."""


def measure(trial: Trial, task: Task, on_report: halving.OnReport | None) -> Result:
    """Train as the trial says. Raises BadCall if the task or the entry is wrong.

    on_report: is called at each report, and may end the run.
    """
    run = Run(trial, task, on_report)
    for _ in run.turns():
        pass
    return run.result


class Run:
    """Trains one trial and measures the run: see `turns`."""

    def __init__(self, trial: Trial, task: Task, on_report: halving.OnReport | None = None) -> None:
        self.trial, self.task, self.result = trial, task, Result()
        self._on_report, self._waited = on_report, 0.0
        self.recipe = Recipe.read(trial.entry)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._initial = hashlib.sha256()
        self._stepping: list[list[float]] = []
        self._steps: list[float] = []
        self._spent, self._mark = 0.0, perf_counter()
        self._next_note = self._mark + NOTES
        self._seen, self._new, self._drawn = Seen(), False, ""
        self._training: list[bool] = []
        self._odd = ""
        self._wrong: Exception | None = None
        self._over = False

    def turns(self, together: bool = False) -> Generator[Ask, float, None]:
        """Train, and measure. together: see `loop.turns`.

        If `together`, call `wait` with the seconds for which the run waited for other runs. To halt
        the run, throw `Ended` into this generator.
        """
        started = perf_counter()
        yield from self._train(together)
        self._measure()
        self.result.wall_seconds = perf_counter() - started - self._waited

    def wait(self, seconds: float) -> None:
        """Leave `seconds`, for which the run waited for other runs, out of the run's times."""
        self._waited += seconds
        self._mark += seconds

    def _train(self, together: bool) -> Generator[Ask, float, None]:
        trial, result, task = self.trial, self.result, self.task
        device = torch.device(trial.device or "cpu")
        if device.index:  # the code below uses the current device
            torch.accelerator.set_device_index(device.index)
        begin(trial.seed)
        try:
            if task.train:
                task.train(self.make_optimizer, self.report, trial.seed, trial.steps)
            else:
                yield from turns(
                    task,
                    self.recipe,
                    trial.hyper,
                    trial.seed,
                    trial.steps,
                    self.report,
                    together=together,
                    make_optimizer=self.make_optimizer,
                    untrained=trial.phase == PILOT,
                    test=trial.phase in (FRESH, PILOT),
                    on_batch=self._saw,
                    before_evaluation=self._evaluates,
                )
        except Ended:
            pass
        except ArithmeticError as error:  # FloatingPointError, OverflowError, ZeroDivisionError
            if self._wrong:
                raise
            if trial.phase == PILOT and task.file and not isinstance(error, Diverged):
                with told(Path(task.file), "the pilot run"):
                    raise  # with the defaults, a mistake in the file is more likely
            result.diverged = str(error) or type(error).__name__
        except BadCall as error:
            # if a task raises an error because the weights are lost, the run has diverged
            if self._wrong or trial.phase == PILOT or self._finite(HUGE):
                raise
            result.diverged = str(error)
        if self._wrong:  # the user's loop has caught it and gone on
            raise self._wrong
        if self._odd and not result.diverged:
            result.diverged = f"{self._odd}, and at every report after it"
        if not result.diverged and not result.steps:
            late = f" up to step {trial.steps}" if self._over else ""
            raise BadCall(f"train() never called report(step, validation=...){late}: call it")
        if not result.diverged and not any(self._stepping):
            raise BadCall(
                "train() never called step() of the optimizer that make_optimizer(...) returned: "
                "call it"
            )
        if trial.phase == FRESH and not result.diverged and result.test is None:
            result.tested, result.test = False, result.validation[-1]

    def make_optimizer(self, params: Any) -> torch.optim.Optimizer:
        """The entry's optimizer for a module, tensors or groups; step() also steps its schedule."""
        if not isinstance(params, (nn.Module, Iterable)) or isinstance(
            params, (torch.Tensor, dict)
        ):
            self._refuse(f"make_optimizer({described(params)}): expected a module or parameters")
        tensors = list(params.parameters() if isinstance(params, nn.Module) else params)
        try:
            with put_back(self.trial.device):
                own = self.recipe.optimizer(tensors, self.trial.hyper, self.trial.seed)
                optimizer = self.recipe.wrap(own, self.trial.hyper)
        except Exception as error:
            self._wrong = error  # even if the task catches it
            raise
        self._check_device(_parameters([optimizer]))
        for tensor in _parameters([optimizer]):
            raw = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
            self._initial.update(raw.numpy().tobytes())
        self._optimizers.append(optimizer)
        trial, which = self.trial, len(self._optimizers)  # each optimizer draws noise of its own
        optimizer.step = MethodType(self._timed(optimizer, which), optimizer)
        if two_points(optimizer):
            on_eval(optimizer, partial(operator.setitem, self._training, which - 1, False))
        own_loop = self.task.train is not None
        self.recipe.equip(own, trial.steps, trial.hyper, trial.seed + which, guarded=own_loop)
        self._mark = perf_counter()
        return optimizer

    def _check_device(self, parameters: Iterable[torch.Tensor]) -> None:
        """Refuse parameters that are not on the device of --device."""
        asked = torch.device(self.trial.device) if self.trial.device else None
        for parameter in parameters if asked else ():
            at = parameter.device
            if asked and (at.type != asked.type or asked.index not in (None, at.index or 0)):
                self._refuse(
                    f"--device {asked}, but a parameter of the model is on {at}: put the whole "
                    f"model on the `device` that your function gets"
                )

    def _timed(self, optimizer: torch.optim.Optimizer, which: int) -> Callable[..., Any]:
        inner, times, entry, needy = optimizer.step, [], self.trial.entry, self.recipe.needy
        self._stepping.append(times)
        self._training.append(False)
        apart = OwnRandomness(optimizer, self.trial.seed + which, self.trial.device)
        wants, wait = self.recipe.wants, synchronizer(_parameters([optimizer]))
        # a loop may evaluate the fast weights of Lookahead; with eval() it evaluates the slow ones
        both = two_points(optimizer) and not isinstance(optimizer, SlowAtEvaluation)

        def step(_: Any, closure: Callable[[], Any] | None = None) -> Any:
            if closure is None and wants.closure:
                self._refuse(
                    f"entry {entry!r}: the training loop calls step() without a closure, which "
                    f"{needy} needs; call step(closure) with a function that resets the gradients, "
                    f"computes the loss, calls backward() and returns the loss, or race entries "
                    f"without {needy}"
                )
            inside = 0.0

            def timed_closure() -> Any:  # time in the closure is not time of the optimizer
                nonlocal inside
                wait()
                start = perf_counter()
                try:
                    assert closure
                    with apart.active():
                        return closure()
                finally:
                    wait()
                    inside += perf_counter() - start

            wait()  # for the gradients: their time is not the optimizer's
            before = perf_counter()
            with apart.active():
                start = perf_counter()
                try:
                    value = inner() if closure is None else inner(timed_closure)
                except Undone as error:
                    self._wrong = error
                    raise
                except RuntimeError as error:
                    grads = [p.grad for p in _parameters([optimizer]) if p.grad is not None]
                    if not wants.graph or any(grad.requires_grad for grad in grads):
                        raise
                    self._refuse(
                        f"entry {entry!r}: {needy} differentiates the gradients, but the training "
                        f"loop made them without a graph ({error}); call "
                        f"backward(create_graph=True), or race entries without {needy}"
                    )
                wait()
                end = perf_counter()
            times.append(end - start - inside)
            if end >= self._next_note:
                self._next_note = end + NOTES
                tell((self.trial.key, len(times)))
            self._steps.append(end - self._mark - (start - before))
            self._spent += self._steps[-1]
            self._training[which - 1] = both
            self._mark = perf_counter()
            return value

        return step

    def _saw(self, batch: Any) -> None:
        start = perf_counter()
        self._seen.add(batch)
        self._new = True
        self._mark += perf_counter() - start  # hashing is not training time

    def _evaluates(self) -> None:
        """Record the random states before an evaluation, which may draw random numbers itself."""
        if self._new:
            self._drawn = states(tasks.generators(self.task), self.trial.device)

    def report(self, step: int, **metrics: Any) -> None:
        """Take the metrics of `report(step, validation=..., test=..., NAME=...)`; may end the run.

        The time from the last step until `report` returns counts as evaluation, not as training.
        """
        result, trial = self.result, self.trial
        if self._over:
            raise Ended
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            self._refuse(f"report({described(step)}): expected the number of steps made")
        step, last = operator.index(step), result.steps[-1] if result.steps else -1
        if step <= last:
            call = f"report({step}) after report({last})" if result.steps else f"report({step})"
            self._refuse(f"{call}: expected the number of steps made, larger at each report")
        if step > trial.steps:
            self._end()
        if "validation" not in metrics:
            given = ", ".join(f"{name}=..." for name in metrics) or "no metric"
            self._refuse(
                f"report({step}) with {given}: expected validation=..., and test=... if there is "
                f"test data"
            )
        try:
            values = {name: number(value) for name, value in metrics.items()}
        except BadCall as error:
            self._refuse(f"report({step}): {error}")
        if any(self._training):
            self._refuse(
                f"report({step}): the model has the training weights of {trial.entry} instead of "
                f"the averaged weights; if hasattr(optimizer, 'eval'), call optimizer.eval() "
                f"before each evaluation and optimizer.train() after it"
            )
        for name in ("validation", "test"):
            value = values.get(name, 0.0)
            if not math.isfinite(value):
                data = "" if name == "validation" else " on test data"
                if value == self.task.lost:
                    self._diverge(f"{name} is not finite at step {step} ({value})")
                if not self.task.train or not self._finite(HUGE):
                    self._diverge(f"model output is not finite{data} at step {step}")
                if trial.phase == PILOT:
                    self._refuse(
                        f"report({step}): {name}={value} is not finite, in a pilot run; report a "
                        f"finite metric"
                    )
                # the next reports show whether the optimizer or the evaluation has failed
                self._odd = self._odd or f"{name}={value} with finite weights at step {step}"
                self._mark = perf_counter()
                return
        if self._odd:
            self._refuse(
                f"report({step}) has numbers again, after {self._odd}, so the evaluation is at "
                f"fault, not the optimizer: report a number each time; where the metric is not "
                f"defined, report the worst possible metric"
            )
        for name in ("validation", "test"):
            if self.task.proportion and name in values:
                share = min(max(values[name], 0.0), 1.0)
                if abs(values[name] - share) <= ROUNDING:
                    values[name] = share
                    continue
                self._refuse(
                    f"report({step}): {name}={values[name]:g}, but TEST_CASES makes the metric a "
                    f"share, so expected 0 to 1; divide by 100, or leave TEST_CASES out"
                )
        calls = min(map(len, self._stepping), default=0)
        if calls > step:
            self._refuse(
                f"report({step}) after step {calls} of the optimizer: expected the number of "
                f"steps, not the number of epochs"
            )
        if not self._finite():
            self._diverge(f"a parameter is not finite at step {step}")
        result.steps.append(step)
        result.validation.append(values.pop("validation"))
        result.seconds.append(self._spent)
        if self._new:  # after early stopping, a run gets no more batches
            result.batches.append(self._seen.so_far())
            result.draws.append(self._drawn)
            self._new = False
        result.tested = "test" in values
        test = values.pop("test", None)
        result.test = test if trial.phase == FRESH else None
        result.measures = {n: v for n, v in values.items() if math.isfinite(v)}
        self._mark = perf_counter()
        if self._on_report:
            goes_on = self._on_report(result)
            self._waited += perf_counter() - self._mark
            self._mark = perf_counter()
            if not goes_on:
                result.halted = step < trial.steps
                self._end()

    def _finite(self, bound: float = math.inf) -> bool:
        return all(
            bool(((p.detach().abs() < bound) & p.detach().isfinite()).all())
            for p in _parameters(self._optimizers)
        )

    def _refuse(self, line: str) -> NoReturn:
        self._wrong = BadCall(line)
        raise self._wrong

    def _end(self) -> NoReturn:
        self._over = True
        raise Ended

    def _diverge(self, why: str) -> NoReturn:
        if self.trial.phase == PILOT and not self.result.steps:
            self._refuse(f"{why}, in the first report of a pilot run: report a finite metric")
        self.result.diverged = why
        self._end()

    def _measure(self) -> None:
        result, optimizers = self.result, self._optimizers
        calls = max(map(len, self._stepping), default=0)
        result.calls = min(map(len, self._stepping), default=0)
        if calls:  # several optimizers make one training step together
            each = [median(times) * len(times) for times in self._stepping if times]
            result.step_seconds = sum(each) / calls
            result.train_seconds = median(self._steps) * len(self._steps) / calls
        result.state_bytes = sum(
            value.numel() * value.element_size()
            for optimizer in optimizers
            for state in (*optimizer.state.values(), _slow_weights(optimizer))
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
        result.parameters = sum(p.numel() for p in _parameters(optimizers))
        result.initial = self._initial.hexdigest()
        result.first = self._seen.first
        result.unread = OWN_LOOP if self.task.train else self._seen.unread
        result.backends = sorted({name for o in optimizers for name in backends(o)})


def _parameters(optimizers: Iterable[torch.optim.Optimizer]) -> list[torch.Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


def _slow_weights(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, torch.Tensor]:
    return optimizer.slow_weights if isinstance(optimizer, SlowAtEvaluation) else {}
