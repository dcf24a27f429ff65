"""MkDocs hook: README, CONTRIBUTING and CHANGELOG of the repository are pages of the site too.

Their links, and those of docs pages to them, are written for the repository (`docs/models.md`, `../CHANGELOG.md`),
where GitHub and editors follow them. Here they are rewritten to the site's pages. A link to a repository file that is
no page of the site becomes plain text. Everything else is left to MkDocs, which refuses what leads nowhere.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^()\s#]*)(#[^()\s]*)?\)")
FENCE = re.compile(r"^(```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    path = page.file.src_uri
    home = posixpath.dirname(path) if path not in SOURCES else ""
    folder = "" if path in SOURCES else posixpath.join("docs", home)  # where the text stands in the repository

    def rewritten(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or ":" in target:
            return match[0]
        inside = posixpath.normpath(posixpath.join(folder, target))
        if inside in PAGES:
            return f"[{text}]({posixpath.relpath(PAGES[inside], home or '.')}{anchor})"
        if inside.startswith("docs/"):
            return f"[{text}]({posixpath.relpath(inside.removeprefix('docs/'), home or '.')}{anchor})"
        return text if (ROOT / inside).exists() else match[0]

    parts = FENCE.split(markdown)  # fenced code at the odd places
    return "".join(part if number % 2 else LINK.sub(rewritten, part) for number, part in enumerate(parts))
