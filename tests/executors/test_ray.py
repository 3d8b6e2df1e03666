"""Runs on a real Ray cluster of two nodes, on this machine, with workers that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import lg_textgrad as tg
from lg_textgrad import cli
from lg_textgrad._sync import run_sync
from lg_textgrad.errors import ConfigurationError, ExecutorError, GraphError, MissingExtraError
from lg_textgrad.executors import Ray
from lg_textgrad.executors import ray as executor
from lg_textgrad.executors.actor import Worker
from lg_textgrad.executors.luggage import pack
from lg_textgrad.executors.wire import unpacked
from tests import desk
from tests.executors import far_app
from tests.servers.openai_server import OpenAIServer

ray = pytest.importorskip("ray", reason="Ray is not installed here")

pytestmark = [
    # Ray's own: files and sockets that it leaves to the garbage collector, and what it deprecates.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::UserWarning:ray"),
]

KEY = "sk-that-nobody-may-see-1234567890"
_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def server(module_patch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("far")
    with OpenAIServer(far_app.play) as running:
        (folder / "log").touch()
        given = {
            "FAR_URL": running.base_url, "FAR_LOG": str(folder / "log"), "FAR_KEY": KEY,
            "FAR_DEADLY": "deadly", "DESK_BASE_URL": running.base_url,
            "OPENAI_BASE_URL": running.base_url, "OPENAI_API_KEY": KEY,
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }  # fmt: skip
        for name, value in given.items():
            module_patch.setenv(name, value)
        yield running
        run_sync(far_app.aclose())


@pytest.fixture(scope="module")
def cluster(server):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=_NODE)
    cluster.second = cluster.add_node(
        **{k: v for k, v in _NODE.items() if k != "include_dashboard"}
    )
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def workers(cluster):
    """An executor that stays open, since workers take seconds to start."""
    with Ray(far_app.build(), far_app.SPEC, cluster.address, env=["FAR_URL", "FAR_KEY"]) as opened:
        opened.graph.executor = None
        yield opened


@pytest.fixture
def far(workers, server):
    server.handler, server.latency = far_app.play, 0.0
    server.requests.clear()
    workers.graph.executor = workers
    yield workers
    workers.graph.executor = None


def record(graph, rows, ledger, **options):
    async def run():
        try:
            with tg.use_ledger(ledger):
                return await graph.arecord(rows, **options)
        finally:
            await ledger.aclose()

    return run_sync(run())


def asked(server):
    return Counter(json.dumps(body, sort_keys=True) for body in server.chats)


def test_runs_traces_scores_and_store_are_those_of_a_run_in_process(far, server, tmp_path):
    rows, objective = far_app.rows(12), tg.Objective([far_app.long_answers])
    with tg.Store(tmp_path / "here") as here, tg.Store(tmp_path / "there") as there:
        there_runs = record(far.graph, rows, tg.Ledger(there))
        at_workers = asked(server)
        server.requests.clear()
        far.graph.executor = None
        here_runs = record(far.graph, rows, tg.Ledger(here))
        assert asked(server) == at_workers
        assert [far_app.told(r) for r in there_runs] == [far_app.told(r) for r in here_runs]
        assert [r.usage.calls for r in there_runs] == [4] * 12
        assert objective(there_runs).score == objective(here_runs).score
        assert far_app.kept(there) == far_app.kept(here)
    assert len({node for node, _ in far.workers}) == 2


def test_limit_is_one_for_all_workers(far, server):
    server.latency = 0.03
    ledger = tg.Ledger(max_concurrency=3)
    server.peak = 0
    runs = record(far.graph, far_app.rows(8), ledger)
    assert all(run.error is None for run in runs)
    assert 2 <= server.peak <= 3 + 2  # and one call of each worker that stops its own loop


def test_runs_of_a_killed_worker_are_made_elsewhere_and_repay_nothing(far, server, tmp_path):
    rows = far_app.rows(10)
    held, killed = threading.Event(), threading.Event()
    before = dict(far.workers)

    async def until_killed(body):
        # The answers of some runs are held until a worker is gone; the others' are there already.
        if "You answer" in str(body) and not killed.is_set():
            held.set()
            while not killed.is_set():
                await asyncio.sleep(0.01)
        return far_app.play(body)

    def kill():
        held.wait(60)
        pid = min(before.values())
        os.kill(pid, signal.SIGKILL)
        desk.wait_for(lambda: pid not in [p for _, p in far.workers], 60)
        killed.set()

    server.handler = until_killed
    killer = threading.Thread(target=kill)
    killer.start()
    with tg.Store(tmp_path / "run") as store:
        ledger = tg.Ledger(store, max_concurrency=8)
        runs = record(far.graph, rows, ledger)
        killer.join()
        assert [run.error for run in runs] == [None] * 10
        twice = {body for body, n in asked(server).items() if n > 1}
        # Only what was under way when the worker died: answers, and at most as many as the limit.
        assert len(twice) <= 8
        assert all("You answer" in body or "You " in body for body in twice)
        assert ledger.account.spent.calls == 40
        # What came home in the moment of the kill is the account's alone.
        assert 40 - 8 <= sum(run.usage.calls for run in runs) <= 40
        assert ledger.traffic.faults == {}
        found = far_app.kept(store)
    far.graph.executor = None
    server.handler = far_app.play
    with tg.Store(tmp_path / "near") as near:
        assert [far_app.told(r) for r in runs] == [
            far_app.told(r) for r in record(far.graph, rows, tg.Ledger(near))
        ]
        assert far_app.kept(near) == found
    desk.wait_for(lambda: len(far.workers) == 2, 60)


def test_run_that_takes_its_worker_along_fails_alone_and_is_not_kept(far, server, tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "_SHARED_LOSSES", 1)
    monkeypatch.setattr(executor, "_LOSSES", 2)
    deadly = tg.Example("deadly", {"message": "deadly word"})
    rows = [*far_app.rows(2), deadly]
    with tg.Store(tmp_path / "run") as store:
        *others, lost = record(far.graph, rows, tg.Ledger(store))
        assert [run.error for run in others] == [None] * 2
        assert "its workers were lost 2 times" in lost.error
        assert lost.provisional
        assert store.get_run(lost.id, deadly) is None
        assert all(store.get_run(run.id, run.example) is not None for run in others)
    desk.wait_for(lambda: len(far.workers) == 2, 60)


def test_command_line_tunes_on_a_cluster_as_it_does_in_process(
    cluster, server, tmp_path, monkeypatch, capsys
):
    server.handler = desk.Script()
    config = desk.project(tmp_path, module="far_desk")
    with config.open("a") as file:
        file.write('executor_options = {env = ["DESK_BASE_URL"], runs_per_worker = 4}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for out, more in (("near", []), ("far", ["--executor", f"ray:{cluster.address}"])):
        sys.modules.pop("far_desk", None)  # its prompts have what the run before accepted
        assert cli.main(["optimize", "optimize.toml", "--out", out, "--json", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    near, far = found
    for name in ("baseline", "best", "parameters", "steps", "accepted", "rejected", "stopped_by"):
        assert far[name] == near[name]
    assert far["spent"]["calls"] == near["spent"]["calls"]
    with tg.Store("near", read_only=True) as one, tg.Store("far", read_only=True) as other:
        kinds = ("rollout", "critic", "rewriter")
        assert {r["key"] for r in one.results(kinds)} == {r["key"] for r in other.results(kinds)}


def test_killed_home_leaves_no_worker_and_goes_on_without_paying_twice(
    cluster, server, tmp_path, monkeypatch, capsys
):
    script, held, killed = desk.Script(), threading.Event(), threading.Event()

    async def until_killed(body):
        # In the middle of the first step: some answers are at home, some never will be.
        while len(server.chats) > 40 and not killed.is_set():
            held.set()
            await asyncio.sleep(0.01)
        return await script(body)

    server.handler = until_killed
    server.requests.clear()
    config = desk.project(tmp_path, module="far_home")
    with config.open("a") as file:
        file.write('executor_options = {env = ["DESK_BASE_URL"], runs_per_worker = 4}\n')
    pids = tmp_path / "pids"
    with (tmp_path / "far_home.py").open("a") as file:
        file.write(f"import os\nwith open({str(pids)!r}, 'a') as log:\n    log.write(f'{{os.getpid()}}\\n')\n")
    given = {name: os.environ[name] for name in ("DESK_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY")}
    arguments = ["optimize", "optimize.toml", "--out", "run", "--executor", f"ray:{cluster.address}"]
    home = desk.start(arguments, tmp_path, tmp_path / "log", given)
    desk.wait_for(lambda: held.is_set() or not home.is_alive(), 120)
    assert home.is_alive(), (tmp_path / "log").read_text()
    home.kill()
    home.join()
    killed.set()
    workers = {int(line) for line in pids.read_text().split()} - {home.pid}
    assert workers
    desk.wait_for(lambda: not any(map(is_alive, workers)), 60)

    kinds = ("rollout", "critic", "rewriter")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with tg.Store("run", read_only=True) as store:
        at_kill = {result["key"] for result in store.results(kinds)}
    asked_before = len(server.chats)
    assert 0 < asked_before - len(at_kill) <= 8  # under way, under one limit
    assert cli.main(["resume", "run", "--json", "--executor", "local"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    asked_after = len(server.chats) - asked_before
    with tg.Store("run", read_only=True) as store:
        assert {r["key"] for r in store.results(kinds)} > at_kill
        assert len(store.results(kinds)) == len(at_kill) + asked_after
    sys.modules.pop("far_home", None)  # its prompts have what the run before accepted
    assert cli.main(["optimize", "optimize.toml", "--out", "whole", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    for name in ("baseline", "best", "parameters", "steps", "accepted", "rejected", "stopped_by"):
        assert resumed[name] == whole[name]
    assert resumed["spent"]["calls"] == whole["spent"]["calls"]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_graph_that_workers_cannot_load_is_refused_with_the_reason(server, tmp_path, monkeypatch):
    (tmp_path / "home_only.py").write_text("raise RuntimeError('not here')\n")
    monkeypatch.chdir(tmp_path)
    luggage = pickle.dumps(pack(far_app.build(), "home_only:graph"))
    before = list(sys.path)

    async def load():
        worker = Worker()
        assert await worker.hello() == tg.__version__
        return await worker.load(luggage)

    try:
        pid, error = asyncio.run(load())
    finally:
        sys.path[:] = before
    assert pid == os.getpid()
    with pytest.raises(GraphError, match="importing home_only raised RuntimeError: not here"):
        raise unpacked(error)


def test_no_key_is_in_any_file_of_ray(workers, server):
    from ray._private.worker import global_worker

    folder = Path(global_worker.node.get_session_dir_path())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("worker" in path.name for path in files)
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []


def test_runs_of_a_node_that_is_gone_are_made_on_another(far, server, cluster):
    held, gone = threading.Event(), threading.Event()
    node = cluster.second.node_id

    async def until_gone(body):
        while "You answer" in str(body) and not gone.is_set():
            held.set()
            await asyncio.sleep(0.01)
        return far_app.play(body)

    def remove():
        held.wait(60)
        cluster.remove_node(cluster.second, allow_graceful=False)
        desk.wait_for(lambda: node not in [n for n, _ in far.workers], 60)
        gone.set()

    server.handler = until_gone
    remover = threading.Thread(target=remove)
    remover.start()
    ledger = tg.Ledger(max_concurrency=8)
    runs = record(far.graph, far_app.rows(8), ledger)
    remover.join()
    assert [run.error for run in runs] == [None] * 8
    assert ledger.account.spent.calls == 32
    assert {n for n, _ in far.workers} == {cluster.head_node.node_id}


def test_executor_that_is_closed_runs_nothing(server):
    graph = far_app.build()
    graph.executor = Ray(graph, far_app.SPEC)
    with pytest.raises(ExecutorError, match="inside of its `with` block"):
        record(graph, far_app.rows(1), tg.Ledger())


def test_missing_extra_is_said_with_the_command_that_mends_it(monkeypatch):
    executor._ray.cache_clear()
    monkeypatch.setitem(sys.modules, "ray", None)
    try:
        with pytest.raises(MissingExtraError, match=r"pip install 'lg-textgrad\[ray\]'"):
            Ray(far_app.build(), far_app.SPEC).__enter__()
    finally:
        executor._ray.cache_clear()


@pytest.mark.parametrize("variable", [False, True], ids=["given", "RAY_ADDRESS"])
def test_address_at_which_there_is_no_cluster_is_told_at_once(server, monkeypatch, variable):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    http = server.base_url.split("/")[2]
    for address, said in (
        (nobody, "nobody answers there .*refused"),
        ("no-such-host.invalid:6379", "nobody answers there"),
        (f"{http}", "not the cluster's own port"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        begun = time.monotonic()
        with pytest.raises(ExecutorError, match=f"no Ray cluster at '{address}' to be had: .*{said}"):
            far = Ray(far_app.build(), far_app.SPEC, None if variable else address)
            connect(far)
        assert time.monotonic() - begun < 30


def test_run_that_failed_before_it_began_says_to_run_the_same_command_again(
    server, tmp_path, monkeypatch, capsys
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    desk.project(tmp_path, module="late_desk")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    asked = ["optimize", "optimize.toml", "--out", "r", "--executor", f"ray:{nobody}"]
    assert cli.main(asked) == 1
    said = capsys.readouterr().err
    assert "nobody answers there" in said
    assert "Run the same command again; what is stored is not paid for again." in said
    assert "resume" not in said


def connect(far):
    """Connect as for the first time, though another test's cluster may be open in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)
        far.__enter__()


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://127.0.0.1:8265"])
def test_address_of_another_door_of_ray_in_the_environment_is_refused(server, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigurationError, match=f"'{address}' is an address for Ray's"):
        connect(Ray(far_app.build(), far_app.SPEC))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": "http://127.0.0.1:8265"}, "an address for Ray's dashboard"),
        ({"address": "ray://10.0.0.1:10001"}, "an address for Ray's client"),
        ({"runs_per_worker": 0}, "`runs_per_worker` of Ray must be a whole number of at least 1"),
        ({"workers_per_node": 1.5}, "`workers_per_node` of Ray must be a whole number"),
        ({"runtime_env": {"env_vars": {"A": "b"}}}, "name the variables in the executor's env"),
        ({"runtime_env": {"workingdir": "."}}, "has no field 'workingdir'; it has .*working_dir"),
        ({"env": "OPENAI_API_KEY"}, "env is a list of names"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ConfigurationError, match=said):
        Ray(far_app.build(), far_app.SPEC, **options)
