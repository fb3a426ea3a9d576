"""The folders of the project, with and without a repository."""

from pathlib import Path

import pytest

from mesa_lib.store import paths


def test_folders_come_from_the_environment(monkeypatch, tmp_path):
    for name in ("MESA_ROOT", "MESA_RUNS", "MESA_DATA"):
        monkeypatch.delenv(name, raising=False)
    assert (paths.root() / "mesa_lib" / "store" / "paths.py").is_file()
    assert paths.runs() == paths.root() / "runs" and paths.data_folder() == paths.root() / "data"
    monkeypatch.setenv("MESA_ROOT", str(tmp_path))
    assert paths.runs() == tmp_path / "runs" and paths.data_folder("mine") == tmp_path / "mine"
    monkeypatch.setenv("MESA_RUNS", str(tmp_path / "r"))
    monkeypatch.setenv("MESA_DATA", str(tmp_path / "d"))
    assert paths.runs() == tmp_path / "r" and paths.data_folder() == tmp_path / "d"
    assert paths.data_folder("/else/where").as_posix() == "/else/where"


@pytest.mark.parametrize(
    ("path", "shown"),
    [("ROOT/data/x", "data/x"), ("RUNS/clean/ab", "runs/clean/ab"), ("/somebody/secret/file.png", ".../file.png")],
)
def test_shown_paths_are_never_absolute(monkeypatch, tmp_path, path, shown):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("MESA_RUNS", str(tmp_path / "made"))
    path = path.replace("ROOT", str(tmp_path / "root")).replace("RUNS", str(tmp_path / "made"))
    assert paths.display_path(path) == shown


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The package as `pip install .` leaves it: no repository around it."""
    monkeypatch.delenv("MESA_ROOT", raising=False)
    monkeypatch.delenv("MESA_RUNS", raising=False)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "mesa_lib" / "store" / "paths.py"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_an_installed_package_works_in_the_current_folder(installed):
    assert paths.root() == installed and paths.runs() == installed / "runs" and paths.find("x") == installed / "x"


def test_what_needs_the_repository_says_so(installed, monkeypatch):
    for call in (lambda: paths.repository("notebook '01'"), lambda: paths.parameter_file("digits")):
        with pytest.raises(ValueError, match="needs the repository.*clone") as error:
            call()
        assert "expected one of" not in str(error.value) and str(installed) not in str(error.value)
    (installed / "mine.yaml").write_text("steps: 3")
    assert paths.parameter_file("mine.yaml") == Path("mine.yaml")
    monkeypatch.undo()
    assert (paths.repository("notebook '01'") / "notebooks").is_dir()


def test_parameter_files_have_names():
    assert paths.parameter_file("digits").is_file()
    with pytest.raises(ValueError, match="parameter file 'nothing': not found; expected a path, or one of .*digits"):
        paths.parameter_file("nothing")


def test_a_named_path_lies_in_the_current_folder_or_in_the_root(monkeypatch, tmp_path):
    monkeypatch.setenv("MESA_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    assert paths.find("file") == tmp_path / "root" / "file"
    (tmp_path / "file").write_text("")
    assert paths.find("file") == Path("file")


def test_a_tilde_in_a_variable_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MESA_ROOT", "MESA_RUNS", "MESA_DATA"):
        monkeypatch.setenv(name, f"~/{name}")
    found = [paths.root(), paths.runs(), paths.data_folder()]
    assert found == [tmp_path / name for name in ("MESA_ROOT", "MESA_RUNS", "MESA_DATA")]
