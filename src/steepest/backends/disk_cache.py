"""The disk cache of compiled loops. Machine code that another user could have written is not run.

An entry is one file with four parts: a hash of the other parts, the key, the symbol, the object
code. The file is written under another name and then renamed, so that nobody reads half a file. A
file is used only if it belongs to the user, and if no other user can change the file or the path to
it. If a file cannot be used or written, the loop is compiled in memory.
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

_warned = False


def directory() -> Path | None:
    """Return the directory of the cache.

    It is STEEPEST_CACHE_DIR if that is set, else `steepest` in the user's cache directory. Returns
    None if the user has no home directory in which to look.
    """
    if chosen := os.environ.get("STEEPEST_CACHE_DIR"):
        return Path(os.path.expanduser(chosen)).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # its specification says to ignore a relative path
        cache = os.path.expanduser("~/.cache")
    return Path(cache, "steepest") if os.path.isabs(cache) else None


def read(name: str, key: str) -> tuple[str, bytes] | None:
    """Return the symbol and the object code of the entry with this key.

    Returns None if there is no entry that can be used.
    """
    try:
        if (folder := _folder()) is None:
            return None
        content = _read_checked(_file(folder, name, key))
    except OSError as error:
        if error.errno == errno.ELOOP:  # O_NOFOLLOW met a link
            _warn_once(f"{error.filename} is a link")
        return None
    try:
        digest, rest = content.split(b"\n", 1)
        stored_key, symbol, code = rest.split(b"\n", 2)
    except ValueError:
        return None
    intact = hashlib.sha256(rest).hexdigest().encode() == digest
    return (symbol.decode(), code) if intact and stored_key == key.encode() else None


def write(name: str, key: str, symbol: str, code: bytes) -> None:
    """Write an entry, if there is a safe directory for the cache."""
    rest = f"{key}\n{symbol}\n".encode() + code
    with contextlib.suppress(OSError):
        if (folder := _folder()) is None:
            return
        with tempfile.TemporaryDirectory(dir=folder) as private:
            handle, path = tempfile.mkstemp(dir=private)
            with os.fdopen(handle, "wb") as out:
                out.write(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
            os.replace(path, _file(folder, name, key))


def _file(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key[:32]}.o"


def _folder() -> Path | None:
    """Return the cache directory, created if missing; None if there is no safe directory."""
    if (folder := directory()) is None:
        return None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "geteuid") and (reason := _find_risk(folder)):  # Windows reports no owner
        _warn_once(reason)
        return None
    return folder


def _find_risk(path: Path, parent: bool = False) -> str:
    """Return the reason why another user can change what `path` leads to, or "" if none can.

    The directories are checked from the root downwards. So no other user can replace a directory
    that has already been checked.
    """
    if path != path.parent and (reason := _find_risk(path.parent, parent=True)):
        return reason
    status = path.lstat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode):
        return _find_risk(path.parent / os.readlink(path), parent)
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    # in a sticky directory such as /tmp, others can add files but not replace them
    sticky = status.st_mode & stat.S_ISVTX
    harmless = sticky or (others == stat.S_IWGRP and _is_private(status.st_gid))
    if others and not (parent and harmless):
        return f"other users can write to {path} (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def _is_private(group: int) -> bool:
    """Whether `group` is the user's private group.

    On many systems this group has write permission for the user's files.
    """
    import grp
    import pwd

    try:
        user, entry = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    same_name = group == user.pw_gid and entry.gr_name == user.pw_name
    return same_name and {*entry.gr_mem} <= {user.pw_name}


def _read_checked(file: Path) -> bytes:
    """Return the content of a file, or b"" if another user could have written the file.

    The file is opened only once, so that the file that is checked is also the file that is read.
    """
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # follow no link, wait for no pipe
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(file, flags), "rb") as opened:
        status = os.fstat(opened.fileno())
        reason = "" if stat.S_ISREG(status.st_mode) else f"{file} is no plain file"
        if not reason and hasattr(os, "geteuid"):
            if status.st_uid != os.geteuid():
                reason = f"{file} belongs to user {status.st_uid}"
            elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                mode = stat.S_IMODE(status.st_mode)
                reason = f"other users can write to {file} (mode {mode:o})"
        if reason:
            _warn_once(reason)
        return b"" if reason else opened.read()


def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "compiled loops on disk are not trusted, so loops are compiled in memory: "
            f"{reason}; remove the write permission of others (chmod go-w), delete the file, or "
            "set STEEPEST_CACHE_DIR to a directory that nobody else can write to or replace",
            stacklevel=2,
        )
