"""What is said of a rule: by `steepest list`, and by the docstring that it is taken from."""

import json
from types import SimpleNamespace

import pytest

import steepest
from steepest import catalogue, cli
from steepest.oracles import ORACLES


def test_the_facts_are_those_of_the_rule_and_its_oracle():
    facts = catalogue.facts(steepest.rules["adabelief"])
    assert facts == {
        "name": "adabelief", "class": "AdaBelief", "title": "AdaBelief", "year": 2020,
        "paper": "Zhuang et al. 2020, arXiv:2010.07468, algorithm 2", "link": "arXiv:2010.07468",
        "kind": "elementwise", "oracle": "package", "states": ["exp_avg", "exp_avg_var"],
        "bytes_per_parameter": 8, "when": facts["when"],
        "defaults": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-16, "rectify": True,
                     "degenerated_to_sgd": True, "amsgrad": False},
    }  # fmt: skip
    assert catalogue.facts(steepest.rules["sgd"])["bytes_per_parameter"] == 0
    assert catalogue.facts(steepest.rules["amsgrad"])["bytes_per_parameter"] == 12


@pytest.mark.parametrize("name", steepest.rules)
def test_of_every_rule_all_is_known(name):
    facts = catalogue.facts(steepest.rules[name])
    assert facts["oracle"] == ORACLES[name].source
    assert facts["title"]
    assert facts["paper"]
    assert 1700 < facts["year"] < 2100
    assert facts["kind"] in ("elementwise", "reducing", "matrix")
    assert json.loads(json.dumps(facts)) == facts


def test_a_line_each_that_fits(capsys):
    assert cli.main(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "class", "year", "st", "B", "kind", "oracle", "paper"]
    assert len(lines) == len(steepest.rules)
    assert max(map(len, [head, *lines])) <= catalogue.WIDTH
    for line, (name, rule) in zip(lines, steepest.rules.items(), strict=True):
        words = line.split()
        facts = catalogue.facts(rule)
        size = facts["bytes_per_parameter"]
        assert words[:2] == [name, facts["class"]]
        assert words[3:5] == [str(len(facts["states"])), f"{size:g}"]
        if facts["link"] and facts["link"].startswith("arXiv"):
            assert words[-1] == facts["link"]  # whole: it is what one looks the paper up by


def test_a_long_name_costs_the_paper_and_no_column():
    row = catalogue.facts(steepest.rules["sgd"])
    long = {**row, "name": "n" * 30, "paper": "p" * 300, "oracle": None, "year": None}
    lines = catalogue.table([row, long])
    assert {len(line) for line in lines[2:]} == {catalogue.WIDTH}
    assert lines[2].split()[2] == "-"
    assert " none " in lines[2]
    assert lines[0].index("paper") == lines[2].index("ppp")


def test_json_and_the_facts_are_one(capsys):
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == catalogue.listing()


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ({"elementwise": True}, "elementwise"),
        ({"elementwise": False, "matrix": False}, "reducing"),
        ({"elementwise": False, "matrix": True}, "matrix"),
    ],
)
def test_the_kind_is_the_program_s(program, kind):
    assert catalogue.category_of(SimpleNamespace(**program)) == kind


@pytest.mark.parametrize(
    ("rule", "backend"), [("muon", "cpu"), ("muon", "foreach"), ("lamb", "foreach")]
)
def test_no_loop_is_shown_where_there_is_none(rule, backend, capsys):
    assert cli.main(["show", rule, "--backend", backend]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in (backend, rule, "leave --backend out"))
    assert cli.main(["show", rule]) == 0


def test_both_passes_of_a_reducing_rule_are_shown(capsys):
    assert cli.main(["show", "lamb", "--backend", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("def lamb(address):") == 2
    assert "sum1 += float64(step) * float64(step)" in out


def written(doc):
    def mine(p, g, *, lr=0.1):
        return p - lr * g

    mine.__doc__ = doc
    return catalogue.docstring_parts(steepest.rule(mine))


def test_a_docstring_is_taken_apart():
    found = written("""Mine, as torch.optim has it. A. Author and B. Other 2021,
    arXiv:2101.00001v2, eq. 3.

    Like Adam, but faster. Use it where rows are rare, e.g. in
    embeddings. It is no more than an example.
    Differs from the paper: nothing. Differs from the package: all.
    """)
    assert found == {
        "title": "Mine, as torch.optim has it",
        "paper": "A. Author and B. Other 2021, arXiv:2101.00001v2, eq. 3",
        "about": "Like Adam, but faster. Use it where rows are rare, e.g. in embeddings. "
        "It is no more than an example.",
        "when": "Use it where rows are rare, e.g. in embeddings.",
        "differs": "Differs from the paper: nothing. Differs from the package: all.",
    }


@pytest.mark.parametrize("doc", [None, "", "Step by the sign.", "Step by the sign"])
def test_a_rule_of_one_s_own_may_say_little(doc):
    found = written(doc)
    assert found["title"] == ("Step by the sign" if doc else "mine")
    assert not any(found[k] for k in ("paper", "about", "when", "differs"))
    facts = catalogue.facts(steepest.rules["mine"])
    assert (facts["oracle"], facts["year"], facts["link"]) == (None, None, None)
    assert "mine" in catalogue.table([facts])[1]
    assert "lr * g" in catalogue.shown(steepest.rules["mine"])


@pytest.mark.parametrize("name", steepest.rules)
def test_every_rule_says_when_to_use_it(name):
    assert catalogue.facts(steepest.rules[name])["when"], "a sentence of its docstring: Use it ..."
