"""What a browser makes of a report's pages."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt


class Page(HTMLParser):
    """The tags of a page, the addresses that it asks for, its text, its headings (h2) and its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str | None] = []
        self.classes: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        """The heading that each table is under, and the text of its cells, row by row."""
        self.text = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[key] for key in ("src", "href") if key in values]
        self.alts += [values.get("alt")] if tag == "img" else []
        self.classes += [values["class"]] if "class" in values else []
        self.ids += [values["id"]] if "id" in values else []
        if tag == "h2":
            self.headings.append("")
        elif tag == "table":
            self.tables.append((self.headings[-1] if self.headings else "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        self._open = tag if tag in ("h2", "td", "th") else self._open

    def handle_endtag(self, tag):
        self._open = "" if tag in ("h2", "td", "th") else self._open

    def handle_data(self, data):
        self.text += data
        if self._open == "h2":
            self.headings[-1] += data
        elif self._open:
            cells = self.tables[-1][1][-1]
            cells[-1] = " ".join(f"{cells[-1]} {data}".split())

    @property
    def words(self) -> str:
        """The text in one line."""
        return " ".join(self.text.split())

    def under(self, heading: str) -> list[list[list[str]]]:
        """Return the tables under the headings that begin so; their first row is the head."""
        return [rows for title, rows in self.tables if title.startswith(heading)]


def rendered(path: Path) -> str:
    """Return the Markdown file as HTML."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(path.read_text())
