"""A race in the formats of other tools: a LaTeX table, TensorBoard's event files, W&B's runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any
from urllib.parse import quote

from steepest.errors import BadCall
from steepest.race.folder import write
from steepest.race.phrases import counted, judged_metric, number, units
from steepest.race.protocol import FRESH, Plan, Result, Trial
from steepest.race.results_table import columns, rows
from steepest.race.schema import Summary
from steepest.race.scores import final, tested
from steepest.tasks import Task

ON_PAPER = ("optimizer ms/step", "training ms/step", "seconds to target", "state bytes/parameter")
"""Columns that a LaTeX table leaves out: they depend on the machine, or would not fit."""
HEAD = 16
"""A line of a column's head in LaTeX has at most this many characters."""
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\u2013": "--",
    "[": "{[}",  # behind \\, a bare [ or * would be read as an option
    "]": "{]}",
    "*": "{*}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


@dataclass(frozen=True)
class Race:
    """What an export needs of a race."""

    task: Task
    plan: Plan
    pairs: Sequence[tuple[Trial, Result]]
    summary: Summary


def export(race: Race, to: str, folder: Path, out: Path | None) -> Path:
    """Write the race in a format of `FORMATS` to `out`; default: into `folder`. Returns the path.

    Raises BadCall for an unknown format, a path that cannot be written, or a missing package.
    """
    check(to)
    name, writer = FORMATS[to]
    path = out or folder / name
    try:
        if path.is_dir() and to != "tensorboard":
            raise IsADirectoryError("it is a folder")
        writer(race, path)
    except OSError as error:
        raise BadCall(
            f"cannot write '{path}' ({error.strerror or error}): choose another path with --out"
        ) from None
    return path


def check(to: str) -> None:
    """Raise BadCall if `to` is not a format of `FORMATS`."""
    if to not in FORMATS:
        raise BadCall(f"--to {to}: expected one of {', '.join(FORMATS)}")


def latex(summary: Summary) -> str:
    """The table of all entries as LaTeX, for a paper. It needs the package booktabs."""
    heads, unit = columns(summary), units(summary)[0]
    shown = [i for i, head in enumerate(heads) if head not in ON_PAPER]
    stacks = [r"\\".join(map(escape, wrap(heads[i], HEAD))) for i in shown]
    plan, target = summary["plan"], summary["target"]
    tuned = "Nothing was tuned"
    if plan["trials"] > 1:
        each = "unit" if plan.get("looks") else "fresh seed"
        tuned = f"Every entry had {plan['trials']} tuning trials for each {each}"
    caption = (
        f"{summary['task']}: {judged_metric(summary)}{unit and f' ({unit.strip()})'} after "
        f"{plan['steps']} steps, mean ± standard deviation over "
        f"n={counted(summary, 'test', 'fresh seed')}. {tuned}. "
    )
    if target is not None:
        caption += (
            f"Steps to target: median until validation {summary['metric']} reached "
            f"{number(summary, target)}{unit} (number of runs that reached it). "
        )
    caption += "Failed: fresh runs that failed (tuning trials that diverged)."
    if not summary["complete"]:
        runs = summary["runs"]
        caption = f"Unfinished, {runs['finished']} of {runs['planned']} runs. {caption}"
    lines = [
        r"% needs \usepackage{booktabs}; letters beyond Latin need xelatex or lualatex",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(shown) - 1)}}}",
        r"\toprule",
        " & ".join(rf"\shortstack{{{stack}}}" for stack in stacks) + r" \\",
        r"\midrule",
        *(" & ".join(escape(row[i]) for i in shown) + r" \\" for row in rows(summary)),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """The text as LaTeX, on one line; a minus in front of a digit becomes a minus sign."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    escaped = "".join(SPECIAL.get(sign, sign) for sign in plain)
    return re.sub(r"(?<![\w}])-(?=\d)", "$-$", re.sub(r"(?<=\{\[\})-(?=\d)", "$-$", escaped))


def wandb_runs(race: Race) -> str:
    """One line of JSON for each run, in the shape of Weights & Biases: see docs/protocol.md.

    `init` has arguments of `wandb.init`, `history` the rows for `run.log` with their `_step`, and
    `summary` what belongs into `run.summary`. Numbers that are not finite become null.
    """
    return "".join(json.dumps(_run(race, *pair), allow_nan=False) + "\n" for pair in race.pairs)


def _run(race: Race, trial: Trial, result: Result) -> dict[str, Any]:
    metric = f"validation/{race.task.metric}"
    config = {key: value for key, value in asdict(trial).items() if key != "data"}
    return {
        "init": {
            "name": f"{trial.entry}/{trial.phase}-{trial.index}",
            "group": trial.entry,
            "job_type": trial.phase,
            "config": config,
        },
        "history": [
            {"_step": step, "seconds": seconds, metric: _finite(value)}
            for step, seconds, value in zip(
                result.steps, result.seconds, result.validation, strict=True
            )
        ],
        "summary": {
            **{name: _finite(value) for name, value in _metrics(race.task, trial, result).items()},
            **{f"measure/{name}": _finite(value) for name, value in result.measures.items()},
            "diverged": result.diverged,
            "halted": result.halted,
        },
    }


def _metrics(task: Task, trial: Trial, result: Result) -> dict[str, float]:
    """The final metrics of a run. A diverged run has the worst metric, as in the verdict."""
    found = {f"validation/{task.metric}": final(task, result)}
    test = tested(task, trial, result) if trial.phase == FRESH and task.test_data else None
    return found if test is None else {**found, f"test/{task.metric}": test}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def tensorboard(race: Race, out: Path) -> None:
    """Write a run of TensorBoard for each run of the race, in folders below `out`.

    A run has the validation metric by step, its hyperparameters, and its final metrics. The time of
    a point is its seconds of training, which TensorBoard's axis "relative" shows.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BadCall(
            "not installed: tensorboard; run pip install 'steepest[tensorboard]'"
        ) from None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadCall(
            f"'{out}' is not empty, and TensorBoard would show its old runs too: remove it, or "
            f"choose another folder with --out"
        )
    for trial, result in race.pairs:
        entry = quote(trial.entry.replace(":", "."), safe="+")
        with SummaryWriter(str(out / entry / f"{trial.phase}-{trial.index:03}")) as writer:
            for step, seconds, value in zip(
                result.steps, result.seconds, result.validation, strict=True
            ):
                writer.add_scalar(f"validation/{race.task.metric}", value, step, walltime=seconds)
            hyper = {f"hyper.{knob}": value for knob, value in trial.hyper.items()}
            facts = {"entry": trial.entry, "phase": trial.phase, "seed": trial.seed}
            counted = {f"final {k}": v for k, v in _metrics(race.task, trial, result).items()}
            last = result.steps[-1] if result.steps else 0
            writer.add_hparams({**facts, **hyper}, counted, run_name=".", global_step=last)


FORMATS: dict[str, tuple[str, Callable[[Race, Path], None]]] = {
    "latex": ("table.tex", lambda race, path: write(path, latex(race.summary))),
    "tensorboard": ("tensorboard", tensorboard),
    "wandb": ("wandb.jsonl", lambda race, path: write(path, wandb_runs(race))),
}
"""Format -> (default file or folder in the folder of a race, function that writes it)."""
