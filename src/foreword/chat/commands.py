"""What begins with a slash: /prefix, /system, /reset, /save, /help and /exit."""

from __future__ import annotations

import os
from pathlib import Path

from foreword.chat.session import PLAIN, Session
from foreword.errors import ConfigError
from foreword.prefix import Prefix
from foreword.prefix.places import short_name
from foreword.versions.finding import means_store

HELP = """\
/prefix NAME    answer with another prefix from now on; none: without one; a folder or team/task is loaded
/prefix         which prefixes there are
/system TEXT    the system's text; without TEXT there is none
/reset          forget what was said
/save FILE      append the conversation to a JSONL file, as a row that foreword train reads
/help           this
/exit           leave; Ctrl-D does too"""


class Leave(Exception):
    """The conversation is over."""


def run(session: Session, line: str) -> str:
    """Do what `line` says, and return what is to be told. Raises `Leave`, or a `ForewordError`."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if command in ("/exit", "/quit"):
        raise Leave
    if command == "/help":
        return HELP
    if command == "/prefix":
        return _prefix(session, rest)
    if command == "/system":
        session.system = rest
        return f"system: {rest}" if rest else "no system text"
    if command == "/reset":
        session.reset()
        return "forgotten"
    if command == "/save":
        return _save(session, rest)
    raise ConfigError(command[:40], "is no command; /help lists them")


def _prefix(session: Session, name: str) -> str:
    if not name:
        names = [*session.prefixes, PLAIN]
        return "  ".join(f"[{entry}]" if entry == session.name else entry for entry in names)
    path = os.path.expanduser(name)
    if name not in session.prefixes and name != PLAIN and (os.path.isdir(path) or means_store(path)):
        session.add(short_name(path), Prefix.load(path, device=session.base.device))
    else:
        session.switch(name)
    alone = "" if session.remembers else "; it was trained on single inputs, so it answers each text alone"
    return f"prefix: {session.name}{alone}"


def _save(session: Session, name: str) -> str:
    if not name:
        raise ConfigError("/save", "name a file")
    path = Path(name).expanduser()
    session.save(path)
    return f"saved as a row of {path}"
