"""`Local`: the embedded model, on this machine's processor, as an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from asyncio import wrap_future
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lg_textgrad._given import check_counts
from lg_textgrad._sync import in_daemon
from lg_textgrad.errors import (
    ConfigurationError,
    ModelError,
    ModelReplyError,
    ModelUnreachableError,
)
from lg_textgrad.models.base import URL_VARIABLE, ModelReply, ModelRequest
from lg_textgrad.models.local_server import (
    HOST,
    LocalServer,
    ServerOptions,
    default_threads,
    get_json,
    is_healthy,
)
from lg_textgrad.models.model_file import QWEN_CODER, ModelFile, Progress
from lg_textgrad.traffic import EMBEDDED, Route

if TYPE_CHECKING:
    from lg_textgrad.models.openai import OpenAI

_TIMEOUT = 900.0  # seconds; a request may wait behind others for a slot

# One start at a time, so that two `Local`s of one process share a server.
_STARTING = threading.Lock()

logger = logging.getLogger(__name__)


class Local:
    """A model on this machine: the embedded one, or any GGUF file.

    `path` is a GGUF file; None takes `$LG_TEXTGRAD_MODEL`, else the embedded model, whose first use
    downloads 1.1 GB (see `ModelFile`). `slots` requests are worked on at once, each with `context`
    tokens for prompt and reply. `threads` defaults to the physical cores, `port` to a free one.

    The server starts with the first call. It is one for a process and its children, which find it
    through `$LG_TEXTGRAD_LOCAL_URL`: a `Local` that asks for the same model and no more context
    uses it. It ends with `stop()` or with the process that started it, however that ends. When it
    crashes it is started again, once, at the same address.

    Reproducible: with temperature 0, or with a seed, one request at a time gives the same reply on
    the same machine with the same xllamacpp and `threads`, as long as the cached prompts are the
    same. Not quite reproducible: requests that run at once, or that reuse different lengths of a
    cached prompt, are computed in batches of other shapes, whose rounding differs; where two tokens
    are nearly equally likely, a reply may then turn out differently. Other processors and versions
    round differently too. `slots=1` comes closest.

    Where the environment names a proxy, starting adds 127.0.0.1 to `NO_PROXY`. Raises
    `ConfigurationError` for slots, context or threads below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        slots: int = 4,
        context: int = 4096,
        threads: int | None = None,
        port: int | None = None,
        progress: Progress | None = None,
        share: bool = True,
    ) -> None:
        counts = {"slots": slots, "context": context, "threads": threads}
        check_counts("Local", **{name: n for name, n in counts.items() if n is not None})
        self._slots = slots
        self._context = context
        self._threads = threads
        self._port = port
        self._progress = progress
        self._share = share
        self._file = ModelFile(path, progress=progress)
        self._server: LocalServer | None = None
        self._borrowed: str | None = None
        self._client: OpenAI | None = None
        self._stopped = False
        self._guard = threading.Lock()
        self._coming: Future[Self] | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's file name and sha256: not where it runs, nor how fast."""
        return {"provider": "local", **self._file.identity()}

    @property
    def route(self) -> Route:
        """What shares the server's slots, and costs nothing."""
        return Route("the embedded model", EMBEDDED)

    @property
    def model(self) -> str:
        """The name that the server knows the model by."""
        given = self._file.given
        return QWEN_CODER.name if given is None else given.stem

    @property
    def base_url(self) -> str:
        """The OpenAI-compatible address, `http://127.0.0.1:PORT/v1`. Known once started."""
        if self._server is not None:
            return f"{self._server.url}/v1"
        if self._borrowed is not None:
            return f"{self._borrowed}/v1"
        raise ConfigurationError("The local model has no address yet: call `start()` first.")

    async def astart(self) -> Self:
        """Start, or find, the server; see `start`. The event loop goes on meanwhile."""
        if self._client is None:
            with self._guard:
                if self._coming is None or self._coming.done():
                    self._coming = in_daemon(self.start)
                coming = self._coming
            # Shielded: others may wait for the same start.
            await asyncio.shield(wrap_future(coming))
        return self

    def start(self) -> Self:
        """Start the server, or find the one that runs, and return self.

        Blocks for the model's download, the first time ever, and for its loading, some ten seconds.
        Raises `ConfigurationError` (no such file, port taken), `MissingExtraError` (no xllamacpp)
        and `ModelUnreachableError` (no download, no start), the latter with the log's last lines.
        """
        with _STARTING:
            if self._client is None:
                self._stopped = False
                path = str(self._file.find())
                self._borrowed = self._running(path) if self._share else None
                if self._borrowed is None:
                    self._server = self._own(path)
                else:
                    logger.info("Using the local model that runs at %s", self._borrowed)
                _spare_proxy()
                self._client = _client(self.model, self.base_url)
        return self

    def stop(self) -> None:
        """End the server if this object started it; a later call starts another."""
        with _STARTING:
            self._stopped = True
            server, self._server = self._server, None
            self._borrowed = self._client = None
            if server is None or not server.owned:
                return
            atexit.unregister(server.stop)
            if os.environ.get(URL_VARIABLE) == f"{server.url}/v1":
                del os.environ[URL_VARIABLE]
            server.stop()

    async def acall(self, request: ModelRequest) -> ModelReply:
        """Ask once and return the reply, starting the server first where need be.

        Asks again when the server crashed meanwhile and could be started again. Raises what
        `OpenAI` raises, and what `start` does.
        """
        while True:
            await self.astart()
            client, server = self._client, self._server
            if client is None:
                raise ModelUnreachableError("The local model was stopped while it was asked.")
            generation = server.generation if server is not None else 0
            try:
                return await client.acall(request)
            except ModelReplyError:
                raise  # the server is there: it answered
            except ModelError:
                # Ends: a borrowed server is replaced by one of our own, which starts again once.
                if not await wrap_future(
                    in_daemon(partial(self._recovered, client, server, generation))
                ):
                    raise

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await self.astart()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        client = self._client
        await wrap_future(in_daemon(self.stop))
        if client is not None:
            await client.aclose()

    def failure(self) -> Exception | None:
        """Return why the server is down for good; None while it is not."""
        return self._server.error if self._server is not None else None

    def _own(self, path: str) -> LocalServer:
        server = LocalServer(
            ServerOptions(
                path=path,
                alias=self.model,
                slots=self._slots,
                context=self._context,
                threads=self._threads or default_threads(),
                port=self._port or 0,
            )
        )
        size = Path(path).stat().st_size
        if self._progress is not None:
            self._progress("load", 0, size)
        atexit.register(server.stop)
        try:
            server.start()
        except BaseException:
            atexit.unregister(server.stop)
            raise
        if self._progress is not None:
            self._progress("load", size, size)
        if self._share:
            os.environ[URL_VARIABLE] = f"{server.url}/v1"
        return server

    def _running(self, path: str) -> str | None:
        """Return the address of a running server that serves what we need; None without one."""
        url = os.environ.get(URL_VARIABLE, "").rstrip("/").removesuffix("/v1")
        if not url or not is_healthy(url):
            return None
        if self._port is not None and not url.endswith(f":{self._port}"):
            return None
        said = get_json(url, "/props")
        try:
            same = said["model_alias"] == self.model and Path(said["model_path"]).samefile(path)
            roomy = said["default_generation_settings"]["n_ctx"] >= self._context
        except (KeyError, TypeError, OSError):
            return None
        return url if same and roomy else None

    def _recovered(self, client: OpenAI, server: LocalServer | None, generation: int) -> bool:
        """Return whether a failed call is worth sending again, because its server was replaced."""
        if server is not None and server.owned:
            return server.restarted_since(generation)
        if self._stopped:
            return False
        if self._client is not client:
            return True  # another call saw it first
        url = self._borrowed or (server.url if server is not None else "")
        if is_healthy(url):
            return False
        with _STARTING:
            if self._client is client:
                logger.warning("The local model at %s is gone; starting another.", url)
                self._client = self._server = self._borrowed = None
        return True


def serve(
    path: str | os.PathLike[str] | None = None,
    *,
    on_ready: Callable[[Local], None],
    slots: int = 4,
    context: int = 4096,
    threads: int | None = None,
    port: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Serve the model until Ctrl-C; `on_ready` gets the started `Local` when it answers.

    Raises what `Local.start` raises, and `ModelUnreachableError` when the server crashed twice.
    """
    local = Local(
        path,
        slots=slots,
        context=context,
        threads=threads,
        port=port,
        progress=progress,
        share=False,
    )
    never = threading.Event()
    try:
        with local:
            on_ready(local)
            while (error := local.failure()) is None:
                never.wait(0.5)
            raise error
    except KeyboardInterrupt:
        logger.info("Stopped by the user")


def _client(model: str, base_url: str) -> OpenAI:
    from lg_textgrad.models.openai import OpenAI

    return OpenAI(model, base_url=base_url, api_key="none", timeout=_TIMEOUT, max_retries=1)


def _spare_proxy() -> None:
    """Keep calls to this machine off the environment's proxy, the user's graph's calls too."""
    if any(os.environ.get(f"{kind}_proxy") for kind in ("http", "all")) or any(
        os.environ.get(f"{kind}_PROXY") for kind in ("HTTP", "ALL")
    ):
        for name in ("NO_PROXY", "no_proxy"):
            hosts = [host for host in os.environ.get(name, "").split(",") if host]
            if HOST not in hosts and "*" not in hosts:
                os.environ[name] = ",".join([*hosts, HOST])
