"""Every relative link and anchor of the Markdown files resolves. Nothing is fetched."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
INLINE = re.compile(r"\]\(\s*<?([^()\s<>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?([^\s<>]+)", re.MULTILINE)
ANCHOR = re.compile(r"<a\s[^>]*\b(?:id|name)=[\"']([^\"']+)")


def prose(text: str) -> str:
    """`text` without fenced code and code spans: what looks like a link there is none."""
    text = re.sub(r"^ {0,3}(```|~~~).*?^ {0,3}\1[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "`code`", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page, as GitHub makes them from its headings."""
    unfenced = re.sub(r"^ {0,3}(```|~~~).*?^ {0,3}\1[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    found, seen = set(ANCHOR.findall(text)), Counter[str]()
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", unfenced, re.MULTILINE):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link's text alone
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """Relative links of `page` that lead nowhere, out of `root`, or to an anchor that is not there."""
    text = prose(page.read_text(encoding="utf-8"))
    broken = []
    for link in INLINE.findall(text) + DEFINITION.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link, re.IGNORECASE):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / unquote(target)).resolve() if target else page
        inside = not target.startswith("/") and file.is_relative_to(root.resolve()) and file.exists()
        if not inside or (anchor and not has_anchor(file, unquote(anchor))):
            broken.append(link)
    return broken


def has_anchor(file: Path, anchor: str) -> bool:
    return file.suffix == ".md" and anchor in anchors(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_anchors_resolve(page: Path) -> None:
    assert broken_links(page) == []


GOOD = """# A page – with `code`, and (more)

[there](other.md), [its part](other.md#twice-1), [here](#a-page--with-code-and-more), [a folder](sub/),
[web](https://x.org)
![picture](picture.svg "title"), `[code](nowhere.md)`, [defined]

```
# Not a heading
[fenced](nowhere.md)
```

[defined]: sub/page.md
"""


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "page.md").write_text("# Page\n")
    (tmp_path / "other.md").write_text("# Twice\n\n## Twice\n")
    (tmp_path / "picture.svg").write_text("<svg/>")
    return tmp_path


def test_good_links_are_not_reported(pages: Path) -> None:
    (pages / "page.md").write_text(GOOD)
    assert broken_links(pages / "page.md", pages) == []


@pytest.mark.parametrize(
    "link",
    [
        "nowhere.md",
        "sub/other.md",
        "other.md#once",
        "#not-a-heading",
        "../outside.md",
        "/other.md",
        "picture.svg#part",
    ],
)
@pytest.mark.parametrize("form", ["[text]({})", "![text]({})", '[text]({} "title")', "[text]: {}"])
def test_a_broken_link_is_found(pages: Path, link: str, form: str) -> None:
    (pages.parent / "outside.md").write_text("# Outside\n")
    page = pages / "page.md"
    page.write_text(GOOD + "\n" + form.format(link) + "\n")
    assert broken_links(page, pages) == [link]
