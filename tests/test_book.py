"""The book: built once, with warnings as errors, then read as a browser without a network would read it."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from mesa_lib.store import paths

ROOT = paths.root()
NOTEBOOKS = sorted(
    file.stem for file in (ROOT / "notebooks").glob("*.ipynb") if not file.name.endswith(".failed.ipynb")
)

pytestmark = pytest.mark.long


class Page(HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        have = dict(attributes)
        self.anchors |= {have[name] for name in ("id", "name") if have.get(name)}
        if tag == "a" and have.get("href"):
            self.links.append(have["href"])
        if tag in ("script", "img", "iframe") and have.get("src"):
            self.loaded.append(have["src"])
        if (
            tag == "link"
            and have.get("href")
            and have.get("rel") not in ("canonical", "next", "prev", "search", "index")
        ):
            self.loaded.append(have["href"])


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of the built book, from the Makefile's command."""
    out = tmp_path_factory.mktemp("book") / "html"
    (command,) = re.findall(
        r"^\t\$\(BIN\)/python (-m sphinx .*) docs/_build/html$", (ROOT / "Makefile").read_text(), re.M
    )
    done = subprocess.run(
        [sys.executable, *command.split(), str(out)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "-W" in command.split(), "warnings are errors"
    return out


@pytest.fixture(scope="module")
def pages(book):
    """Path -> what the page refers to."""
    return {file: Page(file.read_text()) for file in sorted(book.rglob("*.html")) if "_static" not in file.parts}


def test_every_notebook_and_every_document_has_a_page(book):
    documents = [f"docs/{file.stem}" for file in (ROOT / "docs").glob("*.md")]
    for name in [f"notebooks/{stem}" for stem in NOTEBOOKS] + documents + ["README", "assignments/README", "index"]:
        assert (book / f"{name}.html").is_file(), name


def test_notebooks_are_in_order(book):
    sidebar = (book / "docs" / "index.html").read_text()
    listed = dict.fromkeys(
        re.findall(r'href="\.\./notebooks/(\w+)\.html"', sidebar[sidebar.index("Notebooks</span>") :])
    )
    assert list(listed) == NOTEBOOKS


def test_stored_outputs_are_shown(book):
    for stem in NOTEBOOKS:
        stored = (ROOT / "notebooks" / f"{stem}.ipynb").read_text().count('"image/png"')
        shown = len(
            re.findall(r'<img [^>]*src="\.\./_images/\w+\.png"', (book / "notebooks" / f"{stem}.html").read_text())
        )
        assert shown >= stored, stem


def test_links_between_pages_lead_somewhere(book, pages):
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert target.is_file(), f"{file.relative_to(book)}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{file.relative_to(book)}: {link}"


def test_links_between_notebooks_are_links_between_pages(pages):
    links = {link for page in pages.values() for link in page.links if urlsplit(link).path.endswith(".ipynb")}
    assert not [link for link in links if "_downloads" not in link]


def test_nothing_is_loaded_from_a_network(book, pages):
    for file, page in pages.items():
        for source in page.loaded:
            assert not re.match(r"(https?:)?//", source), f"{file.relative_to(book)}: {source}"
    for file in book.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", file.read_text()), file.relative_to(book)


def test_mathematics_comes_with_the_book(book, pages):
    assert (book / "_static" / "mathjax" / "tex-chtml.js").is_file()
    assert list((book / "_static" / "mathjax").rglob("MathJax_Main-Regular.woff"))
    (source,) = [s for s in pages[book / "docs" / "cheatsheet.html"].loaded if "mathjax" in s]
    assert source.split("?")[0] == "../_static/mathjax/tex-chtml.js"


def test_search_finds_words_of_notebooks_and_docstrings(book):
    index = (book / "searchindex.js").read_text()
    for stem in NOTEBOOKS:
        assert f'"notebooks/{stem}"' in index, stem
    for word in ("staircas", "trigger", "invert_trigger", "checkerboard"):
        assert f'"{word}"' in index, word
