"""A real PostgreSQL server of this machine's own, for as long as a test needs it."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "s3cret/with@signs"
USER = "racer"
PATIENCE = 60
"""Seconds for one command of the server's."""


def _programs():
    """The folder of the newest server's programs; None without one."""
    found = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    debian = max(found, key=lambda path: float(path.parent.parent.name), default=None)
    path = debian or shutil.which("pg_ctl")
    return path and Path(path).parent


PROGRAMS = _programs()


class Server:
    """A cluster in a new folder: `start` and `stop` as often as wanted, on the same port."""

    def __init__(self, folder):
        self._folder, self._as = folder, []
        if os.geteuid() == 0:  # which the server refuses
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._as = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}",
                        "--clear-groups"]  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run(
            "initdb", "--no-sync", "--auth=scram-sha-256", f"--username={USER}",
            f"--pwfile={password}", "--encoding=UTF8", "--locale=C",
        )  # fmt: skip

    def _run(self, program, *more):
        words = [*self._as, PROGRAMS / program, "-D", self._folder / "data", *more]
        # not through a pipe: the server would hold it open
        with (self._folder / "said").open("a+") as said:
            done = subprocess.run(
                words, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                timeout=PATIENCE, check=False,
            )  # fmt: skip
            said.seek(0)
            assert done.returncode == 0, said.read()

    def start(self):
        options = f"-F -p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder}"
        self._run("pg_ctl", "start", "-w", "-o", options, "-l", self._folder / "log")

    def stop(self):
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def url(self, user=USER, database="postgres"):
        """Without the password, which comes from PGPASSWORD."""
        return f"postgresql+pg8000://{user}@127.0.0.1:{self.port}/{database}"


@contextmanager
def server():
    """A running server; it and its folder are gone at the end, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="steepest-postgres-"))
    try:
        made = Server(folder)
        made.start()
        try:
            yield made
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                made.stop()
    finally:
        shutil.rmtree(folder)
