"""The workflows and CITATION.cff satisfy their schemas, and the workflows run the commands of the project."""

import subprocess
import sys

import pytest
import yaml

from mesa_lib.store import paths

ROOT = paths.root()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FILES = [(file, "vendor.github-workflows") for file in WORKFLOWS]
FILES += [(ROOT / "CITATION.cff", "vendor.citation-file-format")]


def check(schema, file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("file", "schema"), FILES, ids=[file.name for file, _ in FILES])
def test_files_satisfy_their_schema(file, schema):
    done = check(schema, file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_refuses_what_is_wrong(tmp_path):
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("on: push\njobs: {test: {runs-on: ubuntu-latest, stepps: []}}\n")
    assert check("vendor.github-workflows", wrong).returncode == 1


@pytest.mark.parametrize(("name", "command"), [("ci", "make test"), ("book", "make book")])
def test_workflows_run_the_commands_of_the_readme(name, command):
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert [run for run in runs if run.startswith(command)]
    assert command in (ROOT / "README.md").read_text()
