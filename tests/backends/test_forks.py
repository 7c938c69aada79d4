"""A process that forks while another of its threads loads a loop, steps, or is inside numba."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest
import torch
from torch import nn

import steepest
from steepest.backends import compiler
from steepest.backends.cpu import work as cpu

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _cold(tmp_path, monkeypatch):
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "_loaded", {})


def stepped(rule, **options):
    """A first step of lr 0.5 with a gradient of 2: (p,)."""
    p = nn.Parameter(torch.ones(9))
    p.grad = torch.full((9,), 2.0)
    steepest.optimizer(rule, [p], lr=0.5, **options).step()
    return p.detach()


def check_sgd():
    assert torch.equal(stepped("sgd"), torch.zeros(9))


def check_sign():  # a first step of Adam is one by the sign
    torch.testing.assert_close(stepped("adam"), torch.full((9,), 0.5))


def in_child(work):
    """Exit code of `work` in a forked child, -14 where it hung."""
    if not (pid := os.fork()):
        signal.alarm(60)
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def held(lock):
    """The lock in the hands of another thread."""
    taken, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def compiling(monkeypatch):
    """A thread in the middle of the first step of Adam."""
    begun, compiled = threading.Event(), compiler._compile

    def slow(*given):
        begun.set()
        time.sleep(0.2)
        return compiled(*given)

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_compile", slow)
        thread = threading.Thread(target=check_sign)
        thread.start()
        assert begun.wait(60)
        yield
        thread.join()


def test_a_fork_while_a_thread_compiles(monkeypatch):
    def work():
        check_sgd()  # loaded
        check_sign()  # under way
        assert torch.equal(stepped("signum", momentum=0.0), torch.full((9,), 0.5))  # neither
        assert in_child(check_sgd) == 0

    check_sgd()
    with compiling(monkeypatch):
        assert in_child(work) == 0
    check_sign()


class _Steps(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return stepped("adam")


def test_a_loader_whose_workers_step_while_a_thread_compiles(monkeypatch):
    loader = torch.utils.data.DataLoader(_Steps(), num_workers=1, timeout=60)
    with compiling(monkeypatch):
        torch.testing.assert_close(next(iter(loader)), torch.full((2, 9), 0.5)[:1])


def test_a_first_step_of_all_in_a_thread():
    # numba and llvmlite are imported in the thread: a fork in between would leave them half made
    code = """
        import os, signal, threading, time, torch, steepest
        def step(rule):
            p = torch.nn.Parameter(torch.ones(9)); p.grad = torch.ones(9)
            steepest.optimizer(rule, [p], lr=0.5).step()
            assert torch.allclose(p, torch.full((9,), 0.5))
        torch.optim.SGD([torch.ones(1)])  # torch imports things of its own here
        thread = threading.Thread(target=step, args=("adam",)); thread.start()
        codes = []
        while thread.is_alive() or not codes:
            time.sleep(0.03)
            if not (pid := os.fork()):
                signal.alarm(30); step("sgd"); os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print({*codes})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert done.stdout == "{0}\n", done.stderr


def no_loop():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    made = steepest.Adam([p])
    with pytest.raises(
        RuntimeError, match=r"adam: .*because a thread.* inside \w+ at the fork.*first step"
    ):
        made.step()
    assert torch.equal(p.detach(), torch.ones(3))
    made = steepest.SGD([p], backend="foreach", lr=1.0)  # as the message says
    made.step()
    assert torch.equal(p.detach(), torch.zeros(3))


def numbas_lock():
    from numba.core.compiler_lock import global_compiler_lock

    return global_compiler_lock


def llvms_lock():
    from llvmlite.binding import ffi

    return ffi.lib._lock


def test_a_fork_while_a_thread_of_the_users_is_inside_numba(monkeypatch):
    def work():
        check_sgd()  # loaded
        assert torch.equal(stepped("signum", momentum=0.0), torch.full((9,), 0.5))  # on disk
        no_loop()
        assert in_child(no_loop) == 0

    stepped("signum", momentum=0.0)
    compiler._loaded.clear()
    check_sgd()
    with held(numbas_lock()):
        assert in_child(work) == 0
    check_sign()  # here nothing is lost
    assert in_child(check_sign) == 0


def test_a_fork_while_a_thread_of_the_users_is_inside_llvm():
    def work():
        check_sgd()
        no_loop()

    check_sgd()
    with held(llvms_lock()):
        assert in_child(work) == 0


def test_a_fork_while_a_thread_of_the_users_imports_numba(monkeypatch):
    import numba.core.typing  # any part of it

    check_sgd()
    monkeypatch.setattr(numba.core.typing.__spec__, "_initializing", True, raising=False)
    assert in_child(no_loop) == 0


def test_a_fork_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(compiler, "_TIMEOUT", 0.05)
    with held(compiler._lock):
        assert in_child(check_sign) == 0
    check_sign()


def test_a_fork_while_another_thread_steps(monkeypatch):
    begun, done, run = threading.Event(), threading.Event(), cpu.Work.run
    p = nn.Parameter(torch.ones(9))
    p.grad = torch.full((9,), 2.0)
    made = steepest.SGD([p], lr=0.5, momentum=0.5)
    made.step()  # p = 0, momentum 2

    def slow(*given):
        begun.set()
        done.wait(60)
        run(*given)

    def work():
        monkeypatch.setattr(cpu.Work, "run", run)
        made.step()  # momentum 3
        assert torch.equal(p.detach(), torch.full((9,), -1.5))
        assert torch.equal(made.state[p]["momentum_buffer"], torch.full((9,), 3.0))

    monkeypatch.setattr(cpu.Work, "run", slow)
    thread = threading.Thread(target=made.step)
    thread.start()
    assert begun.wait(60)
    assert in_child(work) == 0
    done.set()
    thread.join()
    assert torch.equal(p.detach(), torch.full((9,), -1.5))


def test_a_signals_handler_may_fork_while_its_thread_compiles(monkeypatch):
    codes, compiled = [], compiler._compile
    monkeypatch.setattr(
        compiler, "_compile", lambda *a: (os.kill(os.getpid(), signal.SIGUSR1), compiled(*a))[1]
    )
    before = signal.signal(signal.SIGUSR1, lambda *_: codes.append(in_child(lambda: None)))
    try:
        check_sign()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert codes == [0]
