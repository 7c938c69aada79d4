"""Machine code on disk: whose is run, and when an entry is another one's."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import steepest
from steepest.backends import compiler, disk_cache

SMALL = "def small(address):\n    job = integers(address)\n    job[0] = job[0] + 1\n"
OTHER = "def small(address):\n    job = integers(address)\n    job[0] = job[0] + 100\n"
owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners here")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
NOBODY = 65534


def result(symbol, code):
    job = np.array([41])
    compiler._link(symbol, code)(job.ctypes.data)
    return int(job[0])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache whose entry of SMALL holds the code of OTHER: 141 says that the entry was run."""
    folder = tmp_path / "above" / "cache"
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(folder))
    monkeypatch.setattr(disk_cache, "_warned", False)
    keys, write = [], disk_cache.write
    with monkeypatch.context() as patch:
        patch.setattr(disk_cache, "write", lambda *a: (keys.append(a[:2]), write(*a)))
        compiler._load_object("small", SMALL, 8)
    write(*keys[0], *compiler._compile("small", OTHER, 8))
    folder.parent.chmod(0o755)
    return folder


def entry(folder):
    (file,) = folder.glob("*.o")
    return file


def linked(folder):
    file = entry(folder)
    real = file.rename(folder.parent / "real.o")
    file.symlink_to(real)


def through_an_open_directory(folder):
    # the entry's own folder is as safe as can be, and others choose where the link leads
    open_to_all = folder.parent / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "link").symlink_to(folder)
    os.environ["STEEPEST_CACHE_DIR"] = str(open_to_all / "link")


def through_two_links(folder):
    through_an_open_directory(folder)
    first = folder.parent / "first"
    first.symlink_to(os.environ["STEEPEST_CACHE_DIR"])
    os.environ["STEEPEST_CACHE_DIR"] = str(first)


def pipe(folder):
    file = entry(folder)
    file.unlink()
    os.mkfifo(file)


UNSAFE = {
    "a file that all may write": lambda f: entry(f).chmod(0o666),
    "a file that a group may write": lambda f: entry(f).chmod(0o620),
    "a linked file": linked,
    "a pipe": pipe,
    "a folder that all may write": lambda f: f.chmod(0o777),
    "a sticky folder": lambda f: f.chmod(0o1777),
    "a folder that a group may write": lambda f: f.chmod(0o770),
    "a folder in one that all may write": lambda f: f.parent.chmod(0o777),
    "a link in a folder that all may write": through_an_open_directory,
    "a link to such a link": through_two_links,
}
FOREIGN = {
    "another's file": lambda f: os.chown(entry(f), NOBODY, -1),
    "another's folder": lambda f: os.chown(f, NOBODY, -1),
    "a folder in another's": lambda f: os.chown(f.parent, NOBODY, -1),
}


def refused(folder, spoil):
    spoil(folder)
    with pytest.warns(UserWarning, match=r"not trusted.*a directory that nobody else can write to"):
        assert result(*compiler._load_object("small", SMALL, 8)) == 42
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert result(*compiler._load_object("small", SMALL, 8)) == 42
    assert said == []  # once per process


@owners
@pytest.mark.parametrize("spoil", UNSAFE.values(), ids=UNSAFE)
def test_what_others_could_have_written_is_not_run(place, spoil):
    refused(place, spoil)


@root
@pytest.mark.parametrize("spoil", FOREIGN.values(), ids=FOREIGN)
def test_what_belongs_to_others_is_not_run(place, spoil):
    refused(place, spoil)


@root
def test_a_link_of_another_in_a_sticky_directory_is_not_followed(place, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(place)
    os.lchown(shared / "link", NOBODY, NOBODY)
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(shared / "link"))
    refused(place, lambda _: None)


def own_link(folder):
    link = folder.parent / "link"
    link.symlink_to(folder.name)
    os.environ["STEEPEST_CACHE_DIR"] = str(link)


SAFE = {
    "own": lambda f: None,
    "readable by all": lambda f: (entry(f).chmod(0o644), f.chmod(0o755)),
    "in a sticky directory": lambda f: f.parent.chmod(0o1777),
    "read-only": lambda f: (entry(f).chmod(0o400), f.chmod(0o500)),
    "by a link of one's own": own_link,
}


@owners
@pytest.mark.parametrize("arrange", SAFE.values(), ids=SAFE)
def test_what_nobody_else_could_have_written_is_run(place, arrange):
    arrange(place)
    assert result(*compiler._load_object("small", SMALL, 8)) == 141


@owners
def test_a_directory_of_ones_private_group_is_safe_and_one_of_colleagues_is_not(place, monkeypatch):
    place.parent.chmod(0o775)
    own_group = place.parent.stat().st_gid
    monkeypatch.setattr(disk_cache, "_is_private", lambda group: group == own_group)
    assert result(*compiler._load_object("small", SMALL, 8)) == 141
    monkeypatch.setattr(disk_cache, "_is_private", lambda group: False)
    refused(place, lambda _: None)


@owners
def test_the_file_that_was_looked_at_is_the_one_that_is_read(place, monkeypatch):
    # another file comes in its place right after the look
    other, look = place.parent / "other", os.fstat

    def slow(handle):
        seen = look(handle)
        if entry(place).exists() and other.exists():
            os.replace(other, entry(place))
        return seen

    machine_code = entry(place).read_bytes()
    other.write_bytes(machine_code[:-1] + b"!")
    monkeypatch.setattr(os, "fstat", slow)
    assert result(*compiler._load_object("small", SMALL, 8)) == 141
    assert not other.exists()


def test_without_owners_nothing_is_asked(place, monkeypatch):
    monkeypatch.delattr(os, "geteuid", raising=False)
    place.chmod(0o777)
    assert result(*compiler._load_object("small", SMALL, 8)) == 141


def test_a_healthy_entry_of_another_key_is_not_run(place, monkeypatch):
    # as it would be if a file were renamed, or of two keys that begin alike
    file = entry(place)
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "version", lambda package: "0.0")
        compiler._load_object("small", SMALL, 8)
    (of_another,) = {*place.glob("*.o")} - {file}
    os.replace(of_another, file)
    calls, compiled = [], compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda *a: (calls.append(a), compiled(*a))[1])
    assert result(*compiler._load_object("small", SMALL, 8)) == 42
    assert len(calls) == 1


def test_what_can_change_the_code_is_in_the_key(place, monkeypatch):
    def runs():
        return result(*compiler._load_object("small", SMALL, 8))

    cpu = compiler._cpu()
    changes = [(compiler, "_SOURCES", "x"), (compiler, "version", lambda package: "0.0"),
               (sys, "version", "4"),
               (compiler, "_cpu", lambda: (cpu[0], cpu[1] + ",-avx"))]  # fmt: skip
    assert runs() == 141
    for change in changes:
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            assert runs() == 42, change
    monkeypatch.setenv("NUMBA_OPT", "1")
    assert runs() == 42
    assert result(*compiler._load_object("small", SMALL, 4)) == 42
    monkeypatch.delenv("NUMBA_OPT")
    assert runs() == 141


def test_every_file_whose_code_is_compiled_in_is_in_the_key():
    modules = {compiler.__name__, *(f.__module__ for f in compiler._HELPERS.values())}
    modules |= {f.__module__ for f in compiler.fits.values()}
    words = compiler._make_namespace(4).values()
    compiled_in = {w.py_func.__module__ for w in words if hasattr(w, "py_func")}
    assert compiled_in <= modules
    assert {"steepest.ops", "steepest.printing"} <= compiled_in


TWO_STEPS = """
import torch, steepest
p = torch.nn.Parameter(torch.ones(1))
made = steepest.Adamax([p], lr=0.1)
for g in (1.0, 0.001):
    p.grad = torch.full((1,), g)
    made.step()
print(p.item())
"""


def test_two_versions_in_one_cache_run_their_own_code(tmp_path):
    import shutil

    package = Path(steepest.__file__).parent
    environment = {**os.environ, "STEEPEST_CACHE_DIR": str(tmp_path / "cache")}
    seen = []
    old = "return a if a > b or"
    for version, new in (("one", old), ("two", "return b if a > b or")):
        copy = tmp_path / version / "steepest"
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
        ops = copy / "ops.py"
        text = ops.read_text()
        assert old in text
        ops.write_text(text.replace(old, new))
        path = {"PYTHONPATH": str(copy.parent)}
        done = subprocess.run(
            [sys.executable, "-c", TWO_STEPS], env=environment | path, cwd=tmp_path,
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        seen.append(float(done.stdout))
    # Adamax by hand: u = max(0.999 u, g), p -= lr m / (u (1 - 0.9^t)); the second version has the
    # smaller of the two for the larger
    m = 0.9 * 0.1 + 0.1 * 0.001
    assert seen[0] == pytest.approx(1 - 0.1 - 0.1 * m / (0.999 * (1 - 0.81)), rel=1e-5)
    assert abs(seen[1] - seen[0]) > 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"STEEPEST_CACHE_DIR": "", "XDG_CACHE_HOME": "/x"}, "/x/steepest"),
        ({"STEEPEST_CACHE_DIR": "here", "XDG_CACHE_HOME": "/x"}, "{cwd}/here"),
        ({"STEEPEST_CACHE_DIR": "~/loops", "HOME": "/h"}, "/h/loops"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/steepest"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/steepest"),
        ({"HOME": "not/absolute"}, None),
    ],
)
def test_where_loops_are_kept(environment, expected, monkeypatch):
    for name in ("STEEPEST_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = disk_cache.directory()
    assert found == (expected and Path(expected.format(cwd=os.getcwd())))


def test_a_user_without_a_home_compiles_in_memory(tmp_path, monkeypatch):
    # neither HOME nor an entry among the users: "~" stays as it is, and is no directory's name
    for name in ("STEEPEST_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    assert result(*compiler._load_object("small", SMALL, 8)) == 42
    assert [*tmp_path.iterdir()] == []
