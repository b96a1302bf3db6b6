"""Damaged, contradictory and huge files: each is refused by one sentence of a typed error, or read as what it says."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_backbone

import fsmer
from fsmer.auditing import audit
from fsmer.data import ClipSet
from fsmer.data.au_parser import LONGEST, parse_aus
from fsmer.data.spec import InputSpec
from fsmer.episodic import Protocol, load_protocol
from fsmer.errors import DataError, FsmerError, ProtocolError
from fsmer.evaluation import Report, evaluate
from fsmer.io import write_json
from fsmer.parameters import typed_value
from fsmer.preprocess import PreprocessRecipe
from fsmer.reporting.compare import compare
from fsmer.synthetic import synthetic_clips
from fsmer.synthetic.class_descriptions import unit_shares

TABLES = ("predictions.csv", "episodes.csv")
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 10**18, 10**30, 3.5, 1e308, math.nan, math.inf, "", "x", "\x1b[31m", "x" * 140_000,
    [], {}, [[]], [None], ["x", "x"], {"a": None}, {"x": {"x": {}}},
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pooled run of two seeds, and one that averages over episodes of two of the three classes."""
    folder = tmp_path_factory.mktemp("runs")
    clips = fsmer.synthetic_clips("lab", 24, seed=3, subjects=4)
    model = tiny_backbone.TinyBackbone()
    evaluate("loso", model, fsmer.load_method("finetune", steps=2), clips=clips, seeds=2, out=folder / "pooled")
    episodes = load_protocol("kshot", way=2, shot=1, query=2, episodes=4)
    evaluate(episodes, model, "protonet", clips=clips, out=folder / "episodes")
    return folder / "pooled", folder / "episodes"


@pytest.fixture
def run(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs[0], tmp_path / "run"))


def unsealed(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda held: None) -> Path:
    """The folder as an earlier version wrote it: nothing says whether a file was altered."""
    for name in ("report.json", "run.json"):
        held = json.loads((folder / name).read_text())
        held.pop("checksum")
        held.pop("files", None)
        if name == "report.json":
            change(held)
        (folder / name).write_text(json.dumps(held))
    return folder


def in_table(folder: Path, name: str, change: Callable[[pd.DataFrame], Any]) -> None:
    table = pd.read_csv(folder / name, dtype=object, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(folder / name, index=False)


# ---- altered after they were written


@pytest.mark.parametrize("name", TABLES)
def test_an_altered_table_is_refused_and_found(name: str, run: Path) -> None:
    """A number that no figure follows from is changed, which nothing but a digest could notice."""
    column = "p_negative" if name == "predictions.csv" else "acc_merau"
    in_table(run, name, lambda table: table.__setitem__(column, table[column] + "0"))
    for read in (Report.load, lambda folder: compare(folder, folder)):
        with pytest.raises(DataError, match=f"{name}.*evaluation"):
            read(run)
    found = audit(run)
    assert found.exit_code == 3
    assert next(one for one in found.findings if one.check == "altered-file").examples == (name,)


def test_an_altered_report_is_refused_and_found_with_its_run(run: Path) -> None:
    for name, old, new in (("report.json", '"torch": "', '"torch": "9'), ("run.json", '"machine": "', '"machine": "9')):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=r"report\.json"):
        Report.load(run)
    altered = next(one for one in audit(run).findings if one.check == "altered-file")
    assert altered.examples == ("report.json", "run.json")


def test_an_altered_account_of_a_run_is_not_believed(run: Path) -> None:
    assert "seconds" in Report.load(run).run
    (run / "run.json").write_text((run / "run.json").read_text().replace('"seconds": ', '"seconds": 9'))
    assert Report.load(run).run == {}


def test_reports_without_checksums_are_still_read(run: Path) -> None:
    whole = Report.load(run)
    old = Report.load(unsealed(run))
    assert old.to_dict() == whole.to_dict()
    assert "altered-file" not in {one.check for one in audit(run).findings}


# ---- what cannot be


@pytest.mark.parametrize("value", ["nan", "inf", "-0.25", "1.5", ""])
def test_a_probability_that_is_none_is_refused_and_found(value: str, run: Path) -> None:
    unsealed(run)

    def change(table: pd.DataFrame) -> None:
        for name in fsmer.synthetic_clips("lab", 24, seed=3, subjects=4).classes:
            table.loc[0, f"p_{name}"] = value

    in_table(run, "predictions.csv", change)
    with pytest.raises(DataError) as refused:
        compare(run, run)
    assert "predictions.csv" in str(refused.value) or "probabilities of 1 answers" in str(refused.value)
    if value not in ("nan",):  # no number at all, where the others are wrong ones
        assert "no-probability" in {one.check for one in audit(run).findings}


def test_figures_and_probabilities_that_are_not_finite_are_not_compared(run: Path) -> None:
    report = Report.load(run)
    broken = report.predictions.assign(**{f"p_{name}": np.nan for name in report.classes})
    for one in (replace(report, predictions=broken), replace(report, figures=report.figures | {"uf1": math.nan})):
        with pytest.raises(DataError, match="cannot be compared"):
            compare(report, one)
    unsealed(run, lambda held: held.update(uf1=math.nan))
    for read in (Report.load, audit):
        with pytest.raises(DataError, match=r"uf1.*nan"):
            read(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held["classes"].append("new"), "per_class has"),
        (lambda held: held["classes"].__setitem__(1, held["classes"][0]), "stands twice"),
        (lambda held: held["confusion"].pop(), "confusion matrix"),
        (lambda held: held["per_seed"].append(held["per_seed"][0]), "stands twice"),
        (lambda held: held["counts"].update(predictions=10**30), "counts.predictions"),
        (lambda held: held["counts"].update(clips=9), "counts 9"),
        (lambda held: held.update(seed="2020-99-99"), "seed: .*not '2020-99-99'"),
        (lambda held: held.update(classes=3.5), "classes: .*not 3.5"),
        (lambda held: held["model"].pop("weights_hash"), "model.weights_hash"),
        (lambda held: held["model"].update(weights_hash=None), "model.weights_hash"),
        (lambda held: held.update(uf1=76.3), "uf1: .*less than or equal to 1"),
        (lambda held: held["selection"].update(rule="luck"), "selection.rule"),
    ],
)
def test_a_contradictory_report_is_refused_by_the_name_of_its_fault(
    change: Callable[[dict[str, Any]], Any], words: str, run: Path
) -> None:
    unsealed(run, change)
    with pytest.raises(DataError, match=words) as refused:
        Report.load(run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("predictions.csv", lambda table: table.__setitem__("episode", "10" + "0" * 17)),
        ("episodes.csv", lambda table: table.__setitem__("episode", "10" + "0" * 17)),
        ("episodes.csv", lambda table: table.__setitem__("episode", "1e999")),
        ("predictions.csv", lambda table: table.__setitem__("seed", "first")),
        ("predictions.csv", lambda table: table.__setitem__("seed", "1" * 30)),
        ("predictions.csv", lambda table: table.drop(columns="clip")),
        ("predictions.csv", lambda table: table.drop(columns="seed")),
        ("episodes.csv", lambda table: table.__setitem__("clips", "-1")),
        ("episodes.csv", lambda table: table.__setitem__("uf1", "inf")),
        ("predictions.csv", lambda table: table.rename(columns={"clip": "x" * 131_073})),
        ("predictions.csv", lambda table: table.drop(columns="p_negative")),
        ("predictions.csv", lambda table: pd.concat([table, table])),
    ],
)
def test_impossible_cells_are_refused(name: str, change: Callable[[pd.DataFrame], Any], run: Path) -> None:
    in_table(unsealed(run), name, change)
    with pytest.raises(DataError) as refused:
        Report.load(run)
    assert "\n" not in str(refused.value)
    typed(lambda: str(audit(run)))


def test_an_answer_given_twice_in_place_of_another_is_refused(run: Path) -> None:
    def twice(table: pd.DataFrame) -> pd.DataFrame:
        alike = table.groupby(["seed", "episode", "label", "predicted"]).filter(lambda rows: len(rows) > 1)
        first = alike.iloc[0]
        same = (
            alike[["seed", "episode", "label", "predicted"]] == first[["seed", "episode", "label", "predicted"]]
        ).all(axis=1)
        table.loc[alike.index[same][1]] = first
        return table

    in_table(unsealed(run), "predictions.csv", twice)
    with pytest.raises(DataError, match="two answers for one clip"):
        Report.load(run)


def test_a_seed_that_lost_all_folds_but_one_is_audited(run: Path) -> None:
    def cut(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["seed"] == table["seed"].iloc[0]) | (table["episode"] == "0")]

    in_table(run, "predictions.csv", cut)
    found = audit(run)
    assert "missing-fold" in {one.check for one in found.findings}
    assert "mean over folds" not in found.figures["uf1"]


def test_a_named_pipe_in_place_of_a_table_is_not_waited_for(run: Path) -> None:
    for name in (*TABLES, "report.json", "run.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    with pytest.raises(DataError, match="named pipe"):
        Report.load(run)
    shutil.rmtree(run)


# ---- any damage at all


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The content with a few bytes, lines or cells changed."""
    lines = data.splitlines(keepends=True)
    for _ in range(draw.randint(1, 3)):
        kind = draw.randrange(6)
        place = draw.randrange(len(lines)) if lines else 0
        if kind == 0 and data:
            at = draw.randrange(len(data))
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[: draw.randrange(len(data) + 1)]
        elif kind == 2 and lines:
            data = b"".join([*lines[:place], *lines[place + 1 :]])
        elif kind == 3 and lines:
            data = b"".join([*lines[:place], lines[place], *lines[place:]])
        elif kind == 4 and lines:
            cells = lines[place].split(b",")
            new = draw.choice([b"", b"nan", b"1e999", b"-1", b"9" * 19, b"9" * 5000, b'"', b"x", b"\x00", b"0.5"])
            cells[draw.randrange(len(cells))] = new
            data = b"".join([*lines[:place], b",".join(cells), b"\n", *lines[place + 1 :]])
        lines = data.splitlines(keepends=True)
    return data


def with_another_value(values: Any, draw: random.Random) -> Any:
    """Plain values with one of them, anywhere, exchanged, removed or added."""
    values = json.loads(json.dumps(values))
    places: list[tuple[Any, Any]] = []
    level = [values]
    while level:
        one = level.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        places += [(one, key) for key in keys]
        level += [one[key] for key in keys if isinstance(one[key], dict | list)]
    holder, key = draw.choice(places)
    if draw.random() < 0.2:
        del holder[key]
    elif isinstance(holder, dict) and draw.random() < 0.2:
        holder["another"] = draw.choice(NASTY)
    else:
        holder[key] = draw.choice(NASTY)
    return values


def typed(call: Callable[[], Any]) -> Any:
    """What the call gives; ``None`` where it refuses by one sentence. Anything else that it raises fails the test."""
    began = time.perf_counter()
    try:
        found = call()
    except FsmerError as error:
        found, said = None, str(error)
    else:
        said = ""
    assert "\n" not in said
    assert time.perf_counter() - began < 20
    return found


@pytest.mark.parametrize("which", [0, 1], ids=["pooled", "episodes"])
def test_damaged_reports_give_a_typed_error_or_sound_figures(
    which: int, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    draw = random.Random(which)
    whole = Report.load(runs[which])
    old = unsealed(Path(shutil.copytree(runs[which], tmp_path / "old")))
    files = ("report.json", "report.json", "run.json", *TABLES)
    read = 0
    for turn in range(40):
        sealed = turn % 4 == 0
        folder = Path(shutil.copytree(runs[which] if sealed else old, tmp_path / "damaged"))
        path = folder / draw.choice(files)
        if path.suffix == ".json" and draw.random() < 0.7:
            path.write_text(json.dumps(with_another_value(json.loads(path.read_text()), draw)))
        else:
            path.write_bytes(damaged(path.read_bytes(), draw))
        report = typed(lambda folder=folder: Report.load(folder))
        if report is not None:
            read += 1
            assert np.isfinite([report.figures[name] for name in ("uf1", "uar", "acc")]).all()
            if sealed:
                assert report.figures == whole.figures
            typed(report.markdown)
            typed(report.to_html)
        comparison = typed(lambda folder=folder: compare(folder, runs[which], draws=20))
        assert comparison is None or "nan" not in str(comparison)
        typed(lambda folder=folder: str(audit(folder)))
        shutil.rmtree(folder)
    assert 0 < read < 40


def test_damaged_protocols_recipes_and_specs_give_a_typed_error_or_a_sound_one(tmp_path: Path) -> None:
    import yaml

    draw = random.Random(5)
    clips = fsmer.synthetic_clips("lab", 12, seed=1, subjects=3)
    names = ("kshot", "ratio", "cdmer-01", "merau-casme2-to-smic-3way", "synthetic-source-target")
    path = tmp_path / "damaged.yaml"
    for turn in range(100):
        values = load_protocol(names[turn % len(names)]).to_dict()
        if turn % 2:
            path.write_text(yaml.safe_dump(with_another_value(values, draw)))
        else:
            path.write_bytes(damaged(yaml.safe_dump(values).encode(), draw))
        protocol = typed(lambda: load_protocol(path))
        if protocol is not None:
            assert len(protocol.hash) == 16
            episodes = typed(lambda protocol=protocol: protocol.split(clips))
            if episodes is not None:
                assert len(episodes[0].query) > 0
    recipe = PreprocessRecipe()
    for _ in range(100):
        values = with_another_value(recipe.to_dict(), draw)
        write = json.dumps(values).encode()
        (tmp_path / "recipe.json").write_bytes(write if draw.random() < 0.6 else damaged(write, draw))
        held = typed(lambda: PreprocessRecipe.load(tmp_path / "recipe.json"))
        if held is not None:
            typed(held.load_detector)
            typed(held.load_flow)
        spec = typed(lambda: InputSpec.from_dict(with_another_value(InputSpec().to_dict(), draw)))
        assert spec is None or (spec.describe() and spec.shape)


# ---- single doors


@pytest.mark.parametrize(
    "text",
    [
        "kind: kshot\nparams: {seed: 2020-99-99}\n",
        "kind: kshot\nparams: {shot: 1000000000000}\n",
        "kind: kshot\nparams: {query: 1000000000000}\n",
        "kind: kshot\nparams: {episodes: 1000000000000000000000}\n",
        "kind: ratio\nparams: {repeats: 1000000000000}\n",
        "kind: loso\ndata: [{synthetic: {domain: lab, clips: 1000000000000}}]\n",
        "kind: [kshot]\n",
        "kind: loso\nparams: " + "[" * 100_000 + "\n",
        "kind: &a loso\nname: *a\n",
        "kind: loso\nname: !!python/object/apply:os.getcwd []\n",
        "kind: loso\nparams: {class_subset: [[a, b]]}\n",
    ],
)
def test_protocols_that_ask_for_the_impossible_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    began = time.perf_counter()
    with pytest.raises(ProtocolError, match=r"a\.yaml"):
        load_protocol(tmp_path / "a.yaml")
    assert time.perf_counter() - began < 5


def test_a_protocol_is_checked_wherever_it_comes_from() -> None:
    for values in (None, {"kind": {}}, {"kind": "loso", "data": [{"synthetic": []}]}, {"kind": "kshot", "params": [1]}):
        with pytest.raises(ProtocolError):
            Protocol.from_dict(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"detector_parameters": [1]},
        {"detector_parameters": None},
        {"crop_size": 224},
        {"crop_size": [224, 10**12]},
        {"crop_size": ["a", "b"]},
        {"face": True},
        {"face": "smallest"},
        {"flow_parameters": {"levels": "many"}},
        {"flow_parameters": {"levels": 10**400}},
        {"strain_shear": "0.5"},
        {"versions": {"numpy": 2}},
    ],
)
def test_a_recipe_with_a_value_of_another_kind_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    write_json(path, PreprocessRecipe().to_dict() | change)
    with pytest.raises(DataError):
        PreprocessRecipe.load(path)


def test_a_recipe_keeps_its_hash_through_a_file(tmp_path: Path) -> None:
    recipe = PreprocessRecipe(strain_shear=1, crop_size=(64, 48), flow_parameters={"levels": 2})
    assert PreprocessRecipe.load(recipe.save(tmp_path / "recipe.json")).hash == recipe.hash


def test_a_recipe_that_was_altered_is_refused_and_one_without_a_checksum_loads(tmp_path: Path) -> None:
    recipe = PreprocessRecipe(strain_shear=0.5)
    path = recipe.save(tmp_path / "recipe.json")
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace('"strain_shear": 0.5', '"strain_shear": 0.7'), encoding="utf-8")
    with pytest.raises(DataError, match="altered"):
        PreprocessRecipe.load(path)
    held = json.loads(whole)
    assert PreprocessRecipe.from_dict(held).hash == recipe.hash
    del held["checksum"]
    assert held == recipe.to_dict()
    path.write_text(json.dumps(held), encoding="utf-8")
    assert PreprocessRecipe.load(path).hash == recipe.hash


def test_numbers_of_numpy_in_recipes_and_media_are_plain_numbers(tmp_path: Path) -> None:
    plain = PreprocessRecipe(crop_size=(64, 48), face=1, flow_parameters={"levels": 2})
    made = PreprocessRecipe(
        crop_size=(np.int64(64), np.int32(48)), face=np.int64(1), flow_parameters={"levels": np.int64(2)}
    )
    assert made.hash == plain.hash
    assert PreprocessRecipe.load(made.save(tmp_path / "recipe.json")) == plain
    assert PreprocessRecipe.from_dict({**plain.to_dict(), "crop_size": (np.int64(64), 48)}).hash == plain.hash
    assert InputSpec.from_dict({**InputSpec().to_dict(), "size": (np.int64(28), 28)}) == InputSpec()


@pytest.mark.parametrize("values", [None, 3, [], "flow", {}])
def test_what_is_no_table_is_no_description_of_media(values: Any) -> None:
    with pytest.raises(DataError, match="the values cannot be read"):
        InputSpec.from_dict(values)


def test_the_media_of_a_saved_set_are_checked_as_any_description_of_media(tmp_path: Path) -> None:
    folder = synthetic_clips("lab", 4).save(tmp_path / "set")
    path = folder / "clips.json"
    held = json.loads(path.read_text(encoding="utf-8"))
    del held["checksum"]
    for change in ({"size": [28, 1 << 17]}, {"channels": []}, {"frames": 0}):
        wrong = {**held, "media": {"flow": held["media"]["flow"] | change}}
        path.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(DataError, match=rf"clips\.json.*{next(iter(change))}"):
            ClipSet.load(folder)


@pytest.mark.parametrize(
    "change", [{"size": [28, 10**12]}, {"size": 28}, {"channels": []}, {"frames": -1}, {"kind": 1}]
)
def test_a_description_of_media_is_checked(change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        InputSpec.from_dict(InputSpec().to_dict() | change)


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), "9" * 400, "9" * 5000, "1e999", math.inf, math.nan, "nan", 2**64]
)
def test_parameters_beyond_64_bits_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="a whole number"):
        typed_value(value, "int")
    with pytest.raises(FsmerError, match="steps="):
        fsmer.load_method("cosine", steps=value)


def test_whole_numbers_given_as_text_keep_every_digit() -> None:
    assert typed_value("9007199254740993", "int") == 9007199254740993


@pytest.mark.parametrize(
    "text",
    [
        "L/" * (10_000 // 2),
        "1/2+" * (10_000 // 4),
        "(" * (10_000 - 1),
        "1" * 10_000,
        "(" + "1/" * (10_000 // 2 - 4) + "2)/3",
        "1" * (LONGEST + 1),
    ],
)
def test_any_action_unit_text_is_read_or_refused_in_bounded_time(text: str) -> None:
    began = time.perf_counter()
    parsed = typed(lambda: parse_aus(text))
    assert (parsed is None) == (len(text) > LONGEST)
    typed(lambda: parsed and (parsed.choices, parsed.numbers()))
    typed(lambda: unit_shares(text))
    assert time.perf_counter() - began < 20


def test_huge_numbers_in_an_action_unit_cell_are_no_units() -> None:
    assert parse_aus(10**400).numbers() == ()
    assert parse_aus(math.inf).numbers() == ()


def test_huge_fold_numbers_are_counted_but_not_listed(tmp_path: Path) -> None:
    rows = [f"c{fold}{clip},s{fold},{fold}" for fold in (1, 3, 10**17) for clip in range(2)]
    (tmp_path / "a.csv").write_text("\n".join(["clip,subject,fold", *rows]) + "\n")
    gap = next(one for one in audit(tmp_path / "a.csv").findings if one.check == "missing-fold")
    assert gap.count == 10**17 - 3
    assert gap.examples == ("2", "4")


def test_an_audit_opens_no_file_outside_the_folder_of_its_table(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(Path(fsmer.__file__), tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "x" * 5000 + ".png"):
        (tmp_path / "in" / "a.csv").write_text(f"clip,fold,file\na,1,{name}\nb,2,{name}\n")
        assert any("the media" in reason for reason in audit(tmp_path / "in" / "a.csv").unchecked)


def test_arguments_of_the_command_line_are_plain_json_or_text() -> None:
    from fsmer.cli.options import json_pairs

    assert json_pairs(['key={"a": [1, 2.5]}'], "-a") == {"key": {"a": [1, 2.5]}}
    for text in ("[" * 100_000, "NaN", "9" * 5000, "word"):
        assert json_pairs([f"key={text}"], "-a") == {"key": text}
