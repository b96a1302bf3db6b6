"""The wheel carries everything it needs, and importing fsmer is quick and light."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

RESOURCES = ("episodes", "pretrained")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command; its error output is the failure message."""
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    environment = {**clean, **environment}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def resource_files(root: Path) -> set[str]:
    return {
        path.relative_to(root).as_posix()
        for folder in RESOURCES
        for path in (root / folder).rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }


def build_wheel(source: Path, out: Path) -> Path:
    # The build backend comes with the test extra, so that neither network nor index is needed.
    command = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
    run(sys.executable, *command, source, cwd=out.parent)
    (wheel,) = out.glob("fsmer-*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing behind in the checkout."""
    copy = tmp_path_factory.mktemp("source") / "fsmer"
    copy.mkdir()
    for name in ("fsmer", "episodes", "pretrained", "tests", "docs"):
        shutil.copytree(
            repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_resources", "_build")
        )
    for path in repository.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, copy / path.name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the wheel alone is installed."""
    target = tmp_path_factory.mktemp("installed")
    command = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    run(sys.executable, *command, cwd=target.parent)
    return target


def test_the_wheel_carries_every_protocol_weight_and_table(source: Path, wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"fsmer/_resources/{name}" for name in resource_files(source)}
    wanted |= {path.relative_to(source).as_posix() for path in (source / "fsmer").rglob("*") if path.is_file()}
    assert any(name.endswith(".yaml") for name in wanted)
    assert "fsmer/_resources/pretrained/facs-flow/model.safetensors" in wanted
    assert wanted <= held, sorted(wanted - held)
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/", "docs/", "notebooks/"))]


def test_a_wheel_built_from_the_source_distribution_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    name = run(sys.executable, "-c", build, tmp_path, cwd=source).splitlines()[-1]
    (tmp_path / "wheel").mkdir()
    again = build_wheel(tmp_path / name, tmp_path / "wheel")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_an_installed_wheel_finds_its_own_protocols_and_weights(source: Path, installed: Path, tmp_path: Path) -> None:
    script = """
import json, fsmer
from fsmer.resources import resource_folder
protocols = {name: fsmer.load_protocol(name).hash for name in fsmer.list_protocols()}
print(json.dumps({
    "package": fsmer.__file__,
    "folders": [str(resource_folder(name)) for name in ("episodes", "pretrained")],
    "protocols": protocols,
    "embed_dim": fsmer.load_model("facs-flow").embed_dim,
    "schemes": len(fsmer.list_schemes()),
}))
"""
    found = json.loads(run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()[-1])
    assert Path(found["package"]) == installed / "fsmer" / "__init__.py"
    assert found["folders"] == [str(installed / "fsmer" / "_resources" / name) for name in RESOURCES]
    assert {path.stem for path in (source / "episodes").glob("*.yaml")} <= set(found["protocols"])
    assert found["embed_dim"] > 0
    assert found["schemes"] > 0


def test_the_command_line_of_the_wheel_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "fsmer = fsmer.cli:main" in archive.read(name).decode()


def test_import_takes_under_0_3_seconds_and_loads_nothing_heavy(repository: Path) -> None:
    script = """
import json, sys, time
start = time.perf_counter()
import fsmer
seconds = time.perf_counter() - start
heavy = {"torch", "pandas", "sklearn", "scipy", "matplotlib", "huggingface_hub"} & set(sys.modules)
print(json.dumps([seconds, sorted(heavy)]))
"""
    runs = [json.loads(run(sys.executable, "-c", script, cwd=repository)) for _ in range(5)]
    assert [heavy for _, heavy in runs] == [[]] * 5
    assert min(seconds for seconds, _ in runs) < 0.3


def test_every_public_name_can_be_imported() -> None:
    import fsmer

    missing = [name for name in fsmer.__all__ if not hasattr(fsmer, name)]
    assert missing == []
    assert set(fsmer.__all__) <= set(dir(fsmer))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        fsmer.no_such_name  # noqa: B018


def test_the_version_is_the_same_everywhere(repository: Path) -> None:
    import fsmer

    assert f"version: {fsmer.__version__}" in (repository / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{fsmer.__version__}]" in (repository / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_package_that_is_imported_is_declared(repository: Path) -> None:
    declared = configparser.ConfigParser()
    declared.read(repository / "setup.cfg", encoding="utf-8")
    lines = [declared["options"]["install_requires"], *declared["options.extras_require"].values()]
    names = {plain_name(re.split(r"[<>=\[;]", line)[0]) for line in "\n".join(lines).split("\n")}
    # Its extra holds what it needs, and a make target builds it.
    names.add("learn2learn")
    homes = packages_distributions()
    for file in (repository / "fsmer").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                found = [node.module or ""]
            for top in {name.partition(".")[0] for name in found} - {"fsmer", *sys.stdlib_module_names}:
                assert {plain_name(home) for home in homes.get(top, [top])} & names, f"{file} imports {top}"


def plain_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
