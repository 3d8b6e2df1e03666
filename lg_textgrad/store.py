"""What was paid for, content-addressed; candidates, lineage, decisions and events.

One SQLite file a run directory. Everything is written the moment it is known and under a key that
is made from its content, so writing it again changes nothing: a run that was killed is started
again from the top and finds all that it had paid for.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from lg_textgrad._hashing import to_plain
from lg_textgrad.errors import StoreError
from lg_textgrad.parameter import Edit, Gradient
from lg_textgrad.run import Candidate, Example, Execution, Feedback, ModelCall, Run, ToolCall, Usage

_tables = sa.MetaData()
_meta = sa.Table(
    "meta",
    _tables,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
_results = sa.Table(
    "results",
    _tables,
    sa.Column("key", sa.String(80), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("reply", sa.Text, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
_runs = sa.Table(
    "runs",
    _tables,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("candidate", sa.String(16), nullable=False, index=True),
    sa.Column("example", sa.String(200), nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
_feedback = sa.Table(
    "feedback",
    _tables,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("objective", sa.String(64), primary_key=True),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
)
_gradients = sa.Table(
    "gradients",
    _tables,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("parameter", sa.String(200), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
)
_candidates = sa.Table(
    "candidates",
    _tables,
    sa.Column("hash", sa.String(16), primary_key=True),
    sa.Column("parent", sa.String(16)),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("texts", sa.Text, nullable=False),
    sa.Column("edits", sa.Text, nullable=False),
)
_decisions = sa.Table(
    "decisions",
    _tables,
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("candidate", sa.String(16), primary_key=True),
    sa.Column("stage", sa.String(16), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
)
_events = sa.Table(
    "events",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
)

FILE_NAME = "run.sqlite"


class Store:
    """One run directory. Use as a context manager, or call `close()`.

    `directory` None keeps everything in memory. `read_only` opens what is there, without the lock
    that keeps a second process from writing. Raises `StoreError` when the directory cannot be
    used, another process is writing to it, or the file is not a store.
    """

    def __init__(self, directory: str | Path | None = None, *, read_only: bool = False) -> None:
        self.directory = Path(directory) if directory is not None else None
        self._guard = threading.RLock()
        self._lock: FileLock | None = None
        if self.directory is None:
            url = "sqlite://"
        else:
            path = self.directory / FILE_NAME
            if read_only:
                if not path.is_file():
                    raise StoreError(
                        f"There is no run in '{self.directory}': it has no {FILE_NAME}. "
                        "Give the directory that `optimize --out` wrote to."
                    )
                url = f"sqlite:///file:{path.absolute()}?mode=ro&uri=true"
            else:
                self._claim(self.directory)
                url = f"sqlite:///{path.absolute()}"
        self._engine = sa.create_engine(
            url, poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        try:
            if self.directory is not None and not read_only:
                with self._engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                    # A paid result survives a power failure once `put_result` has returned.
                    connection.exec_driver_sql("PRAGMA synchronous=FULL")
            if not read_only:
                _tables.create_all(self._engine)
        except (DBAPIError, OperationalError) as error:
            self.close()
            raise StoreError(
                f"The store in '{self.directory}' cannot be used: {error.orig}. Move the directory "
                "away to start afresh, or free the disk and try again."
            ) from None

    def _claim(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(str(directory / "run.lock"))
            self._lock.acquire(timeout=0)
        except Timeout:
            self._lock = None
            raise StoreError(
                f"Another process is working in '{directory}'. Wait for it, or use another --out."
            ) from None
        except OSError as error:
            raise StoreError(
                f"The run directory '{directory}' cannot be written: {error}."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._guard:
            self._engine.dispose()
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._guard:
            try:
                with self._engine.begin() as connection:
                    yield connection
            except SQLAlchemyError as error:
                cause = getattr(error, "orig", None) or error
                raise StoreError(
                    f"The store in '{self.directory}' failed: {cause}. What was stored before is "
                    "safe; mend the cause and run `lg-textgrad resume`."
                ) from None

    def _put(self, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        where = sa.and_(*(table.c[name] == value for name, value in key.items()))
        with self._transaction() as connection:
            connection.execute(sa.delete(table).where(where))
            connection.execute(sa.insert(table).values(**key, **values))

    def _rows(self, query: sa.Select[Any]) -> list[Any]:
        with self._transaction() as connection:
            return list(connection.execute(query))

    # What was asked of models.

    def get_result(self, key: str) -> tuple[Any, Usage] | None:
        """Return the reply stored under `key` and what it cost; None when there is none."""
        rows = self._rows(sa.select(_results).where(_results.c.key == key))
        if not rows:
            return None
        row = rows[0]
        return json.loads(row.reply), Usage(
            1, 0, row.prompt_tokens, row.completion_tokens, row.seconds
        )

    def put_result(self, key: str, kind: str, request: Any, reply: Any, usage: Usage) -> None:
        """Keep a reply. It is on disk when this returns."""
        self._put(
            _results,
            {"key": key},
            {
                "kind": kind,
                "request": _dump(to_plain(request)),
                "reply": _dump(reply),
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "seconds": usage.seconds,
                "created": time.time(),
            },
        )

    def paid(self) -> dict[str, Usage]:
        """Return what all stored results cost, by kind of call."""
        c = _results.c
        query = sa.select(
            c.kind,
            sa.func.count().label("calls"),
            sa.func.sum(c.prompt_tokens).label("prompt_tokens"),
            sa.func.sum(c.completion_tokens).label("completion_tokens"),
            sa.func.sum(c.seconds).label("seconds"),
        ).group_by(c.kind)
        return {
            row.kind: Usage(row.calls, 0, row.prompt_tokens, row.completion_tokens, row.seconds)
            for row in self._rows(query)
        }

    def results(self, kinds: Collection[str], after: float = 0.0) -> list[dict[str, Any]]:
        """Return the results of some kinds that are younger than `after`, the oldest first.

        Each has `key`, `kind`, `request`, `reply`, `usage` and `created`, in seconds since 1970.
        """
        c = _results.c
        query = sa.select(_results).where(c.kind.in_(kinds), c.created > after).order_by(c.created)
        return [
            {
                "key": row.key,
                "kind": row.kind,
                "request": json.loads(row.request),
                "reply": json.loads(row.reply),
                "usage": Usage(1, 0, row.prompt_tokens, row.completion_tokens, row.seconds),
                "created": row.created,
            }
            for row in self._rows(query)
        ]

    # Runs and what evaluators said of them.

    def get_run(self, run_id: str, example: Example) -> Run | None:
        rows = self._rows(sa.select(_runs.c.payload).where(_runs.c.id == run_id))
        return decode_run(json.loads(zlib.decompress(rows[0].payload)), example) if rows else None

    def put_run(self, run: Run) -> None:
        payload = zlib.compress(_dump(encode_run(run)).encode(), 1)
        self._put(
            _runs,
            {"id": run.id},
            {
                "candidate": run.candidate,
                "example": run.example.id[:200],
                "error": to_plain(run.error),
                "payload": payload,
            },
        )

    def get_feedback(self, run_id: str, objective: str) -> list[Feedback] | None:
        c = _feedback.c
        rows = self._rows(
            sa.select(c.payload).where(c.run == run_id, c.objective == objective)
        )
        if not rows:
            return None
        return [
            Feedback(f["key"], f["score"], f["comment"], _frozen(f["reads"]))
            for f in json.loads(rows[0].payload)
        ]

    def put_feedback(
        self, run_id: str, objective: str, score: float, feedback: Sequence[Feedback]
    ) -> None:
        payload = [
            {"key": f.key, "score": f.score, "comment": f.comment, "reads": _listed(f.reads)}
            for f in feedback
        ]
        self._put(
            _feedback,
            {"run": run_id, "objective": objective},
            {"score": score, "payload": _dump(payload)},
        )

    def scores(self) -> dict[tuple[str, str], float]:
        """Return the score of each (candidate hash, example id) that was scored."""
        query = sa.select(_runs.c.candidate, _runs.c.example, _feedback.c.score).where(
            _runs.c.id == _feedback.c.run
        )
        return {(row.candidate, row.example): row.score for row in self._rows(query)}

    # How candidates came to be.

    def put_gradients(self, step: int, gradients: Sequence[Gradient]) -> None:
        for g in gradients:
            self._put(
                _gradients,
                {"id": g.id, "step": step},
                {"parameter": g.parameter, "payload": _dump(asdict(g))},
            )

    def gradients(self) -> dict[str, Gradient]:
        """Return every gradient by its id."""
        rows = self._rows(sa.select(_gradients).order_by(_gradients.c.step))
        return {row.id: Gradient(**json.loads(row.payload)) for row in rows}

    def put_candidate(
        self, candidate_hash: str, candidate: Candidate, *, parent: str | None, step: int,
        edits: Sequence[Edit] = (),
    ) -> None:
        self._put(
            _candidates,
            {"hash": candidate_hash},
            {
                "parent": parent,
                "step": step,
                "texts": _dump(candidate),
                "edits": _dump([asdict(e) for e in edits]),
            },
        )

    def candidates(self) -> dict[str, dict[str, Any]]:
        """Return hash -> `texts`, `parent` (hash or None), `step`, `edits`."""
        rows = self._rows(sa.select(_candidates).order_by(_candidates.c.step, _candidates.c.hash))
        return {
            row.hash: {
                "texts": json.loads(row.texts),
                "parent": row.parent,
                "step": row.step,
                "edits": [
                    Edit(**{**e, "gradients": tuple(e["gradients"])})
                    for e in json.loads(row.edits)
                ],
            }
            for row in rows
        }

    def put_decision(
        self, step: int, number: int, candidate_hash: str, stage: str, payload: Any
    ) -> None:
        self._put(
            _decisions,
            {"step": step, "candidate": candidate_hash, "stage": stage},
            {"number": number, "payload": _dump(payload)},
        )

    def decisions(self) -> list[dict[str, Any]]:
        """Return the decisions in the order in which they were made."""
        c = _decisions.c
        return [
            {"step": row.step, "candidate": row.candidate, **json.loads(row.payload)}
            for row in self._rows(sa.select(_decisions).order_by(c.step, c.number))
        ]

    # The rest.

    def get_meta(self, key: str) -> Any:
        rows = self._rows(sa.select(_meta.c.value).where(_meta.c.key == key))
        return json.loads(rows[0].value) if rows else None

    def put_meta(self, key: str, value: Any) -> None:
        self._put(_meta, {"key": key}, {"value": _dump(value)})

    def add_event(self, kind: str, payload: Any) -> None:
        with self._transaction() as connection:
            connection.execute(
                sa.insert(_events).values(
                    at=time.time(), kind=kind, payload=_dump(payload)
                )
            )

    def events(self) -> list[dict[str, Any]]:
        return [
            {"at": row.at, "kind": row.kind, **json.loads(row.payload)}
            for row in self._rows(sa.select(_events).order_by(_events.c.number))
        ]


def _dump(value: Any) -> str:
    """Return JSON that people can read; with escapes where the text has no UTF-8 form."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _listed(names: frozenset[str] | None) -> list[str] | None:
    return None if names is None else sorted(names)


def _frozen(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


def encode_run(run: Run) -> dict[str, Any]:
    """Return the run as JSON data, without its example (that comes from the data again)."""
    return {
        "id": run.id,
        "candidate": run.candidate,
        "outputs": to_plain(run.outputs),
        "executions": [
            {
                **{
                    name: to_plain(getattr(e, name))
                    for name in Execution.__dataclass_fields__
                    if name not in ("model_calls", "tool_calls")
                },
                "model_calls": [asdict(c) for c in e.model_calls],
                "tool_calls": [asdict(c) for c in e.tool_calls],
            }
            for e in run.executions
        ],
        "error": run.error,
        "failed_in": run.failed_in,
        "usage": asdict(run.usage),
        "seconds": run.seconds,
        "sample": run.sample,
        "warnings": list(run.warnings),
        "accumulating": {path: list(names) for path, names in run.accumulating.items()},
    }


def decode_run(data: dict[str, Any], example: Example) -> Run:
    """Return the run that `encode_run` made `data` from."""
    executions = tuple(
        Execution(
            **{
                **e,
                "writes": tuple((channel, value) for channel, value in e["writes"]),
                "overwrites": frozenset(e["overwrites"]),
                "sends": tuple(e["sends"]),
                "goto": tuple(e["goto"]),
                "reads": _frozen(e["reads"]),
                "model_calls": tuple(
                    ModelCall(
                        **{
                            **c,
                            "messages": tuple(c["messages"]),
                            "tools": tuple(c["tools"]),
                            "usage": Usage(**c["usage"]),
                        }
                    )
                    for c in e["model_calls"]
                ),
                "tool_calls": tuple(ToolCall(**c) for c in e["tool_calls"]),
            }
        )
        for e in data["executions"]
    )
    return Run(
        **{
            **data,
            "executions": executions,
            "usage": Usage(**data["usage"]),
            "warnings": tuple(data["warnings"]),
            "accumulating": {path: tuple(names) for path, names in data["accumulating"].items()},
            "example": example,
        }
    )
