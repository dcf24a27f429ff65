"""Write docs/settings.md from the settings' own descriptions; with --check only say whether it is up to date."""

from __future__ import annotations

import dataclasses
import sys
import typing
from itertools import groupby
from pathlib import Path
from typing import Any

from foreword.cli.flags import default_text, flag_of
from foreword.config import CompressConfig, DataConfig, EvalConfig, TrainConfig
from foreword.settings import About, describe, describe_type

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

Every setting of `foreword.TrainConfig`, `EvalConfig` and `CompressConfig`, as Python fields, entries of a settings file
(YAML, TOML or JSON) and flags. `.ci/settings_page.py` writes this page from the settings' own descriptions; `make lint`
checks that it is up to date. A setting marked ● may differ when a run is resumed.
"""


COLUMNS = "| setting | flag | type | default | meaning |\n|---|---|---|---|---|\n"


def main() -> int:
    page = HEAD + "".join(section(*entry) for entry in SECTIONS)
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        print("docs/settings.md is not up to date; python .ci/settings_page.py writes it")
        return 1
    return 0


def section(title: str, kind: type[Any], without: type[Any] | None) -> str:
    """The settings of `kind` by group, but for those that it has as they are from `without`."""
    inherited = {} if without is None else {item.name: item for item in dataclasses.fields(without)}
    fields = [item for item in dataclasses.fields(kind) if inherited.get(item.name) is not item]
    about, hints = describe(kind), typing.get_type_hints(kind)

    def group_of(item: dataclasses.Field[Any]) -> str:
        return about[item.name].group

    lines = [f"\n## {title}\n"]
    for group, items in groupby(sorted(fields, key=lambda item: order(group_of(item))), key=group_of):
        lines.append(f"\n### {group.capitalize()}\n\n{COLUMNS}")
        lines += [row(item, hints[item.name], about[item.name]) for item in items]
    return "".join(lines)


def row(item: dataclasses.Field[Any], hint: Any, about: About) -> str:
    flag = "–" if about.flag is None else f"`{flag_of(item.name, about)}`"
    mark = " ●" if about.free_on_resume else ""
    default = default_text(item).removeprefix(" Default: ").removesuffix(".") or "–"
    text = about.help.replace("|", "\\|")
    return f"| `{item.name}`{mark} | {flag} | {describe_type(hint)}{bounds(about)} | {default} | {text} |\n"


def bounds(about: About) -> str:
    words = [("≥", about.least), (">", about.above), ("<", about.below)]
    parts = [f"{sign} {value:g}" for sign, value in words if value is not None]
    parts += [] if about.most is None else [f"≤ {about.most:,.0f}" if about.most < 2**53 else "of 63 bits"]
    return f", {' and '.join(parts)}" if parts else ""


def order(group: str) -> int:
    return ["base", "data", "task", "prefix", "start", "optimisation", "run", "measuring", "choice"].index(group)


SECTIONS = (
    ("Every verb that reads rows", DataConfig, None),
    ("Training (`foreword train`, `TrainConfig`)", TrainConfig, DataConfig),
    ("Evaluation (`foreword eval`, `EvalConfig`)", EvalConfig, DataConfig),
    ("Compression (`foreword compress`, `CompressConfig`)", CompressConfig, DataConfig),
)

if __name__ == "__main__":
    raise SystemExit(main())
