"""A run directory that lives through kills, lost power, full disks, locks and other programs."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

import lg_textgrad as tg
from lg_textgrad.errors import StoreError
from lg_textgrad.run import Usage
from tests.store.parts import sql
from tests.store.writer import reply

ROOT = Path(__file__).parents[2]
USAGE = Usage(1, 0, 1, 1)


@pytest.fixture
def store(tmp_path):
    with tg.Store(tmp_path / "run") as store:
        yield store


def numbers_in(folder):
    """Return which numbers a copy of the writer's store has, each with the right reply."""
    with tg.Store(folder) as store:
        found = [int(key[1:]) for (key,) in sql(folder, "SELECT key FROM results ORDER BY rowid")]
        assert all(store.get_result(f"k{n}") == (reply(n), USAGE) for n in found)
    assert sql(folder, "PRAGMA integrity_check") == [("ok",)]
    return found


@contextmanager
def writing(where, *arguments, before=()):
    """Run `tests.store.writer`; yields the process, with what it acknowledges on `stdout`."""
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "tests.store.writer", str(where), *arguments],
        stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def acknowledged(process, count):
    return [int(process.stdout.readline()) for _ in range(count)]


# Kills and lost power.


def test_killed_writer_leaves_every_result_that_it_acknowledged(tmp_path):
    with writing(tmp_path / "run") as process:
        told = acknowledged(process, random.Random().randrange(1, 200))
        process.kill()
        told += [int(line) for line in process.stdout]
    assert set(told) <= set(numbers_in(tmp_path / "run"))


def test_what_the_disk_has_at_any_moment_is_a_store_with_all_that_was_acknowledged(tmp_path):
    """Stop the writer at arbitrary moments and start from a copy of its files, as after a crash."""
    dice = random.Random()
    with writing(tmp_path / "run") as process:
        told = []
        for moment in range(4):
            told += acknowledged(process, dice.randrange(1, 60))
            process.send_signal(signal.SIGSTOP)
            while "T" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]:
                os.sched_yield()
            copy = tmp_path / f"copy{moment}"
            copy.mkdir()
            for name in ("run.sqlite", "run.sqlite-wal"):
                shutil.copyfile(tmp_path / "run" / name, copy / name)
            process.send_signal(signal.SIGCONT)
            assert set(told) <= set(numbers_in(copy)), moment


def test_torn_log_loses_the_last_results_and_none_before(tmp_path):
    """Whatever part of the log's end was lost with the power, what is left is a beginning."""
    dice = random.Random()
    with tg.Store(tmp_path / "run") as store:
        shutil.copyfile(tmp_path / "run" / "run.sqlite", tmp_path / "begun")
        for number in range(40):
            store.put_result(f"k{number}", "rollout", {}, reply(number), USAGE)
        for name in ("run.sqlite", "run.sqlite-wal"):
            shutil.copyfile(tmp_path / "run" / name, tmp_path / name)
    whole = (tmp_path / "run.sqlite-wal").read_bytes()
    seen = set()
    for n in range(8):
        copy = tmp_path / f"copy{n}"
        copy.mkdir()
        shutil.copyfile(tmp_path / "run.sqlite", copy / "run.sqlite")
        cut = dice.randrange(32, len(whole))
        rest = dice.choice((b"", bytes(len(whole) - cut), dice.randbytes(len(whole) - cut)))
        (copy / "run.sqlite-wal").write_bytes(whole[:cut] + rest)
        found = numbers_in(copy)
        assert found == list(range(len(found))), cut
        seen.add(len(found))
    assert len(seen) > 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, to see the fsyncs")
def test_result_is_acknowledged_after_its_fsync(tmp_path):
    """In the order of system calls: the log is written, then synced, then the result is told."""
    log = tmp_path / "calls"
    trace = ["strace", "-f", "--seccomp-bpf", "-y", "-e", "trace=write,pwrite64,fdatasync,fsync", "-o", str(log)]
    with writing(tmp_path / "run", "1", "40", before=trace) as process:
        acknowledged(process, 40)
        process.wait()
    unsynced, told = False, 0
    for line in log.read_text().splitlines():
        if "run.sqlite-wal" in line and "pwrite64(" in line:
            unsynced = True
        elif "run.sqlite-wal" in line and re.search(r"f(data)?sync\(", line):
            unsynced = False
        elif re.search(r'write\(1<.*>, "\d+', line):
            told += 1
            assert not unsynced, line
    assert told == 40


# Group commit.


@contextmanager
def locked(folder):
    """Hold the lock that writing needs, as a database browser in the middle of a change does."""
    with closing(sqlite3.connect(folder / "run.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        other.execute("ROLLBACK")


async def test_loop_goes_on_and_reads_are_answered_while_a_write_waits(store):
    store.put_result("old", "critic", {}, "r", USAGE)
    with locked(store.directory):
        task = asyncio.create_task(store.aput_result("new", "critic", {}, "r", USAGE))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        assert await store.aget_result("old") == ("r", USAGE)
        assert await store.aget_result("new") is None
    await task
    assert store.get_result("new") == ("r", USAGE)


async def test_writes_that_wait_together_share_one_transaction(store):
    commits = []

    @sa.event.listens_for(store._place.engine, "checkout")
    def count(connection, _record, _proxy):
        connection.set_trace_callback(lambda said: commits.append(said) if said == "COMMIT" else None)

    with locked(store.directory):
        tasks = [asyncio.create_task(store.aput_result(f"k{i}", "critic", {}, i, USAGE)) for i in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert 1 <= len(commits) <= 2  # the first may have been on its way before the others came
    assert store.paid() == {"critic": Usage(50, 0, 50, 50)}


async def test_callers_of_one_transaction_are_woken_together(store, monkeypatch):
    loop, woken = asyncio.get_running_loop(), []
    call = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *a, **more: woken.append(a) or call(*a, **more))
    with locked(store.directory):
        tasks = [asyncio.create_task(store.aput_result(f"k{i}", "critic", {}, i, USAGE)) for i in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert 1 <= len(woken) <= 2


async def test_write_after_an_interrupted_one_is_made_with_what_that_had_taken(store, monkeypatch):
    write, interrupted = store._place.write, []

    def interrupt(rows):
        if not interrupted:
            interrupted.append(rows)
            raise KeyboardInterrupt
        write(rows)

    def put():
        with suppress(KeyboardInterrupt):  # it may be the store's own thread that gets it
            store.put_meta("ours", 1)

    monkeypatch.setattr(store._place, "write", interrupt)
    thread = threading.Thread(target=put)
    with store._writer._turn:  # all have come before anyone's turn
        waiting = asyncio.create_task(store.aput_result("theirs", "critic", {}, "r", USAGE))
        await asyncio.sleep(0)
        thread.start()
    await asyncio.wait_for(waiting, 10)
    thread.join()
    assert interrupted
    store.put_meta("later", 1)
    assert store.get_result("theirs") == ("r", USAGE)
    assert store.get_meta("ours") == 1


async def test_write_that_cannot_be_made_fails_alone(store):
    with locked(store.directory):
        tasks = [
            asyncio.create_task(
                store.aput_result(f"k{i}", "critic", {}, i, Usage(1, 0, 2**70 if i == 7 else 1, 1))
            )
            for i in range(20)
        ]
        await asyncio.sleep(0)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [i for i, error in enumerate(done) if error is not None] == [7]
    assert store.paid() == {"critic": Usage(19, 0, 19, 19)}


async def test_cancelled_caller_leaves_its_write_to_be_made(store):
    with locked(store.directory):
        task = asyncio.create_task(store.aput_result("k", "critic", {}, "r", USAGE))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    store.put_meta("later", 1)  # comes after what waited
    assert store.get_result("k") == ("r", USAGE)


# Disks and directories that refuse.


FULL = """
import asyncio, json, os, sys
import lg_textgrad as tg
from lg_textgrad.run import Usage
from lg_textgrad.errors import StoreError
folder = sys.argv[1]

def fill():
    with open(folder + "/fill", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
"""

WRITES = FULL + """
last, stored = "", 0
with tg.Store(folder + "/run") as store:
    fill()
    try:
        while True:
            store.put_result(f"k{stored}", "critic", {}, os.urandom(3000).hex(), Usage(1, 0, 1, 1))
            stored += 1
    except StoreError as error:
        last = str(error)
    kept = sum(store.get_result(f"k{n}") is not None for n in range(stored))
    os.truncate(folder + "/fill", 0)
    store.put_result("after", "critic", {}, "r", Usage(1, 0, 1, 1))
with tg.Store(folder + "/run") as store:
    calls = store.paid()["critic"].calls
print(json.dumps({"error": last, "stored": stored, "kept": kept, "calls": calls}))
"""

CALLS = FULL + """
asked, begun, late = 200, [], []

async def main():
    with tg.Store(folder + "/run") as store:
        ledger = tg.Ledger(store, max_concurrency=8)
        fill()

        async def call(n):
            begun.append(n)
            late.extend([n] if store._place.full else [])
            await asyncio.sleep(0.01)
            return os.urandom(3000).hex(), Usage(1, 0, 1, 1)

        async def pay(n):
            try:
                await ledger.apay(f"k{n}", "critic", {}, lambda: call(n))
            except StoreError as error:
                return str(error)

        errors = set(await asyncio.gather(*map(pay, range(asked)))) - {None}
        try:
            ledger.keep("tool", {}, lambda: late.append("tool"))
        except StoreError as error:
            errors.add(str(error))
        await ledger.aclose()
        kept = sum(store.get_result(f"k{n}") is not None for n in begun)
        print(json.dumps({"errors": list(errors), "begun": len(begun), "late": late, "kept": kept}))

asyncio.run(main())
"""


def on_a_small_disk(folder, script):
    """Return what the script prints, in a process whose `argv[1]` is a file system of 3 MB."""
    mount = "mount -t tmpfs -o size=3m none"
    run = f'{mount} "$1" && exec "$2" -c "$3" "$1"'
    done = None
    for how in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        if shutil.which("unshare") is None:
            break
        done = subprocess.run(
            [*how, "sh", "-c", run, "sh", str(folder), sys.executable, script],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if done.returncode == 0:
            break
    if done is None or "Operation not permitted" in done.stderr or "ermission denied" in done.stderr:
        pytest.skip("no file system of a fixed size can be mounted here")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CANNOT_GROW = r"cannot grow: database or disk is full\. What was stored before is safe; free some"


def test_full_disk_is_told_what_was_under_way_is_kept_and_it_goes_on_when_there_is_room(tmp_path):
    told = on_a_small_disk(tmp_path, WRITES)
    assert re.search(CANNOT_GROW, told["error"])
    assert told["stored"] == told["kept"] == told["calls"] - 1
    assert told["stored"] >= 16  # the spare had room for the calls that were under way


def test_no_call_begins_on_a_full_disk_and_every_paid_reply_is_kept(tmp_path):
    told = on_a_small_disk(tmp_path, CALLS)
    [error] = told["errors"]
    assert re.search(CANNOT_GROW, error)
    assert told["late"] == []
    assert 8 <= told["kept"] == told["begun"] < 200


@pytest.fixture(params=["pages", "bytes"])
def cramped(request, store):
    """Let the store's file grow no more: by SQLite's own limit, or by the process's."""
    resource = pytest.importorskip("resource")
    size = (store.directory / "run.sqlite-wal").stat().st_size
    if request.param == "pages":

        def limit(connection, _record, _proxy=None):
            connection.execute("PRAGMA max_page_count = 40")

        sa.event.listen(store._place.engine, "checkout", limit)
        yield lambda: sa.event.remove(store._place.engine, "checkout", limit)
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, before[1]))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_store_that_cannot_grow_fails_whole_writes_and_keeps_the_others(store, cramped):
    stored = 0
    with pytest.raises(StoreError, match=r"(disk is full|disk I/O error)\. What was stored before is safe"):
        while True:
            store.put_result(f"k{stored}", "critic", {}, random.randbytes(3000).hex(), USAGE)
            stored += 1
    assert stored > 0
    assert all(store.get_result(f"k{n}") for n in range(stored))
    assert store.get_result(f"k{stored}") is None
    cramped()
    with closing(sqlite3.connect(store.directory / "run.sqlite")) as db:
        db.execute("PRAGMA max_page_count = 100000")
    for connection in range(2):
        store._place.engine.dispose()
        store.put_result(f"later{connection}", "critic", {}, "r", USAGE)
    assert store.paid()["critic"].calls == stored + 2


@contextmanager
def unprivileged():
    """Be somebody for whom permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that anybody may use; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def close_to_writers(folder):
    for path in folder.iterdir():
        path.chmod(stat.S_IREAD | stat.S_IRGRP | stat.S_IROTH)
    folder.chmod(0o555)


@pytest.mark.skipif(os.name != "posix", reason="permissions of this kind")
@pytest.mark.parametrize("how", ["closed", "killed"])
def test_directory_that_may_not_be_written_is_refused_for_writing_and_read_all_the_same(open_folder, how):
    folder = open_folder / "run"
    with unprivileged():
        with tg.Store(folder) as store:
            store.put_result("k", "critic", {}, "r", USAGE)
            if how == "killed":  # what a killed process leaves: the log is still there
                shutil.copytree(folder, open_folder / "copy")
                folder = open_folder / "copy"
                (folder / "run.sqlite-shm").unlink()
        close_to_writers(folder)
        try:
            with pytest.raises(StoreError, match="The run directory .* cannot be written: .*ermission denied"):
                tg.Store(folder)
            with tg.Store(folder, read_only=True) as store:
                assert store.get_result("k") == ("r", USAGE)
            before = sorted(p.name for p in folder.iterdir())
        finally:
            folder.chmod(0o755)
    assert ("run.sqlite-wal" in before) == (how == "killed")


def test_directory_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        tg.Store(tmp_path / "f")


def test_directory_without_locks_is_refused_with_what_to_use_instead(tmp_path, monkeypatch):
    def refused(_file, operation):
        if operation & fcntl.LOCK_EX:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(StoreError, match=r"No locks available\. Its file system has no locks.*PostgreSQL URL"):
        tg.Store(tmp_path / "run")


def test_reading_where_no_run_is(tmp_path):
    with pytest.raises(StoreError, match=r"it has no run\.sqlite"):
        tg.Store(tmp_path, read_only=True)
    (tmp_path / "run.sqlite").write_bytes(b"")
    with pytest.raises(StoreError, match=r"its run\.sqlite is empty"):
        tg.Store(tmp_path, read_only=True)


def test_any_name_of_a_directory_will_do(tmp_path):
    folder = tmp_path / "a?b#c%20d &é"
    for _ in range(2):
        with tg.Store(folder) as store:
            store.put_meta("k", 1)
    with tg.Store(folder, read_only=True) as store:
        assert store.get_meta("k") == 1
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_closed_store_leaves_one_file_and_the_lock(tmp_path):
    with tg.Store(tmp_path / "run") as store:
        store.put_meta("k", 1)
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {"run.sqlite", "run.lock"}


# Other programs.


def test_lock_of_another_program_is_told(tmp_path):
    with tg.Store(tmp_path, busy_seconds=0.05) as store:
        with locked(tmp_path):
            with pytest.raises(StoreError, match=r"locked by another program for 0\.05 s.*Close it and run"):
                store.put_meta("k", 1)
            assert store.get_meta("k") is None
        store.put_meta("k", 1)


def test_database_of_something_else_is_not_touched(tmp_path):
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as db, db:
        db.execute("CREATE TABLE addresses (name TEXT)")
    before = (tmp_path / "run.sqlite").read_bytes()
    for read_only in (False, True):
        with pytest.raises(StoreError, match="an SQLite database of something else"):
            tg.Store(tmp_path, read_only=read_only)
    assert (tmp_path / "run.sqlite").read_bytes() == before


def test_failing_database_is_a_store_error(store):
    store.put_result("k", "rollout", {}, 1, Usage())
    sql(store.directory, "DROP TABLE results")
    with pytest.raises(StoreError, match="no such table: results"):
        store.get_result("k")


_FORKED = """
import asyncio, os, signal, sys
from lg_textgrad.errors import StoreError
from lg_textgrad.run import Usage
from lg_textgrad.store import Store

async def put(store, key):
    await store.aput_result(key, "rollout", {}, {}, Usage(1, prompt_tokens=1))

def entries():
    return store.directory and sorted(os.listdir(store.directory))

store = Store(sys.argv[1])
asyncio.run(put(store, "own"))
before = entries()
child = os.fork()
if child == 0:
    signal.alarm(10)
    with store:
        try:
            asyncio.run(put(store, "child's"))
        except StoreError as error:
            sys.exit(0 if "forked from" in str(error) else 1)
    sys.exit(2)
status = os.waitpid(child, 0)[1]
assert entries() == before, entries()
try:
    Store(sys.argv[1])
except StoreError as error:
    assert "Another Store of this same process is working in" in str(error)
else:
    sys.exit(3)
asyncio.run(put(store, "more"))
store.close()
sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_forked_process_is_refused_and_leaves_what_is_its_parents(where):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKED, str(where)]
    done = subprocess.run(command, cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with tg.Store(where, read_only=True) as store:
        assert store.paid()["rollout"].calls == 2
