"""The copy of the project for students: it holds the released sets and nothing that gives a solution away."""

import re
import subprocess
import zipfile
from importlib import util

import pytest

from mesa_lib.store import paths

ASSIGNMENTS = paths.root() / "assignments"
SET = "release/ps1_planting/ps1_planting.ipynb"


@pytest.fixture
def student_copy():
    """The script, as a module."""
    spec = util.spec_from_file_location("student_copy", ASSIGNMENTS / "student_copy.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path):
    """A small git checkout with a set, its solution, two releases, and a file that git does not know."""
    files = {"README.md": "m", "assignments/README.md": "the guide", "assignments/students.md": "the page"}
    files |= {"assignments/source/ps1/ps1.ipynb": "### BEGIN SOLUTION", "tests/hand_ins.py": "answers"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    (tmp_path / "private.txt").write_text("of the instructor")
    for where in ("", "variant/7/"):
        (tmp_path / "assignments" / where / SET).parent.mkdir(parents=True)
        (tmp_path / "assignments" / where / SET).write_text(f"{where}released")
    return tmp_path


@pytest.mark.parametrize(("variant", "file"), [(0, "students.zip"), (7, "variant/7/students-7.zip")])
def test_it_holds_tracked_files_and_released_sets_without_solutions(student_copy, repository, variant, file):
    written = student_copy.write(variant, repository / "assignments")
    assert written == repository / "assignments" / file
    with zipfile.ZipFile(written) as archive:
        assert archive.namelist() == ["mesa/README.md", "mesa/assignments/README.md", f"mesa/course/{SET}"]
        assert archive.read("mesa/assignments/README.md") == b"the page"
        assert archive.read(f"mesa/course/{SET}").decode() == ("variant/7/released" if variant else "released")


def test_without_a_release_it_says_what_comes_first(student_copy, repository):
    with pytest.raises(ValueError, match="8/release: expected the sets that `make assignments` writes"):
        student_copy.write(8, repository / "assignments")


def test_outside_a_git_checkout_it_is_refused(student_copy, tmp_path):
    (tmp_path / "assignments" / SET).parent.mkdir(parents=True)
    (tmp_path / "assignments" / SET).touch()
    with pytest.raises(ValueError, match="expected a git checkout"):
        student_copy.write(0, tmp_path / "assignments")


@pytest.fixture
def shared(student_copy):
    """The files of the project that students get."""
    try:
        return student_copy.shared_files(paths.root())
    except ValueError:
        pytest.skip("needs a git checkout")


def test_no_shared_file_of_the_project_has_a_solution(student_copy, shared):
    """Whatever is added to the project later: marks of solutions, and of hand-ins with answers, stay behind."""
    texts = {name: (paths.root() / name).read_text() for name in shared if name.endswith((".ipynb", ".py", ".yaml"))}
    assert not [name for name, text in texts.items() if "BEGIN SOLUTION" in text]
    assert not [name for name in student_copy.WITHHELD if not (paths.root() / name).exists()], "all of them exist"


def test_links_from_pages_and_notebooks_to_the_course_lead_to_the_students_page(student_copy, shared):
    into = re.compile(r"\]\((?:\.\./)*(assignments/[\w./-]+)")
    pages = [name for name in shared if name.startswith(("notebooks/", "docs/", "README")) and "_build" not in name]
    texts = [(paths.root() / name).read_text() for name in pages if name.endswith((".md", ".ipynb"))]
    assert {link for text in texts for link in into.findall(text)} == {student_copy.GUIDE}


def test_the_students_page_links_to_files_that_they_get(student_copy, shared):
    text = (ASSIGNMENTS / student_copy.PAGE).read_text()
    links = re.findall(r"\]\(\.\./([^)#]+)", text)
    assert len(links) >= 5 and not set(links) - set(shared)
