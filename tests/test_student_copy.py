"""The copy of the project for students: it holds the released sets and nothing that gives a solution away."""

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
    """A small git checkout with a set, its solution, and a file that git does not know."""
    files = {"README.md": "m", "assignments/source/ps1/ps1.ipynb": "### BEGIN SOLUTION", "tests/hand_ins.py": "answers"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    (tmp_path / "private.txt").write_text("of the instructor")
    (tmp_path / "assignments" / SET).parent.mkdir(parents=True)
    (tmp_path / "assignments" / SET).write_text("the released set")
    return tmp_path


def test_it_holds_tracked_files_and_released_sets_without_solutions(student_copy, repository):
    written = student_copy.write(repository / "assignments", repository)
    assert written == repository / "assignments" / "students.zip"
    with zipfile.ZipFile(written) as archive:
        assert archive.namelist() == ["mesa/README.md", f"mesa/course/{SET}"]
        assert archive.read(f"mesa/course/{SET}") == b"the released set"


def test_without_a_release_it_says_what_comes_first(student_copy, repository):
    (repository / "assignments" / SET).unlink()
    with pytest.raises(ValueError, match="make assignments"):
        student_copy.write(repository / "assignments", repository)


def test_outside_a_git_checkout_it_is_refused(student_copy, tmp_path):
    (tmp_path / SET).parent.mkdir(parents=True)
    (tmp_path / SET).touch()
    with pytest.raises(ValueError, match="expected a git checkout"):
        student_copy.write(tmp_path, tmp_path)


def test_no_shared_file_of_the_project_has_a_solution(student_copy):
    """Whatever is added to the project later: marks of solutions, and of hand-ins with answers, stay behind."""
    try:
        shared = student_copy.shared_files(paths.root())
    except ValueError:
        pytest.skip("needs a git checkout")
    marked = [
        name
        for name in shared
        if name.endswith((".ipynb", ".py", ".yaml")) and "BEGIN SOLUTION" in (paths.root() / name).read_text()
    ]
    assert marked == ["tests/test_student_copy.py"], "this file names the mark"
    withheld = [name for name in student_copy.WITHHELD if not (paths.root() / name).exists()]
    assert not withheld, "expected files and folders that exist"
