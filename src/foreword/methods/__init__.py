"""Methods: ways to produce a `Prefix` in training. The registry is closed: a method is one file and one line here.

A package can add a method without a change here, by an entry point in the group `foreword.methods` (see `plugins`).
"""

from __future__ import annotations

from foreword import plugins
from foreword.methods import conditioned, direct, gated, lowrank, memory, mlp, prompt, ptuning, shared
from foreword.methods.base import Method, Producer, Start

METHODS: dict[str, Method] = {
    "direct": direct.METHOD,
    "mlp": mlp.METHOD,
    "shared": shared.METHOD,
    "lowrank": lowrank.METHOD,
    "prompt": prompt.METHOD,
    "ptuning": ptuning.METHOD,
    "conditioned": conditioned.METHOD,
    "gated": gated.METHOD,
    "memory": memory.METHOD,
}


def get_method(name: str) -> Method:
    """Return the method called `name`, Foreword's own or a plugin's. Raises `ConfigError` for an unknown name."""
    return plugins.find("foreword.methods", "method", METHODS, name)


__all__ = ["METHODS", "Method", "Producer", "Start", "get_method"]
