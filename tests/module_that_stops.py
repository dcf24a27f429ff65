"""A module whose import sends its process SIGTERM, for tests/cli/test_live.py."""

from __future__ import annotations

import os
import signal

os.kill(os.getpid(), signal.SIGTERM)
