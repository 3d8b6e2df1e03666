from __future__ import annotations

import warnings

import pytest
from langsmith import Client

from lg_textgrad.langsmith.connection import LangSmith
from tests.servers.langsmith_server import LangSmithServer


@pytest.fixture
def server(monkeypatch):
    """A LangSmith, which is not the environment's."""
    for name in ("ENDPOINT", "API_KEY", "TRACING", "TRACING_V2", "PROJECT"):
        monkeypatch.delenv(f"LANGSMITH_{name}", raising=False)
        monkeypatch.delenv(f"LANGCHAIN_{name}", raising=False)
    with LangSmithServer() as server:
        yield server


@pytest.fixture
def client(server):
    """The real client, to put things there and to read them back."""
    with warnings.catch_warnings():
        client = Client(server.url, api_key=server.api_key, auto_batch_tracing=False)
        yield client
        client.close()


@pytest.fixture
def langsmith(server):
    """Our own connection."""
    with LangSmith(server.url, server.api_key, patient=False) as langsmith:
        yield langsmith
