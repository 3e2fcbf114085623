"""Pages of docs/ -> a site that stands alone: what they link to elsewhere in the repository becomes pages of it too.

A page links to `../examples/own_tool.py` as GitHub reads it. The site has such files under `repository/`: Markdown as a
page, a folder as the list of what it holds, pictures as they are, and any other text as code. What these pages link to
is there too, so no link leaves the site but those to other hosts.
"""

import posixpath
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
HOME = "repository"
LINK = re.compile(r"(\]\()([^)\s#]+)([^)\s]*\))")
PICTURE = re.compile(r'(\b(?:src|srcset)=")([^"\s]+)(")')
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2[ \t]*$", flags=re.DOTALL | re.MULTILINE)
LANGUAGES = {".rs": "rust", ".py": "python", ".toml": "toml", ".yaml": "yaml", ".sh": "sh", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file of the repository that a page links to, and for those that these link to."""
    waiting = [page for page in files.documentation_pages() if not page.inclusion.is_excluded()]
    while waiting:
        page = waiting.pop()
        for path in linked(page.src_uri, page.content_string):
            uri = place(path)
            if files.get_file_from_path(uri) is None and (ROOT / path).exists():
                files.append(added := File.generated(config, uri, content=content(path)))
                if uri.endswith(".md") and path.endswith(".md"):
                    waiting.append(added)
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Point links of a page that leave docs/ to where the site has the file, and keep the repository out of search."""
    uri = page.file.src_uri
    if uri.startswith(f"{HOME}/"):
        page.meta["search"] = {"exclude": True}

    def moved(link: re.Match[str]) -> str:
        path = target(uri, link[2])
        if path is None:
            return link[0]
        return link[1] + posixpath.relpath(place(path), posixpath.dirname(uri) or ".") + link[3]

    return outside_of_code(markdown, moved)


def linked(uri: str, markdown: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to."""
    text = FENCE.sub("", markdown)
    for link in chain(LINK.finditer(text), PICTURE.finditer(text)):
        if (path := target(uri, link[2])) is not None:
            yield path


def target(uri: str, link: str) -> str | None:
    """Return the path from the repository's root that a page's link names; None where it names another host."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    written = uri.removeprefix(f"{HOME}/") if uri.startswith(f"{HOME}/") else f"docs/{uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(written), link))


def place(path: str) -> str:
    """Return where the site's sources have a file of the repository, from docs/."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    as_it_is = path.endswith((".md", ".png", ".svg", ".html"))
    return f"{HOME}/{path}" if as_it_is else f"{HOME}/{path}.md"


def content(path: str) -> str | bytes:
    """Return what stands at a path of the repository, as the source of a page: code in a fence, folders as lists."""
    file = ROOT / path
    if path.endswith(".md"):
        return file.read_text(encoding="utf-8")
    if path.endswith((".png", ".svg", ".html")):
        return file.read_bytes()
    if file.is_dir():
        names = sorted(entry.name for entry in file.iterdir() if not entry.name.startswith((".", "__")))
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    language = LANGUAGES.get(file.suffix, "text")
    return f"# {path}\n\n~~~~~~{language}\n{file.read_text(encoding='utf-8')}\n~~~~~~\n"


def outside_of_code(markdown: str, moved: Any) -> str:
    """Apply `moved` to each link and picture that does not stand in a fenced block."""

    def all_moved(text: str) -> str:
        return PICTURE.sub(moved, LINK.sub(moved, text))

    written, end = [], 0
    for block in FENCE.finditer(markdown):
        written += [all_moved(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join(written) + all_moved(markdown[end:])
