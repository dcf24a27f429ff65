"""Push two versions in turn for ever: `python hub_worker.py STORE URL NAME`. Says `pushing` when it begins."""

from __future__ import annotations

import itertools
import sys

from foreword.store import Store


def main(place: str, url: str, name: str) -> None:
    store = Store(place)
    digests = [entry.version.digest for entry in store.entries(name)]
    print("pushing", flush=True)
    for digest in itertools.cycle(digests):
        store.tag(f"{name}@{digest}", "prod")
        store.push(f"{name}@prod", url)


if __name__ == "__main__":
    main(*sys.argv[1:])
