"""The part of docs/models.md that `make models` makes of docs/verified.json: every class of Transformers, tried."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "docs" / "verified.json"
Row = dict[str, Any]
_GROUPS = {
    r"no attention of it dispatches|no module of it dispatches": "Attention code of their own, or no attention",
    r"its text part is of type": "Text and something else in one model, whose text part is a type of its own (give "
    "Foreword that part)",
    r"takes neither tokens nor pictures|has no attribute 'image_size'|expected 5, got 4|missing 1 required": "Inputs "
    "other than tokens or plain pictures",
    r"passes 'indices'|passes 'block_indices'": "Sparse attention by indices, which Foreword's attention doesn't have",
    r"attends more than once": "One module attends several times in a pass",
    r"several towers": "Several stacks of one attention class",
}  # fmt: skip


def load() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def render(found: dict[str, Any]) -> str:
    """Return the page's sections from `found`, the content of docs/verified.json."""
    classes: dict[str, Row] = found["classes"]
    outside = {name: row for name, row in classes.items() if "table" not in row}
    listed = {name: row for name, row in classes.items() if "table" in row}
    verified = {name: row for name, row in outside.items() if row["outcome"] == "verified"}
    text = _introduction(found["versions"], classes, outside, verified)
    for title, kind in (("Decoders", "decoder"), ("Encoders", "encoder"), ("Encoder–decoders", "encoder-decoder")):
        rows = {name: row for name, row in verified.items() if row["kind"] == kind}
        text += f"\n### {title} that verify ({len(rows)})\n\n" + _table(rows)
    return text + _refused({name: row for name, row in outside.items() if name not in verified}) + _listed(listed)


def _introduction(versions: dict[str, str], classes: dict[str, Row], outside: dict[str, Row], verified: Any) -> str:
    seconds = [row["seconds"] for row in verified.values()]
    outcomes = Counter(row["outcome"] for row in outside.values())
    return f"""
## Outside the table: tried at load

Every causal LM, encoder, encoder–decoder and base model class of Transformers {versions["transformers"]}
(torch {versions["torch"]}) with its default configuration: {len(classes)} classes, {len(outside)} of them outside the
table above. {outcomes["verified"]} verify, {outcomes["refused"]} are refused,
{outcomes["no model"] + outcomes["no result"]} make no model from a default configuration. A proof took a median of
{statistics.median(seconds):.1f} s of one slow core, and at most {max(seconds):.1f} s; its outcome is remembered.

`foreword.load` does the same with the model's own configuration. A tiny random model of the same class and kind runs
with prefixes, and must equal, to 1e-4 relative: its own eager attention over concatenated keys (with padding, without,
in rows with different prefixes, decoded with a cache, and in the gradient of the prefix), and itself where a part of a
row becomes the prefix of the rest. Leaving out the prefix, the mask or the offset must fail by a hundred times that.
The configuration decides: a verified type can be refused with settings that the default one doesn't have.

- **positions**: what was found; **offset**: whether a prefix's offset can be other than 0; **keys move**: the layout by
  which `Prefix.with_offset` rotates keys ("unknown": it refuses).
- **packs**: whether training packs rows; else it pads them. Recurrent types have parts that pass on state.
"""


def _table(rows: dict[str, Row]) -> str:
    text = "| model_type | class | slots | positions | offset | keys move | packs | recurrent |\n" + "|---" * 8 + "|\n"
    for name, row in sorted(rows.items()):
        kind, _, cls = name.partition(" ")
        flags = ("yes" if row[flag] else "no" for flag in ("offset", "packs", "recurrent"))
        offset, packs, recurrent = flags
        cells = (kind, cls, row["slots"], row["positions"], offset, row["layout"], packs, recurrent)
        text += f"| {' | '.join(cells)} |\n"
    return text


def _refused(rows: dict[str, Row]) -> str:
    text = f"\n### Refused ({len(rows)})\n"
    left = dict(rows)
    for pattern, title in _GROUPS.items():
        names = [
            name for name, row in left.items() if row["outcome"] == "refused" and re.search(pattern, row["reason"])
        ]
        for name in names:
            del left[name]
        text += f"\n**{title}** ({len(names)}): {', '.join(name.partition(' ')[0] for name in sorted(names))}\n"
    failed = {name: row for name, row in left.items() if row["outcome"] == "refused"}
    nothing = {name: row for name, row in left.items() if row["outcome"] != "refused"}
    text += f"\n**A check failed, or there was nothing to try it with** ({len(failed)}):\n\n" + _reasons(failed)
    return text + f"\n**The default configuration makes no model** ({len(nothing)}):\n\n" + _reasons(nothing)


def _reasons(rows: dict[str, Row]) -> str:
    return "".join(f"- {name}: {_plain(row['reason'])}\n" for name, row in sorted(rows.items()))


def _plain(reason: str) -> str:
    """Return `reason` so that Markdown shows it as it is."""
    return re.sub(r"([*<>\[\]|`^])", r"\\\1", reason)


def _listed(rows: dict[str, Row]) -> str:
    own = {name: row for name, row in rows.items() if row["table"] == name.partition(" ")[0]}
    passed = [name for name, row in own.items() if row["outcome"] == "verified"]
    others = {name: row for name, row in own.items() if row["outcome"] != "verified"}
    return (
        f"\n### The table's own types\n\nThey need no proof. {len(passed)} of {len(own)} classes pass it all "
        f"the same; {len(rows) - len(own)} more classes share a configuration of the table, or hold a text part of it. "
        "The others do what a tiny model of unknown kind can't be tried with:\n\n" + _reasons(others)
    )
