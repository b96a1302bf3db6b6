"""Every file in examples/ runs by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints_what_it_found(example: Path, tmp_path: Path) -> None:
    if example.stem.startswith("with_"):
        pytest.importorskip(example.stem.removeprefix("with_"), reason="it is not installed (make interop)")
    done = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(("name", "most"), [("backbone", 30), ("dataset", 60)])
def test_a_backbone_and_a_data_set_are_short(name: str, most: int) -> None:
    (example,) = (path for path in EXAMPLES if path.stem == f"{name}_from_outside")
    code = example.read_text().split('"""', 2)[2].split("if __name__")[0].strip().splitlines()
    assert len(code) < most
