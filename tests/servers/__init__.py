"""Servers on loopback that the tests talk to."""

from __future__ import annotations

import socket


def free_port():
    """Return a port of loopback on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
