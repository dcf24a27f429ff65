"""Load mutated prefixes, heads and versions: `python fuzz_worker.py FOLDER COUNT SEED`, one JSON line at the end.

Half of the mutated manifests are given the digest of what they say, so that the checks behind it are reached too.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from saved_folders import save
from worker import memory

from foreword.errors import ForewordError
from foreword.prefix import Prefix
from foreword.sealing import manifest_digest
from foreword.store import Store
from foreword.tasks.saved import read_states
from store_helpers import numbered

ODD: tuple[Any, ...] = (
    -1, 0, 1, 2**31, 2**63, 10**40, 1.5, True, None, "", "x" * 5_000, "../../x", "\x00", "é", [], {}, [[]], {"a": {}},
    "softmax", "gated", "float64", [2, 3, 4], [2**20, 2**20, 2**20],
)  # fmt: skip


def bytes_changed(data: bytes, chance: random.Random) -> bytes:
    """A few random changes of bytes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        place = chance.randrange(len(changed) + 1)
        kind = chance.randrange(6)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[place : place + chance.randrange(1, 64)]
        elif kind == 2:
            changed[place:place] = chance.randbytes(chance.randrange(1, 64))
        elif kind == 3:
            changed[place : place + 8] = chance.choice((2**63, 2**40, 8, 0, len(data))).to_bytes(8, "little")
        elif kind == 4:
            changed[place:place] = changed[: chance.randrange(200)]
        else:
            del changed[place:]
    return bytes(changed)


def json_changed(data: bytes, chance: random.Random) -> bytes:
    """One value, anywhere, becomes an odd one, or a name does; perhaps sealed again."""
    value = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(holder: Any) -> None:
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                walk(holder[key])

    walk(value)
    holder, key = chance.choice(places)
    if isinstance(holder, dict) and chance.random() < 0.2:
        holder[str(chance.choice(ODD))] = holder.pop(key)
    elif chance.random() < 0.1:
        del holder[key]
    else:
        holder[key] = chance.choice(ODD)
    if chance.random() < 0.7 and "digest" in value:
        value["digest"] = manifest_digest(value)
    return json.dumps(value).encode()


def mutate(file: Path, chance: random.Random) -> None:
    data = file.read_bytes()
    as_json = file.suffix == ".json" and chance.random() < 0.7
    file.write_bytes((json_changed if as_json else bytes_changed)(data, chance))


def targets(folder: Path) -> list[tuple[Path, Callable[[Path], object]]]:
    """Return (good folder, how it is loaded) of each kind."""
    store = Store(folder / "store")
    digest = store.add(numbered(1), "team/task").digest
    return [
        (numbered(1).save(folder / "prefix"), Prefix.load),
        (save("head", folder / "head"), read_states),
        (Path(store.url) / "prefixes/team/task/versions" / digest, lambda _: store.load("team/task")),
    ]


def main(folder: Path, count: int, seed: int) -> None:
    chance, outcomes, untyped = random.Random(seed), Counter[str](), []
    kinds = targets(folder)
    for good, load in kinds:
        load(good)
    files = {good: sorted(path for path in good.rglob("*") if path.is_file()) for good, _ in kinds}
    before = memory("VmHWM")
    for number in range(count):
        good, load = kinds[number % len(kinds)]
        file = chance.choice(files[good])
        kept = file.read_bytes()
        mutate(file, chance)
        try:
            load(good)
            outcomes["loaded"] += 1
        except ForewordError as error:
            outcomes[type(error).__name__] += 1
        except BaseException as error:  # noqa: BLE001 - the test says that there was none
            untyped.append(f"{number}: {type(error).__name__}: {error}"[:300])
        file.write_bytes(kept)
    print(json.dumps({"outcomes": outcomes, "untyped": untyped[:5], "growth": memory("VmHWM") - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
