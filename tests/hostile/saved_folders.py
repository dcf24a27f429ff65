"""Saved prefixes, heads, checkpoints and histories as someone of bad will would make them, and loading each.

    python tests/hostile/saved_folders.py FOLDER

loads all of them in one process and prints one JSON line: how many, the slowest, and by how much memory grew.
`CASES`: kind/name → what is done to a good folder. Manifests are given the digest of what they say.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from safetensors.torch import load_file, save_file

from foreword.errors import ForewordError
from foreword.methods.direct import DirectProducer
from foreword.prefix import Prefix
from foreword.tasks import TaskSettings, make_task
from foreword.tasks.saved import read_states, save_task
from foreword.tensorfiles import file_digest
from foreword.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from foreword.training.folder import RunFolder
from foreword.training.trained import Trained
from head_helpers import ROWS
from manifest_helpers import edit
from prefix_helpers import small
from tiny import tiny_base

Change = Callable[[Path], object]
FILES = {
    "prefix": ("manifest.json", "prefix.safetensors"),
    "head": ("head.json", "head.safetensors"),
    "checkpoint": ("state.json", "state.safetensors"),
}


def trained() -> Trained:
    return Trained(DirectProducer(small()))


@cache
def base() -> Any:
    return tiny_base("bert")


def save(kind: str, folder: Path) -> Path:
    """Save something good of one kind in `folder`."""
    if kind == "prefix":
        return small().save(folder)
    if kind == "head":
        task = make_task(base(), "seq-cls", TaskSettings())
        task.learn(ROWS["seq-cls"](number) for number in range(4))
        return save_task(task, folder)
    if kind == "history":
        folder.mkdir()
        (folder / "history.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        return folder
    one = trained()
    saved = save_checkpoint(folder, one, torch.optim.AdamW(one.parameters()), RunState(4), {}, {})
    return saved


def load(kind: str, folder: Path) -> None:
    if kind == "prefix":
        Prefix.load(folder)
    elif kind == "head":
        read_states(folder)
    elif kind == "history":
        RunFolder(folder).rows()
    else:
        one = trained()
        with torch.random.fork_rng():
            load_checkpoint(folder, one, torch.optim.AdamW(one.parameters()))


# what stands in place of a file


def replaced(make: Callable[[Path], object]) -> Change:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def bind(path: Path) -> None:
    """A socket; its name may be too long for one."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(before)


def sparse(size: int) -> Change:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return replaced(make)


def text(content: str) -> Change:
    return lambda path: path.write_text(content, encoding="utf-8")


def data(content: bytes) -> Change:
    return lambda path: path.write_bytes(content)


THINGS: dict[str, Change] = {
    "nothing": lambda path: path.unlink(),
    "a folder": replaced(Path.mkdir),
    "a pipe": replaced(os.mkfifo),
    "a socket": replaced(bind),
    "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": replaced(lambda path: path.symlink_to(path)),
    "a link to nowhere": replaced(lambda path: path.symlink_to("nowhere")),
    "an endless file of the system": replaced(lambda path: path.symlink_to("/proc/self/pagemap")),
    "an empty file": data(b""),
    "300 MB of nothing": sparse(300 * 2**20),
    "a terabyte of nothing": sparse(2**40),
    "noise": data(bytes(range(256)) * 40),
}
TEXTS: dict[str, Change] = {
    "20 MB of text": text("[" + '"x",' * 5_000_000 + "1]"),
    "lists that swell": text("[" + "[]," * 690_000 + "1]"),
    "objects that swell": text("[" + "{}," * 690_000 + "1]"),
    "wide characters that swell": text('["' + "x" * 2_000_000 + '\U0001f600"]'),
    "deep lists": text("[" * 500_000),
    "deep objects": text('{"a":' * 300_000 + "1" + "}" * 300_000),
    "lists of a depth that is not refused by Python": text('{"format": ' + "[" * 900 + "]" * 900 + "}"),
    "a number of a million digits": text("9" * 1_000_000),
    "a number": text("7"),
    "null": text("null"),
    "a list": text("[1, 2]"),
    "an object without anything": text("{}"),
    "NaN": text('{"version": NaN}'),
    "infinity": text('{"version": 1e999}'),
    "not UTF-8": data(b'{"a": "\xff"}'),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a byte-order mark": lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()),
    "a name given twice": lambda path: path.write_text(path.read_text().replace("{", '{"version": 1, ', 1)),
}


# files of tensors


def header(entries: Any, size: int = 16, length: int | None = None) -> bytes:
    """A safetensors file with this header, and `size` bytes of tensors."""
    written = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + bytes(size)


def tensor(dtype: str = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS: dict[str, bytes] = {
    "a header of 2⁶³ bytes": header({}, length=2**63),
    "a header of 2⁶⁴ − 1 bytes": header({}, length=2**64 - 1),
    "a header of a terabyte": header({}, length=2**40),
    "a header of its file's size": header(b"{" * 100, size=0, length=108),
    "no header": header(b"", size=0),
    "five bytes": b"\x01\x00\x00\x00\x00",
    "a header of spaces": header(b" " * 100_000),
    "a header of nothing": header({}, size=0),
    "a deep header": header(b'{"a":' * 20_000),
    "a header that is a list": header([1, 2]),
    "a header that is not UTF-8": header(b'{"\xff": 1}'),
    "metadata that is a list": header({"__metadata__": [1], "a": tensor()}),
    "metadata of numbers": header({"__metadata__": {"version": 3}, "a": tensor()}),
    "many tensors": header({f"{number}": tensor(shape=(0,), offsets=(0, 0)) for number in range(60_000)}, size=0),
    "many tensors without anything": header(b"{" + b",".join(b'"%d":{}' % number for number in range(60_000)) + b"}"),
    "a tensor given twice": header(b'{"a":%b,"a":%b}' % ((json.dumps(tensor()).encode(),) * 2)),
    "tensors on each other": header({"a": tensor(), "b": tensor()}),
    "tensors that overlap": header({"a": tensor(), "b": tensor(offsets=(8, 24))}, size=24),
    "tensors with a hole": header({"a": tensor(), "b": tensor(offsets=(20, 36))}, size=36),
    "a tensor that begins behind its end": header({"a": tensor(offsets=(16, 0))}),
    "a tensor behind the file": header({"a": tensor(offsets=(0, 2**40), shape=(2**38,))}),
    "a tensor of 2⁶⁴ numbers": header({"a": tensor(shape=(2**32, 2**32), offsets=(0, 0))}, size=0),
    "a tensor of 10³⁰ numbers": header({"a": tensor(shape=(10**30,), offsets=(0, 16))}),
    "a tensor of −1 numbers": header({"a": tensor(shape=(-1,), offsets=(0, 16))}),
    "a tensor of 1.5 numbers": header({"a": tensor(shape=(1.5,), offsets=(0, 16))}),
    "a tensor of a thousand dimensions": header({"a": tensor(shape=(1,) * 1000, offsets=(0, 4))}, size=4),
    "an empty tensor of great width": header({"a": tensor(shape=(0, 2**62, 2**62), offsets=(0, 0))}, size=0),
    "numbers of 4 bits": header({"a": tensor("F4", (32,))}),
    "numbers of 8 bits": header({"a": tensor("F8_E4M3", (16,))}),
    "complex numbers": header({"a": tensor("C64", (2,))}),
    "numbers of no kind": header({"a": tensor("F31")}),
    "numbers of another kind": header({"a": tensor("I64", (2,))}),
    "a tensor that is text": header({"a": "text"}),
}


def own_tensors(kind: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors of a good file, and say so in the manifest."""

    def apply(folder: Path) -> None:
        file = folder / FILES[kind][1]
        tensors = load_file(file)
        change(tensors)
        version = {"prefix": "3", "head": "2", "checkpoint": "5"}[kind]
        save_file(tensors, file, metadata={"version": version})
        vouch(kind, folder)

    return apply


def vouch(kind: str, folder: Path) -> None:
    """Write size and digest of the tensors' file into the manifest, as whoever wrote the file could."""
    file = folder / FILES[kind][1]
    if kind != "prefix" and file.is_file():
        prefix = "sha256:" if kind == "head" else ""
        said = {"bytes": file.stat().st_size, "content": prefix + file_digest(file)}
        edit(folder / FILES[kind][0], lambda m: m.update(said))


def with_header(kind: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / FILES[kind][1]).write_bytes(content)
        vouch(kind, folder)

    return change


# manifests that are signed, but lie


def signed(kind: str, change: Callable[[dict[str, Any]], object], sign: bool = True) -> Change:
    return lambda folder: edit(folder / FILES[kind][0], change, sign)


def fields(kind: str, *names: str) -> dict[str, Change]:
    """Each of the fields with each odd value that it can't have; the digest itself is not signed."""
    return {
        f"{field} of {name}": signed(kind, put(field, value=value), sign=field != "digest")
        for field in names
        for name, value in ODD.items()
        if not (name == "an object" and field in ("progress", "config", "inputs"))
    }


def put(*place: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(manifest: dict[str, Any]) -> None:
        holder: Any = manifest
        for name in place[:-1]:
            holder = holder[name]
        holder[place[-1]] = value

    return change


ODD: dict[str, Any] = {
    "10³⁰": 10**30, "−1": -1, "3.0": 3.0, "3.5": 3.5, "true": True, "null": None, "text": "3", "a list": [3],
    "an object": {"a": 3}, "an empty list": [], "half a pair": "\ud800", "2⁶³": 2**63,
}  # fmt: skip
SHAPE = ("slots", "decoder.0", "key", "shape")


def spec(shape: list[int], encoding: str | None = None, rank: int | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"shape": shape, "dtype": "float16"}
    return entry | ({"encoding": encoding} if encoding else {}) | ({"rank": rank} if rank else {})


def encoded(shape: list[int], rank: int, slots: int) -> Change:
    """A small file of factors, whose products are large."""

    def change(folder: Path) -> None:
        heads, length, width = shape
        left, right = torch.ones(length, rank).half(), torch.ones(rank, heads * width).half()
        names = [f"s{slot}.{part}" for slot in range(slots) for part in ("key", "value")]
        tensors = {
            f"{name}.{part}": value.clone() for name in names for part, value in (("left", left), ("right", right))
        }
        save_file(tensors, folder / "prefix.safetensors", metadata={"version": "3"})
        pair = {part: spec(shape, "svd", rank) for part in ("key", "value")}
        edit(folder / "manifest.json", lambda m: m.update(slots={f"s{slot}": pair for slot in range(slots)}))

    return change


PAIR = ("key", "value")
KEY = ("slots", "decoder.0", "key")
NAMES = ("", "a\0b", "../../a", "a/b", "a\\b", "\ud800", "\x1b[31m", "extra.a", "x" * 10_000)


def of_prefix(*place: Any, value: Any) -> Change:
    return signed("prefix", put(*place, value=value))


def slots(names: Iterable[str], shape: list[int]) -> Change:
    return of_prefix("slots", value={name: {part: spec(shape) for part in PAIR} for name in names})


PREFIXES: dict[str, Change] = {
    **{f"a shape of {name}": of_prefix(*SHAPE, value=value) for name, value in ODD.items()},
    **{f"a shape with {name}": of_prefix(*SHAPE, value=[2, value, 4]) for name, value in ODD.items()},
    **{f"a shape of {count} numbers": of_prefix(*SHAPE, value=[1] * count) for count in (0, 9, 100_000)},
    "an empty shape of great width": of_prefix(*SHAPE, value=[0, 2**31 - 1, 2**31 - 1]),
    **fields("prefix", "position_offset", "length", "version", "slots", "extras", "base", "digest", "content"),
    **{f"method of {name}": of_prefix("method", value=ODD[name]) for name in ("3.0", "null", "half a pair")},
    **{f"record of {name}": of_prefix("record", value=ODD[name]) for name in ("3.0", "null", "a list")},
    **{f"hidden size of {name}": of_prefix("base", "hidden_size", value=value) for name, value in ODD.items()},
    **{f"rank of {name}": of_prefix(*KEY, value=spec([2, 3, 4], "svd") | {"rank": value})
       for name, value in ODD.items()},
    **{f"a slot called {name!r:.20}": slots([name], [2, 3, 4]) for name in NAMES},
    "5,000 slots": slots(map(str, range(5000)), [0, 0, 0]),
    "a tensor of 2⁶⁰ numbers": of_prefix(*SHAPE, value=[2**20, 2**20, 2**20]),
    "an int8 tensor of 2³¹ numbers": of_prefix(*KEY, value=spec([2**11, 2**10, 2**10], "int8")),
    "factors of a gigabyte": encoded([1, 2**14, 2**14], 1, 1),
    "factors of many gigabytes": encoded([8, 1024, 128], 1, 600),
    "factors of many products": encoded([1, 4096, 4096], 1024, 1),
    "factors beyond what a tensor may have": encoded([1, 2**15, 2**15], 1, 1),
}  # fmt: skip
HEADS: dict[str, Change] = {
    **fields("head", "tasks", "version", "bytes", "content", "digest"),
    **{f"task of {name}": signed("head", put("tasks", "task", value=value)) for name, value in ODD.items()},
    **{f"its {field} of {name}": signed("head", put("tasks", "task", field, value=value))
       for field, good in (("task", "text"), ("labels", "an empty list"), ("options", "an object"))
       for name, value in ODD.items() if name != good},
    "half a million labels": signed("head", put("tasks", "task", "labels", value=["a"] * 350_000)),
    "labels of numbers": signed("head", put("tasks", "task", "labels", value=[1, 2])),
}  # fmt: skip
CHECKPOINTS: dict[str, Change] = {
    **fields("checkpoint", "version", "bytes", "content", "digest", "progress", "config", "inputs"),
    **{f"{field} of {name}": signed("checkpoint", put("progress", field, value=value))
       for field in ("step", "best_step", "stale", "validated") for name, value in ODD.items() if name != "−1"},
    **{f"best loss of {name}": signed("checkpoint", put("progress", "best_loss", value=value))
       for name, value in ODD.items() if name not in ("3.0", "3.5", "null")},
    "no parameters": own_tensors("checkpoint", lambda t: [t.pop(name) for name in list(t) if "producer" in name]),
    "no generator": own_tensors("checkpoint", lambda t: t.pop("random.cpu")),
}  # fmt: skip
HISTORIES: dict[str, Change] = {
    name: lambda folder, content=content: (folder / "history.jsonl").write_bytes(content)  # type: ignore[misc]
    for name, content in {
        "a list": b"[1]\n", "a number": b"7\n", "no step": b"{}\n", "a step of text": b'{"step": "1"}\n',
        "a step of truth": b'{"step": true}\n', "a loss of text": b'{"step": 1, "loss": "low"}\n',
        "a loss of NaN": b'{"step": 1, "loss": NaN}\n', "not UTF-8": b'{"step": 1, "\xff": 2}\n',
        "deep": b"[" * 100_000 + b"\n",
        "a number of many digits": b"9" * 100_000 + b"\n", "half a line": b'{"step": 1\n',
    }.items()
}  # fmt: skip


def on(name: str, change: Change) -> Change:
    return lambda folder: change(folder / name)


CASES: dict[str, tuple[str, Change]] = {
    **{f"{kind}: {thing} as {name}": (kind, on(name, change))
       for kind, names in FILES.items() for name in names for thing, change in THINGS.items()},
    **{f"history: {thing}": ("history", on("history.jsonl", change)) for thing, change in THINGS.items()
       if thing not in ("nothing", "an empty file", "300 MB of nothing", "a terabyte of nothing")},
    "history: a terabyte of nothing": ("history", on("history.jsonl", sparse(2**40))),
    **{f"{kind}: {thing} as {names[0]}": (kind, on(names[0], change))
       for kind, names in FILES.items() for thing, change in TEXTS.items()},
    **{f"{kind}: {thing} as its tensors": (kind, with_header(kind, content))
       for kind in FILES for thing, content in HEADERS.items() if (kind, thing) != ("head", "a header of nothing")},
    **{f"prefix: {name}": ("prefix", change) for name, change in PREFIXES.items()},
    **{f"head: {name}": ("head", change) for name, change in HEADS.items()},
    **{f"checkpoint: {name}": ("checkpoint", change) for name, change in CHECKPOINTS.items()},
    **{f"history: {name}": ("history", change) for name, change in HISTORIES.items()},
}  # fmt: skip


def make(name: str, good: Path, folder: Path) -> str:
    """Make the folder of a case out of a good one; return its kind."""
    kind, change = CASES[name]
    shutil.copytree(good / kind, folder)
    change(folder)
    return kind


def save_good(folder: Path) -> Path:
    """Save something good of each kind, in folders of their names."""
    for kind in ("prefix", "head", "history"):
        save(kind, folder / kind)
    save("checkpoint", folder / "one").rename(folder / "checkpoint")
    for kind in (*FILES, "history"):
        load(kind, folder / kind)
    return folder


def refusal(kind: str, folder: Path) -> str:
    """Load it; return what is raised, or "loaded"."""
    try:
        load(kind, folder)
    except ForewordError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def main(folder: Path) -> None:
    good = save_good(folder / "good")
    slowest: tuple[float, str] = (0.0, "")
    grown: tuple[int, str] = (0, "")
    total = 0
    for number, name in enumerate(CASES):
        place = folder / str(number)
        kind = make(name, good, place)
        before, began = peak(), time.perf_counter()
        refusal(kind, place)
        slowest = max(slowest, (time.perf_counter() - began, name))
        growth = peak() - before
        grown, total = max(grown, (growth, name)), total + growth
        shutil.rmtree(place, ignore_errors=True)
    print(json.dumps({"cases": len(CASES), "slowest": slowest, "grown": grown, "kilobytes": total}))


def peak() -> int:
    """The most memory that this process had until now, in KB. The other count has that of its parent in it."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
