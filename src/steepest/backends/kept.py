"""Compiled loops on disk. Machine code is code: what somebody else could have written is not run.

An entry is one file: a hash of what follows, the key, the symbol, the object code. It is written
once by rename. A file is taken if it is the user's own and nobody else can change it or the path
to it; else, and where nothing can be written, loops are compiled in memory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
import warnings
from pathlib import Path

_said = False


def directory() -> Path | None:
    """STEEPEST_CACHE_DIR, else `steepest` in the user's cache directory; None without a home."""
    if chosen := os.environ.get("STEEPEST_CACHE_DIR"):
        return Path(os.path.expanduser(chosen)).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # its specification ignores a relative one
        cache = os.path.expanduser("~/.cache")
    return Path(cache, "steepest") if os.path.isabs(cache) else None


def read(name: str, key: str) -> tuple[str, bytes] | None:
    """Symbol and object code of the entry that was kept under this key."""
    try:
        if (folder := _folder()) is None:
            return None
        content = _content(_file(folder, name, key))
    except OSError as error:
        if error.errno == errno.ELOOP:  # O_NOFOLLOW met a link
            _say(f"{error.filename} is a link")
        return None
    try:
        digest, rest = content.split(b"\n", 1)
        found, symbol, code = rest.split(b"\n", 2)
    except ValueError:
        return None
    whole = hashlib.sha256(rest).hexdigest().encode() == digest
    return (symbol.decode(), code) if whole and found == key.encode() else None


def write(name: str, key: str, symbol: str, code: bytes) -> None:
    """Keep an entry, if there is a place for it."""
    rest = f"{key}\n{symbol}\n".encode() + code
    with contextlib.suppress(OSError):
        if (folder := _folder()) is None:
            return
        with tempfile.TemporaryDirectory(dir=folder) as inside:
            handle, path = tempfile.mkstemp(dir=inside)
            with os.fdopen(handle, "wb") as out:
                out.write(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
            os.replace(path, _file(folder, name, key))


def _file(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key[:32]}.o"


def _folder() -> Path | None:
    """The directory, made where it is missing; None where there can be none, or no safe one."""
    if (folder := directory()) is None:
        return None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "geteuid") and (why := _foreign(folder)):  # Windows tells no owner
        _say(why)
        return None
    return folder


def _foreign(path: Path, parent: bool = False) -> str:
    """Who else can change what the path leads to; empty if nobody can.

    From the root downwards: what was looked at cannot be changed by others afterwards.
    """
    if path != path.parent and (why := _foreign(path.parent, parent=True)):
        return why
    found = path.lstat()
    if found.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to user {found.st_uid}"
    if stat.S_ISLNK(found.st_mode):
        return _foreign(path.parent / os.readlink(path), parent)
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # in a sticky directory, as /tmp, everybody can add and nobody can replace
    harmless = found.st_mode & stat.S_ISVTX or (others == stat.S_IWGRP and _alone(found.st_gid))
    if others and not (parent and harmless):
        return f"others may write to {path} (mode {stat.S_IMODE(found.st_mode):o})"
    return ""


def _alone(group: int) -> bool:
    """Whether it is the user's private group, whose directories many systems let it write to."""
    import grp
    import pwd

    try:
        me, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    private = group == me.pw_gid and found.gr_name == me.pw_name
    return private and {*found.gr_mem} <= {me.pw_name}


def _content(file: Path) -> bytes:
    """The bytes of the file that was looked at: it is opened once."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # no link, no waiting at a pipe
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(file, flags), "rb") as opened:
        found = os.fstat(opened.fileno())
        why = "" if stat.S_ISREG(found.st_mode) else f"{file} is no plain file"
        if not why and hasattr(os, "geteuid"):
            if found.st_uid != os.geteuid():
                why = f"{file} belongs to user {found.st_uid}"
            elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                mode = stat.S_IMODE(found.st_mode)
                why = f"others may write to {file} (mode {mode:o})"
        if why:
            _say(why)
        return b"" if why else opened.read()


def _say(why: str) -> None:
    global _said
    if not _said:
        _said = True
        warnings.warn(
            f"a compiled loop kept on disk was not trusted, and is compiled in memory: {why}; "
            "expected a file of your own, in a directory that nobody else can write to or "
            "replace. Take that right away (chmod go-w), delete it, or set STEEPEST_CACHE_DIR to a "
            "directory of your own",
            stacklevel=2,
        )
