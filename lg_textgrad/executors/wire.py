"""What home and a worker say to each other, and how errors travel.

Home is the process that has the ledger. A worker runs graphs, and asks home before it asks a model
or a tool: home looks the answer up, or says when the worker may go ahead, and has on disk what came
of it before the worker goes on.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lg_textgrad.errors import ExecutorError, LGTextGradError
from lg_textgrad.faults import FailedElsewhere, Fault, fault_of
from lg_textgrad.recording.base import Recorded
from lg_textgrad.redaction import brief, scrub
from lg_textgrad.run import Candidate, Example
from lg_textgrad.traffic import Route

PAY, KEEP, RECORDED = "pay", "keep", "recorded"
"""What is asked for: a model's reply, a tool's answer, or what is recorded of one."""


# From home to a worker.


@dataclass(frozen=True, slots=True)
class Begin:
    """Run the graph."""

    run: int
    example: Example
    candidate: Candidate
    sample: int
    kind: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for the run any more."""

    run: int


@dataclass(frozen=True, slots=True)
class Go:
    """Make one attempt of a call: its place and its price are reserved."""

    call: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Give an attempt up: it took too long."""

    call: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Given:
    """What was asked for. It is kept."""

    call: int
    value: Any


@dataclass(frozen=True, slots=True)
class Refused:
    """There will be no answer."""

    call: int
    error: bytes | None
    """None where it is what the last attempt raised on the worker."""


# From a worker to home.


@dataclass(frozen=True, slots=True)
class Ask:
    """A node asks for something."""

    run: int
    call: int
    what: str
    key: str
    kind: str
    request: Any
    route: Route | None = None
    renew: bool = False
    urgent: bool = False
    """Whether it stops the loop in which other calls of the worker would end."""


@dataclass(frozen=True, slots=True)
class Left:
    """Who had asked does not wait any more."""

    run: int
    call: int


@dataclass(frozen=True, slots=True)
class Made:
    """An attempt came to this."""

    call: int
    attempt: int
    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt raised."""

    call: int
    attempt: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Gone:
    """An attempt was not made, or was broken off: nobody was there for it."""

    call: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Count:
    """Something is wrong with a reply: count it."""

    run: int
    kind: str


@dataclass(frozen=True, slots=True)
class Shut:
    """Calls of this route are pointless from now on."""

    run: int
    route: Route | None
    error: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over."""

    run: int
    recorded: Recorded | None
    """Without its outputs, which stand below; None when it raised."""
    outputs: bytes | None = None
    """The live objects, pickled; None where they can't be."""
    plain: Mapping[str, Any] | None = None
    """The same as JSON data, as a store would give them back."""
    lost: bool = False
    failure: bytes | None = None
    error: bytes | None = None
    """What was raised instead."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a call raised."""

    name: str
    text: str
    fault: Fault | None
    error: bytes | None
    """The error itself, where it is one of ours."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        own = packed(error) if isinstance(error, LGTextGradError) else None
        text = brief(scrub(str(error)))
        return cls(type(error).__name__, text, fault_of(error), own)

    def raised(self) -> Exception:
        """Return what stands for the error at home."""
        if self.error is not None:
            return unpacked(self.error)
        return FailedElsewhere.named(self.name, self.text, self.fault)


def packed(error: BaseException) -> bytes:
    """Return an error as bytes: ours as they are, others by their name and text."""
    if not isinstance(error, LGTextGradError):
        error = ExecutorError(f"{type(error).__name__}: {brief(scrub(str(error)))}")
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # noqa: S301 - our own; some classes can be written but not read
    except Exception:  # whatever an error of the user's own has in it
        data = pickle.dumps(ExecutorError(f"{type(error).__name__}: {error}"))
    return data


def unpacked(data: bytes) -> Exception:
    """Return what `packed` was given."""
    error = pickle.loads(data)  # noqa: S301 - from a worker that runs the user's own code
    assert isinstance(error, Exception), error
    return error
