"""Addresses of Ray clusters, looked at before Ray itself tries them for many minutes."""

from __future__ import annotations

import os
import socket

from lg_textgrad.errors import ConfigurationError

_ANSWER = 20.0
"""Seconds that a cluster may take to answer at its address."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of gRPC begins; a server of gRPC answers with the same kind of frame, 4."""


def check_kind(address: str) -> None:
    """Raise `ConfigurationError` for an address of another of Ray's doors."""
    kind, found, _ = address.partition("://")
    if found:
        whose = "Ray's client" if kind == "ray" else "Ray's dashboard and jobs"
        raise ConfigurationError(
            f"'{address}' is an address for {whose}, which cannot carry a run; start on a machine "
            "of the cluster, with the address HOST:PORT that `ray start` printed, or with auto."
        )


def check_answers(address: str) -> None:
    """Raise `OSError` where no Ray cluster answers at HOST:PORT: Ray tries for many minutes."""
    host, found, port = address.rpartition(":")
    if not (found and port.isdecimal()) or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER) as connection:
            connection.sendall(_GREETING)
            said = connection.recv(16)
    except (OSError, OverflowError) as error:
        raise OSError(f"nobody answers there ({type(error).__name__}: {error})") from None
    if said[3:4] != _GREETING[-6:-5]:
        raise OSError("what answers there is not the cluster's own port, but another program")
