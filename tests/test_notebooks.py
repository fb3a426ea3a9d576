"""The committed notebooks: one skeleton, parameters that agree with the schema, executed and clean."""

import ast
import importlib
import json
import re
import subprocess
import sys

import nbformat
import papermill
import pytest

from mesa_lib.experiments import notebooks
from mesa_lib.experiments.params import Params
from mesa_lib.reporting.tables import parameters
from mesa_lib.store import paths

BOOKS = sorted((paths.root() / "notebooks").glob("*.ipynb"))
#: copies that the runner executed with other parameters, kept beside the results
COPIES = sorted((paths.root() / "results").glob("*/*.ipynb"))


@pytest.fixture(params=BOOKS, ids=lambda f: f.stem)
def file(request):
    return request.param


APART = (notebooks.VICTIM_NOTEBOOK, notebooks.PLAYGROUND)


@pytest.fixture(params=[f for f in BOOKS if f.stem not in APART], ids=lambda f: f.stem)
def chapter(request):
    """A notebook of the series; that of the benchmark is none, and the playground is for other things than reading."""
    return nbformat.read(request.param, 4)


@pytest.fixture
def book(file):
    return nbformat.read(file, 4)


def code(book):
    return [c for c in book.cells if c.cell_type == "code"]


def test_the_series_is_whole():
    later = ["05_paper", "06_other_attacks", "07_other_defenses", "08_detecting", "09_benchmark", "10_scan_a_model"]
    later += [notebooks.VICTIM_NOTEBOOK, notebooks.PLAYGROUND]
    assert [f.stem for f in BOOKS] == ["00_quickstart", *notebooks.SERIES, *later]


def test_parameters_agree_with_the_schema(file):
    """Names, defaults, types and comments, as `papermill --help-notebook` shows them."""
    declared, defaults = papermill.inspect_notebook(str(file)), Params().model_dump()
    assert declared
    for name, shown in declared.items():
        assert json.loads(shown["default"]) == defaults[name] and shown["help"] == Params.model_fields[name].description
        assert shown["inferred_type_name"] == type(defaults[name]).__name__


@pytest.mark.parametrize("name", notebooks.SERIES)
def test_a_notebook_gets_what_its_cell_lists_and_whatever_is_not_the_default(name):
    source = notebooks.notebook_path(name)
    listed = set(papermill.inspect_notebook(str(source)))
    assert set(notebooks.injected_parameters(source, Params())) == listed
    assert "ema_rate" not in listed
    changed = notebooks.injected_parameters(source, Params(ema_rate=0.5))
    assert set(changed) == listed | {"ema_rate"} and changed["ema_rate"] == 0.5


def test_the_page_of_parameters_has_all_of_them_with_their_defaults():
    """`mesa_lib tables` writes it."""
    text = (paths.root() / "docs" / "parameters.md").read_text()
    assert text == parameters.page()
    for name, default in Params().model_dump().items():
        assert text.count(f"| `{name}` | `{default!r}` | {Params.model_fields[name].description} |") == 1


def test_there_is_one_parameters_cell_of_flat_scalars(book):
    tagged = [c for c in code(book) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert len(tagged[0].source.splitlines()) <= 15
    for line in tagged[0].source.splitlines():
        assert re.fullmatch(r'\w+: (int|float|str) = (-?[\d.e-]+|"[^"=]*")  # \S.*', line), line


def test_no_code_cell_is_longer_than_25_lines(book):
    assert not [c.source for c in code(book) if len(c.source.splitlines()) > 25]


def test_it_was_executed_from_top_to_bottom_without_errors(book):
    assert [c.execution_count for c in code(book)] == list(range(1, len(code(book)) + 1))
    assert not [o for c in code(book) for o in c.outputs if o.output_type == "error"]
    assert not [o for c in code(book) for o in c.outputs if o.get("name") == "stderr"]


def test_half_of_the_cells_with_output_are_compared(book):
    shown = [c for c in code(book) if c.outputs]
    compared = [c for c in shown if not {"nbval-ignore-output", "nbval-skip"} & set(c.metadata.get("tags", []))]
    assert len(compared) >= len(shown) / 2, f"{len(compared)} of {len(shown)}"


def test_bounds_on_trained_models_are_named_and_not_asserted(file, book):
    """On another processor a bound may fail, and a run would stop there; 09 reads files alone."""
    bound = [cell for cell in code(book) if "as_stored()" in cell.source and "assert " in cell.source]
    assert not bound or file.stem == "09_benchmark", bound


def is_prose(cell):
    """Whether readers see text alone: markdown, or a cell whose text is computed."""
    return cell.cell_type == "markdown" or "computed-prose" in cell.metadata.get("tags", [])


def test_it_is_more_prose_than_code_and_rests_after_two_cells(chapter):
    kinds = "".join("p" if is_prose(c) else "c" for c in chapter.cells)
    assert kinds.count("p") >= kinds.count("c") and "ccc" not in kinds and 25 <= len(kinds) <= 60


def test_it_has_the_skeleton(chapter):
    prose = "\n".join(c.source for c in chapter.cells if c.cell_type == "markdown")
    for part in ("# ", "**Question.**", "**What you will know at the end**", "**Time.**", "Limits", "Exercise"):
        assert part in prose, part
    assert "## References" in prose and "@" not in prose


def test_it_names_no_machine(file, book):
    text = file.read_text()
    assert not re.search(r"/(home|root|work|tmp|Users|content)/", text)
    assert set(book.metadata) == {"kernelspec", "language_info"} and book.metadata.kernelspec.name == "python3"
    for cell in book.cells:
        hidden = {"jupyter"} if "computed-prose" in cell.metadata.get("tags", []) else set()
        assert set(cell.metadata) <= {"tags"} | hidden, "no papermill, execution or widget metadata"
    assert "widget" not in text.replace("ipywidgets", "") and "image/svg" not in text
    assert file.stat().st_size < 500_000


@pytest.mark.parametrize("copy", COPIES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_a_copy_beside_the_results_is_whole_says_what_it_is_and_names_no_machine(copy):
    book = nbformat.read(copy, 4)
    assert [c.execution_count for c in code(book)] == list(range(1, len(code(book)) + 1))  # a warning is no error
    test_it_names_no_machine(copy, book)
    assert "executed with other parameters" in book.cells[1].source
    assert [f.stem for f in sorted(copy.parent.glob("*.ipynb"))] == list(notebooks.SERIES)
    test_links_between_notebooks_lead_somewhere(book, copy)


def test_links_between_notebooks_lead_somewhere(book, file):
    prose = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    for link in re.findall(r"\]\(([\w./-]+\.(?:ipynb|md))\)", prose):
        assert (file.parent / link).exists(), link


# --- measured figures in prose are computed --------------------------------------------------------------

#: notebooks in whose markdown no measured figure is typed
COMPUTED = (
    "00_quickstart", "01_attacking", "02_modeling", "03_visualizing", "04_defending", "05_paper",
    "06_other_attacks", "07_other_defenses", "08_detecting", "09_benchmark", "10_scan_a_model", "one_victim",
    "playground",
)  # fmt: skip
#: what a measured figure looks like, outside of code, formulas and links
MEASURED = re.compile(r"\d+(?:[.,]\d+)?\s?%|(?<![\w.])\d+\.\d+|\b\d+ of (?:the )?\d+\b")


def typed_figures(markdown):
    """Return the measured figures that stand in a markdown text as they are."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|`[^`]*`|\$[^$]*\$|\]\([^)]*\)", " ", markdown, flags=re.S)
    return MEASURED.findall(text)


@pytest.mark.parametrize("name", COMPUTED)
def test_figures_in_prose_are_computed_or_marked_as_those_of_papers(name):
    """Settings are set as code or formulas; a cell that quotes papers has the tag `figures-of-papers`."""
    for cell in nbformat.read(notebooks.notebook_path(name), 4).cells:
        if cell.cell_type == "markdown" and "figures-of-papers" not in cell.metadata.get("tags", []):
            assert not typed_figures(cell.source), cell.source


def test_cells_of_computed_prose_show_text_and_hide_their_source(book):
    for cell in book.cells:
        if "computed-prose" in cell.metadata.get("tags", []):
            assert cell.metadata.get("jupyter") == {"source_hidden": True}
            (output,) = cell.outputs
            assert "text/markdown" in output.data and "nan" not in output.data["text/markdown"].split()


def test_typed_figures_are_found():
    assert typed_figures("leaves 1.2% or 3 %, on 4 of 20 models, 0.5 points") == ["1.2%", "3 %", "4 of 20", "0.5"]
    assert not typed_figures("level `0.9`, $\\beta = 0.9$, 3×3 patches, [2019](https://a/1.5), section 2, ten of them")


# --- notebooks executed on other data --------------------------------------------------------------------


@pytest.mark.parametrize("file", COPIES, ids=lambda f: f.stem)
def test_copies_of_notebooks_import_what_is_there_and_have_the_cells_of_the_series(file):
    """A copy is the notebook of today with other parameters: stale ones would import modules that are gone."""
    copy, series = nbformat.read(file, 4), nbformat.read(notebooks.notebook_path(file.stem), 4)
    for tree in (ast.parse(cell.source) for cell in copy.cells if cell.cell_type == "code"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
    code = [cell.source for cell in series.cells if cell.cell_type == "code" and "import" in cell.source]
    assert code[0] in [cell.source for cell in copy.cells]
    assert not [o for cell in copy.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    assert file.stat().st_size < 500_000


# --- nbval sees what it should see -----------------------------------------------------------------------


def nbval(folder, book, *options):
    (folder / "conftest.py").write_text((paths.root() / "notebooks" / "conftest.py").read_text())
    nbformat.write(book, folder / "book.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *options, "book.ipynb"], cwd=folder, capture_output=True, text=True, timeout=120)


def small_book(*sources):
    cells = [nbformat.v4.new_code_cell(s, execution_count=i) for i, s in enumerate(sources, 1)]
    return nbformat.v4.new_notebook(cells=cells)


def printed(text):
    return [nbformat.v4.new_output("stream", name="stdout", text=text)]


def test_a_true_output_passes_and_a_corrupted_one_fails(tmp_path):
    book = small_book("print(6 * 7)")
    book.cells[0].outputs = printed("42\n")
    good = nbval(tmp_path, book)
    assert good.returncode == 0, good.stdout
    book.cells[0].outputs = printed("43\n")
    bad = nbval(tmp_path, book)
    assert bad.returncode == 1 and "1 failed" in bad.stdout


def test_an_output_of_a_committed_notebook_that_is_corrupted_fails(tmp_path):
    """The first cells of 01 as they are committed, with one digit changed."""
    book = nbformat.read(notebooks.notebook_path("01"), 4)
    last = next(i for i, c in enumerate(book.cells) if c.cell_type == "code" and "triggers.orbits()" in c.source)
    book.cells = book.cells[: last + 1]
    good = nbval(tmp_path, book)
    assert good.returncode == 0, good.stdout
    output = book.cells[last].outputs[0]
    assert output.text.startswith("51 classes")
    output.text = "52" + output.text[2:]
    bad = nbval(tmp_path, book)
    assert bad.returncode == 1 and "1 failed" in bad.stdout


def test_a_notebook_that_was_never_executed_fails(tmp_path):
    book = small_book("print(6 * 7)")
    book.cells[0].execution_count = None
    result = nbval(tmp_path, book)
    assert result.returncode == 1 and "not executed" in result.stdout


def test_a_kernel_that_dies_is_reported_at_once(tmp_path):
    book = small_book("import os\nos._exit(9)")
    result = nbval(tmp_path, book, "--nbval-cell-timeout=60")
    assert result.returncode != 0 and "kernel died" in result.stdout


def test_no_cell_gives_a_parameter_another_value(book):
    """A reader who edits the parameters cell and runs it again must get what it says."""
    for cell in code(book):
        if "parameters" in cell.metadata.get("tags", []):
            continue
        names = {
            n.id for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        imports = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Import | ast.ImportFrom)]
        names |= {alias.asname or alias.name for n in imports for alias in n.names}
        assert not names & set(Params.model_fields), cell.source


def test_the_parameters_cell_can_be_edited_and_run_again(tmp_path):
    """In one kernel: the first cells, some work with other variables, the cells again with another value."""
    book = nbformat.read(notebooks.notebook_path("01"), 4)
    cell = next(i for i, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", []))
    namespace = {}
    sources = [c.source for c in book.cells[: cell + 3] if c.cell_type == "code"]
    for source in sources:
        exec(source, namespace)
    namespace |= {"first": [1, 2], "rows": [], "best": 0.5}
    exec(sources[1].replace('"bw:170"', '"bw:16"') + "\nclean_lr: float = 0.05", namespace)
    exec(sources[2], namespace)
    assert (namespace["p"].trigger, namespace["p"].clean_lr) == ("bw:16", 0.05), "a line was added to the cell"
    namespace["trigger"] = object()
    with pytest.raises(ValueError, match="trigger = <object"):
        exec(sources[2], namespace)
