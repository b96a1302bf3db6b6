"""The published tables: numbers as printed, settings that exist, and runs on synthetic and partial data."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fsmer
from fsmer.backbones.registry import backbone_class
from fsmer.cli.app import app
from fsmer.data.media import ArrayStore
from fsmer.datasets.catalog import DATASETS
from fsmer.errors import FsmerError, ProtocolError, UnknownNameError, WeightsError
from fsmer.published import BenchResult, Measured, PublishedTable, Row, list_tables, load_table, run_table
from fsmer.published.tables import Published
from fsmer.transfer import load_method

NAMES = [table.name for table in list_tables()]
# Rows that the quick tests run of tables with many; the slow ones run them whole.
SOME: dict[str, str | list[str]] = {
    "attribute-alpha": ["alpha 0.0", "alpha 0.9"],
    "fr-1": "FR",
    "fr-2": "*logistic*",
    "fr-3-4": "*zero-shot*",
    "mmnet-3": "PC module",
    "mmnet-5": "ii: *",
}


def row_of(table: PublishedTable, method: str, group: str = "") -> Row:
    return next(row for row in table.rows if row.method == method and group in row.group)


def printed(name: str, method: str, column: int, group: str = "") -> str:
    """The numbers of a cell as the paper prints them."""
    table = load_table(name)
    cell = row_of(table, method, group).published[column]
    assert cell is not None
    return "/".join(cell[metric].text for metric in table.metrics)


# ---- the numbers


def test_every_table_of_the_five_papers_is_there() -> None:
    mubert = [f"mubert-{number}" for number in range(1, 7)]
    mmnet = [f"mmnet-{number}" for number in range(3, 8)]
    fr = ["fr-1", "fr-2", "fr-3-4", "fr-5", "fr-7"]
    attribute = ["attribute-3", "attribute-4", "attribute-alpha"]
    assert sorted(["merau-3", "merau-4", *fr, *mmnet, *attribute, *mubert]) == NAMES


# Read from the papers a second time, by hand.
@pytest.mark.parametrize(
    ("name", "method", "column", "numbers"),
    [
        ("merau-3", "LBP-TOP", 0, "0.3824/0.3356/0.3679"),
        ("merau-3", "VGG", 1, "0.3488/0.3116/0.3381"),
        ("merau-3", "Liu's", 5, "0.6287/0.6099/0.6072"),
        ("merau-3", "Quang's", 2, "0.6981/0.6871/0.7090"),
        ("merau-3", "MERAU", 3, "0.8188/0.7975/0.7932"),
        ("merau-3", "MERAU (CD)", 0, "0.5528/0.5435/0.5733"),
        ("merau-3", "MERAU (CD)", 4, "0.6512/0.6462/0.6709"),
        ("merau-4", "MERAU", 0, "0.4390/0.4216/0.4397"),
        ("merau-4", "MERAU", 1, "0.4117/0.4063/0.4112"),
        ("merau-4", "MERAU (CD)", 0, "0.4139/0.4087/0.4250"),
        ("fr-1", "Dual-Inception", 0, "0.7322/0.7278"),
        ("fr-1", "Basic Inception", 0, "0.7360/0.7391"),
        ("fr-1", "FR-fc", 0, "0.7377/0.7443"),
        ("fr-1", "FR-concatenated", 0, "0.7632/0.7727"),
        ("fr-1", "FR", 0, "0.7838/0.7832"),
        ("fr-2", "LBP-TOP", 1, "0.2000/0.5280"),
        ("fr-2", "STSTNet", 3, "0.6588/0.6810"),
        ("fr-2", "EMR", 0, "0.7885/0.7824"),
        ("fr-2", "FR (Ours)", 2, "0.8915/0.8873"),
        ("fr-3-4", "LPQ-TOP (decorr=0.1)", 0, "0.9455/0.9437"),
        ("fr-3-4", "LBP-TOP (R3P4)", 11, "0.3818/0.4930"),
        ("fr-3-4", "C3D-FC1 (Sports1M)", 5, "0.3032/0.3662"),
        ("fr-3-4", "FR (Ours)", 3, "0.5137/0.5200"),
        ("fr-3-4", "FR (Ours)", 6, "0.6561/0.6636"),
        ("fr-3-4", "FR (Ours)", 12, "0.5963/0.6081"),
        ("fr-3-4", "FR (Ours)", 13, "0.5254/0.5552"),
        ("fr-5", "MDMO", 2, "0.5100*"),
        ("fr-5", "HIGO", 0, "0.6524"),
        ("fr-5", "FR (Ours)", 2, "0.6838"),
        ("fr-7", "Basic Inception", 0, "0.5612/6.4803/15.0610"),
        ("fr-7", "FR", 1, "0.6838/11.4231/36.7728"),
        ("mmnet-3", "Baseline (ResNet)", 0, "81.12%/0.7582"),
        ("mmnet-3", "PC module + CA block", 2, "87.45%/0.8635"),
        ("mmnet-4", "Independent attention", 1, "77.21%/0.7000"),
        ("mmnet-5", "iv: 3 layers, 2 heads", 1, "80.88%"),
        ("mmnet-6", "GACNN", 0, "89.66%/0.8695"),
        ("mmnet-7", "AU-GACN", 0, "70.2%/0.4330"),
        ("attribute-3", "FDM", 0, "40.03±2.33%"),
        ("attribute-3", "TLCNN", 1, "69.46±4.01%"),
        ("attribute-3", "Ours", 0, "77.82±3.65%"),
        ("attribute-4", "video loss alone (L_theta, 3D-ResNet10)", 0, "66.74%"),
        ("attribute-4", "whole loss (L)", 1, "71.04%"),
        ("mubert-1", "RCN-A", 0, "39.28%/38.93%"),
        ("mubert-2", "LR-GACNN", 0, "70.90%/81.30%"),
        ("mubert-3", "MAE", 0, "80.40%/88.98%"),
        ("mubert-4", "Micron-BERT (ours)", 0, "85.50%/83.84%"),
        ("mubert-5", "Micron-BERT (ours)", 0, "89.03%/88.42%"),
        ("mubert-6", "Micron-BERT (MB1)", 0, "25.27%/22.96%"),
        ("mubert-6", "Micron-BERT (MB3)", 0, "32.64%/32.54%"),
    ],
)
def test_numbers_are_those_that_the_papers_print(name: str, method: str, column: int, numbers: str) -> None:
    assert printed(name, method, column) == numbers


@pytest.mark.parametrize(
    ("name", "group", "numbers"),
    [
        ("mmnet-6", "3 classes", "95.51%/0.9494"),
        ("mmnet-6", "5 classes", "88.35%/0.8676"),
        ("mmnet-7", "3 classes", "90.22%/0.8391"),
        ("mmnet-7", "5 classes", "80.14%/0.7291"),
        ("mubert-1", "3 classes", "56.04%/61.25%"),
        ("mubert-1", "4 classes", "47.18%/49.13%"),
        ("mubert-1", "7 classes", "32.64%/32.54%"),
        ("mubert-2", "5 classes", "85.53%/83.48%"),
        ("mubert-2", "3 classes", "90.34%/89.14%"),
    ],
)
def test_numbers_of_several_class_schemes_are_told_apart(name: str, group: str, numbers: str) -> None:
    method = "MMNet (Ours)" if name.startswith("mmnet") else "Micron-BERT (ours)"
    assert printed(name, method, 0, group) == numbers


def test_cells_that_a_paper_leaves_empty_are_empty_and_not_run() -> None:
    table = load_table("merau-3")
    number = table.rows.index(row_of(table, "MERAU (CD)"))
    assert [cell is None for cell in table.rows[number].published] == [False, True] * 3
    assert table.runs(number) == (0, 2, 4)


# Averages that the paper prints although its own columns give others.
WRONG_IN_PRINT = {
    ("fr-3-4", "LBP-TOP (R1P4)", 6, "acc"),
    ("fr-3-4", "HOG-TOP (p=4)", 6, "uf1"),
    ("fr-3-4", "HOG-TOP (p=4)", 6, "acc"),
    ("fr-3-4", "HOG-TOP (p=8)", 6, "uf1"),
    ("fr-3-4", "C3D-FC2 (UCF101)", 13, "uf1"),
    ("fr-5", "LBP-TOP", 4, "acc"),
}


@pytest.mark.parametrize("name", ["fr-3-4", "fr-5"])
def test_printed_averages_follow_from_the_printed_columns(name: str) -> None:
    """A digit read wrongly would show here; the papers round, and leave out what a method lacks."""
    table = load_table(name)
    wrong, checked = set(), 0
    for row in table.rows:
        for place, column in enumerate(table.columns):
            cell = row.published[place] if row.published else None
            if not column.average or cell is None:
                continue
            for metric in table.metrics:
                parts = [one[metric].value for one in (row.published[other] for other in column.average) if one]
                checked += 1
                if abs(cell[metric].value - np.mean(parts)) > 6e-4:
                    wrong.add((name, row.method, place, metric))
    assert wrong == {entry for entry in WRONG_IN_PRINT if entry[0] == name}
    assert checked > 25


def test_printed_numbers_are_read_as_fractions() -> None:
    assert Published.read("88.35%").value == pytest.approx(0.8835)
    assert Published.read("0.4090*").value == 0.409
    both = Published.read("77.82±3.65%")
    assert (both.value, both.sd) == (pytest.approx(0.7782), pytest.approx(0.0365))
    with pytest.raises(FsmerError, match=r"0\.4\.30"):
        Published.read("0.4.30")


# ---- the settings


@pytest.mark.parametrize("name", NAMES)
def test_every_run_names_what_there_is(name: str) -> None:
    table = load_table(name)
    assert len({(row.group, row.method) for row in table.rows}) == len(table.rows)
    assert table.differences
    assert set(table.percent) <= set(table.metrics)
    assert set(table.datasets()) <= set(DATASETS)
    runs = [(row, column) for row in range(len(table.rows)) for column in table.runs(row)]
    assert runs
    for row, column in runs:
        settings = table.settings(row, column)
        known = backbone_class(settings.model)
        assert set(settings.arguments) <= set(known.__init__.__code__.co_varnames)
        load_method(settings.method, **settings.params)
        assert settings.protocol.requirements
        part = table.columns[column].part
        assert part is None or part in {need.dataset for need in settings.protocol.requirements}


@pytest.mark.parametrize(("name", "dataset"), [("mmnet-6", "casme2"), ("mmnet-7", "samm"), ("mubert-2", "casme2")])
def test_ststnet_runs_on_the_three_classes_that_the_other_networks_of_its_table_run_on(name: str, dataset: str) -> None:
    table = load_table(name)
    rows = [number for number, row in enumerate(table.rows) if row.group == "3 classes" and row.run is not None]
    runs = [table.settings(row, 0) for row in rows]
    assert {"ststnet"} < {run.model for run in runs}
    assert len({run.protocol.hash for run in runs}) == 1
    (need,) = runs[0].protocol.requirements
    assert (need.dataset, need.scheme, runs[0].protocol.kind) == (dataset, "megc2019", "loso")
    # What is printed there is of the composite, in the order of this table's own metrics.
    (place,) = (number for number, one in enumerate(load_table("fr-2").columns) if one.part == dataset)
    composite = row_of(load_table("fr-2"), "STSTNet").published[place]
    cell = row_of(table, "STSTNet", "3 classes").published[0]
    assert cell is not None
    assert composite is not None
    assert cell["uf1"].value == pytest.approx(composite["uf1"].value)
    assert cell["acc" if name.startswith("mmnet") else "uar"].value == pytest.approx(composite["uar"].value)


def test_tables_that_published_scripts_peeked_for_say_so() -> None:
    for name in ("mmnet-3", "mmnet-4", "mmnet-5", "mmnet-6", "mmnet-7"):
        assert any("ORACLE" in words for words in load_table(name).differences)
    for name in ("mubert-1", "mubert-5"):
        assert any("cannot be judged" in words for words in load_table(name).differences)


def test_rows_of_an_ablation_differ_in_what_they_are_about() -> None:
    table = load_table("mmnet-3")
    arguments = [dict(table.settings(row, 0).arguments) for row in range(4)]
    assert arguments == [{"attention": "none", "position": False}, {"position": False}, {"attention": "none"}, {}]
    alphas = [load_table("attribute-alpha").settings(row, 0).arguments["alpha"] for row in range(10)]
    assert alphas == pytest.approx([number / 10 for number in range(10)])


# ---- runs


def check_run(result: BenchResult, out: Path) -> None:
    assert result.cells
    assert {cell.status for cell in result.cells.values()} == {"measured"}
    for cell in result.cells.values():
        for metric in set(result.table.metrics) & {"uf1", "uar", "acc"}:
            assert 0 <= cell.values[metric] <= 1
    page = (out / "table.md").read_text(encoding="utf-8")
    assert "SYNTHETIC" in page
    assert "say nothing about the published ones" in page
    first = next(row for row in result.table.rows if row.published) if result.table.name != "attribute-alpha" else None
    if first is not None and first.published[0] is not None:
        assert next(iter(first.published[0].values())).text in page
    lines = list(csv.DictReader((out / "table.csv").open(encoding="utf-8")))
    measured = [line for line in lines if line["measured"] and line["metric"] != "parameters"]
    assert measured
    assert {line["stamp"] for line in measured} == {"SYNTHETIC"}
    values = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert values["counts"]["measured"] == len(result.cells)
    assert values["differences"]


def check_whole(result: BenchResult) -> None:
    table = result.table
    runs = {(row, column) for row, one in enumerate(table.rows) if one.run is not None for column in one.columns}
    assert set(result.cells) == runs


@pytest.mark.parametrize("name", NAMES)
def test_every_table_runs_on_synthetic_domains(name: str, tmp_path: Path) -> None:
    result = run_table(name, synthetic=True, out=tmp_path, rows=SOME.get(name, "*"))
    check_run(result, tmp_path)
    if name not in SOME:
        check_whole(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SOME))
def test_tables_with_many_rows_run_whole(name: str, tmp_path: Path) -> None:
    result = run_table(name, synthetic=True, out=tmp_path)
    check_run(result, tmp_path)
    check_whole(result)


def recorded(
    n: int = 48,
    people: int = 4,
    datasets: tuple[str, ...] = ("smic", "casme2"),
    specs: tuple[fsmer.InputSpec, ...] = (),
) -> fsmer.ClipSet:
    """Flow clips under the names of real data sets, labelled as the MEGC 2019 maps are."""
    clips = fsmer.synthetic_clips("lab", n, seed=5, subjects=people, specs=specs)
    number = np.arange(n) // (n // len(datasets))
    return fsmer.ClipSet.from_arrays(
        clips.media(),
        clips.labels,
        subjects=clips.subjects,
        datasets=np.array(datasets)[number],
        spec=clips.specs["flow"],
    )


def test_a_table_runs_what_the_data_allow_and_marks_the_rest(tmp_path: Path) -> None:
    result = run_table("fr-5", recorded(24, datasets=("smic",)), out=tmp_path, rows="*logistic*")
    row = len(result.table.rows) - 1
    cells = {column: result.cells[row, column] for column in range(5)}
    assert [cell.status for cell in cells.values()] == ["measured", *["missing"] * 4]
    assert "request CASME II from" in cells[1].reason
    assert "Manchester" in cells[3].reason
    assert "3 of the 4 columns" in cells[4].reason
    page = result.markdown()
    assert "[1] needs CASME II" in page
    assert "0.6838" in page
    assert result.stamps == ()
    report = fsmer.Report.load(tmp_path / cells[0].folder)
    assert cells[0].values["acc"] == pytest.approx(report.acc)
    assert cells[0].intervals["acc"] == pytest.approx(report.interval("acc"), abs=0.05)
    assert "<h1>logistic on" in (tmp_path / cells[0].folder / "report.html").read_text(encoding="utf-8")


def test_the_composite_without_one_data_set_is_partial_and_says_so(tmp_path: Path) -> None:
    result = run_table("fr-2", recorded(), out=tmp_path, rows="*logistic*")
    row = len(result.table.rows) - 1
    statuses = [result.cells[row, column].status for column in range(4)]
    assert statuses == ["partial", "partial", "partial", "missing"]
    assert "cannot be compared" in result.cells[row, 0].reason
    report = fsmer.Report.load(tmp_path / result.cells[row, 0].folder)
    assert result.cells[row, 0].values["uf1"] == pytest.approx(report.uf1)
    for column, dataset in ((1, "smic"), (2, "casme2")):
        assert result.cells[row, column].values["uf1"] == pytest.approx(report.per_dataset[dataset]["uf1"])
    (folder,) = (tmp_path / "cells").iterdir()
    again = run_table("fr-2", recorded(), out=tmp_path, rows="*logistic*", resume=False)
    assert dict(again.cells) == dict(result.cells)
    assert set(json.loads((folder / "cell.json").read_text(encoding="utf-8"))["parts"]) == {"all", "smic", "casme2"}


def test_labels_that_a_scheme_cannot_read_are_a_reason(tmp_path: Path) -> None:
    result = run_table("fr-5", recorded(), out=tmp_path, rows="*logistic*")
    cell = result.cells[len(result.table.rows) - 1, 1]
    assert cell.status == "refused"
    assert "unknown to label scheme 'casme2-5'" in cell.reason


def test_media_that_a_network_does_not_eat_are_a_reason_and_other_sets_are_tried(tmp_path: Path) -> None:
    flow = recorded(12, people=2, datasets=("smic",))
    result = run_table("mubert-4", flow, out=tmp_path, quick=True)
    (cell,) = result.cells.values()
    assert cell.status == "missing"
    assert "hold no onset" in cell.reason
    assert "fsmer prepare smic --for mubert_small" in cell.reason
    spec = [fsmer.InputSpec(kind, (224, 224), ("red", "green", "blue"), "unit") for kind in ("onset", "apex")]
    frames = {kind: np.random.default_rng(0).random((12, 3, 8, 8)).astype(np.float32) for kind in ("onset", "apex")}
    small = [fsmer.InputSpec(kind, (8, 8), one.channels, "unit") for kind, one in zip(frames, spec, strict=True)]
    wrong = fsmer.ClipSet.from_arrays(frames, flow.labels, subjects=flow.subjects, datasets="smic", spec=small)
    (cell,) = run_table("mubert-4", [flow, wrong], out=tmp_path, quick=True).cells.values()
    assert "hold no onset" in cell.reason
    (cell,) = run_table("mubert-4", [wrong, flow], out=tmp_path, quick=True).cells.values()
    assert "8x8" in cell.reason
    row = "*logistic*"
    assert run_table("fr-5", [wrong, flow], out=tmp_path / "fr", rows=row).cells[29, 0].status == "measured"


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = recorded(24, datasets=("smic",))
    first = run_table("fr-5", clips, out=tmp_path, rows="*logistic*")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluated again")

    with monkeypatch.context() as patch:
        patch.setattr("fsmer.published.cells.evaluate", never)
        again = run_table("fr-5", clips, out=tmp_path, rows="*logistic*")
        assert again.markdown() == first.markdown()
        with pytest.raises(AssertionError, match="evaluated again"):
            run_table("fr-5", clips[:18], out=tmp_path, rows="*logistic*")
        with pytest.raises(AssertionError, match="evaluated again"):
            run_table("fr-5", clips, out=tmp_path, rows="*logistic*", resume=False)


def test_an_interrupted_table_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsmer.evaluation

    plain, calls = fsmer.evaluation.evaluate, []

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    monkeypatch.setattr("fsmer.published.cells.evaluate", once)
    with pytest.raises(KeyboardInterrupt):
        run_table("fr-3-4", synthetic=True, out=tmp_path, rows="*zero-shot*")
    assert "SYNTHETIC" in (tmp_path / "table.md").read_text(encoding="utf-8")
    run_table("fr-3-4", synthetic=True, out=tmp_path, rows="*zero-shot*")
    assert len(calls) == 13
    assert len(set(calls)) == 12


def test_seeds_give_a_mean_and_a_deviation(tmp_path: Path) -> None:
    result = run_table("mubert-3", synthetic=True, out=tmp_path, seeds=[3, 5])
    (cell,) = result.cells.values()
    assert len(cell.each["uf1"]) == 2
    assert cell.values["uf1"] == pytest.approx(np.mean(cell.each["uf1"]))
    assert cell.sd("uf1") == pytest.approx(np.std(cell.each["uf1"], ddof=1))
    page = result.markdown()
    assert "±" in page
    assert "means over 2 seeds with their standard deviation." in page
    assert "one run" not in page


def test_a_deviation_is_promised_where_there_is_one(tmp_path: Path) -> None:
    page = run_table("mubert-3", synthetic=True, out=tmp_path, seeds=1).markdown()
    assert "measured ones are of one run each." in page
    assert "deviation" not in page.partition("## ")[0]
    several, one = (Measured("measured", values={"acc": 0.8}, each={"acc": each}) for each in ((0.7, 0.9), (0.8,)))
    page = BenchResult(load_table("mmnet-7"), {(12, 0): several, (13, 0): one}).markdown()
    assert "means over 2 seeds with their standard deviation, or of one run where none stands." in page
    assert "measured ones" not in BenchResult(load_table("mmnet-7"), {(12, 0): Measured("missing")}).markdown()


def test_source_trained_rows_run_once_a_seed(tmp_path: Path) -> None:
    result = run_table("merau-4", synthetic=True, out=tmp_path, seeds=2, rows="MERAU")
    protonet = result.cells[4, 1]
    assert len(protonet.each["acc"]) == 2
    assert protonet.values["acc"] == pytest.approx(np.mean(protonet.each["acc"]))


def test_all_columns_of_merau_learn_from_the_source_alike() -> None:
    from fsmer.published.cells import EPISODES

    shared = ("train_backbone", "balanced", "source_augment", "source_encoder_rate", "source_epochs")
    wanted = load_method("finetune", train_backbone=True, balanced=False, source_augment=True).get_params()
    seen = set()
    for name in ("merau-3", "merau-4"):
        table = load_table(name)
        for row, one in enumerate(table.rows):
            for column in table.runs(row) if "facs-flow" not in one.method else ():
                settings = table.settings(row, column)
                if "episodes" in settings.before:
                    assert EPISODES["augment"]
                    seen.add("protonet")
                    continue
                found = load_method(settings.method, **settings.params).get_params()
                assert {key: found[key] for key in shared} == {key: wanted[key] for key in shared}, one.method
                seen.add(f"{settings.model} {settings.method}")
    assert seen == {"protonet", "merau finetune", "merau cosine", "flow_resnet18 finetune"}


def test_cells_say_which_rate_a_random_encoder_had_and_nothing_of_a_trained_one(tmp_path: Path) -> None:
    from fsmer.backbones.registry import fresh_model
    from fsmer.published.cells import small_settings

    row = "flow_resnet18*"
    fresh = fresh_model("flow_resnet18", 0, small_settings()["arguments"]["flow_resnet18"])
    with torch.no_grad():
        fresh.train()(10 * torch.randn(8, *fresh.input_spec.shape))
    fresh.save_pretrained(tmp_path / "trained")
    pages = {}
    for name, weights in (("random", None), ("trained", {"flow_resnet18": tmp_path / "trained"})):
        result = run_table("merau-4", synthetic=True, out=tmp_path / name, rows=row, weights=weights)
        (cell,) = result.cells.values()
        assert cell.status == "measured"
        pages[name] = (cell.reason, result.markdown())
    assert "0.001" in pages["random"][0]
    assert "1e-05" in pages["random"][0]
    assert pages["random"][0] in pages["random"][1]
    assert pages["trained"][0] == ""
    done = CliRunner().invoke(app, ["bench", "merau-4", "--synthetic", "--row", row, "--out", str(tmp_path / "cli")])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("starts from random weights and learns at 0.001") == 1
    assert "random_encoder_rate" in " ".join(done.stdout.split())


def test_neighbour_frames_are_learnt_from_when_asked_for_and_never_judged(tmp_path: Path) -> None:
    plain = recorded(24, datasets=("smic",))
    both = fsmer.concat([plain, plain[:6].with_prefix("near")])
    near = ["" for _ in range(24)] + plain.ids[:6].tolist()
    table = both.table.assign(neighbour_of=near)
    clips = fsmer.ClipSet.from_table(table, {"flow": ArrayStore(0.95 * both.media(), both.specs["flow"])})
    row = "*logistic*"
    with pytest.warns(UserWarning, match="6 neighbour frames out"):
        runs = [run_table("fr-5", clips, out=tmp_path, rows=row)]
    runs.append(run_table("fr-5", clips, out=tmp_path, rows=row, neighbours=True))
    left, told = (next(cell for cell in run.cells.values() if cell.values) for run in runs)
    assert told.folder != left.folder
    reports = [fsmer.Report.load(tmp_path / one.folder) for one in (left, told)]
    assert [len(one.predictions) for one in reports] == [24, 24]
    probabilities = [one.predictions.filter(like="p_").to_numpy() for one in reports]
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-3
    assert "neighbour frames were learnt from" in (tmp_path / "table.md").read_text(encoding="utf-8")
    with pytest.raises(ProtocolError, match=r"synthetic clips have no neighbour"):
        run_table("merau-4", synthetic=True, out=tmp_path, neighbours=True)


def test_averages_are_those_of_their_columns(tmp_path: Path) -> None:
    result = run_table("fr-3-4", synthetic=True, out=tmp_path, rows="*logistic*")
    row = len(result.table.rows) - 1
    for average, columns in ((6, range(6)), (13, range(7, 13))):
        values = [result.cells[row, column].values["uf1"] for column in columns]
        assert result.cells[row, average].values["uf1"] == pytest.approx(np.mean(values))


def test_parameters_are_counted_without_data_and_close_to_the_printed_ones(tmp_path: Path) -> None:
    result = run_table("fr-7", out=tmp_path)
    for (row, column), cell in result.cells.items():
        assert cell.status == "missing"
        told = result.table.rows[row].published[column]
        assert told is not None
        assert cell.values["parameters"] == pytest.approx(told["parameters"].value, rel=0.006)
    # Basic Inception: two streams of two blocks, then 2 x 64 x 7 x 7 numbers to 1024 units to three classes.
    streams = 2 * (inception(1, 6) + inception(24, 16))
    assert result.cells[0, 0].values["parameters"] * 1e6 == pytest.approx(streams + 6272 * 1024 + 1024 + 1024 * 3 + 3)


def inception(inputs: int, filters: int) -> int:
    """Weights and biases of an Inception block by the sizes of its six convolutions."""
    kernels = ((inputs, 1), (inputs, 1), (inputs, 1), (filters, 9), (filters, 25), (inputs, 1))
    return sum(before * area * filters + filters for before, area in kernels)


def test_given_weights_are_where_training_starts(tmp_path: Path) -> None:
    from fsmer.backbones.registry import fresh_model
    from fsmer.published.cells import small_settings

    for seed in (0, 1):
        fresh_model("mubert_small", seed, small_settings()["arguments"]["mubert_small"]).save_pretrained(
            tmp_path / str(seed)
        )
    folders = set()
    for weights in (None, {"mubert_small": tmp_path / "0"}, {"mubert_small": tmp_path / "1"}):
        (cell,) = run_table("mubert-4", synthetic=True, out=tmp_path / "out", weights=weights).cells.values()
        assert cell.status == "measured"
        folders.add(cell.folder)
    assert len(folders) == 3


def test_given_weights_stand_in_for_no_other_variant_and_no_other_network(tmp_path: Path) -> None:
    from fsmer.backbones.registry import fresh_model
    from fsmer.published.cells import small_settings

    whole = tmp_path / "whole"
    fresh_model("mubert_small", 0, small_settings()["arguments"]["mubert_small"]).save_pretrained(whole)
    result = run_table("mubert-6", synthetic=True, out=tmp_path / "out", weights={"mubert_small": whole}, seeds=1)
    cells = {result.table.rows[row].method: cell for (row, _), cell in result.cells.items()}
    assert cells["Micron-BERT (MB3)"].status == "measured"
    for method, key in (("Micron-BERT (MB1)", "attention='none'"), ("Micron-BERT (MB2)", "interest=False")):
        assert cells[method].status == "refused"
        assert f"this row is about {key}" in cells[method].reason
    with pytest.raises(UnknownNameError, match="mubert_smal"):
        run_table("mubert-6", synthetic=True, out=tmp_path, weights={"mubert_smal": whole})
    with pytest.raises(WeightsError, match=r"'mubert_small'.*'fr'"):
        run_table("fr-2", synthetic=True, out=tmp_path, weights={"fr": whole})
    with pytest.raises(WeightsError, match="nothing"):
        run_table("fr-2", synthetic=True, out=tmp_path, weights={"fr": tmp_path / "nothing"})


def test_other_weights_that_ship_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = recorded(24, datasets=("smic",))
    folders = []
    for weights in ("those of today", "those of today", "those of tomorrow"):
        monkeypatch.setattr("fsmer.published.cells.model_hash", lambda _, weights=weights: weights)
        (folder,) = {
            cell.folder
            for cell in run_table("fr-5", clips, out=tmp_path, rows="*logistic*").cells.values()
            if cell.status == "measured"
        }
        folders.append(folder)
    assert folders[0] == folders[1] != folders[2]


def test_oracle_figures_are_stamped(tmp_path: Path) -> None:
    result = run_table("mmnet-7", synthetic=True, out=tmp_path, select="oracle")
    assert any(stamp.startswith("ORACLE") for stamp in result.stamps)
    assert "SYNTHETIC ORACLE measured" in result.markdown()


def test_oracle_figures_have_the_honest_ones_and_the_gap_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsmer.evaluation

    params = {"epochs": 4, "learning_rate": 0.01}
    row = Row("STSTNet", run={"model": "ststnet", "method": "train", "params": params}, columns=(0, 1, 2))
    table = replace(load_table("fr-2"), rows=(row,))
    clips = recorded(16, people=2, specs=fsmer.create_model("ststnet").input_specs)
    result = run_table(table, clips, out=tmp_path, seeds=2, select="oracle", jobs=1)
    page = result.markdown()
    lines = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
    folder = tmp_path / result.cells[0, 0].folder
    report = fsmer.Report.load(folder)
    assert report.honest is not None
    assert report.gap is not None
    assert result.cells[0, 0].gaps["acc"] == pytest.approx(report.gap["acc"])
    assert report.gap["acc"] > 0
    assert f"|  | honest | {report.honest['uf1']:.4f} / {report.honest['uar']:.4f} | " in page
    assert f"|  | gap | {report.gap['uf1']:+.4f} / {report.gap['uar']:+.4f} | " in page
    assert "| honest | gap |" in page
    assert len(lines) == 6
    for line in lines:
        assert line["stamp"] == "ORACLE"
        assert float(line["gap"]) == pytest.approx(float(line["measured"]) - float(line["honest"]))
    # What is measured when nothing is chosen: of the whole by the report, of its parts by a run of their own.
    fixed = run_table(table, clips, out=tmp_path, seeds=2, jobs=1)
    for place, cell in fixed.cells.items():
        assert result.cells[place].honest == pytest.approx(cell.values)
        assert cell.honest == {}
    assert "honest" not in fixed.markdown()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr("fsmer.evaluation.seed_runs.SeedRuns.solve", never)
    assert run_table(table, clips, out=tmp_path, seeds=2, select="oracle", jobs=1).markdown() == page
    # A run that was kept without them has them in its report; a page that was lost is made again.
    values = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    for part in values["parts"].values():
        del part["honest"]
    (folder / "cell.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "report.html").unlink()
    assert run_table(table, clips, out=tmp_path, seeds=2, select="oracle", jobs=1).markdown() == page
    assert "ORACLE" in (folder / "report.html").read_text(encoding="utf-8")


def test_honest_figures_of_runs_that_learn_from_the_source_are_means_over_seeds(tmp_path: Path) -> None:
    some = {"synthetic": True, "seeds": 2, "rows": "MERAU (CD)"}
    (peeked,) = run_table("merau-4", out=tmp_path / "oracle", select="oracle", **some).cells.values()
    (fixed,) = run_table("merau-4", out=tmp_path / "fixed", **some).cells.values()
    assert peeked.honest == pytest.approx(fixed.values)


def test_gaps_in_percent_are_points_and_those_of_averages_are_of_their_columns() -> None:
    from fsmer.published.results import average_cell

    honest = Measured("measured", values={"acc": 0.9, "uf1": 0.75}, honest={"acc": 0.85, "uf1": 0.8})
    page = BenchResult(load_table("mmnet-7"), {(12, 0): honest}, select="oracle").markdown()
    assert "|  | honest | 85.00% / 0.8000 |\n|  | gap | +5.00 points / -0.0500 |" in page
    table = load_table("fr-5")
    columns = table.columns[4].average
    shares = np.linspace(0.2, 0.8, len(columns)).tolist()
    cells = {
        (0, place): Measured("measured", values={"acc": 0.9}, each={"acc": (0.9,)}, honest={"acc": share})
        for place, share in zip(columns, shares, strict=True)
    }
    assert average_cell(table, cells, 0, 4).gaps == pytest.approx({"acc": 0.4})


def test_what_cannot_be_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="'fr-2'"):
        run_table("fr2", out=tmp_path)
    with pytest.raises(ProtocolError, match=r"'fr-2'.*nobody"):
        run_table("fr-2", synthetic=True, out=tmp_path, rows="nobody")
    with pytest.raises(ProtocolError, match="casme2, samm, smic"):
        run_table("fr-2", out=tmp_path)
    for seeds in (0, [], [1, 1], [-1]):
        with pytest.raises(ProtocolError, match="seeds="):
            run_table("fr-2", synthetic=True, out=tmp_path, seeds=seeds)
