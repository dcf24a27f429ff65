"""The hub, where there is a network: without one a look-up fails at once, instead of after a minute of retries."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

PATIENCE = 2.0  # seconds until a host counts as out of reach
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@contextmanager
def offline_unless_reached() -> Iterator[bool]:
    """Within the block Datasets uses its cache only, unless the hub, or the proxy to it, answers.

    Yields whether it does.
    """
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield False
        return
    if reached := _answers(next(filter(None, map(os.environ.get, _PROXIES)), constants.ENDPOINT)):
        yield reached
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield False
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        with socket.create_connection((parts.hostname or "", port), PATIENCE):
            return True
    except (OSError, ValueError):
        return False
