"""Examples from the interpreter's standard library: a function's code and the one-line summary in its docstring."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHORTEST, LONGEST = 60, 600  # characters of code
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Function:
    """A function or method without its docstring, and the docstring's one-sentence first paragraph."""

    module: str
    name: str
    code: str
    summary: str


def functions() -> list[Function]:
    """Return every suitable function, ordered by module and position. One interpreter always gives the same list."""
    root = Path(sysconfig.get_paths()["stdlib"])
    candidates: list[Function] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _SKIPPED.intersection(relative.parts):
            candidates += _in_file(path, ".".join(relative.with_suffix("").parts))
    unique: dict[str, Function] = {}
    for function in candidates:
        unique.setdefault(function.code, function)
    return list(unique.values())


def split(examples: list[Function]) -> tuple[list[Function], list[Function]]:
    """Split `examples` into (training, validation).

    A tenth of the top-level packages, chosen by a hash of their name, is held out as a whole, so that no module has
    both training and validation rows.
    """
    training: list[Function] = []
    validation: list[Function] = []
    for function in examples:
        package = function.module.split(".")[0]
        held_out = hashlib.sha256(package.encode()).digest()[0] % 10 == 0
        (validation if held_out else training).append(function)
    return training, validation


def _in_file(path: Path, module: str) -> Iterator[Function]:
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # don't report invalid escapes in the library's code
            tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            summary = _summary(ast.get_docstring(node))
            code = _code(node, source) if summary else None
            if summary and code and SHORTEST <= len(code) <= LONGEST:
                yield Function(module, node.name, code, summary)


def _summary(docstring: str | None) -> str | None:
    """Return the first paragraph on one line if it is one sentence, else None."""
    if not docstring:
        return None
    text = " ".join(docstring.strip().split("\n\n")[0].split())
    one_sentence = text.endswith(".") and ". " not in text and 15 <= len(text) <= 120
    return text if one_sentence and text[0].isupper() else None


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, source: str) -> str | None:
    """Return the function's source without its docstring, dedented; None if it has nothing else."""
    if len(node.body) < 2:
        return None
    lines = source.splitlines()
    docstring = node.body[0]
    if docstring.lineno <= node.lineno or docstring.end_lineno is None:
        return None
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(line for line in kept if line.strip()))
