"""The compiled loop: its threads, its cache on disk, and what a process may do around it."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import steepest
from steepest.backends import compiler, threads
from steepest.backends.cpu import work
from steepest.backends.cpu.printer import source
from steepest.executor import Wanted, make_buckets, program_of

LARGE = 1 << 20  # elements: enough for a second thread


def param(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.randn(count, generator=generator))
    p.grad = torch.randn(count, generator=generator)
    return p


def stepped(count, steps=2, **options):
    p = param(count)
    made = steepest.AdaBelief([p], **options)
    for _ in range(steps):
        made.step()
    return p.detach()


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_thread_is_used_only_when_the_work_pays_for_it(monkeypatch):
    used = []
    original = threads.run
    monkeypatch.setattr(threads, "run", lambda *a: (used.append(a[2]), original(*a)))
    stepped(1000)
    assert used == []
    stepped(LARGE)
    assert used == [2, 2]


@pytest.mark.parametrize("engine", ["openmp", "pool"])
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, engine):
    if engine == "pool":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("torch brings no libgomp here")
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(stepped(3 * LARGE + 17))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_bits_do_not_depend_on_where_a_tensor_is_cut():
    whole = stepped(200_003)
    p = param(200_003)
    pieces = [nn.Parameter(x.clone()) for x in p.detach().split(6007)]
    for q, g in zip(pieces, p.grad.split(6007), strict=True):
        q.grad = g
    made = steepest.AdaBelief(pieces)
    made.step()
    made.step()
    assert torch.equal(torch.cat([q.detach() for q in pieces]), whole)


def test_pieces_cover_every_element_once():
    sizes = [3, work.CHUNK, work.CHUNK + 1, 5 * work.CHUNK - 1, 1, 7]
    chunks, borders = work._cut(sizes)
    seen = {k: [] for k in range(len(sizes))}
    for k, start, stop in chunks.T:
        seen[int(k)] += range(start, stop)
    assert all(seen[k] == list(range(size)) for k, size in enumerate(sizes))
    assert borders[0] == 0
    assert borders[-1] == chunks.shape[1]
    for first, last in itertools.pairwise(borders):
        assert 0 < sum(chunks[2, first:last] - chunks[1, first:last]) <= work.CHUNK


@pytest.mark.parametrize("count", [1000, LARGE])
def test_steps_from_two_threads_at_once(count):
    want = stepped(count, steps=20)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(x, want) for x in pool.map(lambda _: stepped(count, 20), range(8)))


def test_two_threads_on_one_optimizer_lose_no_step():
    p = param(5000)
    made = steepest.SGD([p], lr=0.5, momentum=0.9)
    other = [threading.Thread(target=lambda: [made.step() for _ in range(200)]) for _ in range(4)]
    for t in other:
        t.start()
    for t in other:
        t.join()
    q = param(5000)
    alone = steepest.SGD([q], lr=0.5, momentum=0.9)
    for _ in range(800):
        alone.step()
    assert torch.equal(p, q)


def _child(made, queue):
    made.step()  # torch's own large operations would hang here
    queue.put(made.param_groups[0]["params"][0].detach().numpy()[-3:].tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("count", [1000, LARGE])
def test_a_forked_child_steps(count):
    want = stepped(count, steps=2)[-3:].tolist()
    p = param(count)
    made = steepest.AdaBelief([p])
    made.step()  # the parent's OpenMP team is awake
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(made, queue), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=60) == want
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()


class _Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.ones(3) * index


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_step_after_a_data_loader_with_workers():
    stepped(LARGE)
    loader = torch.utils.data.DataLoader(_Data(), num_workers=2)
    assert len(list(loader)) == 4
    assert torch.isfinite(stepped(LARGE)).all()


FIRST = """
    import sys, torch, steepest
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.full((4,), 2.0)
    steepest.AdaBelief([p]).step()
    print('numba' in sys.modules, p.tolist() == [1 - 1e-3 * 2.0] * 4 or p.tolist())
"""


def test_machine_code_is_kept_and_loaded_without_numba(tmp_path):
    assert run(FIRST, STEEPEST_CACHE_DIR=str(tmp_path)).split()[0] == "True"
    # the loop of the rule, and the one that looks at the tensors
    kept = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert sorted(name.split("-")[0] for name in kept) == ["adabelief", "memory"]
    assert run(FIRST, STEEPEST_CACHE_DIR=str(tmp_path)).split()[0] == "False"
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == kept


@pytest.fixture
def compiled(monkeypatch):
    """Counts compilations; the source is the smallest that compiles."""
    count = []
    original = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda *a: (count.append(a), original(*a))[1])
    return count


SMALL = "def small(address):\n    job = integers(address)\n    job[0] = job[0] + 1\n"


def works(symbol, code):
    job = np.array([41])
    compiler._link(symbol, code)(job.ctypes.data)
    return job[0] == 42


def test_a_damaged_entry_is_compiled_anew(tmp_path, monkeypatch, compiled):
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(tmp_path))
    compiler._load_object("small", SMALL, 4)
    compiler._load_object("small", SMALL, 4)
    assert len(compiled) == 1
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    for content in (b"", b"x", b"name\nhash\ncode", good[: len(good) // 2], good[:-1] + b"!"):
        file.write_bytes(content)
        compiled.clear()
        assert works(*compiler._load_object("small", SMALL, 4))
        assert len(compiled) == 1
        assert len(file.read_bytes()) > len(good) // 2
        assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch, compiled):
    (tmp_path / "file").write_text("in the way")
    for folder in (str(tmp_path / "file" / "below"), "/dev/null", "/proc/none"):
        monkeypatch.setenv("STEEPEST_CACHE_DIR", folder)
        assert works(*compiler._load_object("small", SMALL, 4))
    assert len(compiled) == 3
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(tmp_path / "full"))
    monkeypatch.setattr(
        os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "no space left"))
    )
    assert works(*compiler._load_object("small", SMALL, 4))
    assert list((tmp_path / "full").iterdir()) == []


def test_importing_loads_neither_numba_nor_the_extras():
    heavy = run("""
        import sys, steepest
        print(*(m for m in ("numba", "llvmlite", "optuna", "scipy", "sklearn", "rich", "matplotlib") if m in sys.modules))
    """)  # fmt: skip  # noqa: E501
    assert heavy == ""


def test_contraction_alone_is_allowed_to_the_compiler():
    # reassociation would make an element's bits depend on its place; nan must stay nan
    p = nn.Parameter(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    p.grad = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])
    steepest.Adam([p]).step()
    assert p.isnan().tolist() == [True, True, True, False]
    for name in ("amsgrad", "adamax", "amsbound"):
        p = nn.Parameter(torch.ones(2))
        p.grad = torch.tensor([float("nan"), 1.0])
        made = steepest.optimizer(name, [p])
        made.step()
        assert p.isnan().tolist() == [True, False], name


def test_every_loop_calls_the_c_library_alone():
    # object code is loaded without numba: an undefined symbol would end the process
    for rule in steepest.rules.values():
        program = rule.trace()
        for first in (True, False)[not program.first :] if not program.matrix else ():
            code = compiler._compile(rule.name, source(program, "", first), 4, first)[1]
            assert b"numba_" not in code
            assert b"PyErr" not in code


def test_what_the_loop_cannot_walk_goes_to_foreach():
    gaps = nn.Parameter(torch.randn(4, 6)[:, ::2])
    channels_last = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    kinds = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3).half()), gaps,
             nn.Parameter(torch.randn(0)), channels_last,
             nn.Parameter(torch.randn(3, 2).t())]  # fmt: skip
    selection = steepest.Adam.family.select(steepest.Adam.family.arguments)
    found = make_buckets(Wanted(selection), {p: k for k, p in enumerate(kinds)}, {}, lambda p: 0)
    compiled = [bucket.n for bucket in found if bucket.wanted.backend == "cpu"]
    assert compiled == [3]
    assert program_of(selection) is found[0].program


def test_other_numbers_of_threads_than_torchs_are_not_taken():
    torch.set_num_threads(1)
    assert threads.wanted(1 << 30, 1 << 14) == 1
    torch.set_num_threads(2)
    assert threads.wanted(1 << 30, 1 << 14) == 2
    assert threads.wanted(10, 1) == 1
