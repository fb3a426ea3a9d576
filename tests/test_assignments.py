"""The problem sets: full marks for the instructor's copies, none for untouched ones, mistakes cost their points.

nbgrader grades three hand-ins of each set, as an instructor would. All mistakes and right solutions also run in
this process (`hand_ins`), some twenty times as fast. All sets share one store: models are trained once.
"""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import nbformat
import pytest
import yaml
from hand_ins import HandIns
from traitlets.config import Config, PyFileConfigLoader

from mesa_lib.store import paths

ASSIGNMENTS = paths.root() / "assignments"
SETS = sorted(folder.name for folder in (ASSIGNMENTS / "source").iterdir() if folder.is_dir())
MISTAKES = yaml.safe_load((ASSIGNMENTS / "mistakes.yaml").read_text())
RIGHT = yaml.safe_load((ASSIGNMENTS / "right.yaml").read_text())
GRADED_TOGETHER = 3  # mistakes of a set that nbgrader grades in one hand-in
SOLUTION = re.compile(r"^ *### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION\n?", re.M | re.S)


#: one test for each set; all tests of a set run on one worker, which releases the set once
each_set = pytest.mark.parametrize("name", SETS)


def source(name):
    """The instructor's copy of a set."""
    return nbformat.read(ASSIGNMENTS / "source" / name / f"{name}.ipynb", 4)


def points(book) -> dict[str, float]:
    """Cell of tests -> points; answers that are graded by hand have points, too, but are no tests."""
    cells = [cell.metadata.get("nbgrader", {}) for cell in book.cells]
    return {cell["grade_id"]: cell["points"] for cell in cells if cell.get("grade") and not cell["solution"]}


def with_mistake(cell: str, mistake: dict) -> str:
    """The source of a solution cell with a mistake in it, or with another solution."""
    if "code" in mistake:
        return mistake["code"]
    assert cell.count(mistake["right"]) == 1, mistake["what"]
    return cell.replace(mistake["right"], mistake["wrong"])


class Course:
    """A copy of the assignments in which sets are released, submissions are put and graded."""

    def __init__(self, where):
        from nbgrader.apps import NbGraderAPI

        shutil.copytree(ASSIGNMENTS, where, ignore=shutil.ignore_patterns("release", "variant", "*.db"))
        config = Config(PyFileConfigLoader("nbgrader_config.py", path=str(where)).load_config())
        config.CourseDirectory.root = str(where)
        self.where, self.api = where, NbGraderAPI(config=config)
        self._released = {}

    def release(self, name):
        """The student's copy of a set."""
        if name not in self._released:
            result = self.api.generate_assignment(name, force=True, create=True)
            assert result["success"], result["log"]
            self._released[name] = nbformat.read(self.where / "release" / name / f"{name}.ipynb", 4)
        return self._released[name]

    def scores(self, name, student, book) -> dict[str, float]:
        """Graded cell -> points of a submission."""
        self.release(name)
        folder = self.where / "submitted" / student / name
        folder.mkdir(parents=True)
        nbformat.write(book, folder / f"{name}.ipynb")
        with pytest.MonkeyPatch.context() as patch:  # as at a desk: bars, unless the settings say no
            patch.delenv("PYTEST_CURRENT_TEST", raising=False)
            patch.delenv("MESA_BATCH", raising=False)
            Config(PyFileConfigLoader("nbgrader_config.py", path=str(self.where)).load_config())
            graded = self.api.autograde(name, student, force=True, create=True)
        assert graded["success"], graded["log"]
        with self.api.gradebook as gradebook:
            (submitted,) = gradebook.find_submission(name, student).notebooks
            tests = points(source(name))
            return {grade.name: grade.score for grade in submitted.grades if grade.name in tests}

    def warned(self, name, student) -> list[str]:
        """Graded cells of a hand-in that wrote to stderr: nbgrader gives them no points."""
        graded = nbformat.read(self.where / "autograded" / student / name / f"{name}.ipynb", 4)
        return [
            cell.id for cell in graded.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"
        ]

    def errors(self, name, student) -> dict[str, str]:
        """Cell -> error message in a graded submission."""
        graded = nbformat.read(self.where / "autograded" / student / name / f"{name}.ipynb", 4)
        outputs = [(cell.id, output) for cell in graded.cells for output in cell.get("outputs", [])]
        return {cell: output.evalue for cell, output in outputs if output.output_type == "error"}


@pytest.fixture(scope="session")
def course(temporary_runs, tmp_path_factory):
    return Course(tmp_path_factory.mktemp("course") / "course")


# --- what is released ------------------------------------------------------------------------------------


@each_set
def test_the_students_copy_holds_no_solution_and_no_output(course, name):
    book, instructors = course.release(name), source(name)
    text = "\n".join(cell.source for cell in book.cells)
    assert "### BEGIN" not in text and "HIDDEN" not in text
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
    stubs = [
        cell.source
        for cell in book.cells
        if cell.cell_type == "code" and cell.metadata.get("nbgrader", {}).get("solution")
    ]
    assert stubs and all("raise NotImplementedError()" in stub for stub in stubs)
    for cell in instructors.cells:
        for solution in SOLUTION.findall(cell.source):
            for line in map(str.strip, solution.splitlines()):
                assert len(line) < 25 or line not in text, f"{cell.id}: {line}"
    hidden = re.findall(
        r"### BEGIN HIDDEN TESTS\n(.*?)### END HIDDEN TESTS", "\n".join(c.source for c in instructors.cells), re.S
    )
    assert hidden and not any(line in text for part in hidden for line in part.splitlines() if len(line) > 40)


@each_set
def test_a_set_is_executed_worth_twenty_points_and_taught_by_the_notebooks_that_it_names(name):
    book = source(name)
    assert sum(points(book).values()) == 20
    assert all(cell.get("execution_count") for cell in book.cells if cell.cell_type == "code")
    assert not any(out.output_type == "error" for cell in book.cells for out in cell.get("outputs", []))
    text = "\n".join(cell.source for cell in book.cells).lower()
    covers = book.metadata["mesa"]["covers"]
    assert len(covers) >= 5
    for term, notebook in covers.items():
        taught = nbformat.read(paths.root() / "notebooks" / f"{notebook}.ipynb", 4)
        prose = "\n".join(cell.source for cell in taught.cells if cell.cell_type == "markdown").lower()
        assert term.lower() in text and term.lower() in prose, f"{term}: not in {name} or not in {notebook}"


@each_set
def test_a_sets_links_lead_to_the_notebooks_from_where_students_are_told_to_put_it(name):
    advice = re.search(r"in a folder\nthree below the project's \(`(.+?)/`\)", (ASSIGNMENTS / "README.md").read_text())
    text = "".join(cell.source for cell in source(name).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((\.\./[^)#]+)\)", text)
    for folder in (ASSIGNMENTS / "source" / name, paths.root() / advice[1]):
        assert links and all(Path(os.path.normpath(folder / link)).is_file() for link in links), links


def test_the_sets_are_those_that_are_described():
    assert len(SETS) == 4 == len(MISTAKES) and set(MISTAKES) == set(SETS)
    page = (ASSIGNMENTS / "README.md").read_text()
    assert all(name in page for name in SETS)
    assert set(RIGHT) == set(SETS)
    assert all(len(mistakes) >= 10 for mistakes in MISTAKES.values())
    assert all(len(solutions) >= 10 for solutions in RIGHT.values())


@pytest.mark.parametrize("name", SETS)
def test_the_mistakes_that_are_graded_together_do_not_touch_each_other(name):
    cells = {cell.id: cell.source for cell in source(name).cells}
    together = MISTAKES[name][:GRADED_TOGETHER]
    lines = {(mistake["cell"], cells[mistake["cell"]].split(mistake["right"])[0].count("\n")) for mistake in together}
    costs = [part for mistake in together for part in mistake["costs"]]
    assert len(lines) == len(set(costs)) == len(costs) == len(together)


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_twenty_points_by_tests_and_four_by_hand(name):
    cells = [cell.metadata.get("nbgrader", {}) for cell in source(name).cells]
    by_hand = [cell["points"] for cell in cells if cell.get("grade") and cell["solution"]]
    assert sum(points(source(name)).values()) == 20 and by_hand == [4]


@pytest.mark.parametrize("name", SETS)
def test_the_rubric_of_the_question_is_in_the_instructors_page_alone(name):
    question = next(cell.source for cell in source(name).cells if cell.id.endswith("-question"))
    assert "*One point" not in question and "\n- " in question
    number = f"{SETS.index(name) + 1}"
    (section,) = re.findall(rf"^## Set {number}, .*?(?=^## |\Z)", (ASSIGNMENTS / "rubrics.md").read_text(), re.M | re.S)
    items = re.findall(r"^\| 1 \| (.+) \|$", section, re.M)
    assert len(items) == 4 and "**A partial answer, 2 points.**" in section
    assert not any(item in cell.source for item in items for cell in source(name).cells)
    assert "`rubrics.md`" in (ASSIGNMENTS / "README.md").read_text()


def test_the_repeats_of_set_4_are_those_of_the_results():
    (cell,) = [cell for cell in source("ps4_repair").cells if cell.id == "ps4-repeats"]
    exec(cell.source, quoted := {})
    runs = json.loads((paths.root() / "results" / "digits.json").read_text())["runs"]
    runs = [run for run in runs if run["own"]["attack"] == "patch"]
    assert [run["seed"] for run in runs] == list(range(5)) and {run["trigger"] for run in runs} == {"bw:170"}
    assert {run["params"]["repair_epochs"] for run in runs} == {10}  # as the text says
    for name, rates in quoted["seeds"].items():
        rows = [next(row for row in run["rows"] if row["model"] == name) for run in runs]
        assert rates == [round(100 * row["asr"]["rate"], 2) for row in rows], name
    worst = f"one run in five left {max(quoted['seeds']['random uniform']):.0f}%."
    assert worst in " ".join((ASSIGNMENTS / "rubrics.md").read_text().split())


@pytest.mark.parametrize("name", SETS)
def test_every_task_has_a_list_a_check_and_two_hints(name):
    text = ""
    for cell in source(name).cells:
        if cell.cell_type == "markdown":
            text = cell.source
        elif cell.metadata.get("nbgrader", {}).get("solution"):
            assert "\n- " in text, f"{cell.id}: expected the requirements as a list"
            assert "**To check yourself:**" in text, f"{cell.id}: expected a number or a picture to check oneself by"
            for hint in ("First hint", "Second hint"):
                # without empty lines Jupyter shows the hint's markdown as it was typed
                assert f"<details><summary>{hint}</summary>\n\n" in text, f"{cell.id}: expected a {hint.lower()}"


@pytest.mark.parametrize("name", SETS)
def test_every_assert_names_its_part_and_says_what_was_expected(name):
    for cell in source(name).cells:
        if cell.id in points(source(name)):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Assert):
                    said = [part.value for part in ast.walk(node.msg or node.test) if isinstance(part, ast.Constant)]
                    message = "".join(filter(lambda part: isinstance(part, str), said))  # without what is filled in
                    assert re.match(r"part \d: expected ", message), f"{cell.id}: {ast.unparse(node)}"
                    assert len(message) <= 120 and not re.search(r"[;?]|\. ", message), f"{cell.id}: {message}"
                    code = re.search(r"torch\.|self\.|\.shape|\['|[=!]=|[<>]", message)
                    assert not code, f"{cell.id}: expected a sentence, not code: {message}"


def test_the_experiment_of_set_2_shows_what_its_question_says():
    cells = {cell.id: cell.source for cell in source("ps2_mine").cells}
    assert "128 pairs of independent noise" in cells["ps2-question"]
    names = {}
    for cell in ("ps2-variant", "ps2-setup", "ps2-estimate", "ps2-experiment"):
        exec(cells[cell], names)
    on_its_pairs = "estimate(torch.cat([x, x]), torch.cat([z, z]))"
    exec("u, v = (torch.randn(128, 20, generator=rng(seed)) for seed in (30, 31))", names)
    on_fresh_ones = "estimate(torch.cat([x, u]), torch.cat([z, v]))"
    rubric = (ASSIGNMENTS / "rubrics.md").read_text()
    assert on_its_pairs in cells["ps2-question"] and on_its_pairs in rubric and on_fresh_ones in rubric
    assert 2.3 < eval(on_its_pairs, names) < 4
    assert eval(on_fresh_ones, names) < 0


# --- what is graded --------------------------------------------------------------------------------------


@each_set
def test_the_instructors_copy_scores_full_marks(course, name):
    assert course.scores(name, "full", source(name)) == points(source(name))
    assert not course.warned(name, "full")


@each_set
def test_the_untouched_copy_scores_nothing(course, name):
    scores = course.scores(name, "untouched", course.release(name))
    assert set(scores) == set(points(source(name))) and not any(scores.values())


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name != "ps2_mine")) for name in SETS])
def test_nbgrader_takes_the_points_of_three_mistakes_and_no_others(course, name):
    book, mistakes = source(name), MISTAKES[name][:GRADED_TOGETHER]
    for mistake in mistakes:
        (cell,) = [cell for cell in book.cells if cell.id == mistake["cell"]]
        cell.source = with_mistake(cell.source, mistake)
    book.cells = [cell for cell in book.cells if cell.metadata.get("nbgrader")]  # pictures cost time, and no points
    scores = course.scores(name, "mistakes", book)
    lost = {part: full - scores[part] for part, full in points(book).items() if scores[part] != full}
    assert lost == {part: cost for mistake in mistakes for part, cost in mistake["costs"].items()}
    errors = course.errors(name, "mistakes")
    messages = {part: mistake["message"] for mistake in mistakes for part in mistake["costs"]}
    assert set(errors) == set(lost) and all(messages[part] in errors[part] for part in lost), errors


@each_set
def test_each_mistake_costs_its_points_and_right_solutions_cost_none(course, name):
    book = source(name)
    hand_ins, worth = HandIns(book), points(book)
    assert not hand_ins.failed
    for mistake in (mistake for mistake in MISTAKES[name] if not mistake.get("slow")):
        cell = mistake["cell"]
        errors = hand_ins.run({cell: with_mistake(hand_ins.cells[cell], mistake)})
        assert {part: worth[part] for part in errors} == mistake["costs"], (mistake["what"], errors)
        assert any(mistake["message"] in error for error in errors.values()), (mistake["what"], errors)
    for right in RIGHT[name]:
        assert not hand_ins.run({right["cell"]: right["code"]}), right["what"]


@pytest.mark.long
@each_set
def test_right_solutions_and_slow_mistakes_in_one_process(course, name):
    book = source(name)
    hand_ins, worth = HandIns(book), points(book)
    assert not hand_ins.run({right["cell"]: right["code"] for right in RIGHT[name]})  # one of each cell, all together
    for mistake in filter(lambda mistake: mistake.get("slow"), MISTAKES[name]):
        cell = mistake["cell"]
        errors = hand_ins.run({cell: with_mistake(hand_ins.cells[cell], mistake)})
        assert {part: worth[part] for part in errors} == mistake["costs"], (mistake["what"], errors)
        assert any(mistake["message"] in error for error in errors.values()), (mistake["what"], errors)


@pytest.mark.long
@each_set
def test_the_guides_commands_grade_a_set_in_a_bare_shell(temporary_runs, tmp_path, name):
    """The instructor's copy, handed in by two students: one complete, one with an empty first part."""
    folder = tmp_path / "assignments"
    shutil.copytree(ASSIGNMENTS, folder, ignore=shutil.ignore_patterns("release", "variant", "*.db"))
    book = source(name)
    first = next(cell for cell in book.cells if cell.metadata.get("nbgrader", {}).get("solution"))
    costs = {part for mistake in MISTAKES[name] if mistake["cell"] == first.id for part in mistake["costs"]}
    for student in ("complete", "without-part-1"):
        hand_in = folder / "submitted" / student / name / f"{name}.ipynb"
        hand_in.parent.mkdir(parents=True)
        nbformat.write(book, hand_in)
        first.source = "raise NotImplementedError()"
    guide = (ASSIGNMENTS / "README.md").read_text()
    commands = re.findall(r"^    \.\./\.venv/bin/(nbgrader [^#\n]+)", guide, re.M)
    assert [command.split()[1] for command in commands] == [
        "generate_assignment", "autograde", "generate_feedback", "export",
    ]  # fmt: skip
    shell = {"HOME": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    shell |= {"PYTHONPATH": str(paths.root()), "MESA_RUNS": os.environ["MESA_RUNS"]}  # this checkout, its models
    for command in commands:
        line = f"{Path(sys.executable).parent}/{command.replace('ps1_planting', name)}"
        done = subprocess.run(["sh", "-c", line], cwd=folder, env=shell, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    with (folder / "grades.csv").open() as table:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(table) if row["assignment"] == name}
    worth = points(book)
    assert scores == {"complete": 20, "without-part-1": 20 - sum(worth[part] for part in costs)}
    for student in scores:
        assert (folder / "feedback" / student / name / f"{name}.html").is_file()


# --- variants --------------------------------------------------------------------------------------------

#: (set, solution cell, what is computed, a number of the set as it is in source/)
FOREIGN = (
    (
        "ps1_planting",
        "ps1-locations",
        "possible_locations = (IMAGE[0] - PATCH[0] + 1) * (IMAGE[1] - PATCH[1] + 1)",
        "1080",
    ),
    ("ps2_mine", "ps2-spread", "apart_with, apart_without = apart[0.1], apart[0.0]", "0.18343, 0.05332"),
    ("ps3_staircase", "ps3-even", "break_even = math.log(0.9 / 0.10) / (MUCH - LITTLE)", "0.77916"),
    (
        "ps4_repair",
        "ps4-paired",
        'compared = paired(seeds["random uniform"], seeds["MESA"], T_QUANTILE)',
        "9.308, -14.106, 32.722",
    ),
)


def variants():
    """The script that writes the variants, as a module."""
    spec = util.spec_from_file_location("variant", ASSIGNMENTS / "variant.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_variant_changes_numbers_in_the_first_cell_and_nothing_else(tmp_path):
    for path in variants().write(0, tmp_path / "0"):
        assert nbformat.read(path, 4) == source(path.stem)
    for path in variants().write(7, tmp_path / "7"):
        pairs = zip(nbformat.read(path, 4).cells, source(path.stem).cells, strict=True)
        assert [a.id for a, b in pairs if a.source != b.source] == [path.stem.split("_")[0] + "-variant"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gives_each_variant_a_folder_of_its_own(tmp_path):
    others = [name for name in SETS if name != "ps1_planting"]  # one set is enough here
    ignored = shutil.ignore_patterns("release", "variant", "*.db", *others)
    shutil.copytree(ASSIGNMENTS, tmp_path / "assignments", ignore=ignored)
    shutil.copy(paths.root() / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "installed").touch()
    for variant in ([], ["VARIANT=1"], ["VARIANT=7"]):
        there = [f"BIN={Path(sys.executable).parent}", "INSTALLED=installed", *variant]
        done = subprocess.run(["make", "assignments", *there], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        if not variant:
            assert not (tmp_path / "assignments" / "variant").exists()
    folders = {0: tmp_path / "assignments"} | {n: tmp_path / "assignments" / "variant" / str(n) for n in (1, 7)}
    for variant, folder in folders.items():
        assert (folder / "gradebook.db").is_file() and (folder / "nbgrader_config.py").is_file()
        (cell,) = [
            cell
            for cell in nbformat.read(folder / "release" / "ps1_planting" / "ps1_planting.ipynb", 4).cells
            if cell.id == "ps1-variant"
        ]
        exec(cell.source, numbers := {})
        expected = variants().numbers(variant).get("ps1_planting", {"TRIGGER": 170})
        assert {name: numbers[name] for name in expected} == expected


def test_no_variant_has_a_pattern_that_is_left_out():
    module = variants()
    drawn = {module.numbers(variant)["ps4_repair"]["TRIGGER"] for variant in range(1, 200)}
    assert drawn == set(module.PATTERNS) - set(module.LEFT_OUT)


@pytest.mark.long
@pytest.mark.parametrize("variant", [1, 2, 7])
def test_solved_variants_lose_nothing_and_numbers_of_the_source_cost_points(course, tmp_path, variant):
    books = {path.stem: nbformat.read(path, 4) for path in variants().write(variant, tmp_path)}
    for name, cell, right, number in FOREIGN:
        hand_ins = HandIns(books[name])
        assert not hand_ins.failed, name
        assert right in hand_ins.cells[cell]
        foreign = hand_ins.cells[cell].replace(right, f"{right}\n{right.split(' = ')[0]} = {number}")
        assert set(hand_ins.run({cell: foreign})) == {f"{cell}-test"}, name
