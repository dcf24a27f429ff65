"""Datasets of the hub, where there is a network: without one its cache is asked, and nothing is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from foreword.base.hub import reached


@contextmanager
def offline_unless_reached() -> Iterator[bool]:
    """Within the block Datasets uses its cache only, unless the hub, or the proxy to it, answers.

    Yields whether it does.
    """
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or reached():
        yield not constants.HF_HUB_OFFLINE
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield False
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
