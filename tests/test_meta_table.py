"""The table of training on episodes is filled row by row and goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import meta_table
from fsmer.data.text_tables import shipped_rows


def test_the_grid_is_full_for_two_backbones_and_has_five_approaches_for_the_others() -> None:
    names = [meta_table.row_name(*row, meta_table.BUDGET) for row in meta_table.grid()]
    assert len(set(names)) == len(names)
    for backbone in meta_table.FULL:
        assert {f"{backbone}-{approach}" for approach in meta_table.APPROACHES} <= set(names)
    for approach in ("cosine", "protonet", "anil", "simpleshot", "alpha_tim"):
        assert {f"{network.name}-{approach}" for network in meta_table.NETWORKS} <= set(names)


@pytest.mark.slow
def test_a_table_that_was_interrupted_goes_on_and_keeps_what_it_has(tmp_path: Path) -> None:
    path, weights = tmp_path / "table.csv", tmp_path / "weights"
    how = {"budget": 400, "folder": weights, "tasks": 10}
    meta_table.fill(path, lambda name: name == "ststnet-protonet", **how)
    (held,) = shipped_rows(path)
    assert held["name"] == "ststnet-protonet-400"
    assert "--budget 400" in held["command"]
    assert 0 < float(held["novel_5_low"]) < float(held["novel_5"]) < float(held["novel_5_high"]) < 1
    path.write_text(path.read_text().replace(held["novel_5"], ".123"))
    meta_table.fill(path, lambda name: name in ("ststnet-protonet", "ststnet-untrained"), **how)
    rows = {row["name"]: row for row in shipped_rows(path)}
    assert set(rows) == {"ststnet-untrained-400", "ststnet-protonet-400"}
    assert rows["ststnet-protonet-400"]["novel_5"] == ".123"
