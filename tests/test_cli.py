"""The command line: every command works as its help shows, and every refusal is one sentence with a known exit code."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

import fsmer
from fsmer.backbones import Backbone
from fsmer.backbones.facs_flow import FacsFlow
from fsmer.cli.app import app
from fsmer.episodic import list_protocols
from fsmer.evaluation import Report
from fsmer.plugins import METHODS
from fsmer.synthetic.clips import synthetic_clips

COMMANDS = (
    "demo", "models", "protocols", "evaluate", "train", "adapt", "predict", "explain", "pretrain", "mmd", "datasets",
    "check", "prepare", "audit", "bench", "compare", "meta-train",
)  # fmt: skip

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def weights(rough_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(rough_backbone.save_pretrained(tmp_path_factory.mktemp("weights") / "rough"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two folders with index.csv and 8-bit maps, 36 clips each of subjects 006 to 009."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("samm", "smic")):
        made = synthetic_clips("lab", n=36, seed=number)
        (root / name / "maps").mkdir(parents=True)
        rows = ["clip,dataset,subject,label,file"]
        for place, (values, label) in enumerate(zip(made.media(), made.labels, strict=True)):
            clip = f"{name}{place:03d}"
            pixels = np.round(values * 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(pixels).save(root / name / "maps" / f"{clip}.png")
            rows.append(f"{clip},{name},{place % 4 + 6:03d},{label},maps/{clip}.png")
        (root / name / "index.csv").write_text("\n".join(rows) + "\n")
    return str(root / "samm"), str(root / "smic")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    # What is said on standard error must not depend on how busy the machine is.
    monkeypatch.setattr("fsmer.cli.progress.FIRST_LINE", 3600.0)

    def call(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
        said = f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
        assert result.exit_code == code, said
        if code == 1:
            # One sentence for people, and no trace of the program's insides.
            assert result.stderr.startswith("fsmer: "), said
            assert result.stderr.count("\n") == 1, said
            assert "Traceback" not in said
        return result

    return call


def test_every_command_has_help(run: Run) -> None:
    page = run("--help").stdout
    for command in COMMANDS:
        assert command in page
        assert "--import" in run(command, "--help").stdout


PLUGIN = '''
from dataclasses import dataclass
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.registry import register_method

@register_method("from-a-file")
@dataclass(frozen=True)
class FromAFile(Finetune):
    """Registered by a file that the command line names."""
'''


def test_commands_use_what_an_imported_file_registers(run: Run, weights: str, tmp_path: Path) -> None:
    plugin = tmp_path / "my_method.py"
    plugin.write_text(PLUGIN)
    given = ("kshot", "--episodes", 3, "--data", "synthetic:lab:40", "--model", weights, "--method", "from-a-file")
    try:
        assert "from-a-file" in run("evaluate", *given, code=1).stderr
        held = json.loads(run("evaluate", *given, "-p", "steps=5", "--import", plugin, "--json").stdout)
        assert held["method"]["name"] == "from-a-file"
        assert "from-a-file" in run("models", "--import", plugin, "--import", plugin).stdout
    finally:
        METHODS._forget({"from-a-file"})


@pytest.mark.parametrize(
    ("text", "fact"), [(None, "not a file"), ("1 / 0", "ZeroDivisionError"), ("import no_such_part", "no_such_part")]
)
def test_a_plugin_that_cannot_be_imported_is_refused_by_name(
    run: Run, tmp_path: Path, text: str | None, fact: str
) -> None:
    plugin = tmp_path / "broken.py"
    if text is not None:
        plugin.write_text(text)
    said = run("protocols", "--import", plugin, code=1).stderr
    assert "broken.py" in said
    assert fact in said


def test_version_and_wrong_command_lines(run: Run) -> None:
    assert run("--version").stdout.strip() == fsmer.__version__
    run("evaluate", code=2)
    run("evaluate", "loso", "--no-such-option", code=2)
    run("no-such-command", code=2)
    assert "KEY=VALUE" in run("evaluate", "loso", "--data", "x", "--param", "steps", code=2).stderr


def test_models_and_methods_are_listed(run: Run) -> None:
    held = json.loads(run("models", "--json").stdout)
    (model,) = [one for one in held["models"] if one["name"] == "facs-flow"]
    assert model["parameters"] <= 1_500_000
    assert {"cosine", "zero_shot", "protonet", "finetune", "logistic"} <= {one["name"] for one in held["methods"]}
    assert "facs-flow" in run("models", "facs*").stdout
    assert "facs-flow" in run("models", "facs-flw", code=1).stderr


def test_protocols_are_listed_and_shown(run: Run) -> None:
    held = json.loads(run("protocols", "--json").stdout)
    assert [one["name"] for one in held] == list_protocols()
    assert "megc2019-cde" in run("protocols").stdout
    shown = json.loads(run("protocols", "megc2019-cde", "--json").stdout)
    assert shown["kind"] == "cde"
    assert shown["hash"] == fsmer.load_protocol("megc2019-cde").hash
    assert shown["hash"] in run("protocols", "megc2019-cde").stdout
    assert "megc2019-cde" in run("protocols", "megc2019-cd", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "episodes"),
    [
        (("kshot", "--shot", 0, "--method", "zero_shot"), 1),
        (("kshot", "--way", 3, "--shot", 5, "--episodes", 12, "--method", "cosine"), 12),
        (("loso", "--method", "logistic"), 8),
        (("episodes/kshot-flow-3way-5shot.yaml", "--episodes", 4, "--method", "protonet"), 4),
        (
            ("kshot", "--shot", 1, "--query", 2, "--episodes", 3, "--seed", 5, "--method", "finetune", "-p", "steps=5"),
            3,
        ),
    ],
)
def test_evaluate_writes_a_whole_report(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path, arguments: tuple[object, ...], episodes: int
) -> None:
    out = tmp_path / "out"
    shown = run("evaluate", *arguments, "--data", folders[0], "--data", folders[1], "--model", weights, "--out", out)
    held = json.loads((out / "report.json").read_text())
    for name in ("uf1", "uar", "acc"):
        low, high = held[f"{name}_interval"]
        assert low <= held[name] <= high
        assert f"{held[name]:.3f}" in shown.stdout
    assert set(held["per_dataset"]) == {"samm", "smic"}
    assert held["counts"]["episodes"] == episodes
    with open(out / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["clip"] for row in rows} >= {"samm000", "smic000"} or episodes == 3
    # Subjects such as 006 stay text, from the index to the answers.
    assert {row["subject"] for row in rows} <= {"006", "007", "008", "009"}
    assert Report.load(out).uf1 == held["uf1"]


def test_evaluate_selects_rows_and_prints_json_alone(run: Run, weights: str, folders: tuple[str, str]) -> None:
    both = ("--data", folders[0], "--data", folders[1], "--model", weights, "--method", "protonet", "--json")
    held = json.loads(run("evaluate", "loso", *both, "--where", "dataset == 'smic' and subject != '006'").stdout)
    assert held["counts"] == {"clips": 27, "subjects": 3, "episodes": 3, "predictions": 27}
    held = json.loads(
        run("evaluate", "loso", *both, "--scheme", "megc2019", "--where", "subject == ['006', '007']").stdout
    )
    assert held["counts"]["subjects"] == 4


def test_evaluate_runs_on_synthetic_clips_without_any_data(run: Run, weights: str) -> None:
    common = ("--model", weights, "--method", "zero_shot", "--json")
    held = json.loads(run("evaluate", "kshot-synthetic-3way-5shot", "--episodes", 3, *common).stdout)
    assert held["counts"]["episodes"] == 3
    held = json.loads(run("evaluate", "kshot", "--shot", 0, "--data", "synthetic:clinic:40:7", *common).stdout)
    assert held["counts"]["clips"] == 40


def test_a_recognizer_is_learnt_saved_and_asked(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    where = "subject in ['006', '007']"
    told = run("adapt", "--data", folders[0], "--where", where, "--model", weights, "--out", tmp_path / "mine")
    assert "negative, positive, surprise from 18 clips" in told.stdout
    answers = tmp_path / "answers" / "predictions.csv"
    run("predict", tmp_path / "mine", "--data", folders[1], "--out", answers)
    with open(answers, newline="") as stream:
        rows = list(csv.DictReader(stream))
    clips = fsmer.read_clips(folders[1])
    recognizer = fsmer.adapt(fsmer.load_model(weights), fsmer.read_clips(folders[0], where=where))
    assert [row["clip"] for row in rows] == clips.ids.tolist()
    assert [row["predicted"] for row in rows] == recognizer.predict(clips).tolist()
    assert rows[0]["subject"] == "006"
    assert sum(float(rows[0][f"p_{name}"]) for name in recognizer.classes_) == pytest.approx(1, abs=1e-5)
    assert json.loads(run("predict", tmp_path / "mine", "--data", folders[1], "--json").stdout)[0]["clip"] == "smic000"
    assert "smic000" in run("predict", tmp_path / "mine", "--data", folders[1]).stdout


def test_clips_without_labels_can_be_asked_about(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    run("adapt", "--data", folders[0], "--model", weights, "--out", tmp_path / "mine", "--method", "protonet", "--json")
    index = Path(folders[1], "index.csv").read_text().splitlines()
    kept = [[part for place, part in enumerate(row.split(",")) if place != 3] for row in index]
    (tmp_path / "new").mkdir()
    shutil.copytree(Path(folders[1], "maps"), tmp_path / "new" / "maps")
    (tmp_path / "new" / "index.csv").write_text("\n".join(",".join(row) for row in kept) + "\n")
    assert len(json.loads(run("predict", tmp_path / "mine", "--data", tmp_path / "new", "--json").stdout)) == 36
    assert "label" in run("evaluate", "loso", "--data", tmp_path / "new", "--model", weights, code=1).stderr


def test_mmd_takes_a_resnet18_whose_weights_are_named(run: Run, tmp_path: Path) -> None:
    """The paper's own encoder (MERAU, section IV.C): a ResNet18 that was trained on other pictures."""
    import torch
    from safetensors.torch import save_file

    small = {"size": 28, "channels": ["u", "v", "strain"], "normalisation": "minmax", "widths": [8, 8, 8, 16]}
    small |= {"depths": [1, 1, 1, 1], "inner_size": 32, "projection_dim": 0}
    network = fsmer.create_model("flow_resnet18", **small)
    with torch.no_grad():
        network.train()(torch.rand(8, 3, 28, 28))
    save_file(
        {name: one.contiguous() for name, one in network.encoder.state_dict().items()}, tmp_path / "e.safetensors"
    )
    given = [part for name, value in small.items() for part in ("--argument", f"{name}={json.dumps(value)}")]
    pair = (
        "mmd",
        "synthetic:lab:20",
        "synthetic:field:24",
        "--model",
        "flow_resnet18",
        "--out",
        str(tmp_path / "a.png"),
    )
    done = run(*pair, *given, "--argument", f"weights={tmp_path / 'e.safetensors'}", "--permutations", "0", "--json")
    parts = [fsmer.synthetic_clips(domain, count) for domain, count in (("lab", 20), ("field", 24))]
    expected = fsmer.mmd(*parts, model=network.eval(), permutations=0)
    assert json.loads(done.stdout)["squared"] == pytest.approx(expected.squared, rel=1e-4)
    assert "random" not in done.stderr
    assert "random features" in run(*pair, *given, "--permutations", "0").stderr
    assert "weights=imagenet" in run(*pair, code=1).stderr


def test_mmd_prints_the_discrepancy_and_draws_both_domains(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    picture = tmp_path / "domains.png"
    common = ("--model", weights, "--out", picture, "--permutations", 50)
    held = json.loads(run("mmd", *folders, *common, "--json").stdout)
    assert held["samples_a"] == held["samples_b"] == 36
    assert 0 < held["p_value"] <= 1
    with Image.open(picture) as image:
        assert min(image.size) > 300
    assert "MMD" in run("mmd", "synthetic:lab:50", "synthetic:field:60", *common, "--bandwidths", "0.5,1").stdout
    assert "kernel" in run("mmd", *folders, *common, "--kernel", "cubic", code=1).stderr
    rows = ("--where-a", "subject == '006'", "--where-b", "subject == '006'")
    assert json.loads(run("mmd", *folders, *common, *rows, "--json").stdout)["samples_a"] == 9


def test_every_command_is_in_the_tests():
    registered = {known.name or known.callback.__name__.replace("_", "-") for known in app.registered_commands}
    assert registered == set(COMMANDS)


def test_compare_and_audit_read_what_evaluate_wrote(run: Run, folders: tuple[str, str], weights: str, tmp_path: Path):
    samm, _ = folders
    for method in ("protonet", "cosine"):
        run("evaluate", "loso", "--data", samm, "--model", weights, "--method", method, "--out", tmp_path / method)
    assert (tmp_path / "cosine" / "report.html").read_text().startswith("<!doctype html>")
    shown = run("compare", tmp_path / "protonet", tmp_path / "cosine", "--draws", 100, "--out", tmp_path / "both")
    assert "McNemar" in shown.stdout
    assert (tmp_path / "both" / "compare.html").is_file()
    assert "at least two" in run("compare", tmp_path / "protonet", code=1).stderr
    verdict = json.loads(run("audit", tmp_path / "cosine", "--json").stdout)
    assert verdict["exit_code"] == 0
    table = pd.read_csv(tmp_path / "cosine" / "predictions.csv", dtype=str)
    table.iloc[1:].to_csv(tmp_path / "cosine" / "predictions.csv", index=False)
    run("audit", tmp_path / "cosine", code=3)
    assert "such as uf1=0.86" in run("audit", tmp_path / "protonet", "--stated", "uf1=high", code=2).stderr


def test_bench_lists_and_runs_published_tables(run: Run, tmp_path: Path):
    listed = json.loads(run("bench", "--json").stdout)
    assert {"fr-2", "merau-3", "mubert-6"} <= {one["name"] for one in listed}
    shown = run("bench", "fr-7", "--out", tmp_path / "fr-7")
    assert "11.42" in shown.stdout
    # Media that were not there are told once, below the tables.
    assert shown.stdout.count("request SAMM from") == 1
    assert re.search(r"^ *time \(s\) +18\.5792 +\[3\] *$", shown.stdout, re.MULTILINE)
    assert "fr-7" in run("bench", "fr-8", "--out", tmp_path / "none", code=1).stderr


def test_a_published_table_is_readable_in_eighty_columns(tmp_path: Path) -> None:
    some = ["--synthetic", "--row", "STSTNet", "--jobs", "1", "--seeds", "2"]
    shown = CliRunner().invoke(app, ["bench", "fr-2", *some, "--out", str(tmp_path)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    held = json.loads((tmp_path / "table.json").read_text())["cells"]
    measured = [cell for cell in held if cell["measured"] is not None]
    assert len(measured) == 8
    for cell in measured:
        # Measured stands beside published, with its spread and its stamp, on one line.
        numbers = f"{cell['published_text']} +SYNTHETIC {cell['measured_text']} ± {cell['sd_text']} *$"
        assert any(re.search(numbers, line) for line in lines), numbers
    assert sum(line.startswith("Composite  UF1") for line in lines) == 1
    listed = CliRunner().invoke(app, ["bench"], env={"COLUMNS": "80"}).stdout.splitlines()
    assert max(map(len, listed)) <= 80


def test_jobs_are_a_number_or_auto_and_without_training_they_are_said_to_do_nothing(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    common = ("evaluate", "loso", "--data", folders[0], "--model", weights)
    said = run(*common, "--method", "protonet", "--jobs", 2).stderr
    assert said == (
        "fsmer: jobs=2 has no effect: 'protonet' keeps the network as it is and trains nothing in the folds.\n"
    )
    assert run(*common, "--method", "protonet").stderr == ""
    assert "neither a number of jobs nor auto" in run(*common, "--jobs", "many", code=2).stderr
    assert "jobs=0" in run(*common, "--jobs", 0, code=1).stderr
    assert "jobs=0" in run("bench", "fr-2", "--synthetic", "--jobs", 0, "--out", tmp_path, code=1).stderr


def test_a_finished_evaluation_is_not_repeated_and_that_of_something_else_not_overwritten(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("evaluate", "loso", "--data", folders[0], "--model", weights, "--out", tmp_path / "out")
    typed = ["fsmer", *map(str, common), "--method", "protonet"]
    monkeypatch.setattr(sys, "argv", typed)
    first = run(*common, "--method", "protonet")
    assert first.stderr == ""
    assert json.loads((tmp_path / "out" / "run.json").read_text())["call"] == " ".join(typed)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    again = run(*common, "--method", "protonet")
    assert again.stdout == first.stdout
    assert again.stderr == f"fsmer: {tmp_path / 'out'} was already finished, nothing to repeat\n"
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    refused = run(*common, "--method", "logistic", code=1).stderr
    for words in ("finished report of protonet on facs-flow by loso", "(protonet, now logistic)", "--overwrite"):
        assert words in refused
    run(*common, "--method", "logistic", "--overwrite")
    assert Report.load(tmp_path / "out").method["name"] == "logistic"
    # A page that was lost is made again.
    (tmp_path / "out" / "report.html").unlink()
    run(*common, "--method", "logistic")
    assert "<h1>logistic on" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
def test_the_page_embeds_no_clip_again(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path / "cache"))
    seen: list[int] = []
    forward = FacsFlow.forward
    monkeypatch.setattr(FacsFlow, "forward", lambda self, inputs: seen.append(len(inputs)) or forward(self, inputs))
    run(
        "evaluate",
        "loso",
        "--data",
        folders[0],
        "--model",
        weights,
        "--method",
        "protonet",
        cache,
        "--out",
        tmp_path / "o",
    )
    assert sum(seen) == 36
    assert "Embedding map" in (tmp_path / "o" / "report.html").read_text()
    assert (tmp_path / "cache").exists() is (cache == "--cache")


def test_two_folders_with_the_same_ids_are_pooled_under_prefixes(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    twice = ("--data", folders[0], "--data", folders[0])
    common = ("evaluate", "loso", *twice, "--model", weights, "--method", "protonet")
    assert "one --prefix NAME for each --data" in run(*common, code=1).stderr
    run(*common, "--prefix", "a", "--prefix", "b", "--out", tmp_path)
    assert {"a/samm000", "b/samm000"} <= set(Report.load(tmp_path).predictions["clip"])
    assert "2 --data and 1 --prefix" in run(*common, "--prefix", "a", code=2).stderr
    bench = ("bench", "fr-2", "--data", folders[0], "--data", folders[1], "--row", "STSTNet", "--out", tmp_path)
    assert "2 --data and 1 --prefix" in run(*bench, "--prefix", "a", code=2).stderr


@pytest.mark.parametrize("command", ["evaluate", "train", "pretrain"])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(
    command: str, run: Run, folders: tuple[str, str], tmp_path: Path
) -> None:
    words = {
        "evaluate": ("loso", "--data", folders[0]),
        "train": ("fr", "--data", folders[0], "--out", tmp_path / "out"),
        "pretrain": ("mubert_tiny", "--out", tmp_path / "out"),
    }[command]
    for device in ("abacus", "cuda:77"):
        told = run(command, *words, "--device", device, code=1).stderr
        assert told.startswith(f"fsmer: the device '{device}' cannot be used here; torch sees cpu")
        assert not (tmp_path / "out").exists()


def test_pretrain_makes_weights_that_load(run: Run, tmp_path: Path) -> None:
    run("pretrain", "facs-flow", "--out", tmp_path / "weights", "--steps", 2, "--seed", 3)
    assert fsmer.load_model(tmp_path / "weights").name == "facs-flow"
    assert "facs-flow" in run("pretrain", "facs-flo", "--out", tmp_path, code=1).stderr


def test_the_demo_compares_all_methods_and_leaves_a_recognizer(run: Run, weights: str, tmp_path: Path) -> None:
    shown = run("demo", "--model", weights, "--episodes", 5, "--out", tmp_path / "demo").stdout
    held = json.loads((tmp_path / "demo" / "demo.json").read_text())
    methods = {one.name for one in fsmer.list_methods()} - {
        "train",
        "inner_loop",
    }  # those that keep the network, all at once
    assert set(held["methods"]) == methods
    table = (tmp_path / "demo" / "table.md").read_text()
    for name in methods:
        assert name in shown
        mark = " (transductive)" if held["methods"][name]["method"].get("transductive") else ""
        assert f"| {name}{mark} | {held['methods'][name]['uf1']:.4f}" in table
    for name in ("methods.png", "clips.png"):
        with Image.open(tmp_path / "demo" / name) as image:
            image.load()
    recognizer = fsmer.Recognizer.load(tmp_path / "demo" / "recognizer")
    asked = synthetic_clips("clinic", 20, seed=99)
    assert set(recognizer.predict(asked)) <= {"negative", "positive", "surprise"}
    assert held["recognizer"]["support"] == 15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "losso", "--data", "A"), "loso"),
        (("evaluate", "loso"), "--data"),
        (("evaluate", "loso", "--data", "NONE"), "NONE does not exist"),
        (("evaluate", "loso", "--data", "A", "--method", "cosin"), "cosine"),
        (("evaluate", "loso", "--data", "A", "--model", "facs-flw"), "facs-flow"),
        (("evaluate", "loso", "--data", "A", "--scheme", "megc2091"), "megc2019"),
        (("evaluate", "loso", "--data", "A", "--where", "dataset = 'smic'"), "dataset = 'smic'"),
        (("evaluate", "loso", "--data", "A", "--where", "dataset == 'mmew'"), "no clip matches"),
        (("evaluate", "loso", "--data", "A", "--data", "A"), "samm000"),
        (("evaluate", "loso", "--data", "A", "--shot", "3"), "'shot'"),
        (("evaluate", "loso", "--data", "A", "--param", "stepps=3"), "steps"),
        (("evaluate", "loso", "--data", "A", "--out", "FILE/out"), "cannot write"),
        (("evaluate", "kshot", "--shot", "500", "--data", "A"), "500"),
        (("evaluate", "kshot", "--way", "7", "--data", "A"), "way=7"),
        (("evaluate", "kshot", "--query", "some", "--data", "A"), "some"),
        (("evaluate", "loso-mmew-4", "--data", "A"), "mmew"),
        (("evaluate", "missing.yaml", "--data", "A"), "missing.yaml"),
        (("evaluate", "kshot", "--data", "synthetic:labb"), "lab"),
        (("evaluate", "kshot", "--data", "synthetic:lab:many"), "synthetic:lab"),
        (("adapt", "--data", "A", "--where", "label == 'negative'", "--out", "OUT"), "negative"),
        (("predict", "NONE", "--data", "A"), "NONE"),
        (("mmd", "A", "A", "--permutations", "0", "--out", "FOLDER"), "a folder of that name is there"),
    ],
)
def test_every_refusal_is_one_sentence_that_names_the_thing(
    run: Run, weights: str, folders: tuple[str, str], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "FILE").touch()
    (tmp_path / "FOLDER").mkdir()
    places = {
        "A": folders[0],
        "FOLDER": str(tmp_path / "FOLDER"),
        "NONE": str(tmp_path / "NONE"),
        "OUT": str(tmp_path / "OUT"),
    }
    given = [places.get(part, part.replace("FILE", str(tmp_path / "FILE"))) for part in arguments]
    if arguments[0] != "predict" and "--model" not in given:
        given += ["--model", weights]
    assert words in run(*given, code=1).stderr


def test_a_damaged_map_is_named(run: Run, weights: str, folders: tuple[str, str], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folders[0], tmp_path / "data")
    (tmp_path / "data" / "maps" / "samm004.png").write_bytes(b"\x89PNG broken")
    said = run("evaluate", "loso", "--data", tmp_path / "data", "--model", weights, "--out", tmp_path / "out", code=1)
    assert "samm004" in said.stderr
    assert not (tmp_path / "out" / "report.json").exists()
    (tmp_path / "data" / "maps" / "samm004.png").unlink()
    assert "samm004" in run("evaluate", "loso", "--data", tmp_path / "data", "--model", weights, code=1).stderr


def test_a_key_press_ends_with_130_and_the_run_goes_on_later(
    weights: str, folders: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fsmer", "evaluate", "kshot", "--shot", "5", "--episodes", "20000", "--query", "2"]
    command += ["--data", folders[0], "--model", weights, "--method", "cosine", "--out", str(out)]
    command += ["--param", "init=prototype"]  # trains for 200 steps, long enough to be interrupted
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob(".parts-*/*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not (out / "report.json").exists()
    assert list(out.glob(".parts-*/*.npz"))


# ---- training, words, explanations and data sets


def test_train_writes_a_recognizer_its_losses_and_a_curve(run: Run, folders: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "mine"
    arguments = ("train", "basic_inception", "-d", folders[0], "--out", out, "-p", "epochs=2", "-a", "shared_width=16")
    said = json.loads(run(*arguments, "--json").stdout)
    assert len(said["losses"]) == 2
    assert (tmp_path / "mine.history.json").is_file()
    assert Image.open(tmp_path / "mine.history.png").size[0] > 300
    recognizer = fsmer.Recognizer.load(out)
    assert recognizer.backbone.config["shared_width"] == 16
    answers = json.loads(run("predict", out, "-d", folders[1], "--json").stdout)
    assert len(answers) == 36
    told = " ".join(run(*arguments).stdout.split())
    assert re.search(r"trained basic_inception on 36 clips, loss \d+\.\d{3} -> \d+\.\d{3} \(curve", told)
    told = " ".join(run(*arguments, "-p", "epochs=1").stdout.split())
    assert re.search(r"trained basic_inception on 36 clips, loss \d+\.\d{3} \(curve", told)


def test_train_with_a_protocol_trains_every_fold_and_reports(
    run: Run, folders: tuple[str, str], tmp_path: Path
) -> None:
    arguments = ("train", "basic_inception", "--protocol", "loso", "-d", folders[0], "-p", "epochs=1")
    said = json.loads(run(*arguments, "-a", "shared_width=8", "--out", tmp_path / "out", "--json").stdout)
    assert said["method"]["name"] == "train"
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 36


def test_classes_in_words_need_no_labelled_clip(run: Run, folders: tuple[str, str], tmp_path: Path) -> None:
    words = ("--describe", "positive=cheek raiser, lip corner puller", "--describe", "negative=brow lowerer")
    run("adapt", "--out", tmp_path / "words", *words)
    assert fsmer.Recognizer.load(tmp_path / "words").classes_.tolist() == ["positive", "negative"]
    report = json.loads(
        run("evaluate", "kshot", "--shot", 0, "--method", "zero_shot", "-d", folders[0], *words,
            "--where", "label != 'surprise'", "--json").stdout
    )  # fmt: skip
    assert report["protocol"]["descriptions"]["negative"] == "brow lowerer"
    assert "nothing to learn from" in run("adapt", "--out", tmp_path / "none", code=1).stderr
    assert (
        "'teeth'"
        in run("adapt", "--out", tmp_path / "none", "--describe", "a=teeth", "--describe", "b=4", code=1).stderr
    )


def test_explain_draws_one_picture_a_clip(run: Run, weights: str, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    said = json.loads(
        run("explain", weights, "-d", "synthetic:lab:4", "--clips", 2, "--out", tmp_path / "why", "--json").stdout
    )
    assert len(said) == 2
    assert len(list((tmp_path / "why").glob("*.png"))) == 2


def test_data_sets_are_listed_and_a_download_is_audited(run: Run, tmp_path: Path) -> None:
    from fake_trees import build

    names = {one["name"] for one in json.loads(run("datasets", "--json").stdout)}
    assert {"casme2", "samm", "smic", "mmew", "4dme"} <= names
    assert "casme2" in run("datasets").stdout
    build("casme2", tmp_path / "casme2")
    audit = json.loads(run("check", "casme2", "--root", tmp_path / "casme2", "--json").stdout)
    assert audit
    assert "casme2" in run("check", "casme2", "--root", tmp_path / "casme2").stdout.lower().replace(" ii", "2")
    (tmp_path / "empty").mkdir()
    assert "CASME II" in run("check", "casme2", "--root", tmp_path / "empty", code=1).stderr
    assert "did you mean" in run("check", "casme22", "--root", tmp_path, code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("train", "fr", "--data", "synthetic:lab:12", "--out", "{out}", "-a", "filtres=6"),
            "unknown argument 'filtres'",
        ),
        (("train", "fr", "--data", "synthetic:lab:12", "--out", "{out}", "-p", "epochs=0"), "epochs=0"),
        (("train", "frr", "--data", "synthetic:lab:12", "--out", "{out}"), "did you mean 'fr'"),
        (("pretrain", "facs-flow", "--out", "{out}", "--frames", "nowhere"), "takes no frames"),
        (("pretrain", "mubert_tiny", "--out", "{out}", "--frames", "nowhere"), "nowhere"),
        (
            ("pretrain", "facs-flow", "--out", "{out}", "-p", "batch=4"),
            "parameters, arguments or device; leave",
        ),
        (("pretrain", "fr", "--out", "{out}"), "'fr' does not teach itself: train it with labels ('fsmer train fr')"),
        (
            ("explain", "fr", "--data", "synthetic:lab:3", "--out", "{out}"),
            "no weights of 'fr' ship with this fsmer; make them with 'fsmer train fr' (with labels)",
        ),
        (
            ("train", "{weights}", "--data", "synthetic:lab:12", "--out", "{out}", "-a", "nonsense=1"),
            "nonsense=1 came with the weights in {weights}",
        ),
        (
            (
                "train",
                "{weights}",
                "--protocol",
                "loso",
                "-d",
                "synthetic:lab:12",
                "--out",
                "{out}",
                "-a",
                "nonsense=1",
            ),
            "nonsense=1 came with the weights in {weights}",
        ),
        (
            ("train", "facs-flow", "--pretrained", "-d", "synthetic:lab:12", "--out", "{out}", "-a", "nonsense=1"),
            "nonsense=1 came with the weights of 'facs-flow' (--pretrained)",
        ),
        (
            (
                "evaluate",
                "loso",
                "-d",
                "synthetic:lab:12",
                "--model",
                "{weights}",
                "--out",
                "{out}",
                "-a",
                "nonsense=1",
            ),
            "nonsense=1 came with the weights in {weights}",
        ),
    ],
)
def test_new_commands_refuse_in_one_sentence(
    run: Run, weights: str, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    given = [word.replace("{out}", str(tmp_path / "out")).replace("{weights}", weights) for word in arguments]
    assert says.replace("{weights}", weights) in run(*given, code=1).stderr


def test_long_work_shows_bars_with_the_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsmer.cli import progress as bars

    shown = io.StringIO()
    monkeypatch.setattr(bars, "Console", lambda **_: Console(file=shown, force_terminal=True, width=100))
    with bars.shown_progress() as progress:
        for done in range(4):
            progress("training loss 0.5", done, 3)
            time.sleep(0.15)
    said = shown.getvalue()
    assert "training loss 0.5" in said
    assert "3/3" in said
    assert re.search(r"left.*\d:\d\d:\d\d", said)


def test_long_work_says_once_a_minute_how_far_it_is_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    from fsmer.cli import progress as bars

    now = 0.0
    lines = bars._Lines(lambda: now)

    def wait(seconds: float) -> bool:
        """The work of these seconds: a stage that is over, two runs with inner folds, and a run that is long."""
        nonlocal now
        for _ in range(round(seconds)):
            now += 1
            if now == 1:
                lines.show("looking at clips", 1_200, 1_200)
            elif now == 5:
                lines.show("runs", 0, 4)
            elif 5 < now <= 245:
                lines.show("inner episodes", int((now - 5) % 120) // 3, 40)
            if now == 125:
                lines.show("runs", 1, 4)
            if now == 245:
                lines.show("runs", 2, 4)
        return now >= 330

    lines.tell(wait)
    out, said = capsys.readouterr()
    assert out == ""
    assert said.splitlines() == [
        "fsmer: after 0:00:30: runs 0/4, inner episodes 8/40 (about 0:01:36 left)",
        "fsmer: after 0:01:30: runs 0/4, inner episodes 28/40 (about 0:00:36 left)",
        "fsmer: after 0:02:30: runs 1/4 (about 0:07:15 left), inner episodes 8/40 (about 0:01:36 left)",
        "fsmer: after 0:03:30: runs 1/4 (about 0:10:15 left), inner episodes 28/40 (about 0:00:36 left)",
        "fsmer: after 0:04:30: runs 2/4 (about 0:04:25 left)",
    ]


def test_lines_about_long_work_come_on_standard_error_and_short_work_has_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsmer.cli import progress as bars

    assert (bars.FIRST_LINE, bars.BETWEEN_LINES) == (30, 60)
    with bars.shown_progress() as progress:
        progress("episodes", 0, 3)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(bars, "FIRST_LINE", 0.02)
    said, latest = "", time.monotonic() + 20
    with bars.shown_progress() as progress:
        # A single fold may take longer than the time between two lines, so the line comes without a call.
        progress("episodes", 0, 3)
        while not said and time.monotonic() < latest:
            time.sleep(0.01)
            said = capsys.readouterr().err
    assert re.fullmatch(r"fsmer: after 0:00:\d\d: (episodes 0/3|getting ready)\n", said)
    assert capsys.readouterr() == ("", "")


def test_a_reader_of_lines_that_goes_away_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsmer.cli import progress as bars

    reading, writing = os.pipe()
    os.close(reading)
    asked: list[float] = []
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        bars._Lines().tell(lambda seconds: bool(asked.append(seconds)))
        monkeypatch.undo()
        assert asked == [30]
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def test_more_than_memory_holds_is_refused_in_one_sentence(run: Run) -> None:
    asked = "synthetic:lab:10000000000000"
    told = run("evaluate", "kshot", "--data", asked, "--method", "cosine", code=1).stderr
    assert told.startswith("fsmer: memory has run out; ")
    assert "fewer --jobs" in told


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (ImportError("lib.so: failed to map segment from shared object: Operation not permitted"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (KeyError("fold"), False),
    ],
)
def test_only_errors_of_memory_lose_their_traceback(
    error: Exception, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsmer.cli import app as cli

    monkeypatch.setattr(cli, "app", typer.Typer())

    @cli.command("fsmer fail")
    def fail() -> None:
        raise error

    result = CliRunner().invoke(cli.app, [])
    assert result.exit_code == 1
    if refused:
        assert result.stderr == f"fsmer: {cli.NO_MEMORY}\n"
        assert isinstance(result.exception, SystemExit)
    else:
        assert result.exception is error
        assert result.stderr == ""


def test_one_person_in_two_spellings_is_refused_over_folders_of_one_data_set(run: Run, tmp_path: Path) -> None:
    made = synthetic_clips("lab", n=18, seed=5)
    for folder, width in (("a", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        rows = ["clip,dataset,subject,label,file"]
        for place, (values, label) in enumerate(zip(made.media(), made.labels, strict=True)):
            pixels = np.round(values * 255).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(pixels).save(tmp_path / folder / f"{place}.png")
            rows.append(f"{folder}{place},same,{place // 3 % 3 + 1:0{width}d},{label},{place}.png")
        (tmp_path / folder / "index.csv").write_text("\n".join(rows) + "\n")
    both = ("--data", tmp_path / "a", "--data", tmp_path / "c", "--method", "protonet", "--json")
    told = run("evaluate", "loso", *both, code=1).stderr
    assert "'01' of data set 'same' and '1' of data set 'same'" in told
    # Other names say that they are other people.
    index = tmp_path / "c" / "index.csv"
    index.write_text(index.read_text().replace(",same,", ",other,"))
    assert json.loads(run("evaluate", "loso", *both).stdout)["counts"]["episodes"] == 6
