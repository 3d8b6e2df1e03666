"""A real HTTP server on loopback that keeps what LangSmith keeps, for the real `langsmith` clients.

    with LangSmithServer() as server:
        client = langsmith.Client(server.url, api_key=server.api_key)

It answers what the SDK sends in the ways that this project uses it, and nothing else: an endpoint
that it doesn't know, a body with a field too many or too few, a run whose order contradicts its
parents, or a payload that repeats part of an earlier one is noted in `errors`, and the first of
these is raised when the `with` block ends. `fault` says what goes wrong, for all requests or, as a
function of the request, for some.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from tests.servers.langsmith_filter import matches, parse

TENANT = "00000000-0000-0000-0000-0000000000aa"
_ORDER = re.compile(r"\d{8}T\d{12}Z[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request."""

    kind: str
    status: int = 0
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def answer(cls, status: int, **headers: str) -> Fault:
        """Refuse with a status: 429, 500, …"""
        return cls("answer", status, headers=headers)

    @classmethod
    def down(cls) -> Fault:
        """Reset the connection before anything is read from it."""
        return cls("down")

    @classmethod
    def lost(cls) -> Fault:
        """Do what was asked, and reset the connection instead of saying so."""
        return cls("lost")

    @classmethod
    def slow(cls, seconds: float) -> Fault:
        """Do what was asked, and say so only after `seconds`."""
        return cls("slow", seconds=seconds)


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    raw: bytes
    body: Any = None
    """JSON, or for multipart the list of `(name, content)`."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def one(self, name: str, default: str | None = None) -> str | None:
        return self.query.get(name, [default])[0]


class Refusal(Exception):
    """An answer other than 200. `wrong` when no client of ours may ask such a thing."""

    def __init__(self, status: int, detail: str, *, wrong: bool = False) -> None:
        super().__init__(detail)
        self.status, self.wrong = status, wrong


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DatasetBody(Strict):
    name: str
    data_type: str
    transformations: Any
    extra: dict
    description: str | None = None


class ExampleBody(Strict):
    id: uuid.UUID | None = None
    dataset_id: uuid.UUID
    inputs: dict | None = None
    outputs: dict | None = None
    metadata: dict | None = None
    split: str | list[str] | None = None
    created_at: datetime | None = None
    use_source_run_io: bool = False
    source_run_id: uuid.UUID | None = None


class SessionBody(Strict):
    id: uuid.UUID
    name: str
    extra: dict | None
    description: str | None
    reference_dataset_id: uuid.UUID | None = None
    num_examples: int | None = None
    num_repetitions: int | None = None
    evaluator_keys: list[str] | None = None


class SessionPatch(Strict):
    name: str | None
    extra: dict | None
    description: str | None
    end_time: datetime | None


class RunBody(Strict):
    id: uuid.UUID
    trace_id: uuid.UUID
    dotted_order: str
    name: str | None = None
    run_type: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    parent_run_id: uuid.UUID | None = None
    session_name: str | None = None
    session_id: uuid.UUID | None = None
    reference_example_id: uuid.UUID | None = None
    tags: list[str] | None = None
    status: str | None = None
    address: Any = None
    inputs: dict | None = None
    outputs: dict | None = None
    error: str | None = None
    events: list | None = None
    extra: dict | None = None
    serialized: dict | None = None


class Source(Strict):
    type: str
    metadata: dict | None = None


class FeedbackBody(Strict):
    id: uuid.UUID
    run_id: uuid.UUID | None = None
    trace_id: uuid.UUID | None = None
    session_id: uuid.UUID | None = None
    start_time: datetime | None = None
    key: str
    score: float | bool | None = None
    value: Any = None
    comment: str | None = None
    correction: Any = None
    feedback_source: Source
    feedback_config: dict | None = None
    created_at: datetime
    modified_at: datetime
    extra: dict | None = None
    error: bool | None = None
    extend_trace_retention: bool | None = None


class CommitBody(Strict):
    parent_commit: str | None
    manifest: dict
    description: str | None = None


class RepoBody(Strict):
    repo_handle: str
    description: str
    readme: str
    tags: list[str]
    is_public: bool


class RepoPatch(Strict):
    description: str | None = None
    readme: str | None = None
    tags: list[str] | None = None


class TagBody(Strict):
    tag_name: str
    commit_id: uuid.UUID


class QueueBody(Strict):
    id: uuid.UUID
    name: str
    description: str | None = None
    rubric_instructions: str | None = None
    rubric_items: list[dict] | None = None


class QueryBody(Strict):
    """POST /runs/query, the deprecated one."""

    session: list[uuid.UUID] | None = None
    id: list[uuid.UUID] | None = None
    trace: uuid.UUID | None = None
    parent_run: uuid.UUID | None = None
    reference_example: list[uuid.UUID] | None = None
    run_type: str | None = None
    filter: str | None = None
    is_root: bool | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    error: bool | None = None
    select: list[str]
    limit: int | None = None
    cursor: str | None = None


class NewQueryBody(Strict):
    """POST /api/v2/runs/query."""

    project_ids: list[uuid.UUID]
    ids: list[uuid.UUID] | None = None
    trace_id: uuid.UUID | None = None
    filter: str | None = None
    is_root: bool | None = None
    min_start_time: datetime | None = None
    max_start_time: datetime | None = None
    selects: list[str] = []
    page_size: int | None = None
    cursor: str | None = None


@dataclass
class Repo:
    name: str
    about: dict[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    commits: list[dict[str, Any]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    """Tag -> id of its commit."""


Handler = Callable[[Request, dict[str, str]], Any]


class LangSmithServer:
    """The server, as a context manager.

    `new` and `old` say which of the two endpoints for querying runs there are. `moves_tags` False
    makes it refuse a tag that is there already, which then has to be moved with PATCH. `page` is
    the most that one answer has of anything.
    """

    def __init__(
        self,
        *,
        api_key: str = "lsv2_pt_loopback_0123456789abcdef",
        new: bool = True,
        old: bool = True,
        moves_tags: bool = True,
        page: int = 100,
    ) -> None:
        self.api_key = api_key
        self.new, self.old, self.moves_tags, self.page = new, old, moves_tags, page
        self.fault: Fault | Callable[[Request], Fault | None] | None = None
        self.requests: list[Request] = []
        """Every request in the order of arrival, those that a fault hit included."""
        self.errors: list[Exception] = []
        self.repeated: list[str] = []
        """Ids of runs and feedback that were posted though they were there."""
        self.datasets: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, list[tuple[datetime, dict[str, dict[str, Any]]]]] = {}
        """Dataset -> its versions, each with all examples by id."""
        self.version_tags: dict[str, dict[str, datetime]] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.feedback: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.repos: dict[str, Repo] = {}
        self.queues: dict[str, dict[str, Any]] = {}
        self._queued: dict[str, list[dict[str, Any]]] = {}
        self._tick = datetime(2030, 1, 1, tzinfo=UTC)
        self._port = 0
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread: threading.Thread | None = None
        self._routes = [(m, re.compile(p + "/?"), h) for m, p, h in self._table()]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def seen(self, start: str = "") -> list[Request]:
        """The requests whose `METHOD /path` begins with `start`."""
        return [r for r in self.requests if str(r).startswith(start)]

    def project(self, name: str) -> dict[str, Any]:
        return [s for s in self.sessions.values() if s["name"] == name][0]

    def runs_of(self, name: str) -> list[dict[str, Any]]:
        """The runs of a project, in the order of their start."""
        wanted = self.project(name)["id"]
        return sorted(
            (r for r in self.runs.values() if r["session_id"] == wanted), key=lambda r: r["dotted_order"]
        )

    def feedback_on(self, run_id: Any) -> list[dict[str, Any]]:
        return [f for f in self.feedback.values() if f["run_id"] == str(run_id)]

    # The table of endpoints.

    def _table(self) -> Iterable[tuple[str, str, Handler]]:
        one = r"(?P<id>[0-9a-f-]{36})"
        repo = r"/-/(?P<name>[a-z][a-z0-9_-]*)"
        yield "GET", "/info", self._info
        yield "GET", "/settings", self._settings
        yield "POST", "/datasets", self._new_dataset
        yield "GET", "/datasets", self._find_datasets
        yield "GET", f"/datasets/{one}", lambda r, p: self._dataset(p["id"])
        yield "GET", f"/datasets/{one}/version", self._version
        yield "GET", f"/datasets/{one}/splits", self._splits
        yield "PUT", f"/datasets/{one}/tags", self._tag_version
        yield "POST", "/examples/bulk", self._new_examples
        yield "GET", "/examples", self._find_examples
        yield "GET", f"/examples/{one}", self._example
        yield "PATCH", f"/examples/{one}", self._change_example
        yield "DELETE", f"/examples/{one}", self._drop_example
        yield "POST", "/sessions", self._new_session
        yield "GET", "/sessions", self._find_sessions
        yield "GET", f"/sessions/{one}", lambda r, p: self._shown_session(p["id"])
        yield "PATCH", f"/sessions/{one}", self._change_session
        yield "POST", "/runs/multipart", self._ingest
        yield "GET", f"/runs/{one}", self._run
        yield "POST", "/runs/query", self._query
        yield "POST", "/api/v2/runs/query", self._new_query
        yield "POST", "/feedback", self._new_feedback
        yield "GET", "/feedback", self._find_feedback
        yield "GET", f"/feedback/{one}", lambda r, p: self._known(self.feedback, p["id"])
        yield "GET", "/feedback-configs", self._find_configs
        yield "POST", "/feedback-configs", self._new_config
        yield "POST", "/repos", self._new_repo
        yield "GET", f"/repos{repo}", lambda r, p: {"repo": self._shown_repo(self._repo(p))}
        yield "PATCH", f"/repos{repo}", self._change_repo
        yield "POST", f"/repos{repo}/tags", self._new_tag
        yield "PATCH", rf"/repos{repo}/tags/(?P<tag>[\w-]+)", self._move_tag
        yield "DELETE", rf"/repos{repo}/tags/(?P<tag>[\w-]+)", self._drop_tag
        yield "POST", f"/commits{repo}", self._new_commit
        yield "GET", f"/commits{repo}", self._commits
        yield "GET", rf"/commits{repo}/(?P<commit>[\w-]+)", self._commit
        yield "GET", "/annotation-queues", self._find_queues
        yield "POST", "/annotation-queues", self._new_queue
        yield "GET", f"/annotation-queues/{one}", lambda r, p: self._known(self.queues, p["id"])
        yield "POST", f"/annotation-queues/{one}/runs", self._enqueue
        yield "GET", f"/annotation-queues/{one}/runs", self._enqueued
        yield "POST", f"/api/v1/platform/annotation-queues/{one}/items", self._new_items
        yield "GET", f"/api/v1/platform/annotation-queues/{one}/items", self._items

    # About the server.

    def _info(self, request: Request, _: dict[str, str]) -> Any:
        flags = {} if self.old else {"ch_query_enabled": False, "sdb_query_enabled": True}
        return {"version": "0.16.20" if self.new else "0.10.0", "instance_flags": flags}

    def _settings(self, request: Request, _: dict[str, str]) -> Any:
        return {
            "id": TENANT, "display_name": "Tests", "created_at": self._now(), "tenant_handle": None
        }  # fmt: skip

    def _now(self) -> str:
        """A clock that moves at each look, so that no two things happen at once."""
        self._tick += timedelta(milliseconds=1)
        return self._tick.isoformat()

    def _known(self, table: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        if key not in table:
            raise Refusal(404, f"there is no {key}")
        return table[key]

    def _paged(self, request: Request, found: list[Any]) -> list[Any]:
        start, limit = int(request.one("offset") or 0), int(request.one("limit") or self.page)
        return found[start : start + min(limit, 100)]

    # Datasets and examples.

    def _dataset(self, dataset_id: str) -> dict[str, Any]:
        found = self._known(self.datasets, dataset_id)
        return {**found, "example_count": len(self.versions[dataset_id][-1][1])}

    def _new_dataset(self, request: Request, _: dict[str, str]) -> Any:
        body = DatasetBody.model_validate(request.body)
        if any(d["name"] == body.name for d in self.datasets.values()):
            raise Refusal(409, f"there is a dataset '{body.name}'")
        made = {
            "id": str(uuid.uuid5(uuid.UUID(TENANT), body.name)), "name": body.name,
            "description": body.description, "data_type": body.data_type,
            "created_at": self._now(), "tenant_id": TENANT,
        }  # fmt: skip
        self.datasets[made["id"]] = made
        self.versions[made["id"]] = [(self._tick, {})]
        self.version_tags[made["id"]] = {}
        return self._dataset(made["id"])

    def _find_datasets(self, request: Request, _: dict[str, str]) -> Any:
        name = request.one("name")
        found = [self._dataset(i) for i, d in self.datasets.items() if name in (None, d["name"])]
        return self._paged(request, found)

    def _at(self, dataset_id: str, as_of: str | None) -> tuple[datetime, dict[str, dict[str, Any]]]:
        versions = self.versions[self._dataset(dataset_id)["id"]]
        if as_of in (None, "latest"):
            return versions[-1]
        when = self.version_tags[dataset_id].get(as_of)
        if when is None:
            try:
                when = datetime.fromisoformat(as_of)
            except ValueError:
                raise Refusal(404, f"the dataset has no version '{as_of}'") from None
        found = [v for v in versions if v[0] <= when]
        if not found:
            raise Refusal(404, f"the dataset did not exist at {as_of}")
        return found[-1]

    def _version(self, request: Request, path: dict[str, str]) -> Any:
        tag = request.one("tag")
        if tag not in (None, "latest", *self.version_tags.get(path["id"], ())):
            raise Refusal(404, f"the dataset has no tag '{tag}'")
        when, _ = self._at(path["id"], tag or request.one("as_of"))
        tags = [t for t, at in self.version_tags[path["id"]].items() if at == when]
        latest = ["latest"] if when == self.versions[path["id"]][-1][0] else []
        return {"tags": tags + latest, "as_of": when.isoformat()}

    def _tag_version(self, request: Request, path: dict[str, str]) -> Any:
        when = datetime.fromisoformat(request.body["as_of"])
        if all(at != when for at, _ in self.versions[path["id"]]):
            raise Refusal(404, f"{when} is no version", wrong=True)
        self.version_tags[path["id"]][request.body["tag"]] = when
        return {}

    def _splits(self, request: Request, path: dict[str, str]) -> Any:
        _, examples = self._at(path["id"], request.one("as_of"))
        return sorted({s for e in examples.values() for s in e["metadata"]["dataset_split"]})

    def _store_example(self, body: ExampleBody, known: dict[str, Any] | None = None) -> dict[str, Any]:
        dataset_id, example_id = str(body.dataset_id), str(body.id or uuid.uuid4())
        self._dataset(dataset_id)
        now, given = self._now(), body.model_dump(exclude_none=True)
        made = dict(known or {"id": example_id, "dataset_id": dataset_id, "name": f"#{example_id[:4]}",
                              "created_at": now, "inputs": {}, "outputs": None, "metadata": {}})  # fmt: skip
        made.update({n: given[n] for n in ("inputs", "outputs") if n in given}, modified_at=now)
        split = [body.split] if isinstance(body.split, str) else body.split
        kept = split or made["metadata"].get("dataset_split") or ["base"]
        made["metadata"] = {**made["metadata"], **given.get("metadata", {}), "dataset_split": kept}
        examples = dict(self.versions[dataset_id][-1][1])
        examples[made["id"]] = made
        self.versions[dataset_id].append((self._tick, examples))
        return made

    def _new_examples(self, request: Request, _: dict[str, str]) -> Any:
        return [self._store_example(ExampleBody.model_validate(one)) for one in request.body]

    def _find_examples(self, request: Request, _: dict[str, str]) -> Any:
        unknown = request.query.keys() - {"dataset", "id", "as_of", "splits", "inline_s3_urls", "limit", "offset"}
        if unknown:
            raise Refusal(422, f"unknown parameters {unknown}", wrong=True)
        wanted, splits = request.query.get("id"), request.query.get("splits")
        datasets = request.query.get("dataset") or list(self.datasets)
        found = [e for d in datasets for e in self._at(d, request.one("as_of"))[1].values()]
        found = [
            e for e in found
            if (wanted is None or e["id"] in wanted)
            and (splits is None or set(splits) & set(e["metadata"]["dataset_split"]))
        ]  # fmt: skip
        return self._paged(request, found)

    def _latest_example(self, example_id: str) -> dict[str, Any]:
        for versions in self.versions.values():
            if example_id in versions[-1][1]:
                return versions[-1][1][example_id]
        raise Refusal(404, f"there is no example {example_id}")

    def _example(self, request: Request, path: dict[str, str]) -> Any:
        return self._latest_example(path["id"])

    def _change_example(self, request: Request, path: dict[str, str]) -> Any:
        body = ExampleBody.model_validate({**request.body, "id": path["id"]})
        return self._store_example(body, self._latest_example(path["id"]))

    def _drop_example(self, request: Request, path: dict[str, str]) -> Any:
        dataset_id = self._latest_example(path["id"])["dataset_id"]
        left = {i: e for i, e in self.versions[dataset_id][-1][1].items() if i != path["id"]}
        self._now()
        self.versions[dataset_id].append((self._tick, left))
        return {}

    # Projects, which are sessions here.

    def _make_session(self, name: str, session_id: str | None = None, **more: Any) -> dict[str, Any]:
        made = {
            "id": session_id or str(uuid.uuid4()), "name": name, "start_time": self._now(),
            "end_time": None, "description": None, "extra": None, "tenant_id": TENANT,
            "reference_dataset_id": None, **more,
        }  # fmt: skip
        self.sessions[made["id"]] = made
        return made

    def _new_session(self, request: Request, _: dict[str, str]) -> Any:
        body = SessionBody.model_validate(request.body)
        known = next((s for s in self.sessions.values() if s["name"] == body.name), None)
        dataset = None if body.reference_dataset_id is None else str(body.reference_dataset_id)
        if dataset is not None:
            self._dataset(dataset)
        if known is not None and request.one("upsert") != "True":
            raise Refusal(409, f"there is a project '{body.name}'")
        given = {"description": body.description, "extra": body.extra, "reference_dataset_id": dataset}
        if known is None:
            known = self._make_session(body.name, str(body.id))
        known.update(given)
        return known

    def _shown_session(self, session_id: str) -> dict[str, Any]:
        session = self._known(self.sessions, session_id)
        runs = {r["id"] for r in self.runs.values() if r["session_id"] == session_id}
        roots = [r for r in runs if self.runs[r]["parent_run_id"] is None]
        on_roots = [f for f in self.feedback.values() if f["run_id"] in roots]
        return {**session, "run_count": len(runs), "feedback_stats": _stats(on_roots)}

    def _find_sessions(self, request: Request, _: dict[str, str]) -> Any:
        name, dataset = request.one("name"), request.one("reference_dataset")
        found = [
            self._shown_session(i) for i, s in self.sessions.items()
            if name in (None, s["name"]) and dataset in (None, s["reference_dataset_id"])
        ]  # fmt: skip
        return self._paged(request, found)

    def _change_session(self, request: Request, path: dict[str, str]) -> Any:
        body = SessionPatch.model_validate(request.body)
        session = self._known(self.sessions, path["id"])
        session.update(body.model_dump(exclude_none=True, mode="json"))
        return session

    # Runs.

    def _ingest(self, request: Request, _: dict[str, str]) -> Any:
        if not isinstance(request.body, list):
            raise Refusal(422, "runs come as multipart/form-data", wrong=True)
        bodies: dict[tuple[str, str], dict[str, Any]] = {}
        for name, content in request.body:
            kind, run_id, *rest = name.split(".")
            if kind not in ("post", "patch") or len(rest) > 1:
                raise Refusal(422, f"unknown part '{name}'", wrong=True)
            body = bodies.setdefault((kind, run_id), {})
            body.update({rest[0]: content} if rest else content)
        posted = [run_id for kind, run_id in bodies if kind == "post"]
        known = [run_id for run_id in posted if run_id in self.runs]
        if known and len(known) < len(posted):
            raise Refusal(422, f"part of the payload was posted before: {known}", wrong=True)
        if known:
            self.repeated += known
            raise Refusal(409, "payload already received")
        for (kind, _), body in bodies.items():
            self._store_run(kind, RunBody.model_validate(body))
        return {}

    def _store_run(self, kind: str, body: RunBody) -> None:
        order = body.dotted_order.split(".")
        parents = [one[-36:] for one in order[:-1]]
        if (
            not all(_ORDER.fullmatch(one) for one in order)
            or order[-1][-36:] != str(body.id)
            or order[0][-36:] != str(body.trace_id)
            or (parents[-1] if parents else None) != (str(body.parent_run_id) if body.parent_run_id else None)
        ):
            raise Refusal(422, f"the order of run {body.id} contradicts it: {body.dotted_order}", wrong=True)
        given = body.model_dump(mode="json", exclude_none=True)
        if kind == "patch":
            if str(body.id) not in self.runs:
                raise Refusal(422, f"a patch of a run that was not posted: {body.id}", wrong=True)
            self.runs[str(body.id)].update({n: v for n, v in given.items() if n not in ("session_name", "address")})
        else:
            missing = [n for n in ("name", "run_type", "start_time") if n not in given]
            if missing or (body.session_name is None) == (body.session_id is None):
                raise Refusal(422, f"run {body.id} lacks {missing or 'one project'}", wrong=True)
            if body.session_id is not None:
                session = self._known(self.sessions, str(body.session_id))
            else:
                names = {s["name"]: s for s in self.sessions.values()}
                session = names.get(body.session_name) or self._make_session(body.session_name)
            if body.reference_example_id is not None:
                dataset = session["reference_dataset_id"]
                if dataset is None or str(body.reference_example_id) not in {
                    e for _, examples in self.versions[dataset] for e in examples
                }:
                    raise Refusal(422, f"run {body.id} refers to no example of its dataset", wrong=True)
            names = ("end_time", "outputs", "error", "reference_example_id", "parent_run_id", "tags")
            self.runs[str(body.id)] = {
                **dict.fromkeys(names), "inputs": {}, "extra": {}, "events": [], **given,
                "session_id": session["id"], "parent_run_ids": parents,
            }  # fmt: skip
        run = self.runs[str(body.id)]
        run["status"] = "error" if run["error"] else "success" if run["end_time"] else "pending"
        if run["end_time"] and datetime.fromisoformat(run["end_time"]) < datetime.fromisoformat(run["start_time"]):
            raise Refusal(422, f"run {body.id} ends before it starts", wrong=True)

    def _shown_run(self, run: dict[str, Any]) -> dict[str, Any]:
        shown = {n: v for n, v in run.items() if n not in ("serialized", "session_name", "address")}
        return {**shown, "feedback_stats": _stats(self.feedback_on(run["id"]))}

    def _run(self, request: Request, path: dict[str, str]) -> Any:
        if not self.old:
            raise Refusal(404, "this deployment has no such endpoint")
        return self._shown_run(self._known(self.runs, path["id"]))

    def _chosen(self, text: str | None, **wanted: Any) -> list[dict[str, Any]]:
        tree = None if text is None else parse(text)
        found = []
        for run in self.runs.values():
            start = datetime.fromisoformat(run["start_time"])
            start = start if start.tzinfo else start.replace(tzinfo=UTC)
            fits = {
                "projects": lambda v: run["session_id"] in v,
                "ids": lambda v: run["id"] in v,
                "trace": lambda v: run["trace_id"] == v,
                "root": lambda v: (run["parent_run_id"] is None) is v,
                "after": lambda v: start >= v,
                "before": lambda v: start <= v,
                "kind": lambda v: run["run_type"] == v,
                "failed": lambda v: (run["error"] is not None) is v,
            }
            if all(fits[n](v) for n, v in wanted.items() if v is not None) and (
                tree is None or matches(tree, run, self.feedback_on(run["id"]))
            ):
                found.append(run)
        return sorted(found, key=lambda r: r["start_time"], reverse=True)

    def _query(self, request: Request, _: dict[str, str]) -> Any:
        if not self.old:
            raise Refusal(404, "this deployment has no such endpoint")
        body = QueryBody.model_validate(request.body)
        found = self._chosen(
            body.filter,
            projects=_texts(body.session), ids=_texts(body.id), trace=_text(body.trace),
            root=body.is_root, after=_aware(body.start_time), before=_aware(body.end_time),
            kind=body.run_type, failed=body.error,
        )  # fmt: skip
        start, size = int(body.cursor or 0), min(body.limit or self.page, self.page, 100)
        more = str(start + size) if start + size < len(found) else None
        shown = [self._shown_run(r) for r in found[start : start + size]]
        return {"runs": shown, "cursors": {"next": more}}

    def _new_query(self, request: Request, _: dict[str, str]) -> Any:
        if not self.new:
            raise Refusal(404, "this deployment has no such endpoint")
        body = NewQueryBody.model_validate(request.body)
        for project in body.project_ids:
            self._known(self.sessions, str(project))
        found = self._chosen(
            body.filter,
            projects=_texts(body.project_ids), ids=_texts(body.ids), trace=_text(body.trace_id),
            root=body.is_root, after=_aware(body.min_start_time) or datetime.now(UTC) - timedelta(days=1),
            before=_aware(body.max_start_time),
        )  # fmt: skip
        start, size = int(body.cursor or 0), min(body.page_size or self.page, self.page)
        more = str(start + size) if start + size < len(found) else None
        items = [_newly_shown(self._shown_run(r), body.selects) for r in found[start : start + size]]
        return {"items": items, "next_cursor": more}

    # Feedback.

    def _new_feedback(self, request: Request, _: dict[str, str]) -> Any:
        body = FeedbackBody.model_validate(request.body)
        session = _text(body.session_id)
        if body.run_id is not None:
            run = self._known(self.runs, str(body.run_id))
            if session is None or session != run["session_id"]:
                raise Refusal(422, f"feedback on run {body.run_id} without its project", wrong=True)
        elif session is None:
            raise Refusal(422, "feedback on nothing", wrong=True)
        if str(body.id) in self.feedback:
            self.repeated.append(str(body.id))
        given = {n: None for n in ("score", "value", "comment", "correction", "run_id", "trace_id")}
        given.update(body.model_dump(mode="json"))
        self.feedback[str(body.id)] = given
        return given

    def _find_feedback(self, request: Request, _: dict[str, str]) -> Any:
        runs, keys, sessions = (request.query.get(n) for n in ("run", "key", "session"))
        found = [
            f for f in self.feedback.values()
            if (runs is None or f["run_id"] in runs)
            and (keys is None or f["key"] in keys)
            and (sessions is None or f["session_id"] in sessions)
        ]  # fmt: skip
        return self._paged(request, found)

    def _new_config(self, request: Request, _: dict[str, str]) -> Any:
        key = request.body["feedback_key"]
        self.configs[key] = {
            "feedback_key": key, "feedback_config": request.body["feedback_config"],
            "tenant_id": TENANT, "modified_at": self._now(),
            "is_lower_score_better": request.body.get("is_lower_score_better", False),
        }  # fmt: skip
        return self.configs[key]

    def _find_configs(self, request: Request, _: dict[str, str]) -> Any:
        wanted = request.query.get("key")
        return self._paged(request, [c for k, c in self.configs.items() if wanted is None or k in wanted])

    # Prompts.

    def _repo(self, path: dict[str, str]) -> Repo:
        if path["name"] not in self.repos:
            raise Refusal(404, f"there is no prompt '{path['name']}'")
        return self.repos[path["name"]]

    def _shown_repo(self, repo: Repo) -> dict[str, Any]:
        counts = dict.fromkeys(("num_likes", "num_downloads", "num_views"), 0)
        return {
            "id": repo.id, "repo_handle": repo.name, "full_name": f"-/{repo.name}", "owner": None,
            "tenant_id": TENANT, "is_archived": False, "created_at": self._now(),
            "updated_at": self._now(), "num_commits": len(repo.commits), **counts, **repo.about,
            "last_commit_hash": repo.commits[-1]["commit_hash"] if repo.commits else None,
        }  # fmt: skip

    def _new_repo(self, request: Request, _: dict[str, str]) -> Any:
        body = RepoBody.model_validate(request.body)
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", body.repo_handle):
            raise Refusal(422, f"no name for a prompt: '{body.repo_handle}'", wrong=True)
        if body.repo_handle in self.repos:
            raise Refusal(409, f"there is a prompt '{body.repo_handle}'")
        repo = self.repos[body.repo_handle] = Repo(body.repo_handle, body.model_dump(exclude={"repo_handle"}))
        return {"repo": self._shown_repo(repo)}

    def _change_repo(self, request: Request, path: dict[str, str]) -> Any:
        repo = self._repo(path)
        repo.about.update(RepoPatch.model_validate(request.body).model_dump(exclude_none=True))
        return {"repo": self._shown_repo(repo)}

    def _new_commit(self, request: Request, path: dict[str, str]) -> Any:
        repo, body = self._repo(path), CommitBody.model_validate(request.body)
        latest = repo.commits[-1] if repo.commits else None
        if len(body.description or "") > 1000:
            raise Refusal(422, "the description of a commit has at most 1000 characters", wrong=True)
        if not ({"lc", "type", "id", "kwargs"} <= body.manifest.keys()):
            raise Refusal(422, "this is no manifest", wrong=True)
        if latest is not None and latest["manifest"] == body.manifest:
            raise Refusal(409, "nothing to commit: prompt has not changed since latest commit")
        if body.parent_commit != (latest["commit_hash"] if latest else None):
            raise Refusal(409, "the parent is not the latest commit")
        text = json.dumps([body.manifest, body.parent_commit], sort_keys=True)
        made = {
            "id": str(uuid.uuid4()), "commit_hash": hashlib.sha256(text.encode()).hexdigest(),
            "parent_commit_hash": body.parent_commit, "manifest": body.manifest,
            "description": body.description, "created_at": self._now(),
        }  # fmt: skip
        repo.commits.append(made)
        return {"commit": made}

    def _commits(self, request: Request, path: dict[str, str]) -> Any:
        commits = [{n: v for n, v in c.items() if n != "manifest"} for c in self._repo(path).commits]
        return {"commits": self._paged(request, commits[::-1]), "total": len(commits)}

    def _commit(self, request: Request, path: dict[str, str]) -> Any:
        repo, wanted = self._repo(path), path["commit"]
        if wanted == "latest" and repo.commits:
            found = [repo.commits[-1]]
        elif wanted in repo.tags:
            found = [c for c in repo.commits if c["id"] == repo.tags[wanted]]
        else:
            found = [c for c in repo.commits if len(wanted) >= 8 and c["commit_hash"].startswith(wanted)]
        if not found:
            raise Refusal(404, f"'{repo.name}' has no commit '{wanted}'")
        return {**{n: found[0][n] for n in ("commit_hash", "manifest", "description")}, "examples": []}

    def _point(self, path: dict[str, str], tag: str, commit_id: str) -> Any:
        repo = self._repo(path)
        if all(c["id"] != commit_id for c in repo.commits):
            raise Refusal(404, f"there is no commit {commit_id}", wrong=True)
        repo.tags[tag] = commit_id
        return {"tag_name": tag, "commit_id": commit_id}

    def _new_tag(self, request: Request, path: dict[str, str]) -> Any:
        body = TagBody.model_validate(request.body)
        if body.tag_name in self._repo(path).tags and not self.moves_tags:
            raise Refusal(409, f"there is a tag '{body.tag_name}'")
        return self._point(path, body.tag_name, str(body.commit_id))

    def _move_tag(self, request: Request, path: dict[str, str]) -> Any:
        if path["tag"] not in self._repo(path).tags:
            raise Refusal(404, f"there is no tag '{path['tag']}'")
        return self._point(path, path["tag"], request.body["commit_id"])

    def _drop_tag(self, request: Request, path: dict[str, str]) -> Any:
        if self._repo(path).tags.pop(path["tag"], None) is None:
            raise Refusal(404, f"there is no tag '{path['tag']}'")
        return {}

    # Annotation queues.

    def _find_queues(self, request: Request, _: dict[str, str]) -> Any:
        name = request.one("name")
        return self._paged(request, [q for q in self.queues.values() if name in (None, q["name"])])

    def _new_queue(self, request: Request, _: dict[str, str]) -> Any:
        body = QueueBody.model_validate(request.body)
        made = {**body.model_dump(mode="json"), "tenant_id": TENANT, "created_at": self._now()}
        made["updated_at"] = made["created_at"]
        self.queues[made["id"]], self._queued[made["id"]] = made, []
        return made

    def _put_in_queue(self, queue: str, run_id: str) -> dict[str, Any]:
        self._known(self.queues, queue)
        run = self._known(self.runs, run_id)
        known = next((i for i in self._queued[queue] if i["run_id"] == run_id), None)
        if known is None:
            known = {
                "id": str(uuid.uuid4()), "queue_id": queue, "run_id": run_id, "item_type": "RUN",
                "project_id": run["session_id"], "start_time": run["start_time"],
                "added_at": self._now(), "last_reviewed_time": None,
            }  # fmt: skip
            self._queued[queue].append(known)
        return known

    def queued(self, name: str) -> list[dict[str, Any]]:
        """What is in the queue of that name."""
        return [self._queued[i] for i, q in self.queues.items() if q["name"] == name][0]

    def _enqueue(self, request: Request, path: dict[str, str]) -> Any:
        if not self.old:
            raise Refusal(404, "this deployment has no such endpoint")
        return [self._put_in_queue(path["id"], run_id) for run_id in request.body]

    def _enqueued(self, request: Request, path: dict[str, str]) -> Any:
        if not self.old:
            raise Refusal(404, "this deployment has no such endpoint")
        self._known(self.queues, path["id"])
        found = [
            {**self._shown_run(self.runs[i["run_id"]]), "added_at": i["added_at"]}
            for i in self._queued[path["id"]]
        ]
        return self._paged(request, found)

    def _new_items(self, request: Request, path: dict[str, str]) -> Any:
        if not self.new:
            raise Refusal(404, "this deployment has no such endpoint")
        made = []
        for item in request.body["items"]:
            if item.keys() != {"item_type", "project_id", "run_id", "start_time"}:
                raise Refusal(422, f"an item of a queue with {sorted(item)}", wrong=True)
            made.append(self._put_in_queue(path["id"], item["run_id"]))
        return {"items": made}

    def _items(self, request: Request, path: dict[str, str]) -> Any:
        if not self.new:
            raise Refusal(404, "this deployment has no such endpoint")
        self._known(self.queues, path["id"])
        section = request.one("status")
        if section not in ("needs_my_review", "needs_others_review", "archived"):
            raise Refusal(422, f"no section of a queue: {section}", wrong=True)
        mine = {False: "needs_my_review", True: "archived"}
        found = [i for i in self._queued[path["id"]] if mine[i["last_reviewed_time"] is not None] == section]
        start = int(request.one("cursor") or 0)
        more = str(start + self.page) if start + self.page < len(found) else None
        return {"items": found[start : start + self.page], "next_cursor": more}

    # HTTP.

    def __enter__(self) -> LangSmithServer:
        self._thread = threading.Thread(target=self._main, name="langsmith-server", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the test server does not stop"
        if self.errors and error is None:
            raise self.errors[0]

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=128, limit=2**20)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        named = (line.partition(":") for line in head[1:] if ":" in line)
        headers = {n.strip().lower(): v.strip() for n, _, v in named}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        url = urlsplit(target)
        request = Request(method, unquote(url.path), parse_qs(url.query), headers, raw)
        self.requests.append(request)
        fault = self.fault(request) if callable(self.fault) else self.fault
        if fault is not None and fault.kind == "answer":
            return await self._send(writer, fault.status, {"detail": "fault"}, fault.headers)
        if fault is None or fault.kind != "down":
            status, answer = self._answer(request)
            if fault is not None and fault.kind == "slow":
                await asyncio.sleep(fault.seconds)
            if fault is None or fault.kind != "lost":
                return await self._send(writer, status, answer)
        # Without lingering, closing the socket sends a reset instead of an orderly end.
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _answer(self, request: Request) -> tuple[int, Any]:
        try:
            if request.headers.get("x-api-key") != self.api_key:
                raise Refusal(401, "invalid API key")
            request.body = _body(request)
            for method, pattern, handler in self._routes:
                found = pattern.fullmatch(request.path)
                if found is not None and method == request.method:
                    return 200, handler(request, found.groupdict())
            raise Refusal(404, "no such endpoint", wrong=True)
        except Refusal as refusal:
            if refusal.wrong:
                self.errors.append(AssertionError(f"{request}: {refusal}"))
            return refusal.status, {"detail": str(refusal)}
        except Exception as error:
            kind = "malformed body" if isinstance(error, ValidationError | ValueError) else "failure"
            self.errors.append(AssertionError(f"{request}: {kind}: {error!r}\n{request.raw[:2000]!r}"))
            return 422, {"detail": repr(error)}

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, body: Any, more: dict[str, str] | None = None
    ) -> bool:
        payload = json.dumps(body).encode()
        fields = {"content-type": "application/json", "content-length": str(len(payload)), **(more or {})}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{k}: {v}" for k, v in fields.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
        await writer.drain()
        return True


def _body(request: Request) -> Any:
    kind = request.headers.get("content-type", "")
    if not request.raw:
        return None
    if not kind.startswith("multipart/form-data"):
        return json.loads(request.raw)
    boundary = kind.partition("boundary=")[2].strip('"').encode()
    parts = []
    for piece in request.raw.split(b"--" + boundary)[1:-1]:
        head, _, content = piece.strip(b"\r\n").partition(b"\r\n\r\n")
        found = re.search(rb'name="([^"]+)"', head)
        assert found is not None, head
        parts.append((found[1].decode(), json.loads(content)))
    return parts


def _stats(feedback: list[dict[str, Any]]) -> dict[str, Any]:
    stats: dict[str, Any] = {}
    for key in dict.fromkeys(f["key"] for f in feedback):
        scores = [f["score"] for f in feedback if f["key"] == key and f["score"] is not None]
        stats[key] = {
            "n": len(scores), "avg": sum(scores) / len(scores) if scores else None,
            "comments": [f["comment"] for f in feedback if f["key"] == key and f["comment"]],
        }  # fmt: skip
    return stats


def _newly_shown(run: dict[str, Any], selects: list[str]) -> dict[str, Any]:
    renamed = {"PROJECT_ID": "session_id"}
    shown: dict[str, Any] = {"id": run["id"]}
    for name in selects:
        value = run.get(renamed.get(name, name.lower()))
        shown[name.lower()] = value.upper() if name in ("RUN_TYPE", "STATUS") else value
    return shown


def _texts(values: list[uuid.UUID] | None) -> list[str] | None:
    return None if values is None else [str(v) for v in values]


def _text(value: uuid.UUID | None) -> str | None:
    return None if value is None else str(value)


def _aware(value: datetime | None) -> datetime | None:
    return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)
