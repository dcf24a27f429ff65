"""Whether a host takes connections. Asked first, it lets a request fail at once instead of after minutes of retries."""

from __future__ import annotations

import os
import socket
from threading import Thread
from urllib.parse import urlsplit

PATIENCE = 2.0  # seconds until a host counts as out of reach
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def way_to(address: str) -> str:
    """Return the proxy that leads to `address`, if one is set, else `address`."""
    return next(filter(None, map(os.environ.get, _PROXIES)), address)


def answers(address: str) -> bool:
    """Return True if the host of an address takes a connection within `PATIENCE`, the look-up of its name included."""
    found: list[bool] = []
    asking = Thread(target=lambda: found.append(_connects(address)), daemon=True)  # a name's look-up has no time limit
    asking.start()
    asking.join(PATIENCE)
    return found == [True]


def _connects(address: str) -> bool:
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        port = parts.port or (80 if parts.scheme == "http" else 443)
        with socket.create_connection((parts.hostname or "", port), PATIENCE):
            return True
    except (OSError, ValueError):
        return False
