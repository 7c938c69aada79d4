"""A race cannot be lost, whichever database has its trials: kills, several racers, lost servers.

Run as a script, this file is a warm process that forks one life of a race after another: a life
that had to import torch first would spend its time with that.
"""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import steepest
from steepest import cli, processes
from steepest.errors import BadCall
from steepest.race import driver, leases, location
from steepest.race.protocol import TUNING, Plan, Result, Trial
from steepest.race.store import Store
from tests.blocks import ROOT
from tests.race import postgres

KILLS, RACES = {"file": 20, "postgres": 5}, 3
WORDS = "race digits --optimizers adamw,momentum,eadam --trials 2 --seeds 5 --steps 3 --jobs 2"
LOOKS = "race digits --optimizers adamw,momentum --trials 4 --looks 3,5 --steps 26 --jobs 2"
RUNS = 3 * 5 * (2 + 1)
REQUEST = driver.Request("digits", "adamw,momentum,eadam", trials=2, seeds=5, steps=3)
PLAN = Plan("digits", ("adamw", "adam"), trials=2, seeds=5, steps=2, seed=0)
PROVENANCE = {"command": "c", "versions": {"python": "3"}, "machine": {}, "data_sha256": "0"}


# --- lives (in the script)


def life(words, log, killed=lambda statement: False):
    """Fork a race as a process group of its own, which dies at a statement of its database."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "before_cursor_execute")
    def _(connection, cursor, statement, *_):
        if killed(statement):
            os.killpg(0, signal.SIGKILL)

    code = 70
    try:
        code = cli.main(words)
    finally:
        os._exit(code)


def end(pid, folder, after=None):
    """Its exit code, -9 after SIGKILL, which it gets `after` seconds; nothing of it runs on."""
    if after is not None:
        time.sleep(after)
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if (folder / ".lock").exists():
        with (folder / ".lock").open("a") as lock:  # its workers have the lock too
            fcntl.flock(lock, fcntl.LOCK_EX)
    return code


def begun(folder):
    return (folder / "study.db").exists() or (folder / location.LINK).exists()


def kills(root, count, storage, words):
    """Kill races until `count` kills have hit, half by the clock, half at a statement."""
    rng = random.Random(count)
    statements = os.open(root / "statements", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    more = ["--storage", storage] if storage else []
    start = time.monotonic()
    whole_race = [*words.split(), *more, "--out", f"{root}/whole"]
    assert end(life(whole_race, root / "log", lambda _: os.write(statements, b".") == 0), root) == 0
    whole, most = time.monotonic() - start, os.fstat(statements).st_size
    hits, open_ = [], [root / f"race {i}" for i in range(RACES)]
    while open_:
        folder = rng.choice(open_)
        folder.mkdir(exist_ok=True)
        again = ["--resume"] if begun(folder) else more
        line = [*words.split(), "--out", str(folder), *again]
        left, after = -1, None
        if len(hits) < count and rng.random() < 0.5:
            after = rng.uniform(0, whole / 4)
        elif len(hits) < count:  # more often early: there a race is made
            left = int((most / 4) ** rng.random())

        def killed(statement):
            nonlocal left
            left -= 1
            return left == 0

        code = end(life(line, root / "log", killed), folder, after)
        if code == -signal.SIGKILL:
            hits.append("clock" if after else "statement")
        elif code == 0:
            open_.remove(folder)
            if len(hits) < count and not open_:
                open_.append(folder.with_name(f"{folder.name} again"))
        else:
            sys.exit(f"a life ended with {code}")
    (root / "hits").write_text(json.dumps(hits))


def together(root, storage, dies, words, study):
    """Two races of one study at the same time; one may die in the middle of a write."""
    leases.GRACE = 5.0 if dies else leases.GRACE
    leases.BEAT = processes.PAUSE = 0.1
    written = 0

    def killed(statement):
        nonlocal written
        written += statement.startswith("INSERT INTO trials ")
        return written == 2  # the other one may be quicker

    pids = []
    for name in "ab":
        line = [*words.split(), "--out", f"{root}/{name}", "--storage", storage, "--study", study]
        doomed = dies and name == "a"
        pids.append(life(line, root / "log", *([killed] if doomed else [])))
    codes = [end(pid, root) for pid in pids]
    (root / "codes").write_text(json.dumps(codes))


def script():
    import multiprocessing

    # a worker that is spawned imports torch for 3 s; forked ones die with their group
    context = multiprocessing.get_context("fork")
    processes.multiprocessing.get_context = lambda _: context
    import alembic.migration  # noqa: F401
    import pg8000  # noqa: F401
    from scipy.stats import qmc  # noqa: F401

    from steepest import tasks
    from steepest.race import report

    tasks.get("digits").data_hash()
    report.page = lambda summary: ""  # a second for each race that ends
    verb, root, *more = sys.argv[1:]
    if verb == "kills":
        kills(Path(root), int(more[0]), *more[1:])
    else:
        together(Path(root), more[0], more[1] == "dies", *more[2:])


def run(verb, root, *more):
    source = Path(steepest.__file__).parent.parent
    path = os.pathsep.join([str(ROOT), str(source), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__, verb, str(root), *map(str, more)],
        capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    log = root / "log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")


# --- tests


@pytest.fixture(scope="module")
def server():
    if postgres.PROGRAMS is None:
        assert "CI" not in os.environ, "no PostgreSQL server: .ci/run installs Debian's"
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PGPASSWORD", postgres.PASSWORD)
        yield stack.enter_context(postgres.server())


@pytest.fixture(params=["file", "postgres"])
def storage(request, tmp_path):
    """URL of a database that several processes can use."""
    if request.param == "postgres":
        return request.getfixturevalue("server").url()
    return f"sqlite:///{tmp_path}/races.db"


def timeless(value):
    """A summary without what a clock decides."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key != "timing"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def summary(folder):
    found = timeless(json.loads((folder / "summary.json").read_text()))
    del found["provenance"]["command"]
    return found


def pair(index, entry="adam"):
    trial = Trial("digits", TUNING, entry, index, 7, 2, {"lr": 0.1})
    return trial, Result([1], [0.5], [0.1])


@pytest.mark.slow
@pytest.mark.parametrize("where", KILLS)
def test_random_kills_change_nothing(where, request, tmp_path):
    url = request.getfixturevalue("server").url() if where == "postgres" else ""
    run("kills", tmp_path, KILLS[where], url, WORDS)
    hits = json.loads((tmp_path / "hits").read_text())
    assert len(hits) == KILLS[where]
    assert set(hits) == {"clock", "statement"}
    whole = summary(tmp_path / "whole")
    assert whole["runs"] == {"finished": RUNS, "planned": RUNS}
    raced = list(tmp_path.glob("race *"))
    assert len(raced) >= RACES
    assert all(summary(folder) == whole for folder in raced)


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["dies", "lives"])
def test_two_races_of_one_study_share_its_work(dies, storage, tmp_path):
    run("together", tmp_path, storage, dies, WORDS, f"fixed, one {dies}")
    assert json.loads((tmp_path / "codes").read_text()) == [-9 if dies == "dies" else 0, 0]
    whole = summary(tmp_path / "b")
    assert whole["runs"] == {"finished": RUNS, "planned": RUNS}
    store = Store(tmp_path / "b")
    assert len(store._study.get_trials()) == RUNS  # each was run once
    seen = store.leases()
    seen._refresh()
    if dies == "lives":
        assert summary(tmp_path / "a") == whole
        assert len(set(seen._held.values())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("where", KILLS)
def test_random_kills_of_a_race_in_looks_change_nothing(where, request, tmp_path):
    url = request.getfixturevalue("server").url() if where == "postgres" else ""
    run("kills", tmp_path, KILLS[where], url, LOOKS)
    assert len(json.loads((tmp_path / "hits").read_text())) == KILLS[where]
    whole = summary(tmp_path / "whole")
    assert whole["complete"]
    raced = list(tmp_path.glob("race *"))
    assert len(raced) >= RACES
    assert all(summary(folder) == whole for folder in raced)


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["dies", "lives"])
def test_two_races_of_one_study_in_looks_share_its_work(dies, server, tmp_path):
    run("together", tmp_path, server.url(), dies, LOOKS, f"looks, one {dies}")
    assert json.loads((tmp_path / "codes").read_text()) == [-9 if dies == "dies" else 0, 0]
    whole = summary(tmp_path / "b")
    assert whole["complete"]
    store = Store(tmp_path / "b")
    keys = [Trial(**t.user_attrs["trial"]).key for t in store._study.get_trials()]
    repeated = [key for key in set(keys) if keys.count(key) > 1]
    # a tuning of which not all trials were stored is run again
    assert len(repeated) <= (3 if dies == "dies" else 0), repeated
    if dies == "lives":
        assert summary(tmp_path / "a") == whole


def test_a_claim_is_one_racers_until_it_is_stored_or_given_back(storage, tmp_path):
    one, two = racers(storage, tmp_path)
    trials = [pair(i)[0] for i in range(3)]
    with one.leases() as mine:
        with two.leases() as others:
            assert mine.take(trials).index == 0
            assert others.take(trials).index == 1
            assert mine.take(trials).index == 2
            assert others.take(trials) is None
            others.done(trials[1])
            mine.done(trials[0])
        assert mine.take(trials[1:2]) is None  # stored, so never given back
    with two.leases() as others:
        assert others.take(trials[::2]).index == 2  # the other has ended without it


def test_claims_of_the_dead_are_taken_over_and_those_of_the_living_are_not(
    storage, tmp_path, monkeypatch
):
    one, two = racers(storage, tmp_path)
    trials = [pair(i)[0] for i in range(2)]
    now = 0.0
    monkeypatch.setattr(leases.time, "monotonic", lambda: now)
    with two.leases() as others:
        dead = one.leases()
        dead._beat()
        assert dead.take(trials).index == 0
        assert others.take(trials[:1]) is None
        now += leases.GRACE - 1
        dead._beat()
        assert others.take(trials[:1]) is None
        now += leases.GRACE - 1
        assert others.take(trials[:1]) is None
        now += 2
        assert others.take(trials[:1]).index == 0
        # the one who has lost it learns that, and goes on where it left off in a later life
        with one.leases() as again:
            assert again.take(trials[:1]) is None
            assert again.take(trials).index == 1
    with one.leases() as again:
        again.take(trials[1:])
        again._open.clear()  # as a kill leaves it
        assert one.leases().take(trials[1:]).index == 1


def racers(storage, tmp_path):
    """Stores of two folders that race in one study."""
    name = f"claims {tmp_path.name}"
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        found.append(
            Store.create(folder, PLAN, PROVENANCE, where=location.in_database(storage, name))
        )
    return found


def test_the_second_who_makes_a_study_gets_that_of_the_first(storage, tmp_path):
    first, _ = racers(storage, tmp_path)
    (tmp_path / "third").mkdir()
    where = location.in_database(storage, first.location.study)
    third = Store.create(tmp_path / "third", replace(PLAN, seed=9), PROVENANCE, where=where)
    assert third.plan == PLAN
    first.add(*pair(0))
    assert third.results() == first.results() == [pair(0)]
    assert Store(tmp_path / "third").results() == [pair(0)]


def test_a_study_that_somebody_deletes_in_mid_race_is_one_line(storage, tmp_path):
    import optuna

    store, _ = racers(storage, tmp_path)
    optuna.delete_study(study_name=store.location.study, storage=store._storage)
    for fails in (store.results, lambda: store.add(*pair(0))):
        with pytest.raises(BadCall, match=r"cannot use the database \S+ \(.*\): solve this"):
            fails()


def test_races_in_one_database_do_not_meet(storage, tmp_path):
    def made(name):
        (tmp_path / name).mkdir()
        return Store.create(
            tmp_path / name, PLAN, PROVENANCE, where=location.in_database(storage, name)
        )

    one, two = made("mine"), made("yours")
    one.add(*pair(0))
    assert (len(one.results()), len(two.results())) == (1, 0)
    with one.leases() as mine, two.leases() as others:
        assert mine.take([pair(1)[0]])
        assert others.take([pair(1)[0]])


def test_an_item_that_is_not_there_yet_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(processes, "PAUSE", 0.01)
    answers = []

    def items():
        yield from ("1", None, None, "2")
        while len(answers) < 2:
            yield None
        yield "3"

    with processes.Pool(2, eval) as pool:
        for pair in pool.map(items()):
            answers.append(pair)  # noqa: PERF402 - the items look at it
    assert sorted(answers) == [("1", 1), ("2", 2), ("3", 3)]


# --- what is said


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Races that end before their first trial, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))


def race(capsys, *more):
    """(exit code, all that was said) of a race in the folder `out`."""
    code = cli.main([*WORDS.split(), "--out", "out", *more])
    said = capsys.readouterr()
    return code, said.out + said.err


def refused(capsys, *more):
    """The line of a race that is refused."""
    code, said = race(capsys, *more)
    assert (code, said.count("\n")) == (2, 1), said
    return said


def test_a_password_is_used_and_nowhere_kept_nor_shown(server, quick, capsys, monkeypatch):
    from urllib.parse import quote_plus

    monkeypatch.delenv("PGPASSWORD")
    written = quote_plus(postgres.PASSWORD)
    url = server.url().replace("@", f":{written}@")
    name = ("--study", "secret")
    said = [refused(capsys, "--storage", server.url())]
    assert "give the password in PGPASSWORD or in the URL of --storage" in said[0]
    said.append(refused(capsys, "--storage", url.replace(written, "w" + written)))
    said.append(refused(capsys, "--storage", url, "--bogus"))
    said.append(refused(capsys, "--storage", url.replace("//", "/")))
    for more in ((), ("--resume",)):
        code, text = race(capsys, "--storage", url, *name, *more)
        assert code == cli.INTERRUPTED
        assert "study secret in postgresql+pg8000://racer@127.0.0.1" in text
        said.append(text)
    assert cli.main(["report", "out"]) == 2
    said.append(capsys.readouterr().err)
    assert cli.main(["report", "out", "--storage", url]) == 0
    monkeypatch.setenv("PGPASSWORD", postgres.PASSWORD)
    assert cli.main(["report", "out"]) == 0
    assert race(capsys, "--resume")[0] == cli.INTERRUPTED
    kept = {path.name: path.read_text() for path in Path("out").iterdir()}
    assert {*kept} == {
        "storage.json", "summary.json", "report.html", "runs.csv", "curves.csv"
    }  # fmt: skip
    for text in (*said, *kept.values()):
        assert postgres.PASSWORD not in text
        assert written not in text


def test_a_server_that_goes_in_mid_race_costs_nothing(server, tmp_path, monkeypatch):
    import optuna

    monkeypatch.setattr(optuna.storages._rdb.storage.time, "sleep", lambda _: None)
    store = Store.create(
        tmp_path, PLAN, PROVENANCE, where=location.in_database(server.url(), "gone")
    )
    store.add(*pair(0))
    with store.leases() as mine:
        mine.take([pair(1)[0]])
        server.stop()
        try:
            for fails in (lambda: store.add(*pair(1)), store.results, lambda: Store(tmp_path),
                          lambda: driver.rebuild(tmp_path)):  # fmt: skip
                with pytest.raises(
                    BadCall, match=r"cannot use the database \S+ \(.*\): solve this"
                ):
                    fails()
        finally:
            server.start()
    store.add(*pair(1))
    server.stop()
    server.start()  # between two trials: nothing is to be seen of it
    assert store.results() == Store(tmp_path).results() == [pair(0), pair(1)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--storage", "mine"], "--storage with no scheme: expected a URL of a database"),
        (
            ["--storage", "foo://u@h/x"],
            "--storage with 'foo': expected a URL that SQLAlchemy knows",
        ),
        (["--storage", "sqlite://"], "this database is only in memory; give another"),
        (["--storage", "sqlite:///no/such/folder/x.db"], "unable to open database file"),
        (["--storage", "postgresql+pg8000://u@127.0.0.1:1/x"], "Connection refused"),
        (["--storage", "postgresql+pg8000://u@127.0.0.1:1/x?zz=1"], "argument 'zz'"),
        (["--storage", "postgresql+psycopg2cffi://u@h/x"], "pip install 'steepest[postgresql]'"),
        (["--study", "mine"], "give --storage too"),
        (
            ["--storage", "sqlite:///x.db", "--study", "foreign"],
            "an Optuna study of this name that is not a race",
        ),
    ],
)
def test_a_bad_storage_gets_one_line_and_nothing_is_made(more, said, quick, capsys):
    import optuna

    if "foreign" in more:
        study = optuna.create_study(study_name="foreign", storage="sqlite:///x.db")
        study.tell(study.ask(), 1.0)
        study._storage._backend.engine.dispose()
    assert said in refused(capsys, *more)
    assert not Path("out").exists()


def test_who_joins_must_mean_the_same_race(quick, capsys):
    storage = ("--storage", "sqlite:///x.db", "--study", "one")
    assert race(capsys, *storage)[0] == cli.INTERRUPTED
    Path("out").rename("first")
    assert "--study one with --seed 1: the race in" in refused(capsys, *storage, "--seed", "1")
    assert not Path("out").exists()
    assert race(capsys, *storage)[0] == cli.INTERRUPTED
    first, second = (json.loads(Path(f, location.LINK).read_text()) for f in ("first", "out"))
    assert first.pop("racer") != second.pop("racer")
    assert first == second == {"storage": f"sqlite:///{Path.cwd()}/x.db", "study": "one"}
    assert "is study one; leave --study out" in refused(capsys, "--resume", "--study", "two")
    Path("out", location.LINK).write_text("{")
    assert "is damaged" in refused(capsys, "--resume")


def test_who_joins_with_other_versions_is_refused(quick, capsys, monkeypatch):
    storage = ("--storage", "sqlite:///x.db", "--study", "one")
    assert race(capsys, *storage)[0] == cli.INTERRUPTED
    Path("out").rename("first")
    monkeypatch.setattr(steepest, "__version__", "0")
    assert "--study one: the race began with versions" in refused(capsys, *storage)


def test_a_race_that_is_kept_in_its_folder_is_not_moved_to_a_database(quick, capsys):
    assert race(capsys)[0] == cli.INTERRUPTED
    said = refused(capsys, "--resume", "--storage", "sqlite:///x.db")
    assert "is stored in its study.db: leave --storage out" in said


if __name__ == "__main__":
    script()
