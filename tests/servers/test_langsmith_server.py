"""The loopback LangSmith is strict: what no real one would take fails the test."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
import requests
from langsmith import Client
from langsmith.utils import LangSmithError

from tests.servers.langsmith_filter import matches, parse
from tests.servers.langsmith_server import Fault, LangSmithServer


def run(run_id=None, parent=None, **more):
    run_id = run_id or uuid4()
    now = datetime.now(UTC)
    order = f"{now.strftime('%Y%m%dT%H%M%S%fZ')}{run_id}"
    return {
        "id": str(run_id), "trace_id": str(run_id), "dotted_order": order, "name": "n", "run_type": "chain",
        "start_time": now.isoformat(), "session_name": "p", "inputs": {}, **more,
    }  # fmt: skip


def tell(server, *runs, **options):
    client = Client(server.url, api_key=server.api_key, auto_batch_tracing=False, **options)
    client.multipart_ingest(create=list(runs))
    client.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("GET", "/nowhere", None, "no such endpoint"),
        ("POST", "/datasets", {"name": "x"}, "malformed body"),
        ("POST", "/feedback", {"id": str(uuid4()), "key": "k", "more": 1}, "malformed body"),
        ("POST", "/sessions", {"id": "x", "name": "p", "extra": {}, "description": None}, "malformed body"),
        ("POST", "/runs/multipart", {"id": 1}, "runs come as multipart"),
        ("POST", "/repos/-/None/tags", {}, "no such endpoint"),
        ("GET", "/examples?datset=1", None, "unknown parameters"),
    ],
)
def test_what_no_langsmith_takes_fails_the_test(method, path, body, words):
    with pytest.raises(AssertionError, match=words), LangSmithServer() as server:
        answer = requests.request(method, server.url + path, json=body, headers={"x-api-key": server.api_key})
        assert answer.status_code in (404, 422)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([run(dotted_order="nonsense")], "contradicts it"),
        ([run(parent_run_id=str(uuid4()))], "contradicts it"),
        ([run(trace_id=str(uuid4()))], "contradicts it"),
        ([run(end_time="2001-01-01T00:00:00+00:00")], "ends before it starts"),
        ([run(reference_example_id=str(uuid4()))], "no example of its dataset"),
        ([run(session_name=None)], "malformed|lacks one project"),
    ],
)
def test_run_that_contradicts_itself_fails_the_test(runs, words):
    with pytest.raises(AssertionError, match=words), LangSmithServer() as server:
        tell(server, *runs)


def test_payload_is_taken_once_and_part_of_one_again_fails_the_test():
    first, second = run(), run()
    with LangSmithServer() as server:
        tell(server, dict(first))
        tell(server, dict(first))
        assert server.repeated == [first["id"]]
        assert len(server.runs) == 1
    with pytest.raises(AssertionError, match="part of the payload was posted before"), LangSmithServer() as server:
        tell(server, dict(first))
        tell(server, dict(first), dict(second))


def test_error_in_the_test_itself_is_not_hidden():
    with pytest.raises(ZeroDivisionError), LangSmithServer() as server:
        requests.get(server.url + "/nowhere", headers={"x-api-key": server.api_key})
        raise ZeroDivisionError


def test_faults():
    with LangSmithServer() as server:
        headers = {"x-api-key": server.api_key}
        server.fault = Fault.answer(429, **{"retry-after": "7"})
        assert requests.get(server.url + "/info", headers=headers).headers["retry-after"] == "7"
        for fault in (Fault.down(), Fault.lost()):
            server.fault = fault
            with pytest.raises(requests.ConnectionError):
                requests.get(server.url + "/info", headers=headers)
        server.fault = None
        assert requests.get(server.url + "/info").status_code == 401
        assert len(server.seen("GET /info")) == 4
        wrong = Client(server.url, api_key="wrong", auto_batch_tracing=False)
        with pytest.raises(LangSmithError):
            wrong.read_project(project_name="x")
        wrong.close()


RUN = {
    "name": "a", "run_type": "chain", "error": None, "parent_run_id": None, "tags": ["x"],
    "start_time": "2026-01-02T00:00:00+00:00", "status": "success", "extra": {"metadata": {"user": "ann", "n": 3}},
}  # fmt: skip
FEEDBACK = [
    {"key": "thumbs", "score": 0.0, "feedback_source": {"type": "app"}},
    {"key": "stars", "score": 4.0, "feedback_source": {"type": "api"}},
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('eq(name, "a")', True),
        ('and(eq(feedback_key, "thumbs"), lt(feedback_score, 1))', True),
        ('and(eq(feedback_key, "stars"), lt(feedback_score, 1))', False),  # one and the same feedback
        ('and(and(eq(feedback_key, "thumbs"), eq(feedback_score, 0)), and(eq(feedback_key, "stars"), gte(feedback_score, 4)))', True),
        ('or(eq(name, "b"), neq(status, "error"))', True),
        ('not(has(tags, "x"))', False),
        ('and(eq(metadata_key, "user"), eq(metadata_value, "ann"))', True),
        ('and(eq(metadata_key, "n"), eq(metadata_value, "ann"))', False),
        ('gt(start_time, "2026-01-01")', True),
        ("eq(error, null)", True),
        ("eq(is_root, true)", True),
        ('in(name, ["a", "b"])', True),
    ],
)
def test_filters(text, expected):
    assert matches(parse(text), RUN, FEEDBACK) is expected


@pytest.mark.parametrize("text", ["", "eq(name)", 'eq(nmae, "a")', 'like(name, "a")', 'eq(name, "a"', "name", "eq(name, 'a') x", "$"])
def test_what_is_no_filter(text):
    with pytest.raises(ValueError):
        parse(text)
