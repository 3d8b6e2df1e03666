"""Asking LangSmith for runs: the new endpoints where there are any, else the deprecated ones.

Only here it matters which. What comes back has the form of the deprecated ones, which LangChain's
tracer writes. Both are asked by path, since the SDK has the new ones for another event loop only
and has announced to remove its methods for the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lg_textgrad.errors import DataError, LangSmithError, LangSmithUnavailableError
from lg_textgrad.langsmith.connection import LangSmith, status_of

StoredRun = dict[str, Any]

_NEW_FIELDS = (
    "ID", "NAME", "RUN_TYPE", "STATUS", "START_TIME", "END_TIME", "ERROR", "EXTRA", "METADATA",
    "INPUTS", "OUTPUTS", "PARENT_RUN_IDS", "PROJECT_ID", "TRACE_ID", "DOTTED_ORDER", "TAGS",
)  # fmt: skip
_OLD_FIELDS = (
    "id", "name", "run_type", "status", "start_time", "end_time", "error", "extra", "inputs",
    "outputs", "parent_run_id", "session_id", "trace_id", "dotted_order", "tags",
)  # fmt: skip
_PAGE = 100
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
_QUEUE_SECTIONS = ("needs_my_review", "needs_others_review", "archived")


class Queries:
    """Reads runs and queues of one LangSmith."""

    def __init__(self, langsmith: LangSmith) -> None:
        self.langsmith = langsmith
        self._new: bool | None = None
        """Whether there are the new endpoints; None until it is known."""

    def project_id(self, name: str) -> str:
        """Return the id of a project. Raises `DataError` when there is none of that name."""
        found = self.langsmith.find(lambda client: client.read_project(project_name=name))
        if found is None:
            raise DataError(
                f"LangSmith at {self.langsmith.url} has no project '{name}'; give the name of one "
                "that is in the workspace of the API key."
            )
        return str(found.id)

    def runs(
        self,
        project: str,
        *,
        where: str | None = None,
        ids: Sequence[str] | None = None,
        trace: str | None = None,
        root: bool | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> list[StoredRun]:
        """Return runs of a project (its id), the youngest first.

        `where` is a filter in LangSmith's language, `trace` the id of a trace whose runs are
        wanted. Raises `LangSmithError` for a filter that LangSmith doesn't understand.
        """
        new: Mapping[str, Any] = {
            "project_ids": [project],
            "selects": list(_NEW_FIELDS),
            "page_size": _PAGE,
            # Without a start LangSmith looks no further back than a day.
            "min_start_time": (since or _LONG_AGO).isoformat(),
            "max_start_time": until.isoformat() if until else None,
            "filter": where, "ids": ids, "trace_id": trace, "is_root": root,
        }  # fmt: skip
        old: Mapping[str, Any] = {
            "session": [project],
            "select": list(_OLD_FIELDS),
            "limit": _PAGE,
            "start_time": since.isoformat() if since else None,
            "end_time": until.isoformat() if until else None,
            "filter": where, "id": ids, "trace": trace, "is_root": root,
        }  # fmt: skip
        found: list[StoredRun] = []
        for run in self._either(
            lambda: self._new_pages({k: v for k, v in new.items() if v is not None}),
            lambda: self._old_pages({k: v for k, v in old.items() if v is not None}),
        ):
            found.append(run)
            if limit is not None and len(found) >= limit:
                break
        return found

    def _either(self, new: Any, old: Any) -> Iterator[StoredRun]:
        """Yield from the new way, or from the old one where the new isn't there."""
        if self._new is not False:
            runs = new()
            try:
                first = next(runs, None)
            except LangSmithUnavailableError:
                raise
            except LangSmithError as error:
                if status_of(error) not in (404, 405, 501) or self._new:
                    raise
                self._new = False
            else:
                self._new = True
                if first is not None:
                    yield first
                    yield from runs
                return
        yield from old()

    def _new_pages(self, body: dict[str, Any]) -> Iterator[StoredRun]:
        while True:
            page = self.langsmith.request("POST", "/api/v2/runs/query", whole=True, json=body)
            for run in page.get("items") or ():
                yield _as_old(run)
            if not page.get("next_cursor"):
                return
            body = {**body, "cursor": page["next_cursor"]}

    def _old_pages(self, body: dict[str, Any]) -> Iterator[StoredRun]:
        while True:
            page = self.langsmith.request("POST", "/runs/query", json=body)
            yield from page.get("runs") or ()
            cursor = (page.get("cursors") or {}).get("next")
            if not cursor:
                return
            body = {**body, "cursor": cursor}

    # Annotation queues.

    def queue_id(self, name: str) -> str | None:
        """Return the id of an annotation queue; None when there is none of that name."""
        found = self.langsmith.call(lambda c: list(c.list_annotation_queues(name=name, limit=1)))
        return str(found[0].id) if found else None

    def queued(self, name: str) -> list[dict[str, str]]:
        """Return `run_id` and `project_id` of everything in a queue, reviewed or not.

        Raises `DataError` when there is no queue of that name.
        """
        queue = self.queue_id(name)
        if queue is None:
            raise DataError(
                f"LangSmith at {self.langsmith.url} has no annotation queue '{name}'."
            )
        found = self._either(lambda: self._new_queued(queue), lambda: self._old_queued(queue))
        return list({item["run_id"]: item for item in found}.values())

    def _new_queued(self, queue: str) -> Iterator[dict[str, str]]:
        for section in _QUEUE_SECTIONS:
            params: dict[str, Any] = {"status": section, "page_size": _PAGE}
            while True:
                page = self.langsmith.request("GET", _items(queue), whole=True, params=params)
                for item in page.get("items") or ():
                    if item.get("run_id"):
                        yield {"run_id": item["run_id"], "project_id": item["project_id"]}
                if not page.get("next_cursor"):
                    break
                params["cursor"] = page["next_cursor"]

    def _old_queued(self, queue: str) -> Iterator[dict[str, str]]:
        start = 0
        while True:
            page = self.langsmith.request(
                "GET", f"/annotation-queues/{queue}/runs", params={"limit": _PAGE, "offset": start}
            )
            for run in page:
                yield {"run_id": str(run["id"]), "project_id": str(run["session_id"])}
            if len(page) < _PAGE:
                return
            start += len(page)

    def enqueue(self, queue: str, run_id: str, project: str, start: datetime) -> None:
        """Put a run into the queue of that id."""
        item = {
            "item_type": "RUN", "run_id": run_id, "project_id": project,
            "start_time": start.isoformat(),
        }  # fmt: skip

        def new() -> Iterator[Any]:
            body = {"items": [item]}
            yield self.langsmith.request("POST", _items(queue), whole=True, json=body)

        def old() -> Iterator[Any]:
            path = f"/annotation-queues/{queue}/runs"
            yield self.langsmith.request("POST", path, json=[run_id])

        list(self._either(new, old))


def _items(queue: str) -> str:
    return f"/api/v1/platform/annotation-queues/{queue}/items"


def _as_old(run: Mapping[str, Any]) -> StoredRun:
    """Return a run of the new endpoint in the form of the old one."""
    parents = run.get("parent_run_ids") or []
    extra = dict(run.get("extra") or {})
    if run.get("metadata") and not extra.get("metadata"):
        extra["metadata"] = run["metadata"]
    return {
        **{name: run.get(name) for name in _OLD_FIELDS},
        "run_type": str(run.get("run_type") or "chain").lower(),
        "status": str(run.get("status") or "").lower(),
        "session_id": run.get("project_id"),
        "parent_run_id": parents[-1] if parents else None,
        "extra": extra,
        "inputs": run.get("inputs") or {},
    }
