"""A corpus of hostile files and values: each builds its files in a folder and returns what is to be tried on them.

`tests/hostile/test_corpus.py` runs each group in a process of its own and allows only typed errors.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from chat_bombs import BOMBS, BROKEN

Action = Callable[[], Any]
Case = Callable[[Path], Action]
SETTINGS = (".yaml", ".toml", ".json")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bind(path: Path) -> None:
    """A socket. A socket's path may be 100 characters long, so it is bound from within its folder."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path, start: bytes = b"") -> None:
    """A file of 300 MB that takes no room."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(300 * 2**20)


NOT_FILES: dict[str, Callable[[Path], None]] = {
    "pipe": pipe, "socket": bind, "device": endless, "folder": Path.mkdir, "huge": huge,
}  # fmt: skip


# settings


def settings_text(text: str | bytes, suffix: str) -> Case:
    def case(folder: Path) -> Action:
        file = folder / f"run{suffix}"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return partial(read_config, file)

    return case


def read_config(file: Path) -> Any:
    from foreword.config import TrainConfig
    from foreword.settings import build, read_settings

    return build(TrainConfig, read_settings(file), str(file))


def settings_kind(make: Callable[[Path], None], suffix: str) -> Case:
    def case(folder: Path) -> Action:
        make(folder / f"run{suffix}")
        return partial(read_config, folder / f"run{suffix}")

    return case


def value(**values: Any) -> Case:
    def case(folder: Path) -> Action:
        from foreword.config import TrainConfig
        from foreword.settings import build

        return partial(build, TrainConfig, values)

    return case


def flag(*entries: str) -> Case:
    def case(folder: Path) -> Action:
        from foreword.cli.flags import pairs

        return partial(pairs, "--option", entries)

    return case


def template(text: Any, **fields: str) -> Case:
    def case(folder: Path) -> Action:
        from foreword.base.rendering import Renderer
        from tiny import byte_tokenizer

        def render() -> None:
            renderer = Renderer(byte_tokenizer(), text)
            renderer.prompt_ids(renderer.prompt({"input": "x"} | fields))

        return render

    return case


def chat(text: str) -> Case:
    def case(folder: Path) -> Action:
        from foreword.base.rendering import Renderer
        from tiny import byte_tokenizer

        tokenizer = cast(Any, byte_tokenizer).__wrapped__()
        tokenizer.chat_template = text
        return lambda: Renderer(tokenizer).prompt({"input": "x"})

    return case


def endless_list() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{i}: &b{i} [{','.join(['*' + ('a' if i == 0 else f'b{i - 1}')] * 10)}]\n" for i in range(12)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"b{i}: &b{i}\n  <<: [{','.join(['*' + ('a' if i == 0 else f'b{i - 1}')] * 10)}]\n" for i in range(12)
)
ROOM = 262_000  # characters that a settings file may have
DIGITS = "1" * 5000
SETTINGS_CASES: dict[str, Case] = {
    **{f"{name} {suffix}": settings_kind(make, suffix) for name, make in NOT_FILES.items() for suffix in SETTINGS},
    **{f"invalid UTF-8 {suffix}": settings_text(b"\xff\xfe", suffix) for suffix in SETTINGS},
    **{f"surrogate bytes {suffix}": settings_text('"\ud800"', suffix) for suffix in SETTINGS},
    **{f"null bytes {suffix}": settings_text(b"\0\0\0\0", suffix) for suffix in SETTINGS},
    "YAML laughs": settings_text(LAUGHS, ".yaml"),
    "YAML laughs by merge keys": settings_text(MERGES, ".yaml"),
    "YAML alias to itself": settings_text("a: &a [*a]", ".yaml"),
    "YAML tag of Python": settings_text("a: !!python/object/apply:os.system [ls]", ".yaml"),
    "YAML set": settings_text("options: !!set {a}", ".yaml"),
    "YAML binary": settings_text("options: !!binary aGk=", ".yaml"),
    "YAML date": settings_text("data: 2001-02-03", ".yaml"),
    "YAML date that is none": settings_text("data: 2001-99-99", ".yaml"),
    "YAML deep": settings_text("a: " + "[" * ROOM, ".yaml"),
    "YAML deep mappings": settings_text("{a: " * (ROOM // 4), ".yaml"),
    "YAML deep block": settings_text("".join(" " * i + "a:\n" for i in range(700)), ".yaml"),
    "YAML dashes": settings_text("- " * (ROOM // 2), ".yaml"),
    "YAML questions": settings_text("? " * (ROOM // 2), ".yaml"),
    "YAML digits": settings_text("length: " + "1" * ROOM, ".yaml"),
    "YAML base 60": settings_text("length: " + "1:" * (ROOM // 2 - 9) + "1", ".yaml"),
    "YAML hexadecimal": settings_text("length: 0x" + "f" * 9999, ".yaml"),
    "YAML float too large": settings_text("lr: 1" + "0" * 390, ".yaml"),
    "YAML nan": settings_text("lr: .nan", ".yaml"),
    "YAML nan in options": settings_text("options: {a: [{b: .nan}]}", ".yaml"),
    "YAML double key": settings_text("length: 1\nlength: 2", ".yaml"),
    "YAML number as key": settings_text("options: {1: 2}", ".yaml"),
    "YAML list as key": settings_text("? [a]\n: 1", ".yaml"),
    "YAML escaped surrogate": settings_text('data: "\\ud800"', ".yaml"),
    "YAML escaped null": settings_text('data: "a\\0b"', ".yaml"),
    "YAML many keys": settings_text("".join(f"k{i}: 1\n" for i in range(20_000)), ".yaml"),
    "YAML a million keys": settings_text("".join(f"k{i}: 1\n" for i in range(10**6)), ".yaml"),
    "YAML many documents": settings_text("---\na: 1\n" * 20_000, ".yaml"),
    "TOML deep": settings_text("a=" + "[" * ROOM, ".toml"),
    "TOML deep tables": settings_text("a=" + "{a=" * (ROOM // 3), ".toml"),
    "TOML dotted key": settings_text("a." * (ROOM // 2 - 9) + "a=1", ".toml"),
    "TOML dotted key inside": settings_text("x={" + "a." * (ROOM // 2 - 9) + "a=1}", ".toml"),
    "TOML dotted header": settings_text("[" + "a." * (ROOM // 2 - 9) + "a]", ".toml"),
    "TOML digits": settings_text("length=" + "1" * ROOM, ".toml"),
    "TOML inf": settings_text("lr=inf", ".toml"),
    "TOML date": settings_text("data=2001-02-03", ".toml"),
    "TOML double key": settings_text("length=1\nlength=2", ".toml"),
    "TOML many keys": settings_text("".join(f"k{i}=1\n" for i in range(20_000)), ".toml"),
    "JSON deep": settings_text("[" * ROOM, ".json"),
    "JSON deep objects": settings_text('{"a":' * (ROOM // 5), ".json"),
    "JSON digits": settings_text('{"length":' + "1" * ROOM + "}", ".json"),
    "JSON NaN": settings_text('{"lr":NaN}', ".json"),
    "JSON 1e400": settings_text('{"lr":1e400}', ".json"),
    "JSON double key": settings_text('{"length":1,"length":2}', ".json"),
    "JSON double key inside": settings_text('{"options":{"a":1,"a":2}}', ".json"),
    "JSON surrogate": settings_text('{"data":"\\ud800"}', ".json"),
    "JSON null character": settings_text('{"data":"\\u0000"}', ".json"),
    "JSON many lists": settings_text('{"options":{"a":[' + "[]," * (ROOM // 3 - 9) + "[]]}}", ".json"),
    "length 10**12": value(length=10**12),
    "steps 10**30": value(steps=10**30),
    "steps of 6,000 digits": value(steps=10**6000),
    "batch_size": value(batch_size=2**63),
    "max_tokens": value(max_tokens=10**40),
    "seed": value(seed=2**63),
    "negative seed": value(seed=-(10**30)),
    "epochs inf": value(epochs=float("inf")),
    "epochs of 6,000 digits": value(epochs=10**6000),
    "epochs as text": value(epochs="inf"),
    "lr nan": value(lr=float("nan")),
    "length 3.0": value(length=3.0),
    "options with nan": value(options={"a": [float("nan")]}),
    "options with 10**6000": value(options={"a": 10**6000}),
    "options with 10**6 keys": value(options=dict.fromkeys(map(str, range(10**6)))),
    "options within themselves": value(options={"a": endless_list()}),
    "options with bytes": value(options={"a": b"x"}),
    "a name of a million letters": value(**{"x" * 10**6: 1}),
    "data with a null character": value(data="a\0b"),
    "data with a surrogate": value(data="\ud800"),
    "a list within itself": value(slots=endless_list()),
    "flag laughs": flag("a=" + "[*a,*a]", "b=&a [1]"),
    "flag deep": flag("a=" + "[" * 100_000),
    "flag digits": flag("a=" + "1" * 100_000),
    "flag nan": flag("a=.nan"),
    "flag twice": flag("a=1", "a=2"),
    "flag long": flag("a=" + "x" * 10**6),
    "places": template("[V]*1000000000 {input}"),
    "places of many digits": template("[V]*99999999999999999999999 {input}"),
    "places of 5,000 digits": template(f"[V]*{DIGITS} {{input}}"),
    "places in a row": template("[V]*1000" * 9_000 + "{input}"),
    "template of 10 MB": template("x" * 10**7 + "{input}"),
    "template of many fields": template("{input}" * 14_000, input="x" * 10_000),
    "template of surrogates": template("\ud800 {input}"),
    "template that is a number": template(5),
    "template of braces": template("{" * 50_001),
    "prompt of surrogates": template("{input}", input="\ud800"),
    **{f"chat template: {name}": chat(text) for name, text in (BOMBS | BROKEN).items()},
    "chat template of 100 MB": chat("x" * 10**8),
}


# data


def rows_from(name: str, write: Callable[[Path], Any], split: str = "train") -> Case:
    """Reading rows to the end must fail, or give bad rows, of which none is allowed."""

    def case(folder: Path) -> Action:
        source = folder / name
        write(source)

        def read() -> None:
            from foreword.data.examples import collect
            from foreword.data.readers import read_rows

            collect(str(source), read_rows(str(source), split), max_bad_rows=0)

        return read

    return case


def content(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def in_folder(**files: bytes) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        path.mkdir()
        for name, data in files.items():
            (path / name.replace("__", ".")).write_bytes(data)

    return write


def parquet(make: Callable[[Any], Any], **options: Any) -> Callable[[Path], Any]:
    """A Parquet file of the table that `make(pyarrow)` returns."""

    def write(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        path.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(make(pyarrow), path, compression="zstd", **options)

    return write


def repeated(pa: Any, rows: int = 3000) -> Any:
    """A text of a megabyte in every row: three gigabytes in a file of 800 bytes."""
    return pa.table(
        {"input": pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 10**6]))}
    )


def repeated_in_a_list(pa: Any) -> Any:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * 10**6]))
    return pa.table({"input": pa.ListArray.from_arrays(pa.array([0, 3000], pa.int32()), texts)})


def nested(pa: Any, levels: int = 200) -> Any:
    array = pa.array(["x"])
    for _ in range(levels):
        array = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), array)
    return pa.table({"input": array})


def many_numbers(pa: Any) -> Any:
    import numpy

    numbers = pa.array(numpy.zeros(9_000_000, dtype=numpy.int8))
    return pa.table({"input": pa.ListArray.from_arrays(pa.array([0, len(numbers)], pa.int32()), numbers)})


def in_a_folder_of_files(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda path: write(path / "train.parquet")


def saved_dataset(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        import datasets

        datasets.Dataset.from_dict({"input": ["a"], "target": ["b"]}).save_to_disk(str(path))
        change(path)

    return write


def replaced(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return change


def truncated(path: Path) -> None:
    arrow = next(path.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:200])


def edited(name: str, **values: Any) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        file = path / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


GOOD = b'{"input": "a", "target": "b"}\n'
DEEP = b"[" * 100_000
DATA_CASES: dict[str, Case] = {
    **{f"{name} {suffix}": rows_from(f"rows.{suffix}", make) for name, make in NOT_FILES.items()
       for suffix in ("jsonl", "csv", "parquet", "tsv") if name != "huge"},
    **{f"{name} without a suffix": rows_from("rows", make) for name, make in NOT_FILES.items()},
    **{f"300 MB .{suffix}": rows_from(f"rows.{suffix}", huge) for suffix in ("jsonl", "csv", "parquet", "gz")},
    "JSONL deep": rows_from("rows.jsonl", content(DEEP)),
    "JSONL of many lists": rows_from("rows.jsonl", content(b'{"a":[' + b"[]," * 3_000_000 + b"[]]}")),
    "JSONL of many objects": rows_from("rows.jsonl", content(b'{"a":[' + b"{}," * 3_000_000 + b"{}]}")),
    "JSONL of many numbers": rows_from("rows.jsonl", content(b'{"a":[' + b"257," * 2_400_000 + b"1]}")),
    "JSONL of digits": rows_from("rows.jsonl", content(b'{"a":' + b"1" * 5_000_000 + b"}")),
    "JSONL NaN": rows_from("rows.jsonl", content(b'{"input": NaN}')),
    "JSONL double field": rows_from("rows.jsonl", content(b'{"input": "a", "input": "b"}')),
    "JSONL of UTF-16": rows_from("rows.jsonl", content('{"a": 1}'.encode("utf-16"))),
    "JSONL of bad lines": rows_from("rows.jsonl", content(b"x\n" * 5_000_000)),
    "JSONL that is gzip": rows_from("rows.jsonl.gz", content(b"\x1f\x8b" + bytes(99))),
    "CSV of 10**6 columns": rows_from("rows.csv", content(b",".join(b"c%d" % i for i in range(10**6)) + b"\n")),
    "CSV of 10**7 cells": rows_from("rows.csv", content(b"a,b\n" + b"," * 9_900_000 + b"\n")),
    "CSV of a giant cell": rows_from("rows.csv", content(b'a,b\n"' + b"x\n" * 20_000_000)),
    "CSV with a double field": rows_from("rows.csv", content(b"a,b,a\n1,2,3\n")),
    "CSV with an open quote in its header": rows_from("rows.csv", content(b'"a,b\n1,2\n')),
    "CSV with a header that is no text": rows_from("rows.csv", content(b"a,\xff\n1,2\n")),
    "CSV of carriage returns": rows_from("rows.csv", content(b"\r" * 10**6)),
    "Parquet that repeats a text": rows_from("rows.parquet", parquet(repeated)),
    "Parquet that repeats a text in a list": rows_from("rows.parquet", parquet(repeated_in_a_list)),
    "Parquet of many numbers in one row": rows_from("rows.parquet", parquet(many_numbers)),
    "Parquet of deep lists": rows_from("rows.parquet", parquet(nested)),
    "Parquet of one long page": rows_from(
        "rows.parquet", parquet(lambda pa: pa.table({"input": ["x" * 10**8]}), use_dictionary=False)
    ),
    "Parquet in a folder": rows_from("rows", in_a_folder_of_files(parquet(repeated))),
    "Parquet that is none": rows_from("rows.parquet", content(b"PAR1" + bytes(99) + b"PAR1")),
    "Parquet with a lying footer": rows_from("rows.parquet", content(b"PAR1" + struct.pack("<I", 2**31) + b"PAR1")),
    "folder with nothing but a script": rows_from("rows", in_folder(rows__py=b"1/0")),
    "gzip that stands for gigabytes": rows_from("rows.jsonl.gz", content(gzip.compress(bytes(3 * 10**8), 6))),
    "gzip that is cut off": rows_from("rows.jsonl.gz", content(gzip.compress(GOOD * 9)[:-9])),
    "xz that is none": rows_from("rows.csv.xz", content(b"a,b\n")),
    "bz2 that is none": rows_from("rows.json.bz2", content(b"BZh9" + bytes(99))),
    "JSON that is no list": rows_from("rows.json", content(b'"text"')),
    "JSON that ends within an object": rows_from("rows.json", content(b'[{"input": "a", ')),
    "JSON of brackets": rows_from("rows.json", content(b"[" * 10**6)),
    "JSON of one object of 30 MB": rows_from("rows.json", content(b'[{"a": "' + b"x" * 3 * 10**7)),
    "JSON without commas": rows_from("rows.json", content(b"[" + GOOD * 2 + b"]")),
    "JSON of numbers": rows_from("rows.json", content(b"[1, 2]")),
    "JSON with something behind it": rows_from("rows.json", content(b"[" + GOOD.strip() + b"] x")),
    "Arrow that is none": rows_from("rows.arrow", content(b"ARROW1" + bytes(99))),
    "Arrow stream that is none": rows_from("rows.arrow", content(bytes(99))),
    "glob without a match": rows_from("*.jsonl", lambda path: None),
    "glob of two stars in a name": rows_from("a**b/*", lambda path: None),
    "folder with an archive": rows_from("rows", in_folder(train__zip=b"PK", train__jsonl=GOOD)),
    "folder with deep JSON": rows_from("rows", in_folder(train__json=DEEP)),
    "folder with nothing": rows_from("rows", in_folder()),
    "dataset_info deep": rows_from("rows", saved_dataset(replaced("dataset_info.json", content(DEEP)))),
    "dataset_info of 300 MB": rows_from("rows", saved_dataset(replaced("dataset_info.json", huge))),
    "dataset_info as a pipe": rows_from("rows", saved_dataset(replaced("dataset_info.json", pipe))),
    "dataset_info as a list": rows_from("rows", saved_dataset(replaced("dataset_info.json", content(b"[]")))),
    "dataset_info with wrong features": rows_from("rows", saved_dataset(edited("dataset_info.json", features=5))),
    "state with wrong files": rows_from("rows", saved_dataset(edited("state.json", _data_files=5))),
    "state with files that are not there": rows_from(
        "rows", saved_dataset(edited("state.json", _data_files=[{"filename": "/dev/zero"}]))
    ),
    "arrow truncated": rows_from("rows", saved_dataset(truncated)),
    "arrow of 300 MB": rows_from("rows", saved_dataset(replaced("data-00000-of-00001.arrow", huge))),
    "arrow as a pipe": rows_from("rows", saved_dataset(replaced("data-00000-of-00001.arrow", pipe))),
    "name with a null character": rows_from("a\0b", lambda path: None),
    "name of a million letters": rows_from("x" * 10**6, lambda path: None),
    "name of a thousand letters": rows_from("x" * 1000, lambda path: None),
}  # fmt: skip


# models


@cache
def stored() -> Path:
    """A small model, stored once."""
    import tempfile

    from tiny import byte_tokenizer, tiny_model

    folder = Path(tempfile.mkdtemp()) / "model"
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer(chat=True).save_pretrained(folder)
    return folder


def model(change: Callable[[Path], Any]) -> Case:
    def case(folder: Path) -> Action:
        import foreword

        shutil.copytree(stored(), folder / "model")
        change(folder / "model")
        return lambda: foreword.load(folder / "model", device="cpu")

    return case


def configuration(**values: Any) -> Case:
    return model(edited("config.json", **values))


def weights(header: bytes, size: int | None = None) -> Case:
    return model(
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", size or len(header)) + header)
    )


def adapter(change: Callable[[Path], Any]) -> Case:
    def case(folder: Path) -> Action:
        import peft

        import foreword
        from tiny import tiny_model

        config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
        peft.get_peft_model(tiny_model("llama"), config).save_pretrained(folder / "adapter")
        change(folder / "adapter")
        return lambda: foreword.load(stored(), device="cpu", lora=folder / "adapter")

    return case


def lora(**values: Any) -> Case:
    return adapter(edited("adapter_config.json", **values))


def lone_config(data: bytes) -> Case:
    def case(folder: Path) -> Action:
        from foreword.base.loading import empty_model, load_config

        (folder / "some.json").write_bytes(data)
        return lambda: empty_model(load_config(folder / "some.json"))

    return case


def gguf(data: bytes | None) -> Case:
    def case(folder: Path) -> Action:
        import foreword

        file = folder / "model.gguf"
        if data is None:
            pipe(file)
        else:
            file.write_bytes(data)
        return lambda: foreword.load(file, device="cpu")

    return case


def recorded(template: Any) -> Case:
    """A saved prefix whose record names a template."""

    def case(folder: Path) -> Action:
        from dataclasses import replace

        from tiny import tiny_base, trained_like

        base = tiny_base()
        prefix = replace(trained_like(base, 3), record={"template": template})
        return lambda: base.generate(["x"], prefix, max_new_tokens=1)

    return case


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
MODEL_CASES: dict[str, Case] = {
    **{f"{name} as {file}": model(replaced(file, make)) for name, make in NOT_FILES.items() for file in FILES
       if not (name == "huge" and file == "model.safetensors")},
    **{f"deep {file}": model(replaced(file, content(DEEP))) for file in FILES[:4]},
    **{f"a list as {file}": model(replaced(file, content(b"[1]"))) for file in FILES[:4]},
    **{f"broken {file}": model(replaced(file, content(b"{"))) for file in FILES[:4]},
    **{f"{file} that is no text": model(replaced(file, content(b"\xff\xfe"))) for file in FILES[:4]},
    "config with NaN": model(replaced("config.json", content(b'{"model_type": "llama", "rope_theta": NaN}'))),
    "config with digits": model(replaced("config.json", content(b'{"model_type": ' + b"1" * 5000 + b"}"))),
    "vocab_size": configuration(vocab_size=10**9),
    "hidden_size": configuration(hidden_size=10**6),
    "intermediate_size": configuration(intermediate_size=10**8),
    "layers": configuration(num_hidden_layers=10**9),
    "500 layers": configuration(num_hidden_layers=500),
    "layers as text": configuration(num_hidden_layers="3"),
    "layers as float": configuration(num_hidden_layers=3.5),
    "no heads": configuration(num_attention_heads=0),
    "fewer than no heads": configuration(num_attention_heads=-4),
    "many heads": configuration(num_attention_heads=10**6),
    "head_dim": configuration(head_dim=10**9),
    "pad_token_id": configuration(pad_token_id=10**30),
    "dtype": configuration(dtype="__import__"),
    "quantization": configuration(quantization_config=5),
    "quantization by a method": configuration(quantization_config={"quant_method": "gptq"}),
    "rope": configuration(rope_scaling={"rope_type": "x"}, rope_parameters={"rope_type": "x"}),
    "rope as a list": configuration(rope_parameters=[1]),
    "layer types": configuration(layer_types=["full_attention"] * 2),
    "model_type": configuration(model_type=5),
    "unknown model_type": configuration(model_type="evil", auto_map={"AutoConfig": "evil.C"}),
    "chat template": model(lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff")),
    "chat template of 300 MB": model(replaced("chat_template.jinja", huge)),
    "chat template as a pipe": model(replaced("chat_template.jinja", pipe)),
    "tokenizer without a model": model(edited("tokenizer.json", model={"type": "BPE"})),
    "header of nothing": weights(b""),
    "header of 2**63 bytes": weights(b"{}", 2**63),
    "header of 100 MB": weights(b"{}", 100 * 2**20),
    "header that lies": weights(b'{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}'),
    "header of huge shapes": weights(b'{"a": {"dtype": "F32", "shape": [99999999999999999999], "data_offsets": [0]}}'),
    "header with deep JSON": weights(DEEP),
    **{f"adapter: {name} as {file}": adapter(replaced(file, make)) for name, make in NOT_FILES.items()
       for file in ("adapter_config.json", "adapter_model.safetensors")},
    "adapter: deep": adapter(replaced("adapter_config.json", content(DEEP))),
    "adapter: list": adapter(replaced("adapter_config.json", content(b"[]"))),
    "adapter: rank": lora(r=10**9),
    "adapter: rank of a pattern": lora(rank_pattern={"q_proj": 10**9}),
    "adapter: a larger rank": lora(r=4096),
    "adapter: rank as text": lora(r="4"),
    "adapter: no rank": lora(r=0),
    "adapter: another kind": lora(peft_type="IA3"),
    "adapter: unknown kind": lora(peft_type=5),
    "adapter: copied layers": lora(layer_replication=[[0, 3]] * 10**5),
    "adapter: imports": lora(megatron_config={"a": 1}, megatron_core="evil"),
    "adapter: endless pattern": lora(target_modules="(([a-z_.0-9]*)*)*!"),
    "adapter: slow pattern": lora(target_modules=".*" * 12 + "!"),
    "adapter: endless alternatives": lora(target_modules="(.|.)" * 60 + "!"),
    "adapter: endless rank pattern": lora(rank_pattern={"(a+)+$": 4}),
    "adapter: more modules than weights": lora(target_modules=["q_proj", "k_proj"]),
    "adapter: modules that are not there": lora(target_modules=["nowhere"]),
    "adapter: modules as a number": lora(target_modules=5),
    "GGUF of garbage": gguf(b"GGUF\x03\0\0\0" + b"\xff" * 999),
    "GGUF of a great many fields": gguf(b"GGUF\x03\0\0\0" + struct.pack("<QQ", 1, 2**40) + bytes(999)),
    "GGUF of a great many tensors": gguf(b"GGUF\x03\0\0\0" + struct.pack("<QQ", 2**40, 0) + bytes(999)),
    "GGUF as a pipe": gguf(None),
    "record: places": recorded("[V]*1000000000 {input}"),
    "record: places of many digits": recorded(f"[V]*{DIGITS} {{input}}"),
    "config alone, of many layers": lone_config(b'{"model_type": "llama", "num_hidden_layers": 1000000000}'),
    "config alone, deep": lone_config(DEEP),
    "record: long": recorded("x" * 10**7 + "{input}"),
    "record: number": recorded(5),
    "record: list": recorded(["{input}"]),
}  # fmt: skip

# one of each group that is honest, so that the rest doesn't fail for another reason
HONEST: dict[str, Case] = {
    "settings": settings_text("data: a.jsonl\noptions: {a: 1}\n", ".yaml"),
    "data": rows_from("rows", saved_dataset(lambda path: None)),
    "models": model(lambda folder: None),
}
GROUPS: dict[str, dict[str, Case]] = {"settings": SETTINGS_CASES, "data": DATA_CASES, "models": MODEL_CASES}
