"""bench/reproductions at its smallest size: the laws hold, and the rest has the shape it should."""

import json
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tests.blocks import ROOT

FOLDER = ROOT / "bench" / "reproductions"
sys.path.insert(0, str(FOLDER))
import adaptive  # noqa: E402
import convex  # noqa: E402
import noisy  # noqa: E402
import saddles  # noqa: E402
import scheduled  # noqa: E402
from results import Results, digits  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # conftest sets it back


@pytest.fixture(scope="module")
def accelerated():
    return convex.nesterov(2, longest=128).values


@pytest.mark.parametrize("steps", [1, 7, 64])
def test_gradient_descent_needs_all_of_its_bound_on_its_worst_function(steps):
    start = torch.ones(1, dtype=torch.float64)
    f = convex.slowest(steps)
    *_, x = convex.points("sgd", f, start, 1.0, steps)
    assert float(f(x)) == pytest.approx(1 / (4 * steps + 2), rel=1e-12)


def test_both_methods_keep_to_the_theory(accelerated):
    shares = {k: max(v) for k, v in accelerated.items() if "share of the bound" in k}
    assert len(shares) == 3 * len(convex.METHODS)
    assert all(0 <= share <= 1 for share in shares.values()), shares
    assert accelerated["slowest, slope: sgd"] == pytest.approx([-1], abs=0.02)
    for method in convex.METHODS[1:]:
        assert accelerated[f"worst quadratic, slope: {method}"] == pytest.approx([-2], abs=0.1)
        slower = accelerated["logistic, slope: sgd"]
        for mine, theirs in zip(accelerated[f"logistic, slope: {method}"], slower, strict=True):
            assert mine < theirs - 0.5


@pytest.mark.parametrize("method", convex.METHODS)
def test_nobody_is_faster_than_the_lower_bound(method):
    k = 40
    f, best, least = convex.worst(2 * k + 1)
    *_, x = convex.points(method, f, torch.zeros_like(best), 4.0, k)
    # Nesterov, Lectures on Convex Optimization, theorem 2.1.7
    assert float(f(x)) - least >= 3 * 4 * float(best.square().sum()) / (32 * (k + 1) ** 2)


def test_the_rules_are_each_other_and_near_the_textbook():
    f, best, _ = convex.worst(101)
    paths = {
        m: torch.stack([*convex.points(m, f, torch.zeros_like(best), 4.0, 60)])
        for m in convex.METHODS
    }
    torch.testing.assert_close(paths["nesterov"], paths["classical_nesterov"], rtol=0, atol=1e-13)
    away = (paths["nesterov"] - paths["textbook"]).abs().max()
    assert 1e-6 < away < 0.05 * (paths["sgd"] - paths["textbook"]).abs().max()


def test_the_minima_of_the_convex_functions_are_minima():
    f, best, least = convex.worst(51)
    matrix = 2 * np.eye(51) - np.eye(51, k=1) - np.eye(51, k=-1)
    np.testing.assert_allclose(np.linalg.solve(matrix, np.eye(51)[0]), best, atol=1e-12)
    assert float(f(best)) == pytest.approx(least, rel=1e-12)
    assert np.linalg.eigvalsh(matrix)[-1] < 4
    f, best, lipschitz = convex.logistic()
    w = best.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(w), w)
    # f - f* <= |gradient|^2 / (2 mu) for a mu-strongly convex f
    assert float(gradient.square().sum()) / (2 * convex.PENALTY) < 1e-18
    hessian = torch.autograd.functional.hessian(f, torch.zeros_like(best))
    assert float(torch.linalg.eigvalsh(hessian)[-1]) == pytest.approx(lipschitz, rel=1e-12)


def test_gradient_descent_goes_to_least_squares():
    results = convex.fit(2, steps=8192).values
    assert results["once, rank"] == results["twice, rank"] == [10]
    for name in ("once, from random starts", "once, from zero", "twice, from zero"):
        assert max(results[f"{name}, step 8192"]) < 1e-12
        assert min(results[f"{name}, step 512"]) > 1e-3
    assert min(results["twice, from random starts, step 8192"]) > 0.1
    assert max(results["twice, less the start, step 8192"]) < 1e-12


def test_the_distance_is_that_of_the_spectrum():
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x = np.c_[(x - x.mean(0)) / x.std(0, ddof=1), np.ones(len(x))]
    goal = np.linalg.lstsq(x, y, rcond=None)[0]
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    shrunk = (1 - 2 * values / (values[0] + values[-1])) ** 512 * (vectors.T @ goal)
    expected = np.linalg.norm(shrunk) / np.linalg.norm(goal)
    results = convex.fit(1, steps=512).values
    assert results["once, from zero, step 512"] == pytest.approx([expected], rel=1e-9)


def test_newton_ends_where_its_map_leads():
    start = 4 * torch.rand(30, 2, dtype=torch.float64, generator=torch.manual_seed(3)) - 2
    for absolute in (False, True):
        u = saddles.rotate(start).numpy()  # the function is separable there
        for _ in range(40):
            curvature = 3 * u**2 - 1
            u = u - (u**3 - u) / (abs(curvature) if absolute else curvature)
        results = saddles.run_newton(start, 40, line_search=False, saddle_free=absolute)
        np.testing.assert_allclose(results, u, atol=1e-9)
        assert (abs(u).min(1) < 1e-9).any() != absolute


def test_plain_newton_is_drawn_to_saddles_and_saddle_free_is_not():
    results = saddles.saddle(1, starts=40, steps=30).values
    assert results["two variables, % at a saddle: plain"][0] > 10
    assert results["two variables, % at a minimum: saddle-free"] == [100]
    for form, kind in [
        ("plain, damped", "saddle"), ("saddle-free, damped", "minimum"),
        ("plain, line search", "minimum"), ("saddle-free, line search", "minimum"),
    ]:  # fmt: skip
        assert results[f"network, % at a {kind}: {form}"] == [100], form
        assert (results[f"network, accuracy: {form}"][0] > 95) == (kind == "minimum")


def test_the_saddle_has_the_curvature_that_it_must_have():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = np.c_[(x - x.mean(0)) / x.std(0, ddof=1), np.ones(len(x))]
    model, loss, _ = saddles.network(0, 0.0)
    bias = next(p for n, p in model.named_parameters() if n == "2.bias")
    for _ in range(50):  # Newton in the one parameter that is not zero
        chance = float(torch.sigmoid(bias.detach()))
        slope = chance - y.mean() + saddles.PENALTY * float(bias.detach())
        bias.data -= slope / (chance * (1 - chance) + saddles.PENALTY)
    slope, curvature = saddles.slope_and_curvature(model, loss)
    # each hidden unit couples its outer weight with its inner ones by the mean of residual * x
    coupling = np.linalg.norm(((chance - y)[:, None] * x).mean(0))
    assert slope < 1e-12
    assert curvature == pytest.approx(saddles.PENALTY - coupling, rel=1e-9)


def test_networks_side_by_side_are_separate_networks():
    model = noisy.SideBySide(3, None)
    x, y = torch.randn(3, 8, 64), torch.randint(10, (3, 8))
    scores = model(x)
    (3 * nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())).backward()
    flat = torch.cat([p.grad.flatten(1) for p in model.parameters()], 1)
    limit = float(flat.norm(dim=1).median())  # clips one, leaves one
    noisy.clip([*model.parameters()], limit)
    for i in range(3):
        layers = []
        for weight, bias in zip(model.weights, model.biases, strict=True):
            layer = nn.Linear(*weight.shape[1:])
            layer.weight.data, layer.bias.data = weight.data[i].T, bias.data[i, 0]
            layers += [layer, nn.ReLU()]
        alone = nn.Sequential(*layers[:-1])
        torch.testing.assert_close(alone(x[i]), scores[i])
        nn.functional.cross_entropy(alone(x[i]), y[i]).backward()
        nn.utils.clip_grad_norm_(alone.parameters(), limit)
        for k, layer in enumerate(layers[::2]):
            torch.testing.assert_close(model.weights[k].grad[i], layer.weight.grad.T)
            torch.testing.assert_close(model.biases[k].grad[i, 0], layer.bias.grad)


def test_noise_reports_every_start_and_noise():
    results = noisy.noise(2, steps=3)
    ways = [f"{start}, eta {eta:g}" for start in noisy.STARTS for eta in noisy.ETAS]
    ways += [f"walked by eta {eta:g}" for eta in noisy.ETAS[1:]]
    assert {*results.values} == {
        f"{w}: {way}" for w in ("test accuracy", "learned") for way in ways
    }
    for way in ways:
        ends = results.values[f"test accuracy: {way}"]
        assert all(0 <= end <= 100 for end in ends)
        assert results.values[f"learned: {way}"] == [float(end > noisy.LEARNED) for end in ends]
    assert len(results.pairs) == 18


def test_noise_alone_walks_as_far_as_is_said():
    weight = nn.Parameter(torch.zeros(40_000, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=noisy.LR)
    noisy.GradientNoise(optimizer, 0.3)
    for _ in range(50):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    # the standard error of a deviation from 40,000 numbers is 0.35 %
    assert float(weight.detach().std()) == pytest.approx(noisy.noise_deviation(0.3, 50), rel=0.02)


def test_a_network_of_zeros_learns_nothing_without_noise_and_one_of_he_does(monkeypatch):
    assert max(noisy.accuracies(2, 0.0, 0.0, 50)) < noisy.LEARNED
    monkeypatch.setattr(noisy, "LAYERS", 3)
    ends = noisy.accuracies(2, None, 0.0, 100)
    assert min(ends) > 50
    # one by one they do the same but for rounding
    assert noisy.accuracies(1, None, 0.0, 100) == pytest.approx(ends[:1], abs=1.0)


def test_growth_takes_the_steps_that_its_schedule_says():
    results = scheduled.growth(1, epochs=4).values
    expected = {
        "decay": 4 * 75, "another order": 4 * 75, "neither": 4 * 75,
        "growth": 75 + 15 + 3 + 1, "hybrid": 75 + 3 * 15,
    }  # fmt: skip
    for name, updates in expected.items():
        assert results[f"updates: {name}"] == [updates], name
        assert 50 < results[f"test accuracy: {name}"][0] <= 100
        assert results[f"train loss: {name}"][0] < 1
    assert results["largest gap in train loss: another order"][0] > 0


def test_growth_and_decay_are_the_same_until_the_first_milestone():
    data = digits(0, 1200)
    decayed, grown = (
        scheduled.train(data, 0, 0, 16, 0.05, 3, way)
        for way in (
            lambda o, _: scheduled.MultiStepLR(o, [2], 0.2),
            lambda o, loader: scheduled.BatchGrowth(scheduled.MultiStepLR(o, [2], 0.2), loader),
        )
    )
    for what in ("train loss", "test accuracy"):
        assert decayed[what][:2] == grown[what][:2]
    assert decayed["train loss"][2] != grown["train loss"][2]


def test_a_batch_for_each_update_sees_as_many_samples_as_a_constant_one():
    results = adaptive.adaptive(1, epochs=1)
    assert len(results.pairs) == 12
    results = results.values
    for setting, (_, _, first) in adaptive.SETTINGS.items():
        for way in adaptive.WAYS:
            (updates,), (batch,) = (
                results[f"{what}, {setting}: {way}"] for what in ("updates", "batch")
            )
            assert updates * batch == pytest.approx(1200)
            assert 0 <= results[f"test accuracy, {setting}: {way}"][0] <= 100
            if way == "constant":
                assert updates == -(-1200 // first)
        assert results[f"times as long, {setting}"][0] > 0


def test_at_a_small_rate_the_adaptive_batch_is_the_constant_one():
    data = digits(0, 1200)
    runs = [adaptive.train(data, 0, "lr 0.1", 1, size) for size in (None, 30)]
    assert runs[0]["batch"] == runs[1]["batch"] == 30
    assert runs[0]["train loss"] == pytest.approx(runs[1]["train loss"], rel=1e-5)


def test_sgdr_reports_the_ends_of_its_periods():
    results = scheduled.sgdr(1, first=1, periods=2)
    for name in ("steps", "cosine", "sgdr"):
        assert results.values[f"lr: {name}"][0] in scheduled.RATES
        for epoch in (1, 3):
            assert 0 <= results.values[f"test accuracy after epoch {epoch}: {name}"][0] <= 100
    assert len(results.pairs) == 4


def test_the_choice_is_by_validation_and_what_diverged_is_the_worst():
    runs = [
        {"validation accuracy": [a], "validation loss": [b]}
        for a, b in [(50, 2.0), (90, 0.5), (90, 0.4), (95, float("nan")), (99, float("inf"))]
    ]
    assert sorted(runs, key=scheduled._quality)[-1] is runs[2]
    assert sorted(runs, key=scheduled._quality)[2] is runs[0]


def test_digits_are_split_without_overlap():
    whole = torch.cat([x for x, _ in digits(5, 900, 300).values()])
    parts = [len(x) for x, _ in digits(5, 900, 300).values()]
    assert parts == [900, 300, 597]
    assert len(whole.unique(dim=0)) == 1797
    assert {*digits(5, 900)} == {"train", "test"}
    assert not torch.equal(digits(5, 900)["train"][0], digits(6, 900)["train"][0])


def test_what_was_found_is_summed_up_as_numpy_and_scipy_do():
    from scipy import stats

    a, b = [1.0, 2.0, 4.0, 3.0, 5.0, 2.5], [2.0, 3.5, 5.0, 4.0, 6.5, 3.0]
    results = Results()
    results.add("metric: a", a)
    results.add("metric: b", b)
    results.add("once", [7.0])
    results.compare("metric", "a", ["b"])
    rows = {row["name"]: row for row in results.rows()}
    assert rows["metric: a"]["mean"] == pytest.approx(np.mean(a))
    assert rows["metric: a"]["sd"] == pytest.approx(np.std(a, ddof=1))
    assert rows["once"]["sd"] is None
    pair = rows["metric: b - a"]
    test = stats.ttest_rel(b, a)
    interval = test.confidence_interval()
    assert (pair["low"], pair["high"]) == pytest.approx((interval.low, interval.high))
    assert pair["p_holm"] == pytest.approx(test.pvalue)
    assert pair["apart"]
    assert "told apart" in results.text()


@pytest.fixture
def main(monkeypatch):
    names = runpy.run_path(str(FOLDER), run_name="reproductions")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproductions", *arguments])
        names["main"]()

    def quick(seeds=3):
        """Something.

        And more of it.
        """
        return Results({"this": [1.0, 2.0, 6.0][:seeds]})

    names["REPRODUCTIONS"]["growth"] = quick  # the same dictionary that main looks into
    return call


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        ([], "required: name"),
        (["growth", "--seeds", "0"], "--seeds 0 was given, expected 1 or more"),
        (["growth", "--seeds", "x"], "invalid int value: 'x'"),
    ],
)
def test_a_wrong_call_is_refused(main, bad, said, capsys):
    with pytest.raises(SystemExit) as refused:
        main(*bad)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_n_mean_and_spread(main, capsys):
    main("growth")
    title, _, row, _ = capsys.readouterr().out.splitlines()
    assert title == "Something."
    assert row.split() == ["this", "3", "3", "2.65"]
    main("growth", "--seeds", "1")
    assert capsys.readouterr().out.splitlines()[2].split() == ["this", "1", "1"]


def test_the_command_runs_as_the_page_gives_it():
    done = subprocess.run(
        [sys.executable, str(FOLDER), "least-squares", "--seeds", "1", "--json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["name"] == "least-squares"
    assert {row["n"] for row in report["rows"]} == {1}


def test_the_page_has_every_reproduction_with_its_command():
    page = (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8")
    names = runpy.run_path(str(FOLDER), run_name="reproductions")["REPRODUCTIONS"]
    assert re.findall(r"^ {4}python bench/reproductions ([\w-]+)$", page, re.M) == [*names]
