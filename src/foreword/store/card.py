"""The model card of a version: in plain words what it is for, what it was measured on, and how to run it.

Markdown with the front matter of the Hugging Face hub. Texts that come from files are shown as code, so that they can't
become links, images or HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from foreword.prefix.records import recorded_config
from foreword.store.usage import generate_command

_LIMITS = (
    "It works with this base alone: the same architecture and shapes, and best the same weights. "
    "It changes how the base continues a text. It adds no safety, and it can repeat what its training data say."
)


def card(facts: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return the text of README.md. facts: those of the version. record: the prefix's."""
    sections = {
        "What it is for": _purpose(facts),
        "What it was measured on": _measured(facts),
        "How to run it": _running(facts),
        "How it was made": _made(facts, record),
        "Limits": _LIMITS,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{_front(facts)}\n# {facts['name']}\n\nA learned prefix for a frozen language model.\n\n{body}\n"


def _front(facts: Mapping[str, Any]) -> str:
    """Return the front matter; values are JSON texts, which YAML reads."""
    source = facts["base"].get("source")
    lines = {
        "library_name": "foreword",
        "license": facts.get("licence"),
        "base_model": source if isinstance(source, str) and source.count("/") == 1 and source[0] != "." else None,
        "tags": ["prefix-tuning", "foreword"],
    }
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items() if value is not None)
    return f"---\n{text}---\n"


def _purpose(facts: Mapping[str, Any]) -> str:
    if facts.get("description"):
        return _quoted(facts["description"])
    task, template = facts.get("task") or "lm", facts.get("template")
    said = f"Task {code(task)}. Nobody has described it further (`foreword store add --description`)."
    return said if template is None else f"{said} Its inputs are rendered as {code(template)}."


def _measured(facts: Mapping[str, Any]) -> str:
    metrics, data = facts["metrics"], facts.get("data")
    validation = data.get("validation") if isinstance(data, Mapping) else None
    named = _named(validation) if isinstance(validation, Mapping) else None
    where = f"Validation rows: {named}." if named else "Which rows it was measured on is not recorded."
    if not metrics:
        return f"{where} It was not measured."
    rows = "\n".join(f"| {code(name)} | {value:.4g} |" for name, value in metrics.items())
    if "validation_loss" in metrics:
        where += " The best checkpoint was chosen by its validation loss on these rows, so that loss is optimistic."
    return f"{where}\n\n| metric | value |\n|---|---|\n{rows}"


def _running(facts: Mapping[str, Any]) -> str:
    command = generate_command(facts["name"], facts.get("fields") or (), head=bool(facts.get("head")))
    return (
        f"```bash\npip install foreword\n{command}\n```\n\n```python\nimport foreword\n\n"
        f"base = foreword.load({_source(facts)!r})\nprefix = foreword.Prefix.load({facts['name']!r})\n"
        'print(base.generate(["your input"], prefix)[0])\n```\n\n'
        f"`foreword export {facts['name']} --list` shows the other programs that it runs in."
    )


def _made(facts: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    config, base = recorded_config(record), facts["base"]
    told: dict[str, Any] = {
        "base": base.get("source") or base.get("architecture"),
        "base weights": base.get("weights"),
        "quantised weights": base.get("quantisation"),
        "method": facts["method"],
        "virtual tokens": facts["length"],
        "numbers": facts.get("parameters"),
    }
    told |= {name.replace("_", " "): config.get(name) for name in ("objective", "lr", "batch_size", "steps", "seed")}
    data = facts.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("training"), Mapping):
        told["training rows"] = _named(data["training"])
    lines = [f"- {name}: {value if name == 'training rows' else code(value)}" for name, value in told.items() if value]
    return "\n".join(lines)


def _named(source: Mapping[str, Any]) -> str:
    """Name a data source as far as its record does: name, rows and digest."""
    rows = f", {source['rows']:,} rows" if isinstance(source.get("rows"), int) else ""
    digest = f", {code(source['digest'])}" if source.get("digest") else ""
    return f"{code(source.get('name') or 'held out of the training rows')}{rows}{digest}"


def _source(facts: Mapping[str, Any]) -> str:
    return str(facts["base"].get("source") or "BASE")


def code(value: Any) -> str:
    """Return a text as Markdown code on one line, whatever characters are in it."""
    text = " ".join(str(value).split())[:500].replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _quoted(text: str) -> str:
    """Return a user's text as plain Markdown paragraphs: no HTML, no front matter, no links."""
    escaped = re.sub(r"([\\<>\[\]`#*_|!])", r"\\\1", text.strip())
    return re.sub(r"(?m)^(\s*)([-+=]|\d+\.)", r"\1\\\2", escaped)
