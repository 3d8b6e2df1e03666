"""Runs on the nodes of a Ray cluster: `Ray(graph, "MODULE:GRAPH", address)`."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import pickle
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from lg_textgrad._given import check_counts
from lg_textgrad._version import __version__
from lg_textgrad.bindings.base import Binding
from lg_textgrad.bindings.boundary import BoundaryScope
from lg_textgrad.errors import ConfigurationError, ExecutorError, MissingExtraError
from lg_textgrad.executors.actor import Worker
from lg_textgrad.executors.addresses import check_answers, check_kind
from lg_textgrad.executors.home import Line, WorkerLostError, total
from lg_textgrad.executors.luggage import pack
from lg_textgrad.executors.wire import unpacked
from lg_textgrad.graph import TrainableGraph
from lg_textgrad.limiter import Limiter
from lg_textgrad.recording.base import Recorded
from lg_textgrad.run import Candidate, Example, Usage

logger = logging.getLogger("lg_textgrad")

_OBJECT_STORE = 100 * 2**20
"""Bytes on a machine that is a cluster only for this run: messages are small."""
_SHARED_LOSSES = 2
"""So often a run is lost together with others; then it gets a worker of its own, to tell which of
them is to blame."""
_LOSSES = 4
"""So often a run is lost before it counts as failed."""
_START = 120
"""Seconds that a worker may take to start and to import the graph."""
_NO_LIMIT = 2**30
_LOOK = 10.0
"""Seconds between looks for nodes that have joined."""


@dataclass(eq=False)
class _Post:
    """One worker, as home knows it."""

    actor: Any
    line: Line
    node: str
    pid: int
    runs: int = 0
    thread: threading.Thread | None = field(default=None, repr=False)


class Ray:
    """Makes the runs of `graph` on the nodes of a Ray cluster, inside of a `with` block.

    `spec` is the graph's `MODULE:GRAPH`, by which workers import it. `address` is that of a cluster
    (`HOST:PORT`, or `auto` for the one that runs on this machine); without it, that in RAY_ADDRESS,
    else one is started here for as long as the block lasts. Each node has `workers_per_node`
    workers with at most `runs_per_worker` runs each. `env` names variables of this process that
    workers get, such as API keys; `runtime_env` is Ray's own.

    Model calls are looked up, given their places, paid for and kept by this process, wherever they
    are made. What a worker did that is lost is done elsewhere, without paying again. Raises
    `MissingExtraError` without Ray, `GraphError` where workers cannot load the graph, or find
    another one, `ExecutorError` where no worker can be started, and `ConfigurationError` for an
    address of Ray's client and for counts below 1.
    """

    def __init__(
        self,
        graph: TrainableGraph,
        spec: str,
        address: str | None = None,
        *,
        runs_per_worker: int = 16,
        workers_per_node: int = 1,
        env: Sequence[str] = (),
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        counts = {"runs_per_worker": runs_per_worker, "workers_per_node": workers_per_node}
        check_counts("Ray", **counts)
        if address is not None:
            check_kind(address)
        _check_runtime_env(runtime_env or {})
        if isinstance(env, str):
            raise ConfigurationError("The executor's env is a list of names of variables.")
        self.graph = graph
        self.spec = spec
        self.address = address or None
        self._runs_per_worker = runs_per_worker
        self._workers_per_node = workers_per_node
        self._env = tuple(env)
        self._runtime_env = dict(runtime_env or {})
        self._guard = threading.Lock()
        self._posts: list[_Post] = []
        self._room = Limiter(_NO_LIMIT)
        self._own = False
        self._open = False
        self._filling = False
        self._wanted = False
        self._filler: threading.Thread | None = None
        self._looked = 0.0
        self._broken: Exception | None = None
        self._luggage = b""
        self._turns = itertools.count()

    def __enter__(self) -> Self:
        if self._open:
            raise ConfigurationError("The executor is open already; make another one.")
        shipped = bool(self._runtime_env.get("working_dir") or self._runtime_env.get("py_modules"))
        luggage = pack(self.graph, self.spec, env=self._env, shipped=shipped)
        self._luggage = pickle.dumps(luggage)
        ray = _ray()
        self._connect(ray)
        self._open, self._broken = True, None
        try:
            self._fill()
            if self._broken is not None:
                raise self._broken
        except BaseException:
            self.close()
            raise
        self.graph.executor = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the workers go. The graph runs in this process again."""
        if self.graph.executor is self:
            self.graph.executor = None
        if not self._open:
            return
        ray = _ray()
        with self._guard:
            self._open = False
            posts, self._posts = self._posts, []
            filler = self._filler
        self._resize()
        if filler is not None:  # it would bring Ray up again
            filler.join(10)
        for post in posts:
            self._dismiss(ray, post)
        if self._own:
            ray.shutdown()

    @property
    def workers(self) -> list[tuple[str, int]]:
        """The node and the process id of each worker that there is now."""
        with self._guard:
            return [(post.node, post.pid) for post in self._posts]

    async def arun(
        self,
        example: Example,
        candidate: Candidate,
        bindings: Sequence[Binding],  # noqa: ARG002 - workers have their own
        scope: BoundaryScope,
    ) -> Recorded:
        """Run the graph on a worker, and on another one when that is lost.

        A run that takes every worker along comes back with an error, and is not kept.
        """
        paid: dict[str, Usage] = {}
        why = ""
        for losses in range(_LOSSES):
            try:
                async with self._post(alone=losses >= _SHARED_LOSSES) as post:
                    recorded = await post.line.arun(example, candidate, scope, paid)
            except WorkerLostError as lost:
                why = str(lost)
                logger.warning("A run of example %s was lost: %s", example.named, why)
                continue
            scope.usage = total(paid)
            return recorded
        scope.usage, scope.lost = total(paid), True
        return Recorded(None, error=f"ExecutorError: its workers were lost {_LOSSES} times: {why}")

    # Workers.

    def _connect(self, ray: Any) -> None:
        if ray.is_initialized():
            if self._runtime_env:
                raise ConfigurationError(
                    "Ray is connected already in this process, so the executor's runtime_env comes "
                    "too late; give it to ray.init."
                )
            self._own = False
            return
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        check_kind(address)
        options: dict[str, Any] = {"address": address, "runtime_env": self._runtime_env or None}
        if address == "local":
            # Nothing leaves the machine unless the user asked for it.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        # What Ray does with a graphics card is of no interest here, nor what it warns of it.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            check_answers(address)
            ray.init(log_to_driver=False, configure_logging=False, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            said = str(error).strip().rstrip(".")
            raise ExecutorError(
                f"There is no Ray cluster at '{address}' to be had: {said}. Start one with "
                "`ray start --head`, or correct the address after `ray:` or in RAY_ADDRESS."
            ) from error
        self._own = True

    def _fill(self) -> None:
        """Have the wanted number of workers on each node. Sets `_broken` when there are none."""
        if self._begins_to_fill():
            self._fill_up()

    def _begins_to_fill(self) -> bool:
        """Return whether the caller is the one to do it."""
        with self._guard:
            self._wanted = True
            mine = self._open and not self._filling
            self._filling = self._filling or mine
            return mine

    def _fill_up(self) -> None:
        while self._next_fill():
            failure: Exception | None = None
            try:
                failure = self._fill_once()
            except Exception as error:  # Ray itself is gone
                failure = ExecutorError(f"The Ray cluster cannot be asked for its nodes: {error}")
            with self._guard:
                self._looked = time.monotonic()
                if not self._posts and not self._wanted:
                    self._broken = failure or ExecutorError(
                        "The Ray cluster has no node left to run on; add one and resume."
                    )
            if failure is not None and self._broken is None:
                logger.warning("A worker could not be started: %s", failure)
            self._resize()

    def _next_fill(self) -> bool:
        """Return whether something was lost since the last look, or nobody has looked yet."""
        with self._guard:
            self._filling = self._wanted and self._open and self._broken is None
            self._wanted = False
            return self._filling

    def _fill_once(self) -> Exception | None:
        ray, failure = _ray(), None
        for wait in (0.0, 1.0, 3.0):  # a node that died may seem alive for a moment
            time.sleep(wait)
            if not self._open:
                break
            failure = self._serve_nodes(ray)
            if not isinstance(failure, ExecutorError):
                break
        return failure

    def _serve_nodes(self, ray: Any) -> Exception | None:
        """Start what is missing. Returns the last failure; None where all is as it should be."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        able = [node for node in nodes if node["Resources"].get("CPU")] or nodes
        wanted = [node["NodeID"] for node in able for _ in range(self._workers_per_node)]
        with self._guard:
            for post in self._posts:
                if post.node in wanted:
                    wanted.remove(post.node)
        if not wanted:
            return None if able else ExecutorError("The Ray cluster has no node to run on.")
        failures: list[Exception] = []
        posts: list[_Post] = []

        def start(node: str) -> None:
            try:
                posts.append(self._start(ray, node))
            except Exception as error:  # told, or raised, by the caller
                failures.append(error)
            except SystemExit:  # Ray ends whoever waits for it when it is shut down
                failures.append(ExecutorError("Ray was shut down."))

        threads = [threading.Thread(target=start, args=(node,), daemon=True) for node in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._guard:
            kept, late = ([], posts) if not self._open else (posts, [])
            self._posts += [post for post in kept if not post.line.lost]
        for post in late:
            self._dismiss(ray, post)
        return failures[-1] if failures else None

    def _start(self, ray: Any, node: str) -> _Post:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = (
            ray.remote(Worker)
            .options(
                num_cpus=0,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote()
        )
        try:
            version = self._got(ray, actor.hello.remote())
            if version != __version__:
                raise ConfigurationError(
                    f"A node of the Ray cluster has lg-textgrad {version}, and this process "
                    f"{__version__}; install the same one on all machines."
                )
            pid, error = self._got(ray, actor.load.remote(self._luggage))
        except ConfigurationError:
            ray.kill(actor)
            raise
        except Exception as raised:  # of Ray's own many kinds
            ray.kill(actor)
            why = str(raised).strip().splitlines() or [type(raised).__name__]
            raise ExecutorError(
                f"No worker could be started on the node {node[:8]} of the Ray cluster: {why[0]} "
                "lg-textgrad and the graph's packages have to be installed there."
            ) from None
        if error is not None:
            ray.kill(actor)
            raise unpacked(error)
        hear = actor.hear.options(num_returns=0)
        name = f"the worker {pid} on the node {node[:8]}"
        post = _Post(actor, Line(hear.remote, name), node, pid)
        told = actor.messages.options(num_returns="streaming").remote()
        post.thread = threading.Thread(
            target=self._listen, args=(ray, post, told), name="lg_textgrad-ray", daemon=True
        )
        post.thread.start()
        return post

    def _got(self, ray: Any, reference: Any) -> Any:
        """Return what a worker that starts says, unless the executor is closed meanwhile."""
        for _ in range(_START):
            if not self._open:
                break
            ready, _ = ray.wait([reference], timeout=1)
            if ready:
                return ray.get(reference)
        raise ExecutorError(f"It did not start within {_START} seconds.")

    def _listen(self, ray: Any, post: _Post, told: Any) -> None:
        """Hand on what a worker tells, until it is gone."""
        why = "it has ended"
        try:
            for reference in told:
                for message in ray.get(reference):
                    post.line.hear(message)
        except (Exception, SystemExit) as error:  # Ray has a kind of its own for each way to die
            why = type(error).__name__
        post.line.lose(f"{post.line.name} is gone ({why})")
        with self._guard:
            lost = self._open and post in self._posts
            if lost:
                self._posts.remove(post)
        if lost:
            self._resize()
            self._fill_later()

    def _fill_later(self) -> None:
        if self._begins_to_fill():
            self._filler = threading.Thread(
                target=self._fill_up, name="lg_textgrad-ray-fill", daemon=True
            )
            self._filler.start()

    def _dismiss(self, ray: Any, post: _Post) -> None:
        """Let a worker end, and wait until nothing of it is heard any more."""
        try:
            if not post.line.lost:
                post.actor.stop.options(num_returns=0).remote()
            if post.thread is not None:
                post.thread.join(5)
            ray.kill(post.actor)
        except Exception as error:  # it is gone, which is what was wanted
            logger.debug("A worker did not end by itself: %s", error)

    # Places.

    def _resize(self) -> None:
        with self._guard:
            free = len(self._posts) * self._runs_per_worker
            if self._broken is not None or not self._open:
                free = _NO_LIMIT  # nobody may wait for workers that will never come
        self._room.limit = free

    @asynccontextmanager
    async def _post(self, *, alone: bool) -> AsyncIterator[_Post]:
        """Hold a place on the worker with the fewest runs, or on one of its own."""
        if alone:
            async with self._hermitage() as post:
                yield post
            return
        if self._room.held >= self._room.limit and time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            self._fill_later()  # a node may have joined
        async with self._room.ahold():
            post = await self._taken()
            try:
                yield post
            finally:
                with self._guard:
                    post.runs -= 1

    async def _taken(self) -> _Post:
        while True:
            if (post := self._take()) is not None:
                return post
            await asyncio.sleep(0.05)  # all were lost in this moment, and others are started

    def _take(self) -> _Post | None:
        with self._guard:
            if not self._open:
                raise ExecutorError("The executor is closed; run inside of its `with` block.")
            if self._posts:
                post = min(self._posts, key=lambda one: one.runs)
                post.runs += 1
                return post
            if self._broken is not None:
                raise type(self._broken)(str(self._broken))
            return None

    @asynccontextmanager
    async def _hermitage(self) -> AsyncIterator[_Post]:
        ray, loop = _ray(), asyncio.get_running_loop()
        with self._guard:
            nodes = [post.node for post in self._posts]
        if not nodes:
            nodes = [n["NodeID"] for n in await loop.run_in_executor(None, ray.nodes) if n["Alive"]]
        if not nodes:
            raise ExecutorError("The Ray cluster has no node left to run on; add one and resume.")
        node = nodes[next(self._turns) % len(nodes)]
        try:
            post = await loop.run_in_executor(None, self._start, ray, node)
        except ExecutorError as error:
            raise WorkerLostError(str(error)) from None
        try:
            yield post
        finally:
            await asyncio.shield(loop.run_in_executor(None, self._dismiss, ray, post))


@functools.cache
def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError(
            "Running on a Ray cluster needs the extra 'ray': pip install 'lg-textgrad[ray]'."
        ) from None
    return ray


def _check_runtime_env(given: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for what Ray would log, or silently ignore."""
    if "env_vars" in given:
        raise ConfigurationError(
            "Ray writes the env_vars of a runtime_env to its logs; name the variables in the "
            "executor's env instead."
        )
    if not given or "RAY_RUNTIME_ENV_PLUGINS" in os.environ:  # which have fields of their own
        return
    try:
        from ray.runtime_env import RuntimeEnv
    except ImportError:
        return  # said where a cluster is wanted
    known = {name for name in RuntimeEnv.known_fields if not name.startswith("_")} - {"env_vars"}
    if unknown := sorted(set(given) - RuntimeEnv.known_fields):
        raise ConfigurationError(
            f"Ray's runtime_env has no field '{unknown[0]}'; it has {', '.join(sorted(known))}."
        )
