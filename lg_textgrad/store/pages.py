"""Rows out of the pages of an SQLite file, without trusting its trees.

A page of a table's rows says for itself where they begin, so a row can be read although the pages
that lead to it are gone. Format: https://www.sqlite.org/fileformat2.html. What comes out may be
nonsense or no longer current; the row's own check tells.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Bytes = bytes | mmap.mmap
Value = None | int | float | str | bytes

_LEAF = 0x0D
_LOG_HEADER, _FRAME_HEADER = 32, 24


def rows_in(path: Path, log: Path | None = None) -> Iterator[tuple[int, tuple[Value, ...]]]:
    """Yield (row id, values) of every row that can be made out, also in the write-ahead log.

    An INTEGER PRIMARY KEY is None among the values: it is the row id.
    """
    with _mapped(path) as data, _mapped(log) as logged:
        pages = _Pages(data, logged, _size(logged[8:12]) or _page_size(data))
        for page in pages.all():
            yield from _rows(page, pages)


def missing_end(path: Path) -> int:
    """Return how many bytes a file lacks that was cut short; 0 where its header can't be read."""
    with _mapped(path) as data:
        pages = int.from_bytes(data[28:32]) if data[:15] == b"SQLite format 3" else 0
        return max(0, pages * _page_size(data) - len(data))


@contextmanager
def _mapped(path: Path | None) -> Iterator[Bytes]:
    if path is None or not path.is_file() or path.stat().st_size == 0:
        yield b""
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _page_size(data: Bytes) -> int:
    (size,) = struct.unpack(">H", data[16:18]) if len(data) >= 18 else (0,)
    size = 65536 if size == 1 else size
    if data[:15] == b"SQLite format 3" and size >= 512 and size & (size - 1) == 0:
        return int(size)
    return 4096  # SQLite's default, and ours


def _size(four: bytes) -> int:
    size = int.from_bytes(four)
    return size if 512 <= size <= 65536 and size & (size - 1) == 0 else 0


class _Pages:
    """The pages of a file, by number from 1, in each version that there is."""

    def __init__(self, data: Bytes, log: Bytes, size: int) -> None:
        self.size = size
        self.total = len(data) + len(log)
        self._data = data
        self._log = log
        self._frames: dict[int, list[int]] = {}
        """Page number -> where the log has it, the latest last."""
        at = _LOG_HEADER + _FRAME_HEADER
        while at + size <= len(log):
            number = int.from_bytes(log[at - _FRAME_HEADER : at - _FRAME_HEADER + 4])
            self._frames.setdefault(number, []).append(at)
            at += size + _FRAME_HEADER

    def all(self) -> Iterator[bytes]:
        """Yield every version of every page: the log's latest first, what they replaced last."""
        for frames in self._frames.values():
            for at in reversed(frames):
                yield self._log[at : at + self.size]
        for start in range(0, len(self._data), self.size):
            yield self._data[start : start + self.size].ljust(self.size, b"\0")

    def versions(self, number: int) -> list[bytes]:
        """Return the versions of one page, the latest first."""
        found = [self._log[at : at + self.size] for at in reversed(self._frames.get(number, []))]
        page = self._data[(number - 1) * self.size : number * self.size] if number > 0 else b""
        return [*found, page] if len(page) == self.size else found


def _rows(page: bytes, pages: _Pages) -> Iterator[tuple[int, tuple[Value, ...]]]:
    start = 100 if page[:15] == b"SQLite format 3" else 0
    if page[start] != _LEAF:
        return
    (count,) = struct.unpack(">H", page[start + 3 : start + 5])
    pointers = page[start + 8 : start + 8 + 2 * count]
    for i in range(0, len(pointers) - 1, 2):
        (at,) = struct.unpack(">H", pointers[i : i + 2])
        if at:
            yield from _cell(page, at, pages)


def _cell(page: bytes, at: int, pages: _Pages) -> Iterator[tuple[int, tuple[Value, ...]]]:
    try:
        length, at = _varint(page, at)
        number, at = _varint(page, at)
        if length > pages.total:
            return
        # How much stays on the page: section 1.6 of the format.
        most, least = pages.size - 35, (pages.size - 12) * 32 // 255 - 23
        if length <= most:
            bodies: Iterator[bytes] = iter([page[at : at + length]])
        else:
            here = least + (length - least) % (pages.size - 4)
            here = here if here <= most else least
            follow = int.from_bytes(page[at + here : at + here + 4])
            bodies = _chains(page[at : at + here], follow, length, pages)
        for body in bodies:
            if len(body) == length and (values := _record(body)) is not None:
                yield number, values
    except (IndexError, struct.error, OverflowError):
        return  # nonsense where a row should begin


def _chains(start: bytes, number: int, length: int, pages: _Pages) -> Iterator[bytes]:
    """Yield the row's bytes: with the log's pages where it has them, and without the log."""
    for version in (0, -1):
        body, follow, room = [start], number, length - len(start)
        while room > 0 and (found := pages.versions(follow)):
            page = found[version]
            body.append(page[4 : 4 + room])
            room -= len(body[-1])
            follow = int.from_bytes(page[:4])
        if room == 0:
            yield b"".join(body)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, at + i + 1
    return (value << 8) | data[at + 8], at + 9


_FIXED: dict[int, Callable[[bytes], Value]] = {
    **dict.fromkeys(range(1, 7), lambda data: int.from_bytes(data, signed=True)),
    7: lambda data: float(struct.unpack(">d", data)[0]),
}
_WIDTHS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)


def _record(body: bytes) -> tuple[Value, ...] | None:
    """Return a row's values; None for what is no row."""
    head, at = _varint(body, 0)
    values: list[Value] = []
    data = head
    while at < head:
        kind, at = _varint(body, at)
        if kind in (10, 11):
            return None
        width = _WIDTHS[kind] if kind < 10 else (kind - 12) // 2
        piece = body[data : data + width]
        if len(piece) != width:
            return None
        data += width
        if kind >= 12:
            values.append(piece.decode("utf-8", "replace") if kind % 2 else piece)
        elif kind in (0, 8, 9):
            values.append(None if kind == 0 else kind - 8)
        else:
            values.append(_FIXED[kind](piece))
    return tuple(values) if data == len(body) and at == head else None
