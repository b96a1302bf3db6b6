"""What contributors and a public forge read: the files parse, and what they name is there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed")
WORKFLOW = ".github/workflows/ci.yml"


def read_yaml(path: Path) -> Any:
    # YAML 1.1 reads the key `on` of a workflow as true.
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def constraints(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines) if version}


def make_targets(repository: Path) -> set[str]:
    text = (repository / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def jobs(repository: Path) -> dict[str, Any]:
    return read_yaml(repository / WORKFLOW)["jobs"]


def steps(repository: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(repository).values() for step in job["steps"]]


@pytest.mark.parametrize("kind", ["bug", "dataset", "backbone", "question"])
def test_a_form_for_reports_has_what_a_forge_needs(kind: str, repository: Path) -> None:
    form = read_yaml(repository / ".github" / "ISSUE_TEMPLATE" / f"{kind}.yml")
    assert form["name"]
    assert form["description"]
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in asked} <= {"input", "textarea", "dropdown", "checkboxes"}
    names = [field["id"] for field in asked]
    assert len(names) == len(set(names))
    assert all(field["attributes"]["label"] for field in asked)
    assert any(field.get("validations", {}).get("required") == "true" for field in asked)


def test_commands_that_the_forms_name_are_there(repository: Path) -> None:
    from typer.main import get_command

    from fsmer.cli.app import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    folder = repository / ".github"
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*")) if path.is_file())
    named = set(re.findall(r"`fsmer ([a-z]+)", text))
    assert {"check", "datasets"} <= named <= known


def test_the_workflow_runs_what_has_to_pass_on_pushes_and_pull_requests(repository: Path) -> None:
    assert {"push", "pull_request"} <= set(read_yaml(repository / WORKFLOW)["on"])
    commands = "\n".join(step.get("run", "") for step in steps(repository)).split("\n")
    assert ".ci/run" in commands
    assert "python -m build" in commands


def test_scripts_and_make_targets_that_are_called_are_there(repository: Path) -> None:
    commands = [line for step in steps(repository) for line in step.get("run", "").splitlines()]
    commands += (repository / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    scripts = {line.split()[0] for line in commands if re.match(r"\.\w*/", line)}
    assert scripts == {".ci/run"}
    assert all(os.access(repository / script, os.X_OK) for script in scripts)
    wanted = {line.split()[1] for line in commands if line.startswith("make ")}
    assert {"test", "lint"} <= wanted <= make_targets(repository)


def test_the_workflow_may_write_nothing_but_the_documentation_of_main(repository: Path) -> None:
    assert read_yaml(repository / WORKFLOW)["permissions"] == {"contents": "read"}
    writing = {
        name: job["permissions"]
        for name, job in jobs(repository).items()
        if "write" in job.get("permissions", {}).values()
    }
    assert writing == {"publish-documentation": {"pages": "write", "id-token": "write"}}
    publishing = jobs(repository)["publish-documentation"]
    assert publishing["needs"] == "check"
    for part in (publishing, *(step for step in steps(repository) if "pages-artifact" in step.get("uses", ""))):
        assert "refs/heads/main" in part["if"]
        assert "'push'" in part["if"]


def test_every_action_is_pinned_to_a_version_and_checkouts_keep_no_token(repository: Path) -> None:
    used = [step for step in steps(repository) if "uses" in step]
    assert used
    for step in used:
        assert re.fullmatch(r"actions/[a-z-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", step["uses"]), step["uses"]
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


def test_the_workflow_takes_the_oldest_python_that_is_promised(repository: Path) -> None:
    (promised,) = re.findall(r"python_requires = >=(\S+)", (repository / "setup.cfg").read_text(encoding="utf-8"))
    asked = {step["with"]["python-version"] for step in steps(repository) if "setup-python" in step.get("uses", "")}
    assert asked == {promised}


def test_checks_before_a_commit_have_the_versions_of_the_constraints(repository: Path) -> None:
    repos = read_yaml(repository / ".pre-commit-config.yaml")["repos"]
    pinned, overlapping = constraints(repository), []
    for entry in repos:
        if entry["repo"] == "local":
            continue
        assert re.fullmatch(r"v\d+\.\d+\.\d+", entry["rev"]), entry["repo"]
        name = entry["repo"].rsplit("/", 1)[-1].removesuffix("-pre-commit").removeprefix("mirrors-").lower()
        if name in pinned:
            overlapping.append(name)
            assert entry["rev"] == f"v{pinned[name]}", f"{name} is {pinned[name]} in constraints.txt"
    assert "ruff" in overlapping
    hooks = {hook["id"]: hook for entry in repos for hook in entry["hooks"]}
    assert {"ruff-check", "ruff-format", "end-of-file-fixer", "mypy"} <= set(hooks)
    assert hooks["mypy"]["stages"] == ["manual"]


def test_files_and_targets_that_contributors_are_sent_to_are_there(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([\w./-]+)\)", text) + re.findall(r"`((?:examples|tests|docs)/[\w/.]+)`", text):
        assert (repository / name).exists(), name
    # `make docs` has its own tests where it is there.
    targets = set(re.findall(r"`?make ([a-z-]+)", text)) - {"docs"}
    assert {"test", "lint"} <= targets <= make_targets(repository)
    for module, name in re.findall(r"`(fsmer\.[a-z_]+)\.([a-z_]+)[(`]", text):
        assert hasattr(__import__(module, fromlist=[name]), name), f"{module}.{name}"


def test_the_changelog_has_known_sections_once_in_order(repository: Path) -> None:
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert releases[0].startswith("[Unreleased]")
    for release in releases:
        found = re.findall(r"^### (.+)$", release, re.MULTILINE)
        assert found == [section for section in SECTIONS if section in found], release.splitlines()[0]
        for part in re.split(r"^### .+$", release, flags=re.MULTILINE)[1:]:
            assert part.strip().startswith("- ")


def test_the_changelog_has_the_version(repository: Path) -> None:
    import fsmer

    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(fsmer.__version__)}\]", text, re.MULTILINE)
