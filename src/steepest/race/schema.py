"""The summary of a race, field by field: what stands in summary.json.

Metrics, and differences of metrics, are in the metric's own unit: a share is 0 to 1, not percent.
"Fresh" lists have one value for each fresh run that has finished, in the order of its index.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Counts(TypedDict):
    """Runs of a race."""

    finished: int
    planned: int


class PlanRecord(TypedDict):
    """`protocol.Plan` as JSON: see `Plan.record`."""

    task: str
    """Name of a bundled task, or the path of a file."""
    entries: list[str]
    trials: int
    """Tuning trials of an entry for each fresh seed."""
    seeds: int
    """Fresh seeds of an entry."""
    steps: int
    """Optimizer steps of a run."""
    seed: int
    """The study seed, of which all others are made."""
    request: dict[str, Any]
    """Option -> value, as the caller gave it."""
    over_budget: bool
    """The budget is too small for the smallest race, which was run all the same."""
    data: str | None
    """Folder of the files that the task reads."""
    baseline: str
    search: dict[str, dict[str, list[float]]]
    """Entry -> knob -> [low, high], as --search gave them."""
    enough: float | None
    """Seconds of a budget that would buy the trials of a verdict; None where it does already."""


class TuningTrial(TypedDict):
    """One tuning run."""

    hyperparameters: dict[str, float]
    validation: float
    """Last validation metric, not beyond the worst; the worst if the run diverged."""
    diverged: str | None
    """Why the run diverged; None if it did not."""


class BestTrial(TypedDict):
    """The best tuning trial of an entry: a point that was run."""

    index: int
    """Its place in `tuning`."""
    hyperparameters: dict[str, float]
    validation: float


class RateWidth(TypedDict):
    """How far the learning rates reach that came within 1 % of the best."""

    seen: float
    """Decades; median over the tunings."""
    tunings: int
    points: int
    """The largest number of rates that a tuning has tried."""


class Diverged(TypedDict):
    """Runs that diverged."""

    tuning: int
    fresh: int
    fresh_rate_up_to: float | None
    """Largest rate at which fresh runs may *fail* that the `failed` ones do not exclude: exact
    one-sided 95 % bound, 0 to 1; None without a fresh run."""


class Curve(TypedDict):
    """Validation metric over the fresh runs: median and quartiles at each evaluation."""

    steps: list[int]
    median: list[float]
    low: list[float]
    high: list[float]


class DifferenceRecord(TypedDict):
    """`statistics.Difference` as JSON, of fresh test metrics, entry minus baseline."""

    n: int
    """Pairs."""
    mean: float
    low: float | None
    high: float | None
    level: float
    """Confidence level of the interval from `low` to `high`, 0 to 1."""
    p: float | None
    p_holm: float | None
    claim: bool
    exact: bool
    effect: float | None
    """Standard deviations of the differences (Hedges)."""
    improved: float | None
    improved_low: float | None
    improved_high: float | None
    """Share of seeds, 0 to 1, with its exact 95 % interval."""
    bootstrap_low: float | None
    bootstrap_high: float | None


class Timing(TypedDict):
    """Wall times of fresh runs: the only part of a summary that differs between equal races."""

    seconds_to_target: list[float | None]
    """Seconds of training; None for a run that did not reach the target."""
    training_seconds: list[float]
    """Seconds of training until the last evaluation, of the runs that have one."""
    step_ms: float | None
    """Milliseconds of one `optimizer.step()`, median over fresh runs."""
    train_step_ms: float | None
    """Milliseconds of one training step, median over fresh runs."""
    curve_seconds: list[float]
    """Seconds of training until each evaluation, median over the fresh runs that did not
    diverge."""


class EntrySummary(TypedDict):
    """What is known of one entry."""

    space: dict[str, list[float]] | None
    """Knob -> [low, high] of its log-uniform range; None where the entry's code is gone."""
    untuned: str | None
    """Why only the defaults could be chosen; None where there was a choice."""
    chosen: list[int] | None
    """For each fresh seed, the index in `tuning` of its best trial; None before tuning is done."""
    hyperparameters: dict[str, list[float]] | None
    """Knob -> [lowest, median, highest] of the chosen values."""
    best: BestTrial | None
    trials: int
    """Tuning trials that have finished."""
    tuning: list[TuningTrial]
    expected_best: list[float]
    """Expected best validation metric of k tuning trials, for k = 1, 2, ..."""
    lr_width: RateWidth | None
    seeds: list[int]
    """Fresh."""
    validation: list[float]
    """Fresh: last validation metric; the worst if the run diverged."""
    best_validation: list[float | None]
    """Fresh: best validation metric of the run."""
    test: list[float]
    """Fresh: test metric at the last step (validation where there is no test data); the worst if
    the run diverged."""
    interquartile_mean: float | None
    """Of `test`."""
    steps_to_target: list[int | None]
    """Fresh: steps until the first evaluation at the target; None if it was not reached."""
    diverged: Diverged
    failed: int
    """Fresh runs that diverged or, where the task gives its worst metric, ended no better."""
    state_bytes: int | None
    """Bytes of the optimizer's state, of one run."""
    parameters: int | None
    """Numbers that the optimizer steps."""
    gradients: float | None
    """Gradients of a batch of the usual size, median over the fresh runs that did not diverge."""
    curve: Curve
    difference: DifferenceRecord | None
    """To the baseline; None for the baseline and in a race that is not complete."""
    timing: Timing
    measures: NotRequired[list[dict[str, float]]]
    """Fresh: what else the last report said."""


class Finding(TypedDict):
    """Something wrong with a race although it ran: see `lint`."""

    name: str
    entry: str
    text: str


class Provenance(TypedDict):
    """With what a race was run, and where."""

    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    task_sha256: str | None
    """Of the task's file."""
    modules_sha256: dict[str, str]
    """Module of the user's own -> hash of its file."""
    data_sha256: str | None
    """Of the files that the task reads."""
    backends: NotRequired[dict[str, list[str]]]
    """Entry -> what made its steps."""


class Share(TypedDict):
    """What tells how a metric is written."""

    proportion: bool
    """Whether the metric is a share, 0 to 1, shown in %."""


class Summary(Share):
    """Everything that is known about a race."""

    verdict: str
    task: str
    metric: str
    """Name of the metric."""
    maximize: bool
    """Whether more of the metric is better."""
    worst: float | None
    """What a diverged run counts as."""
    target: float | None
    """Validation metric whose first reaching is timed."""
    baseline: str
    complete: bool
    """Whether all planned runs have finished: only then is there a verdict."""
    runs: Counts
    test_size: int
    """Cases of the test set; 0 where that is not known."""
    test_data: bool
    """Whether there is test data; else `test` has validation metrics."""
    plan: PlanRecord
    reproduce: str
    """A command line that runs the same trials."""
    entries: dict[str, EntrySummary]
    provenance: Provenance
    test_standard_error: NotRequired[float]
    """Binomial standard error of one share on the test set."""
    lint: list[Finding]
    batches_checked: list[str]
    """Entries that had the same batches, seed by seed."""
    batches_unchecked: dict[str, str]
    """Entry -> why its batches could not be compared."""
    batches_unpaired: dict[str, str]
    """Entry -> what differs from the baseline's runs."""
