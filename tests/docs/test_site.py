"""The site that `make docs` builds: every link leads somewhere, and no page asks another host for anything."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.built_pages import Page, dead_links, pages

ROOT = Path(__file__).parents[2]
HOSTS = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once; a warning, such as a page that the navigation lacks, is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(site: Path) -> dict[Path, Page]:
    """The pages of the site."""
    return pages(site)


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a site strictly."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_every_link_anchor_and_picture_of_the_site_exists(found: dict[Path, Page]) -> None:
    assert len(found) > 20
    assert sum(len(page.links) for page in found.values()) > 500
    assert dead_links(found) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text('<h1 id="here">There</h1>')
    (tmp_path / "page.html").write_text(
        '<a href="other.html#here">1</a><a href="other.html#gone">2</a><a href="gone.html">3</a>'
        '<img src="gone.png"><a href="#own">4</a><a id="own" href="https://example.org/gone">5</a>'
    )
    dead = ["page.html: other.html#gone", "page.html: gone.html", "page.html: gone.png"]
    assert dead_links(pages(tmp_path)) == dead


def test_links_to_other_hosts_are_well_formed(found: dict[Path, Page]) -> None:
    outer = {link for page in found.values() for link in page.links if "//" in link}
    assert "https://arxiv.org/abs/2509.21240" in outer
    assert [
        link for link in outer if urlsplit(link).scheme != "https" or not HOSTS.fullmatch(urlsplit(link).netloc)
    ] == []


def test_no_page_loads_anything_from_another_host(found: dict[Path, Page]) -> None:
    assert [load for page in found.values() for load in page.loads if "//" in load] == []


def test_what_pages_link_to_in_the_repository_is_part_of_the_site(site: Path) -> None:
    source = (site / "repository" / "examples" / "own_estimator.py.html").read_text(encoding="utf-8")
    assert "def " in re.sub(r"<[^>]+>", "", source)
    assert "own_estimator.py.html" in (site / "concepts" / "credit.html").read_text(encoding="utf-8")


def test_lists_and_tables_are_read_by_the_site_as_github_reads_them(found: dict[Path, Page]) -> None:
    """The site's Markdown asks for an empty line before a list or a table; without one they become a paragraph."""
    paragraphs = [
        (path.name, text)
        for path in found
        if "repository" not in path.parts
        for text in re.findall(r"<p>(.*?)</p>", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    ]
    assert [text for text in paragraphs if re.search(r"^(- |\d\. |\|)", text[1], flags=re.MULTILINE)] == []


def test_a_page_that_links_nowhere_or_that_the_navigation_lacks_ends_the_build(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "mkdocs.yml", tmp_path / "mkdocs.yml")
    (tmp_path / "docs").mkdir()
    shutil.copyfile(ROOT / "docs" / "hooks.py", tmp_path / "docs" / "hooks.py")
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[nowhere](../examples/nowhere.py)\n")
    (tmp_path / "mkdocs.yml").write_text(
        (tmp_path / "mkdocs.yml").read_text().partition("nav:\n  - Home")[0] + "nav:\n  - Home: index.md\n"
    )
    broken = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert broken.returncode != 0
    assert "nowhere.py" in broken.stderr
    (tmp_path / "docs" / "index.md").write_text("# Home\n")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 0
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    lost = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert lost.returncode != 0
    assert "lost.md" in lost.stderr
