"""The fields of summary.json, the summary of a race.

Metrics, and differences of metrics, are in the metric's own unit: a share is 0 to 1, not percent.
A list marked "Fresh" has one value for each finished fresh run, in the order of the runs.
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
    """Number of units of an entry, as in `Plan.seeds`."""
    steps: int
    """Optimizer steps of a run."""
    seed: int
    """The study seed; all other seeds are derived from it."""
    request: dict[str, Any]
    """Option -> value, as the caller gave it."""
    over_budget: bool
    """Whether the budget was too small for the smallest race, which was run anyway."""
    data: str | None
    """Folder of the files that the task reads."""
    baseline: str
    search: dict[str, dict[str, list[float]]]
    """Entry -> knob -> [low, high], as --search gave them."""
    enough: float | None
    """Budget in seconds that would be enough for a verdict; None without a budget, or if there was
    enough tuning."""
    looks: list[int]
    """Number of units of an entry at each look; empty in a race of a fixed number of seeds. A unit
    is one tuning of an entry and the fresh runs of its best trial."""
    repeats: int
    """Fresh runs of a unit."""
    halving: bool
    """Whether tuning trials are halted early."""
    together: NotRequired[int]
    """Number of units of an entry whose tunings were trained at once; 0: one trial at a time."""
    margin: float | None
    """The smallest gain that would matter, in the metric's unit; None if none was given."""
    imported: NotRequired[bool]
    """Whether the runs were made elsewhere and read from the file `task`. Lists and numbers that
    such a file does not have are then empty, None or 0."""
    spaces: str | None
    """Name of the search space that replaces the declared ranges, as --spaces gave it."""
    device: str | None
    """Device of the task's model and data, as --device gave it; None: the CPU, or the device that
    the user's file chose."""


class TuningTrial(TypedDict):
    """One tuning run."""

    hyperparameters: dict[str, float]
    validation: float
    """Last validation metric; the worst metric if the run diverged or ended even worse."""
    diverged: str | None
    """Why the run diverged; None if it did not."""
    halted: bool
    """Whether the run was ended early, since other trials of its tuning were better."""


class BestTrial(TypedDict):
    """The best tuning trial of an entry."""

    index: int
    """Index of the trial in `tuning` of the entry."""
    hyperparameters: dict[str, float]
    validation: float


class RateWidth(TypedDict):
    """How wide the range of learning rates is whose metric is within 1 % of the best."""

    seen: float
    """Width of the range in decades; median over the tunings."""
    tunings: int
    points: int
    """The largest number of learning rates in one tuning."""


class Diverged(TypedDict):
    """Runs that diverged."""

    tuning: int
    fresh: int
    fresh_rate_up_to: float | None
    """Exact one-sided 95 % upper bound of the rate at which fresh runs fail, 0 to 1. It counts all
    `failed` runs, not only diverged ones. None without a fresh run."""


class Curve(TypedDict):
    """Validation metric over the fresh runs: median and quartiles at each evaluation."""

    steps: list[int]
    median: list[float]
    low: list[float]
    high: list[float]


class DifferenceRecord(TypedDict):
    """`statistics.Difference` as JSON: the fresh test metrics of the entry minus the baseline's."""

    n: int
    """Number of pairs."""
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
    """Effect size in standard deviations of the differences (Hedges)."""
    improved: float | None
    improved_low: float | None
    improved_high: float | None
    """Share of pairs in which the entry was better, 0 to 1, and its exact 95 % interval."""
    bootstrap_low: float | None
    bootstrap_high: float | None
    look: NotRequired[int | None]
    """Number of the look that closed the entry, from 1; None in a race without looks."""
    state: NotRequired[str | None]
    """State of the entry after that look: see `looks.Standing`."""
    pairs: NotRequired[list[float] | None]
    """The differences that were judged at that look, one for each unit."""


class Timing(TypedDict):
    """Wall times of fresh runs: the only part of a summary that differs between equal races."""

    seconds_to_target: list[float | None]
    """Seconds of training; None for a run that did not reach the target."""
    training_seconds: list[float]
    """Seconds of training until the last evaluation; only runs with an evaluation are listed."""
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
    """Knob -> [low, high] of its log-uniform range; None if the entry's code no longer exists."""
    untuned: str | None
    """Why only the defaults could be chosen; None if there was a choice."""
    chosen: list[int] | None
    """For each unit, the index in `tuning` of its best trial; None before tuning is done."""
    hyperparameters: dict[str, list[float]] | None
    """Knob -> [lowest, median, highest] of the chosen values."""
    best: BestTrial | None
    code: NotRequired[str | None]
    """The optimizer with the values of `best`, as Python to paste; None before tuning is done."""
    trials: int
    """Number of tuning trials that have finished."""
    tuning: list[TuningTrial]
    expected_best: list[float]
    """Expected best validation metric of k tuning trials, for k = 1, 2, ... Empty if trials were
    halted, since their last metrics are not those of full runs."""
    lr_width: RateWidth | None
    """None if trials were halted, or if no learning rate was tuned."""
    units: list[float]
    """For each unit whose fresh runs have all finished, the mean of their `test`."""
    seeds: list[int]
    """Fresh: the seed of the run."""
    validation: list[float]
    """Fresh: last validation metric; the worst metric if the run diverged."""
    best_validation: list[float | None]
    """Fresh: best validation metric of the run."""
    test: list[float]
    """Fresh: test metric at the last step, or validation metric if there is no test data; the
    worst metric if the run diverged."""
    interquartile_mean: float | None
    """Interquartile mean of `test`."""
    steps_to_target: list[int | None]
    """Fresh: steps until an evaluation first reached the target; None if none reached it."""
    diverged: Diverged
    failed_units: int
    """Number of units with a fresh run that failed."""
    failed: int
    """Number of fresh runs that diverged or, if the task gives a worst metric, ended no better than
    this metric."""
    state_bytes: int | None
    """Bytes of the optimizer's state in one run."""
    parameters: int | None
    """How many numbers the optimizer updates."""
    gradients: float | None
    """Number of gradients, each of a batch of the usual size; median over the fresh runs that did
    not diverge."""
    curve: Curve
    difference: DifferenceRecord | None
    """Difference to the baseline; None for the baseline, and if the race is not complete."""
    timing: Timing
    measures: NotRequired[list[dict[str, float]]]
    """Fresh: the other numbers of the last report, name -> value."""


class Finding(TypedDict):
    """Something that is wrong with a race that ran to its end: see `lint`."""

    name: str
    entry: str
    text: str


class Provenance(TypedDict):
    """Which software, data and machine a race was run with."""

    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    task_sha256: str | None
    """Hash of the task's file."""
    modules_sha256: dict[str, str]
    """Module of the user -> hash of its file."""
    data_sha256: str | None
    """Hash of the files that the task reads."""
    backends: NotRequired[dict[str, list[str]]]
    """Entry -> names of the backends that made its steps."""


class Share(TypedDict):
    """Decides how a metric is shown as text."""

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
    """The metric that a diverged run counts as."""
    target: float | None
    """The validation metric to reach. The steps and seconds until a run reaches it are measured."""
    baseline: str
    complete: bool
    """Whether all planned runs have finished: only then is there a verdict."""
    runs: Counts
    full_runs: float
    """Optimizer steps of all runs, divided by the steps of a full run."""
    test_size: int
    """Cases of the test set; 0 if this is not known."""
    test_data: bool
    """Whether there is test data; if not, `test` has validation metrics."""
    plan: PlanRecord
    use: NotRequired[list[str]]
    """Entries that the race recommends: those better than the baseline, the largest gain first. If
    none is better, the baseline, unless runs of it failed. Empty if the race shows too little."""
    next: NotRequired[str]
    """A command line for the race to run next; absent if nothing is open."""
    next_purpose: NotRequired[str]
    """Purpose of `next`, such as "decide what is still open"; it is shown after "To"."""
    reproduce: str
    """A command line that runs the same trials."""
    entries: dict[str, EntrySummary]
    provenance: Provenance
    test_standard_error: NotRequired[float]
    """Binomial standard error of the baseline's share on the test set."""
    lint: list[Finding]
    batches_checked: list[str]
    """Entries that had the same batches, seed by seed."""
    batches_unchecked: dict[str, str]
    """Entry -> why its batches could not be compared."""
    batches_unpaired: dict[str, str]
    """Entry -> what differs from the baseline's runs."""
