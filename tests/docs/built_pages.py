"""A built site -> the links, pictures and anchors of its pages."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}


@dataclass
class Page(HTMLParser):
    """What a page links to (its content alone and all of it), the anchors that it has, and its text."""

    path: Path
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where a tag leads and what it is called."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        link = given.get(LINKS.get(tag, ""))
        if link is not None and not (tag == "link" and given.get("rel") == "canonical"):
            (self.links if tag == "a" else self.loads).append(link)


def pages(site: Path) -> dict[Path, Page]:
    """Return the pages of a site by their paths."""
    return {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}


def dead_links(found: dict[Path, Page], without: str = "404.html") -> list[str]:
    """Return the links within a site that lead to no file, or to no anchor of one."""
    dead = []
    for path, page in found.items():
        if path.name == without:
            continue
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            end = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            end = end / "index.html" if end.is_dir() else end
            if not end.exists() or (parts.fragment and unquote(parts.fragment) not in anchors(found, end)):
                dead.append(f"{path.name}: {link}")
    return dead


def anchors(found: dict[Path, Page], path: Path) -> set[str]:
    """Return the anchors of a page; a file of another kind has none."""
    return found[path].anchors if path in found else set()
