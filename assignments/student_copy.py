"""Write a copy of the project for students: `python student_copy.py variant/7` writes `variant/7/students.zip`.

`make students VARIANT=7` calls this. The copy has every file of the repository but those with solutions or tests of
hand-ins, and the released sets in `course/release/NAME/`, three folders below the top, so that their links work.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: files and folders, from the top of the repository, that hold solutions or answers
WITHHELD = (
    "assignments/source/",
    "assignments/mistakes.yaml",
    "assignments/right.yaml",
    "assignments/rubrics.md",
    "assignments/variant.py",
    "assignments/student_copy.py",
    "tests/hand_ins.py",
    "tests/test_assignments.py",
)


def shared_files(root: Path) -> list[str]:
    """Return the paths of the files that students get, from the top of the repository.

    Raises:
        ValueError: if the folder is no git checkout, whose index says what belongs to the project.
    """
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode != 0:
        raise ValueError(f"{root.name}: expected a git checkout, whose list of files says what belongs to the project")
    return [name for name in listed.stdout.split("\0") if name and not name.startswith(WITHHELD)]


def write(course: Path, root: Path = HERE.parent) -> Path:
    """Write `students.zip` into the folder of a course and return its path.

    Args:
        course: the folder in which `make assignments` has written `release/`.
        root: the top of the repository.

    Raises:
        ValueError: if there is no release.
    """
    released = sorted((course / "release").glob("*/*.ipynb"))
    if not released:
        raise ValueError(f"{course.name}/release: expected the sets that `make assignments` writes")
    files = shared_files(root)
    target = course / "students.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files:
            archive.write(root / name, f"mesa/{name}")
        for path in released:
            archive.write(path, f"mesa/course/release/{path.parent.name}/{path.name}")
    return target


if __name__ == "__main__":
    try:
        print(write(Path(sys.argv[1])))
    except ValueError as error:
        sys.exit(str(error))
