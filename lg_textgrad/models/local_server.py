"""The owner's side of the local model's server: start it, watch it, stop it, say why it failed.

The server has a process of its own, `local_child.py`, because loading a model holds the
interpreter's lock for seconds. It lives as long as its owner.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from lg_textgrad.errors import (
    ConfigurationError,
    LGTextGradError,
    MissingExtraError,
    ModelUnreachableError,
)

HOST = "127.0.0.1"
_START_SECONDS = 600.0
_STOP_SECONDS = 5.0
_RESTARTS = 1
_MOST_THREADS = 16  # token generation is bound by memory, and gains nothing beyond
_MEMORY_SIGNS = ("bad_alloc", "failed to allocate", "insufficient memory", "out of memory")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What one server is started with."""

    path: str
    """The GGUF file."""
    alias: str
    """The model's name in `GET /v1/models`."""
    slots: int
    """Requests that are worked on at once."""
    context: int
    """Tokens of prompt and reply together, per slot."""
    threads: int
    port: int = 0
    """0 takes a free one."""


class LocalServer:
    """Owns one server process, and starts it again, once, when it crashes."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.generation = 0
        """How often the server was started again."""
        self.error: LGTextGradError | None = None
        """Why it is down for good; None while it is up, or coming up again."""
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: BinaryIO | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._starting_again = False
        self._watcher: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The server's address, without a path."""
        return f"http://{HOST}:{self.options.port}"

    @property
    def owned(self) -> bool:
        """Whether this process started the server; False in a process forked from it."""
        return self._owner == os.getpid()

    def start(self) -> None:
        """Return when the server answers. Blocks for the model's loading, some ten seconds.

        Raises `MissingExtraError` without xllamacpp, `ConfigurationError` when the port is taken or
        the file is no model, `ModelUnreachableError` for all else; each with the log's last lines.
        """
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtraError(
                "The embedded model needs xllamacpp: pip install 'lg-textgrad[local]'"
            )
        try:
            process = self._launch()
        except OSError as error:
            self.stop()
            raise ModelUnreachableError(f"The local model did not start: {error}") from error
        except BaseException:
            self.stop()
            raise
        self._watcher = threading.Thread(
            target=self._watch, args=(process,), name="lg_textgrad-local-server", daemon=True
        )
        self._watcher.start()

    def stop(self) -> None:
        """End the server. Does nothing in a process forked from the owner."""
        if not self.owned:
            return
        with self._changed:
            self._stopping = True
            process = self._process
            self._changed.notify_all()
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join(_STOP_SECONDS)
        if self._log is not None:
            self._log.close()

    def restarted_since(self, generation: int) -> bool:
        """Return whether a call that was sent to `generation` failed because the server crashed.

        Waits for a restart under way. Raises `error` when the server is down for good.
        """
        if self.generation == generation and is_healthy(self.url):
            return False

        def settled() -> bool:
            return self.generation != generation or self.error is not None or self._stopping

        with self._changed:
            # The connection breaks a moment before the process is known to be dead.
            if self._changed.wait_for(lambda: self._starting_again or settled(), _STOP_SECONDS):
                self._changed.wait_for(settled, _START_SECONDS)
            if self.error is not None:
                raise self.error
            return self.generation != generation

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the process and return it when it answers."""
        # Run as a file: as a module of the package it would import LangGraph first. `-P` keeps this
        # folder, whose names are those of SDKs, off its path.
        command = [sys.executable, "-P", str(Path(__file__).with_name("local_child.py"))]
        arguments = json.dumps({**asdict(self.options), "owner": self._owner})
        # The child finds what the parent finds, however the parent's path was set up.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with self._changed:
            if self._stopping:
                raise ModelUnreachableError("The local model's server was stopped.")
            if self._log is not None:
                self._log.close()
            # Without a name, so that nothing is left of it however the processes end.
            log = self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
            process = self._process = subprocess.Popen(  # noqa: S603 - our own file
                [*command, arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the owner, which then stops us
            )
        url = _first_line(process, _START_SECONDS)
        if not url or not _await_health(url, process, _START_SECONDS):
            process.kill()
            code = process.wait()
            _close(process)
            raise _start_error(self.options, code, log)
        # Kept over a restart: graphs may hold the address.
        self.options = replace(self.options, port=urlsplit(url).port or 0)
        logger.info("The local model %s answers at %s", self.options.alias, url)
        return process

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Start the server again when it ends by itself; give up after `_RESTARTS`."""
        while True:
            code = process.wait()
            with self._changed:
                if self._stopping:
                    return
                _close(process)
                if self.generation >= _RESTARTS:
                    self.error = ModelUnreachableError(
                        f"The local model's server crashed again {_ending(code)}."
                        f"{_tail(_read(self._log))}"
                    )
                    self._changed.notify_all()
                    return
                self._starting_again = True
                self._changed.notify_all()
            logger.warning("The local model's server crashed %s; starting it again.", _ending(code))
            try:
                process = self._launch()
            except (LGTextGradError, OSError) as error:
                with self._changed:
                    self.error = (
                        error
                        if isinstance(error, LGTextGradError)
                        else ModelUnreachableError(f"The local model did not start again: {error}")
                    )
                    self._changed.notify_all()
                return
            with self._changed:
                self.generation += 1
                self._starting_again = False
                self._changed.notify_all()


def get_json(url: str, path: str, *, timeout: float = 5.0) -> Any:
    """Return what a server on this machine says at `path`; None when it says nothing usable."""
    # Neither urllib nor httpx: both may send a loopback address to the environment's proxy.
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or HOST, parts.port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return json.loads(body) if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def is_healthy(url: str) -> bool:
    """Return whether the server at `url` has its model loaded."""
    said = get_json(url, "/health")
    return isinstance(said, Mapping) and said.get("status") == "ok"


def available_cores() -> int:
    """Return the physical cores that this process may use, at least 1."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not on Linux
        return max(1, os.cpu_count() or 1)
    siblings = set()
    for cpu in cpus:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(topology.read_text("ascii"))
        except OSError:
            siblings.add(str(cpu))
    cores = len(siblings)
    try:  # a container's share of the machine
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no such limit, or "max"
    return max(1, cores)


def default_threads() -> int:
    """Return how many threads a server computes with unless it is told."""
    return min(_MOST_THREADS, available_cores())


def _first_line(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Return the child's one line, its address; empty when it ended or took too long."""
    assert process.stdout is not None, "it was opened as a pipe"
    too_late = threading.Timer(seconds, process.kill)
    too_late.daemon = True
    too_late.start()
    try:
        return process.stdout.readline().decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return ""  # closed by `stop` in another thread
    finally:
        too_late.cancel()


def _await_health(url: str, process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _ending(code: int) -> str:
    if code == -9:
        return "(killed by signal 9, which is often the system running out of memory)"
    return f"(killed by signal {-code})" if code < 0 else f"(exit code {code})"


def _read(log: BinaryIO | None) -> str:
    """Return what a server said that has ended: the file's position is the server's too."""
    if log is None or log.closed:
        return ""
    log.seek(0)
    return log.read().decode("utf-8", "replace").strip()


def _tail(text: str, lines: int = 15) -> str:
    """Return a log's last lines, introduced; empty when there are none."""
    return " Its log ends with:\n" + "\n".join(text.splitlines()[-lines:]) if text else ""


def _start_error(options: ServerOptions, code: int, log: BinaryIO) -> LGTextGradError:
    """Return the error that says why the server did not come up."""
    said = _read(log)
    tail = _tail(said)
    if "bind HTTP server socket" in said:
        return ConfigurationError(
            f"Port {options.port} on {HOST} is taken. Name another, or none for a free one.{tail}"
        )
    if code == -9 or any(sign in said for sign in _MEMORY_SIGNS):
        return ModelUnreachableError(
            f"The local model did not start {_ending(code)}: it needs about "
            f"{_gigabytes(options):.1f} GB of memory. Lower `slots` or `context`.{tail}"
        )
    if "failed to load model" in said:
        return ConfigurationError(
            f"llama.cpp cannot load {options.path}: the file is damaged, or of a kind that this "
            f"version of xllamacpp does not know.{tail}"
        )
    return ModelUnreachableError(f"The local model did not start {_ending(code)}.{tail}")


def _gigabytes(options: ServerOptions) -> float:
    try:
        weights = Path(options.path).stat().st_size
    except OSError:
        weights = 0
    # 32 KiB of keys and values a token, as in a model of 1.5B parameters.
    return (weights + options.slots * options.context * 32_768) / 1e9
