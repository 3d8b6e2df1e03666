"""The server's own process: llama.cpp behind HTTP, until the owner is gone.

`LocalServer` runs this file with its options as JSON and reads the address, one line, from its
standard output. It imports nothing of lg_textgrad, so it is up as soon as the model is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

_PROMPT_CACHE_MIB = 1024  # llama.cpp's own default, 8 GiB, is more than many laptops can spare


def _main(arguments: str) -> NoReturn:
    """Serve until the owner is gone. Everything that llama.cpp prints goes to standard error."""
    options: dict[str, Any] = json.loads(arguments)
    answer = os.dup(1)  # the pipe for our one line; llama.cpp would write into it otherwise
    os.dup2(2, 1)
    with _dying_with_owner():
        import xllamacpp

        try:
            server = xllamacpp.Server(_parameters(xllamacpp, options))
        except (RuntimeError, MemoryError) as error:
            sys.exit(f"{type(error).__name__}: {error}")  # what led to it is in the log already

    def read_to_end() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os._exit(0)  # llama.cpp's threads need not be asked

    threading.Thread(target=read_to_end, daemon=True).start()
    with suppress(OSError):
        os.write(answer, f"{server.listening_address}\n".encode())
        os.close(answer)
    # A process that the owner forked may hold the pipe open after the owner's death.
    while os.name == "nt" or os.getppid() == options["owner"]:
        time.sleep(0.5)
    os._exit(0)


@contextmanager
def _dying_with_owner() -> Iterator[None]:
    """Let the kernel end this process if the owner dies meanwhile.

    Loading holds the interpreter's lock, so no Python code could notice. The pipe's end sends
    SIGIO, whose default action on Linux is to end the process. Elsewhere it ends after loading.
    """
    if sys.platform != "linux":
        yield
        return
    import fcntl

    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC)
    yield
    fcntl.fcntl(0, fcntl.F_SETFL, flags)


def _parameters(xllamacpp: Any, options: dict[str, Any]) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options["path"]
    parameters.n_parallel = options["slots"]
    parameters.n_ctx = options["slots"] * options["context"]
    parameters.port = options["port"]
    parameters.cpuparams.n_threads = options["threads"]
    parameters.cpuparams_batch.n_threads = options["threads"]
    parameters.verbosity = 2
    named: Any = getattr(parameters, "model_alias", set())
    wishes = {
        "model_alias": options["alias"] if isinstance(named, str) else {options["alias"]},
        "cache_prompt": True,
        "cache_ram_mib": _PROMPT_CACHE_MIB,
        "use_jinja": True,  # tool calls
        "ui": False,
        "cors_origins": "http://127.0.0.1",  # no web page has business with this server
        "fit_params": False,  # the context is what was asked for, or an error
    }
    for name, value in wishes.items():
        if hasattr(parameters, name):  # versions of xllamacpp differ in what they have
            setattr(parameters, name, value)
    return parameters


if __name__ == "__main__":
    _main(sys.argv[1])
