"""The book: `make book`. The source folder is the repository itself, so links between its pages need no translation."""

import re
import shutil
from importlib.metadata import files
from pathlib import Path

import mesa_lib

ROOT = Path(__file__).resolve().parent.parent

project = "mesa"
author = "the mesa contributors"
project_copyright = "MIT license"
version = release = mesa_lib.__version__
language = "en"
root_doc = "docs/index"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "notebooks/*.ipynb",
    "assignments/README.md",
    "benchmarks/README.md",
]
exclude_patterns = [".*", "**/.*", "data", "runs", "docs/_build", "**.failed.ipynb"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# notebooks: stored outputs only
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # no scripts from a network
myst_enable_extensions = ["amsmath", "attrs_inline", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_url_schemes = ["http", "https", "mailto"]

# docstrings
autodoc_default_options = {"members": True, "show-inheritance": True}
default_role = "code"  # `name` in a docstring
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
viewcode_follow_imported_members = False  # a name belongs to the module that the page documents
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# pages
html_theme = "sphinx_book_theme"
html_title = "mesa"
html_static_path = ["_static"]
html_css_files = ["mesa.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
mathjax_path = "mathjax/tex-chtml.js"
mathjax_options = {"loading_method": "defer"}
myst_update_mathjax = False
MATHJAX_PACKAGE = "sphinx-mathjax-offline"


def adapt_links(app, docname, source):
    """Change links that a book cannot follow: a folder becomes its README or nothing, other notebooks are downloads."""
    folder = (ROOT / docname).parent

    def adapted(match):
        text, target = match.group(1), match.group(2)
        file = (folder / target).resolve()
        if file.is_dir():
            pages = [name for name in ("README.md", "__init__.py") if (file / name).is_file()]
            return f"[{text}]({target.rstrip('/')}/{pages[0]})" if pages else text
        other = file.suffix == ".ipynb" and file.parent != ROOT / "notebooks"
        return f"[{text}](path:{target})" if other and file.is_file() else match.group()

    source[0] = re.sub(r"(?<!!)\[([^\[\]]*)\]\(([^)#:\s]+)\)", adapted, source[0])


def escape_docstring(app, what, name, obj, options, lines):
    """Escape what is plain text in a docstring and markup in reStructuredText: `*shape`, `|value - median|`."""
    for number, line in enumerate(lines):
        line = re.sub(r"(?<![\w*`])\*(?=\w+[,)\]])", r"\\*", line)
        lines[number] = re.sub(r"(?<!\\)\|", r"\\|", line)


def copy_mathjax(app):
    """Copy the files of MathJax that pages need from the installed package: the renderer and its fonts."""
    found = [Path(file.locate()) for file in files(MATHJAX_PACKAGE) if "/static/mathjax/" in file.as_posix()]
    folder = next(file for file in found if file.name == "tex-chtml.js").parent
    target = Path(app.outdir) / "_static" / "mathjax"
    for file in found:
        name = file.relative_to(folder)
        if name.as_posix() == "tex-chtml.js" or name.as_posix().startswith("output/chtml/fonts/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)


def write_start_page(app, error):
    """Write index.html, which leads to the first page."""
    page = f"{root_doc}.html"
    head = (
        f'<!doctype html><meta charset="utf-8"><title>mesa</title><meta http-equiv="refresh" content="0; url={page}">'
    )
    (Path(app.outdir) / "index.html").write_text(f'{head}<a href="{page}">mesa</a>\n')


def adapt_links_of_outputs(app, exception):
    """Let links to notebooks and documents in computed sentences, which are outputs, lead to pages."""
    for page in Path(app.outdir).glob("notebooks/*.html"):
        text = page.read_text()
        page.write_text(
            re.sub(r'href="(?![^"]*_downloads)([\w./-]+)\.(?:ipynb|md)(#[^"]*)?"', r'href="\1.html\2"', text)
        )


def setup(app):
    """Register what Sphinx does at the beginning and at the end."""
    app.connect("source-read", adapt_links)
    app.connect("autodoc-process-docstring", escape_docstring)
    app.connect("builder-inited", copy_mathjax)
    app.connect("build-finished", write_start_page)
    app.connect("build-finished", adapt_links_of_outputs)
