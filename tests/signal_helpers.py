"""Processes that hear Ctrl-C also where the test run itself was started in the background."""

from __future__ import annotations

import signal


def hearing() -> None:
    """For `preexec_fn`: a shell starts what runs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
