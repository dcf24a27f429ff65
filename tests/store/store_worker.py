"""What the processes of the store's tests do: `python store_worker.py ROLE STORE …`, one JSON line at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from foreword.errors import ForewordError, UnknownPrefixError
from foreword.store import Store
from store_helpers import numbered

OPTIONS = json.loads(os.environ.get("STORE_OPTIONS", "{}"))  # fsspec's, of a remote store


def write(store: Store, first: int, count: int) -> dict[str, object]:
    """Add versions, some of them those of other writers too."""
    made = [store.add(numbered(number), "team/task").digest for number in range(first, first + count)]
    return {"made": made}


def read(store: Store, seconds: float) -> dict[str, object]:
    """Load the latest again and again, list and verify. Only a store that is still empty has nothing."""
    end, count, wrong = time.monotonic() + seconds, 0, []
    while time.monotonic() < end:
        try:
            prefix = store.load("team/task")
            count += prefix.digest == numbered(int(prefix.record["number"])).digest
            store.entries("team/task")
        except UnknownPrefixError:
            time.sleep(0.01)
        except ForewordError as error:
            wrong.append(f"{type(error).__name__}: {error}")
    return {"read": count, "wrong": wrong}


def endlessly(store: Store, source: Store | None) -> None:
    """Add, or push from `source`, until this process is killed."""
    for number in range(10_000):
        if source is None:
            store.add(numbered(os.getpid() * 100 + number), "team/task")
        else:
            source.add(numbered(os.getpid() * 100 + number), "team/task")
            source.push("team/task", store.url, **OPTIONS)


def killed(url: str, source: str, times: int) -> dict[str, object]:
    """Fork a writer and kill it at a random moment, so many times; each time look at all that can be seen."""
    with TemporaryDirectory() as folder:
        Store(folder).add(numbered(0), "warm/up")  # so that a child has nothing to import
    chance, seen = random.Random(0), 0
    wrong: list[str] = []
    for _ in range(times):
        if not (child := os.fork()):
            endlessly(Store(url, **OPTIONS), Store(source) if source else None)
        time.sleep(chance.uniform(0, 1.5 if OPTIONS else 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        count, problems = Store(url, **OPTIONS).verify()
        seen = max(seen, count)
        wrong += [f"{one.where}: {one.what}" for one in problems]
    return {"seen": seen, "wrong": wrong}


def main(role: str, url: str, *rest: str) -> None:
    if role == "write":
        told = write(Store(url), int(rest[0]), int(rest[1]))
    elif role == "read":
        told = read(Store(url), float(rest[0]))
    else:
        told = killed(url, rest[0], int(rest[1]))
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
