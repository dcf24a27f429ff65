"""Run a group of hostile cases in this process; print for each what came of it, how long it took and the memory."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"

from foreword.errors import ForewordError
from hostile_cases import GROUPS, HONEST


def memory(name: str) -> int:
    """A line of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def outcome(action: Any) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.monotonic()
    try:
        action()
        error = None
    except ForewordError as found:
        error = {"type": type(found).__name__, "typed": True, "text": str(found)[:300]}
    except BaseException as found:  # noqa: BLE001 - the test says that there was none
        error = {"type": type(found).__name__, "typed": False, "text": str(found)[:300]}
    return {"error": error, "seconds": time.monotonic() - start, "growth": memory("VmHWM") - before}


def main(group: str, folder: Path) -> None:
    results: dict[str, Any] = {}
    for name, case in {"honest": HONEST[group], "honest again": HONEST[group], **GROUPS[group]}.items():
        place = folder / str(len(results))
        place.mkdir(parents=True)
        results[name] = outcome(case(place))
        print(name, results[name], file=sys.stderr, flush=True)
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
