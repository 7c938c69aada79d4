"""Loops of a user's own, and evaluations: rates that a loop undoes, weights that are used at
another point than they are trained at, metrics that are no number, choices that nothing judges.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import steepest
from steepest import tasks
from steepest.errors import BadCall
from steepest.race import driver, trials
from steepest.race.protocol import FRESH, PILOT, Trial
from steepest.race.request import Request
from steepest.tasks import gan, sparse
from steepest.tasks.task import evaluating, two_points
from steepest.training.recipe import Recipe

SCHEDULE_FREE = ("schedule_free_adamw", "schedule_free_sgd")
pytestmark = pytest.mark.usefixtures("elsewhere")

OWN = """
import torch
from torch import nn
MINIMIZE, STEPS = "loss", 8
DATA = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
def train(make_optimizer, report, seed):
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model)
    BEFORE
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss = (model(DATA) - DATA.sum(1, keepdim=True)).square().mean()
        loss.backward()
        DO
        BEHIND
        if step % 2 == 0:
            JUDGE
            report(step, validation=METRIC, test=METRIC)
            AFTER
"""


@pytest.fixture
def own(elsewhere):
    """Runs one trial of a loop, or what `how` says of it."""

    def run(entry, phase=FRESH, lr=None, steps=8, **lines):
        source = OWN
        usual = {"METRIC": "loss.item()", "DO": "optimizer.step()"}
        for name in ("DO", "BEFORE", "BEHIND", "JUDGE", "METRIC", "AFTER"):
            source = source.replace(name, lines.get(name, usual.get(name, "pass")))
        (elsewhere / "mine.py").write_text(source)
        hyper = Recipe.read(entry).defaults | ({} if lr is None else {"lr": lr})
        return trials.run(Trial("mine.py", phase, entry, 0, 7, steps, hyper))

    return run


# --- a schedule of the loop's own

TORCHS = "torch.optim.lr_scheduler."
UNDO = {
    "LambdaLR, as the Trainer of Hugging Face": (
        f"its = {TORCHS}LambdaLR(optimizer, lambda t: 1 - t / 8)", "its.step()"
    ),
    "a constant one": (f"its = {TORCHS}LambdaLR(optimizer, lambda t: 1.0)", "its.step()"),
    "StepLR": (f"its = {TORCHS}StepLR(optimizer, 3)", "its.step()"),
    "by hand": ("pass", "optimizer.param_groups[0]['lr'] = 0.01"),
    "by hand, in proportion": ("pass", "optimizer.param_groups[0]['lr'] *= 0.9"),
    "once, late": ("pass", "if step == 6: optimizer.param_groups[0]['lr'] /= 10"),
}  # fmt: skip
WORDS = ("+cosine", "+warmup", "+warmup+cosine", "+one-cycle", "+noam", "+step", "+triangular")


@pytest.mark.parametrize("how", UNDO)
@pytest.mark.parametrize("word", WORDS)
def test_a_loop_that_undoes_a_schedule_is_refused(how, word, own):
    before, behind = UNDO[how]
    for change in ({}, {"DO": "try: optimizer.step()\n        except Exception: pass"}):
        with pytest.raises(BadCall) as found:
            own(f"momentum{word}", BEFORE=before, BEHIND=behind, **change)
        said = str(found.value)
        assert f"entry 'momentum{word}': {word} set lr to " in said
        assert f"expected a loop that leaves lr alone, or entries without {word}" in said


def test_a_group_that_a_schedule_does_not_know_is_named(own):
    late = "optimizer.add_param_group({'params': [torch.nn.Parameter(torch.ones(1))]})"
    behind = f"if step == 3: {late}"
    with pytest.raises(
        BadCall,
        match=r"has added a group of parameters to the optimizer, but \+cosine schedules only",
    ):
        own("momentum+cosine", BEHIND=behind)
    assert own("momentum+clip", BEHIND=behind).diverged is None
    # what the cure says: without a gradient a parameter is left alone
    frozen = "model.bias.requires_grad_(False)"
    thaw = "if step == 3: model.bias.requires_grad_(True)"
    assert own("momentum+cosine", BEFORE=frozen, BEHIND=thaw).diverged is None


@pytest.mark.parametrize("how", UNDO)
def test_a_loops_own_schedule_is_for_entries_without_one(how, own):
    before, behind = UNDO[how]
    assert own("momentum+clip", BEFORE=before, BEHIND=behind).diverged is None
    # and what was said to be quiet is
    quiet = f"its = {TORCHS}MultiplicativeLR(optimizer, lambda _: 1.0)"
    for word in WORDS:
        plain, calm = (
            own(f"momentum{word}"),
            own(f"momentum{word}", BEFORE=quiet, BEHIND="its.step()"),
        )
        assert calm.validation == plain.validation


def test_the_races_own_loop_may_set_the_rate(elsewhere):
    hyper = Recipe.read("momentum+warmup+restarts").defaults
    run = Trial("diabetes", FRESH, "momentum+warmup+restarts", 0, 7, 70, hyper)
    assert trials.run(run).diverged is None


# --- two points

AVERAGED = {
    "JUDGE": "if hasattr(optimizer, 'eval'): optimizer.eval()",
    "METRIC": "(model(DATA) - DATA.sum(1, keepdim=True)).square().mean().item()",
    "AFTER": "if hasattr(optimizer, 'train'): optimizer.train()",
}
FOREIGN = ("schedulefree:AdamWScheduleFree", "schedulefree:SGDScheduleFree")


@pytest.mark.parametrize("entry", [*SCHEDULE_FREE, *FOREIGN])
def test_an_average_has_to_be_evaluated(entry, own):
    if ":" in entry:
        pytest.importorskip("schedulefree")
    with pytest.raises(BadCall, match=r"report\(2\): .* call optimizer\.eval\(\) before each eval"):
        own(entry)
    once = "if step == 2 and hasattr(optimizer, 'eval'): optimizer.eval(); optimizer.train()"
    with pytest.raises(BadCall, match=r"report\(4\)"):  # at every evaluation
        own(entry, JUDGE=once)
    found = own(entry, **AVERAGED)
    assert own("adam", **AVERAGED).diverged is None
    assert (len(found.validation), found.diverged) == (4, None)


LIGHTNING = """
import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader, TensorDataset
MINIMIZE, STEPS = "loss", 8
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
def train(make_optimizer, report, seed):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 1)
        def training_step(self, batch, index):
            return (self.inner(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()
        def on_validation_start(self):
            EVAL
        def validation_step(self, batch, index):
            self.found = self.training_step(batch, index)
        def on_validation_end(self):
            if self.global_step:
                report(self.global_step, validation=self.found)
            self.optimizers().train()
        def configure_optimizers(self):
            return make_optimizer(self.parameters())
    loader = DataLoader(TensorDataset(X), 16)
    lightning.Trainer(
        max_steps=STEPS, val_check_interval=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    ).fit(Module(), loader, loader)
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", [SCHEDULE_FREE[1], FOREIGN[1]])
def test_an_average_may_be_evaluated_through_lightnings_wrapper(entry, elsewhere):
    pytest.importorskip("pytorch_lightning")
    if ":" in entry:
        pytest.importorskip("schedulefree")
    run = Trial("mine.py", FRESH, entry, 0, 7, 8, {"lr": 0.1})
    (elsewhere / "mine.py").write_text(LIGHTNING.replace("EVAL", "self.optimizers().eval()"))
    found = trials.run(run)
    assert (len(found.validation), found.diverged) == (4, None)
    assert found.backends == trials.run(replace(run, task="diabetes", steps=2)).backends
    (elsewhere / "mine.py").write_text(LIGHTNING.replace("EVAL", "pass"))
    with pytest.raises(BadCall, match=r"call optimizer\.eval\(\) before each evaluation"):
        trials.run(run)


def oracle(kind, lr, batches, loss, model, evaluate, every):
    """The authors' class in a plain loop."""
    optimizer = kind(model.parameters(), lr=lr)
    optimizer.train()
    found = []
    for step, batch in enumerate(batches, start=1):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        if step % every == 0:
            optimizer.eval()
            found.append(evaluate())
            optimizer.train()
    return found


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (SCHEDULE_FREE[0], "AdamWScheduleFree"),
        (SCHEDULE_FREE[1], "SGDScheduleFree"),
        (FOREIGN[0], "AdamWScheduleFree"),
        (FOREIGN[1], "SGDScheduleFree"),
    ],
)
def test_the_race_evaluates_the_average(entry, name):
    from steepest.tasks.tables import DIABETES

    kind = getattr(pytest.importorskip("schedulefree"), name)
    setup = DIABETES.build(7)
    batches = [next(setup.batches) for _ in range(28)]
    evaluate = lambda: setup.evaluate(setup.model, "validation")  # noqa: E731
    expected = oracle(kind, 0.05, batches, setup.loss, setup.model, evaluate, DIABETES.every)
    got = trials.run(Trial("diabetes", FRESH, entry, 0, 7, 28, {"lr": 0.05}))
    assert got.validation == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 28 // DIABETES.every > 1


@pytest.mark.parametrize("entry", [*SCHEDULE_FREE, *FOREIGN])
@pytest.mark.parametrize("word", ["early-stopping", "restarts", "curriculum", "warmup+cosine"])
def test_parts_keep_to_the_point_of_use(entry, word):
    if ":" in entry:
        pytest.importorskip("schedulefree")
    name = f"{entry}+{word}"
    hyper = Recipe.read(name).defaults | {"lr": 0.03}
    found = trials.run(Trial("diabetes", FRESH, name, 0, 7, 84, hyper))
    assert found.diverged is None
    assert math.isfinite(found.test)
    if word == "early-stopping":  # what the run ends with is the best that was evaluated
        assert found.validation[-1] == pytest.approx(min(found.validation), rel=1e-6)


@pytest.mark.parametrize("entry", SCHEDULE_FREE)
def test_a_stopped_run_ends_with_the_average_that_was_best(entry, monkeypatch):
    """Each set of weights that is evaluated is worse than the one before: the first is the best."""
    setup, known = tasks.get("diabetes"), {}

    def evaluate(model, split):
        key = tuple(p.detach().double().sum().item() for p in model.parameters())
        return known.setdefault(key, 1.0 + len(known))

    build = lambda seed: replace(setup.build(seed), evaluate=evaluate)  # noqa: E731
    monkeypatch.setitem(tasks.TASKS, "diabetes", replace(setup, build=build))
    name = f"{entry}+early-stopping"
    hyper = Recipe.read(name).defaults | {"lr": 0.03}
    found = trials.run(Trial("diabetes", FRESH, name, 0, 7, 56, hyper))
    assert found.validation == [1, 2, 3, 1, 1, 1, 1, 1]
    assert found.test == 1


@pytest.mark.parametrize("task", [gan.DIGITS_GAN.name, sparse.BAG.name])
def test_bundled_loops_evaluate_the_average(task):
    for entry in SCHEDULE_FREE:
        run = Trial(task, FRESH, entry, 0, 7, 3, {"lr": 0.01})
        assert len(trials.run(run).validation) == 1


def test_only_what_has_both_has_two_points():
    weight = nn.Parameter(torch.ones(3))
    average = steepest.optimizer("schedule_free_sgd", [weight], lr=0.5)
    plain = steepest.optimizer("sgd", [weight], lr=0.5)
    assert [two_points(o) for o in (average, plain)] == [True, False]
    for _ in range(3):
        weight.grad = weight.detach().clone()
        average.step()
    y = weight.detach().clone()
    with evaluating(average, plain):
        assert not torch.equal(weight, y)
    assert torch.allclose(weight, y)


# --- a metric that is no number

DECLARED = """
import torch
from torch import nn
MINIMIZE, STEPS, EVERY = "loss", 8, 2
DATA = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
CALLS = [0]
def error(model, x):
    return (model(x) - x.sum(1, keepdim=True)).square().mean()
def evaluate(model, split):
    CALLS[0] += 1
    return METRIC
def task(seed):
    return nn.Linear(4, 1), error, DATA.split(16), evaluate
"""


def declared(elsewhere, metric, lr=0.05, phase=FRESH, entry="momentum"):
    (elsewhere / "mine.py").write_text(DECLARED.replace("METRIC", metric))
    return trials.run(Trial("mine.py", phase, entry, 0, 7, 8, {"lr": lr}))


@pytest.mark.parametrize(
    "metric",
    [
        "float('nan') if CALLS[0] == 2 else 1.0",
        "-float('inf') if CALLS[0] > 2 else 1.0",
        "float('nan') if split == 'test' else 1.0",
        "float('nan')",
    ],
)
def test_an_evaluation_without_a_number_is_no_divergence(metric, elsewhere):
    with pytest.raises(BadCall, match=r"evaluate\(\) returned (nan|-inf) on \w+ data alth"):
        declared(elsewhere, metric)


def test_a_loss_that_needs_gradients_is_asked_as_in_training(elsewhere):
    loss = (
        "def error(model, x):\n    x = x.clone().requires_grad_()\n"
        "    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)\n"
        "    return (slope - 1).square().mean()\ndef evaluate"
    )
    source = DECLARED.replace("def evaluate", loss, 1).replace("METRIC", "float('nan')")
    (elsewhere / "mine.py").write_text(source)
    with pytest.raises(BadCall, match="although training is fine"):
        trials.run(Trial("mine.py", FRESH, "momentum", 0, 7, 8, {"lr": 0.05}))


@pytest.mark.parametrize("direction", ["MINIMIZE", "MAXIMIZE"])
def test_a_metric_that_overflows_to_the_bad_side_has_diverged(direction, elsewhere, own):
    """As exp of a loss does, while the loss is still a number."""
    bad, good = ("inf", "-inf") if direction == "MINIMIZE" else ("-inf", "inf")
    for metric, ends in ((bad, True), (good, False)):
        source = DECLARED.replace("MINIMIZE", direction)
        source = source.replace("METRIC", f"float('{metric}') if CALLS[0] > 2 else 1.0")
        (elsewhere / "mine.py").write_text(source)
        run = Trial("mine.py", FRESH, "momentum", 0, 7, 8, {"lr": 0.05})
        if ends:
            found = trials.run(run)
            assert found.diverged
            assert found.steps == [2, 4]
        else:
            with pytest.raises(BadCall, match="although training is fine"):
                trials.run(run)


def test_a_loops_metric_that_overflows_has_diverged(own):
    some = "float('inf') if step == 4 else loss.item()"
    assert own("momentum", METRIC=some).diverged == "validation is not finite at step 4 (inf)"


@pytest.mark.parametrize("metric", ["error(model, DATA).item()", "float('nan')"])
def test_what_diverges_still_does(metric, elsewhere):
    assert declared(elsewhere, metric, lr=1e30).diverged
    assert declared(elsewhere, metric, lr=1e9).diverged


def test_a_loop_that_reports_a_number_again_had_not_diverged(own):
    some = "float('nan') if step == 4 else loss.item()"
    with pytest.raises(BadCall, match=r"report\(6\) has numbers again, after validation=nan"):
        own("momentum", METRIC=some)
    with pytest.raises(BadCall, match=r"validation=nan is not finite, in a pilot run; report a"):
        own("momentum", METRIC=some, phase=PILOT)
    rest = own("momentum", METRIC="float('nan') if step >= 4 else loss.item()")
    assert rest.diverged.startswith("validation=nan with finite weights at step 4, and at every")
    assert rest.steps == [2]
    assert "not finite" in own("momentum", lr=1e30).diverged


# --- a choice by validation data

ONE = DECLARED.replace("METRIC", "error(model, DATA).item()").replace("(model, split)", "(model)")


@pytest.mark.parametrize("word", ["early-stopping", "restarts"])
@pytest.mark.parametrize("entry", ["adamw+{}", "adam+clip+{}", "torch.optim:SGD+{}"])
def test_a_choice_by_validation_data_needs_test_data(word, entry, elsewhere):
    (elsewhere / "mine.py").write_text(ONE)
    with pytest.raises(BadCall, match=rf"\+{word} chooses weights by the validation data, and"):
        Request("mine.py", entry.format(word)).check()
    Request("mine.py", "adamw+cosine").check()
    (elsewhere / "mine.py").write_text(ONE.replace("(model):", "(model, split):"))
    Request("mine.py", entry.format(word)).check()


def test_a_method_on_the_whole_loss_with_a_stop_is_judged_likewise(elsewhere):
    source = ONE.replace("DATA.split(16)", "torch.utils.data.DataLoader(DATA, 16)")
    (elsewhere / "mine.py").write_text(source)
    with pytest.raises(BadCall, match=r"bfgs\+early-stopping.*no test data"):
        Request("mine.py", "bfgs+early-stopping").check()


def test_no_page_of_a_race_without_test_data_has_a_test_metric(elsewhere, capfd):
    from steepest.race import terminal

    (elsewhere / "mine.py").write_text(ONE)
    asked = Request("mine.py", "adamw,momentum,eadam", 1, 5)
    summary, _ = driver.race(asked, elsewhere / "out", jobs=1)
    terminal.show(summary)
    page = (elsewhere / "out" / "report.html").read_text(encoding="utf-8")
    for text in (capfd.readouterr().out, page, summary["verdict"]):
        assert "test loss" not in " ".join(text.split())
        assert "validation loss" in " ".join(text.split())
    rows = (elsewhere / "out" / "runs.csv").read_text().splitlines()
    at = rows[0].split(",").index("test")
    assert {row.split(",")[at] for row in rows[1:]} == {""}
