"""Running things side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import nn


def together(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run each job in a thread of its own, all at once; return their results. A job's error is raised here."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        start.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(run, job) for job in jobs]]


def in_thread(job: Callable[[], Any]) -> Any:
    """Return what `job` returns in a new thread."""
    return together([job])[0]


def traces(model: nn.Module) -> list[str]:
    """What an attach leaves on a model while it is open."""
    found = [name for name, module in model.named_modules() if module._forward_pre_hooks or module._forward_hooks]
    found += [name for name, module in model.named_modules() if any("foreword" in key for key in vars(module))]
    configs = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    return found + [str(type(thing)) for thing in (model, *configs) if "foreword" in str(type(thing).__mro__)]
