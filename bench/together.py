"""The tuning trials of an entry at once or one by one: python bench/together.py [TASK] [ENTRIES]

40 tuning trials (5 units of 8, with halving), one by one as a race trains them, or 8, 16 or 40 at
once. All ways take turns. CPU time of this process and its children, in seconds, medians of the
repetitions. "Worst difference" is the largest relative difference of two validation metrics to the
trials one by one; "choices", how many of the 5 units choose the same trial.
"""

from __future__ import annotations

import argparse
import resource
from dataclasses import replace
from statistics import median

import torch

from steepest import tasks
from steepest.race import protocol, scores, trials
from steepest.race.protocol import Plan, Result

UNITS, AT_ONCE = 5, (0, 1, 2, 5)


def seconds() -> float:
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", nargs="?", default="digits")
    parser.add_argument("entries", nargs="?", default="adamw,momentum")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = tasks.get(options.task)
    names = tuple(options.entries.split(","))
    plan = Plan(task.name, names, 8, UNITS, task.steps, 0, looks=(UNITS,), halving=True)
    for entry in names:
        asked = protocol.tuning(plan, [entry])
        spent: dict[int, list[float]] = {units: [] for units in AT_ONCE}
        results: dict[int, list[Result]] = {}
        for _ in range(options.repetitions + 1):
            for units, times in spent.items():
                items = trials.tuning_items(replace(plan, together=units), asked)
                start = seconds()
                results[units] = [result for item in items for result in trials.run(item)]  # type: ignore[arg-type]
                times.append(seconds() - start)

        def chosen(units: int) -> list[int]:
            pairs = list(zip(asked, results[units], strict=True))  # noqa: B023
            return [scores.best(task, group).index for group in protocol.by_seed(plan, pairs)]

        alone = median(spent[0][1:])
        print(f"{entry}: one by one {alone:.2f} s")
        for units in AT_ONCE[1:]:
            worst = max(
                abs(x - y) / abs(x)
                for a, b in zip(results[0], results[units], strict=True)
                for x, y in zip(a.validation, b.validation, strict=False)
            )
            same = sum(a == b for a, b in zip(chosen(0), chosen(units), strict=True))
            cpu = median(spent[units][1:])
            gain = median(a / b for a, b in zip(spent[0][1:], spent[units][1:], strict=True))
            print(
                f"{entry}: {8 * units} at once {cpu:.2f} s, {gain:.2f} times as fast; worst "
                f"difference {worst:.0e}, choices {same} of {UNITS}",
                flush=True,
            )


if __name__ == "__main__":
    main()
