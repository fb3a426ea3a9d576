"""Write a copy of the project for students: `python student_copy.py 7` for variant 7, 0 for the sets as they are.

`make students VARIANT=7` calls this and writes `variant/7/students-7.zip`, or `students.zip` for variant 0. The copy
has every file of the repository but this folder and the tests of hand-ins. The released sets are in
`course/release/NAME/`, three folders below the top, so that their links work. `students.md` takes the place of the
instructor's guide.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: files and folders, from the top of the repository, that hold solutions or answers, or work with those
WITHHELD = ("assignments/", "tests/hand_ins.py", "tests/test_assignments.py", "tests/test_student_copy.py")
#: what students read where instructors have their guide: a page of this folder, and its path in the copy
PAGE, GUIDE = "students.md", "assignments/README.md"


def shared_files(root: Path) -> list[str]:
    """Return the paths of the files that students get, from the top of the repository.

    Raises:
        ValueError: if the folder is no git checkout, whose index says what belongs to the project.
    """
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode != 0:
        raise ValueError(f"{root.name}: expected a git checkout, whose list of files says what belongs to the project")
    return [name for name in listed.stdout.split("\0") if name and not name.startswith(WITHHELD)]


def write(variant: int, assignments: Path = HERE) -> Path:
    """Write the copy beside the release of a variant and return its path.

    Args:
        variant: 0, the sets as they are.
        assignments: the folder `assignments/` of a git checkout.

    Raises:
        ValueError: if there is no release, or no git checkout.
    """
    course = assignments / "variant" / str(variant) if variant else assignments
    released = sorted((course / "release").glob("*/*.ipynb"))
    if not released:
        raise ValueError(f"{course.name}/release: expected the sets that `make assignments` writes")
    root = assignments.parent
    files = shared_files(root)
    target = course / (f"students-{variant}.zip" if variant else "students.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in files:
            archive.write(root / name, f"mesa/{name}")
        archive.write(assignments / PAGE, f"mesa/{GUIDE}")
        for path in released:
            archive.write(path, f"mesa/course/release/{path.parent.name}/{path.name}")
    return target


if __name__ == "__main__":
    try:
        print(write(int(sys.argv[1])).relative_to(HERE.parent))
    except ValueError as error:
        sys.exit(str(error))
