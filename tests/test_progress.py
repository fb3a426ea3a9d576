"""The progress bar."""

import os
import subprocess
import sys

from mesa_lib import progress


def test_a_bar_passes_every_step_on(monkeypatch, tmp_path):
    monkeypatch.setenv("MESA_PROGRESS", str(tmp_path / "progress"))
    assert list(progress.progress_bar("abc", "letters")) == ["a", "b", "c"]
    assert (tmp_path / "progress").read_text() == "letters 0/3"


def test_a_display_that_cannot_be_written_stops_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("MESA_PROGRESS", str(tmp_path))  # a folder
    assert list(progress.progress_bar([1, 2], "numbers")) == [1, 2]


def test_a_batch_run_is_quiet(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert sum(progress.progress_bar(range(5), "numbers")) == 10
    assert capsys.readouterr().err == ""


def test_a_command_without_a_terminal_is_quiet_though_it_can_start_kernels():
    code = "import ipykernel.kernelapp; from mesa_lib import progress; print(sum(progress.progress_bar(range(5), 'n')))"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST", "MESA_BATCH")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("10\n", "")
