"""What a browser would see of an HTML page."""

from __future__ import annotations

from html.parser import HTMLParser

ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "ul", "li", "b", "small", "p", "svg", "path",
    "circle", "text", "g", "div", "table", "thead", "tbody", "tr", "th", "td", "details", "summary",
}  # fmt: skip


class Reader(HTMLParser):
    """Collects what a browser would see; `whole` if every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.curves: list[str] = []
        self.whole, self._open = True, list[str]()
        self.feed(html)
        self.close()
        self.whole = self.whole and not self._open

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_starttag(self, tag, attrs) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag) -> None:
        self.whole = self.whole and bool(self._open) and self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.texts.append(data)
