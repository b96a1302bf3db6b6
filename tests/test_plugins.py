"""Things from outside: each kind is one file, found by an entry point or by `--import`, in Python and on the command
line; what was made with a plugin names it, and nothing is imported because a file asks for it."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import numpy as np
import pytest
from tiny_backbone import TinyBackbone
from torch import Tensor
from typer.testing import CliRunner

import fsmer
from fsmer import plugins
from fsmer.backbones import Backbone, load_model, register_backbone
from fsmer.cli.app import app
from fsmer.datasets import load_adapter, register_dataset
from fsmer.episodic import register_protocol
from fsmer.errors import DataError, PluginError, ProtocolError, UnknownNameError, WeightsError
from fsmer.evaluation import Report, evaluate, score
from fsmer.evaluation.metrics import register_metric
from fsmer.io import CHECKSUM
from fsmer.plugins import METHODS, METRICS, import_plugin
from fsmer.text import without_marks
from fsmer.transfer import Recognizer
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.protonet import ProtoNet
from fsmer.transfer.registry import list_methods, load_method, register_method

# One file a kind, as a stranger would write them.
FILES = {
    "backbone.py": """
import torch
from fsmer.backbones import Backbone, register_backbone
from fsmer.data import InputSpec


@register_backbone("depth-net")
class DepthNet(Backbone):
    '''Means of a depth map.'''

    def __init__(self, width: int = 4) -> None:
        spec = InputSpec("depth", (8, 8), ("metres",), "unit")
        super().__init__(input_spec=spec, embed_dim=width, config={"width": width})
        self.layer = torch.nn.Linear(64, width)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(width, 64))

    def forward(self, inputs):
        return self.layer(inputs.flatten(1))
""",
    "method.py": """
from dataclasses import dataclass
from typing import ClassVar
from fsmer.transfer import Head, Method, register_method
from fsmer.transfer.heads import class_means, one_hot


@register_method("far-means")
@dataclass(frozen=True)
class FarMeans(Method):
    '''Class means, as a distance.'''

    batched: ClassVar[bool] = True
    shrink: float = 1.0

    def fit_head(self, embeddings, codes, way, prior=None):
        means, counts = class_means(embeddings, one_hot(codes, way))
        return Head("distance", self.shrink * means, counts.log().clamp(max=0))
""",
    "dataset.py": """
from fsmer.datasets import Adapter, register_dataset, roles


@register_dataset("far-lab")
class FarLab(Adapter):
    title = "Far lab"
    frames_per_second = 100.0
    sheets = ("far*.csv",)
    columns = roles(subject="Person", name="Take", onset="Start", apex="Peak", offset="End", label="Class")
    places = ("frames",)
    labels = frozenset({"happiness"})
""",
    "protocol.py": """
from dataclasses import dataclass
import numpy as np
from fsmer.episodic import FoldEpisodes, Protocol, register_protocol


@register_protocol("even_clips")
@dataclass(frozen=True)
class EvenClips(Protocol):
    '''Learn from every other subject, judge the rest.'''

    summary = "learn from every other subject"

    def deal(self, clips, classes, codes):
        learnt = np.arange(len(clips.subject_names)) % 2 == 0
        return FoldEpisodes(classes, codes, clips.subject_codes(), ["even"], lambda index: (learnt, ~learnt))
""",
    "metric.py": """
from fsmer.evaluation import register_metric


@register_metric("kappa")
def kappa(confusion):
    count = max(confusion.sum(), 1)
    chance = confusion.sum(axis=0) @ confusion.sum(axis=1) / count**2
    return (confusion.trace() / count - chance) / max(1 - chance, 1e-9)
""",
    "medium.py": """
from fsmer.data.spec import register_input_kind

register_input_kind("depth", channels=["metres"])
""",
}
ORIGIN = "far-plugin (everything)"
# Uses all of them from Python; run where an entry point names them.
SCRIPT = """
import sys
import numpy as np
import fsmer
from fsmer.data import ClipSet, InputSpec
from fsmer.plugins import BACKBONES, DATASETS, INPUT_KINDS, METHODS, METRICS, PROTOCOLS

out = sys.argv[1]
for registry, name in ((BACKBONES, "depth-net"), (METHODS, "far-means"), (DATASETS, "far-lab"),
                       (PROTOCOLS, "even_clips"), (METRICS, "kappa"), (INPUT_KINDS, "depth")):
    assert registry.origin(name) == "far-plugin (everything)", (name, registry.origin(name))
rng = np.random.default_rng(0)
codes = np.arange(24) % 2
media = rng.random((24, 1, 8, 8), dtype=np.float32) * 0.5 + 0.5 * codes[:, None, None, None]
spec = InputSpec("depth", (8, 8), ("metres",), "unit")
clips = ClipSet.from_arrays(media.astype(np.float32), np.array(["rest", "smile"])[codes], spec=spec,
                            subjects=[f"{number // 4}" for number in range(24)])
clips.save(f"{out}/clips")
model = fsmer.create_model("depth-net").eval()
model.save_pretrained(f"{out}/weights")
report = fsmer.evaluate("even-clips", model, "far-means", clips=clips, out=f"{out}/report", cache=False)
assert report.interval("kappa")[0] <= report.figures["kappa"] <= report.interval("kappa")[1]
recognizer = fsmer.adapt(model, clips, "far-means", shrink="0.9")
recognizer.save(f"{out}/recognizer")
again = fsmer.Recognizer.load(f"{out}/recognizer")
assert np.array_equal(again.predict_proba(clips), recognizer.predict_proba(clips))
assert "far-lab" in [one.name for one in fsmer.list_datasets()]
"""


def started(arguments: list[str], *path: Path) -> subprocess.CompletedProcess[str]:
    places = [str(Path(fsmer.__file__).parent.parent), *map(str, path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of what `SCRIPT` made with an installed plugin, and what the process told."""
    site, out = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("out")
    package, info = site / "far_package", site / "far_plugin-1.0.dist-info"
    for folder in (package, info):
        folder.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text)
    names = ", ".join(name.removesuffix(".py") for name in FILES)
    (package / "__init__.py").write_text(f"def load():\n    from far_package import {names}\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fsmer.plugins]\neverything = far_package:load\nlost = no_such_module_anywhere\n"
    )
    done = started(["-c", SCRIPT, str(out)], site)
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.fixture
def clean() -> Iterator[None]:
    """Whatever a test registers is gone afterwards."""
    before = {id(registry): registry.outside() for registry in plugins._REGISTRIES}
    yield
    for registry in plugins._REGISTRIES:
        registry._forget(registry.outside() - before[id(registry)])


def test_all_kinds_are_found_by_an_entry_point_and_a_broken_one_is_a_warning(made: tuple[Path, str]) -> None:
    assert "no_such_module_anywhere" in made[1]
    assert "'lost' of far-plugin 1.0" in made[1]


def test_all_kinds_are_found_by_import_on_the_command_line(made: tuple[Path, str], tmp_path: Path) -> None:
    out = made[0]
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    imports = [word for name in FILES if name != "dataset.py" for word in ("--import", str(tmp_path / name))]
    done = started(
        [
            *("-m", "fsmer", "evaluate", "even-clips", "--data", str(out / "clips"), "--model", str(out / "weights")),
            *("--method", "far-means", "-p", "shrink=1", "--no-cache", "--out", str(tmp_path / "report"), *imports),
        ]
    )
    assert done.returncode == 0, done.stderr
    assert "kappa" in done.stdout
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    before = json.loads((out / "report" / "report.json").read_text())
    assert [told[name] for name in ("kappa", "uf1", "confusion")] == [before[n] for n in ("kappa", "uf1", "confusion")]
    assert told["metrics"] == {"kappa": "metric.py"}
    assert (told["method"]["plugin"], told["model"]["plugin"]) == ("method.py", "backbone.py")
    assert told["protocol"]["plugin"] == "protocol.py"
    (tmp_path / "root" / "frames" / "s1" / "a").mkdir(parents=True)
    (tmp_path / "root" / "far.csv").write_text("Person,Take,Start,Peak,End,Class\ns1,a,0,1,2,happiness\n")
    arguments = ["check", "far-lab", "--root", str(tmp_path / "root"), "--import", str(tmp_path / "dataset.py")]
    done = started(["-m", "fsmer", *arguments])
    assert "Far lab" in done.stdout + done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_plugin_made_names_it_where_it_is_not_loaded(made: tuple[Path, str]) -> None:
    out = made[0]
    with pytest.raises(UnknownNameError, match=r"depth-net.*far-plugin.*install 'far-plugin'") as caught:
        load_model(out / "weights")
    assert "--import" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"far-means.*far-plugin"):
        Recognizer.load(out / "recognizer")
    report = Report.load(out / "report")
    assert report.metrics == {"kappa": ORIGIN}
    assert report.figures["kappa"] > 0.5
    assert report.method["plugin"] == report.model["plugin"] == report.protocol["plugin"] == ORIGIN
    assert "kappa" in report.markdown()
    (found,) = [one for one in fsmer.audit(out / "report").findings if one.check == "not-isolated"]
    assert "batched" in found.message
    assert found.examples == ("the method 'far-means'",)


def test_no_saved_file_makes_python_import_anything(
    made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap_for_tests.py").write_text("raise SystemExit('imported')")
    config = json.loads((made[0] / "weights" / "config.json").read_text())
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((made[0] / "weights" / "model.safetensors").read_bytes())
    for plugin in ("trap_for_tests", str(tmp_path / "trap_for_tests.py")):
        kept = {key: value for key, value in config.items() if key != CHECKSUM}
        (folder / "config.json").write_text(json.dumps(kept | {"plugin": plugin}))
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(UnknownNameError, match="trap_for_tests"):
            load_model(folder)
        assert "trap_for_tests" not in sys.modules


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("def broken(:\n", ["SyntaxError", "line 1"]),
        ("\n\nraise RuntimeError('no card')\n", ["RuntimeError", "no card", "line 3"]),
        ("import no_such_module_anywhere\n", ["ModuleNotFoundError", "no_such_module_anywhere"]),
        ("raise SystemExit(3)\n", ["SystemExit"]),
    ],
)
def test_a_broken_plugin_is_one_sentence_with_its_error(text: str, facts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(PluginError) as caught:
        import_plugin(path)
    assert all(fact in str(caught.value) for fact in ["broken.py", *facts])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["no_such_module_anywhere", "missing.py", "folder/missing.py", "."])
def test_a_plugin_that_is_not_there_is_named(target: str) -> None:
    with pytest.raises(PluginError, match=target.replace(".", r"\.")):
        import_plugin(target)


def test_a_plugin_that_fails_leaves_nothing_registered(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text(FILES["method.py"].replace("far-means", "half-means") + "\n1 / 0\n")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        import_plugin(path)
    assert "half-means" not in METHODS
    path.write_text(FILES["method.py"].replace("far-means", "cosine"))
    with pytest.raises(PluginError, match="'cosine' is registered already"):
        import_plugin(path)
    assert load_method("cosine").origin == ""


@pytest.mark.usefixtures("clean")
def test_the_same_file_is_imported_once_and_a_name_belongs_to_the_first(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(FILES["method.py"])
    module = import_plugin(tmp_path / "one.py")
    assert import_plugin(str(tmp_path / "one.py")) is module
    assert METHODS.origin("far-means") == "one.py"
    with pytest.raises(ValueError, match=r"far-means.*one\.py"):
        import_plugin(tmp_path / "two.py")


def counting(batched: bool | None) -> Any:
    """A method from outside and the numbers of episodes that it was handed together."""
    sizes: list[int] = []

    @dataclass(frozen=True)
    class Counting(ProtoNet):
        name: ClassVar[str] = "counting"

        def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: Any = None) -> Any:
            sizes.append(len(embeddings))
            return super().fit_head(embeddings, codes, way, prior)

        def _scorer(self, *given: Any, **options: Any) -> Any:
            return super(ProtoNet, self)._scorer(*given, **options)

        def __deepcopy__(self, memo: Any) -> Any:
            return self

    if batched is not None:
        Counting.batched = batched

    return Counting, sizes


@pytest.fixture(scope="module")
def backbone() -> TinyBackbone:
    return TinyBackbone(8).eval()


@pytest.fixture(scope="module")
def clips(backbone: TinyBackbone) -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", 40, seed=1, specs=backbone.input_specs)


def test_episodes_are_solved_together_for_a_method_that_declares_it_itself(
    backbone: TinyBackbone, clips: fsmer.ClipSet
) -> None:
    protocol = fsmer.load_protocol("kshot", way=2, shot=2, episodes=20, query=3)
    figures = []
    for batched, largest in ((True, 20), (False, 1), (None, 1)):
        method, sizes = counting(batched)
        report = evaluate(protocol, backbone, method(), clips=clips, cache=False)
        assert max(sizes) == largest
        assert report.method.get("batched", False) is bool(batched)
        (told,) = [words for words in report.run["from_outside"] if "counting" in words]
        assert ("batched" in told) is bool(batched)
        figures.append(report.figures)
    assert [one["uf1"] for one in figures] == pytest.approx([figures[0]["uf1"]] * 3)
    # ProtoNet declares it, and what extends it does not inherit that.
    heir = type("Heir", (counting(True)[0],), {"name": "heir"})
    assert "batched" not in evaluate(protocol, backbone, heir(), clips=clips, cache=False).method


@pytest.mark.usefixtures("clean")
def test_a_method_of_an_imported_file_travels_whole_to_other_processes(tmp_path: Path) -> None:
    (tmp_path / "travels.py").write_text(FILES["method.py"])
    module = import_plugin(tmp_path / "travels.py")
    sent = cloudpickle.dumps(load_method("far-means", shrink=0.5))
    del sys.modules[module.__name__]  # as in a worker, which has never heard of it
    assert pickle.loads(sent).shrink == 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("how", [{"jobs": 2}, {"isolate": "process"}])
def test_processes_of_folds_know_a_method_of_an_imported_file(
    how: dict[str, Any], backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    path = tmp_path / "trained.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from fsmer.transfer.linear_head import Finetune\n"
        "from fsmer.transfer import register_method\n"
        "STEPS = 2\n\n"
        "@register_method('far-tuned')\n@dataclass(frozen=True)\n"
        "class Tuned(Finetune):\n"
        "    train_backbone: bool = True\n\n"
        "    def fit(self, backbone, support, **options):\n"
        "        return Finetune(train_backbone=True, steps=STEPS).fit(backbone, support, **options)\n"
    )
    import_plugin(path)
    some = clips[np.isin(clips.subjects, np.unique(clips.subjects)[:3])]
    report = evaluate("loso", backbone, "far-tuned", clips=some, **how)
    expected = evaluate("loso", backbone, Finetune(train_backbone=True, steps=2), clips=some)
    assert report.predictions["predicted"].tolist() == expected.predictions["predicted"].tolist()
    assert report.acc == expected.acc
    assert report.method["plugin"] == "trained.py"


@pytest.mark.usefixtures("clean")
def test_figures_of_a_metric_from_outside_stand_where_the_others_do(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    @register_metric("errors")
    def errors(confusion: Any) -> float:
        return 1 - confusion.trace() / max(confusion.sum(), 1)

    pooled = evaluate("loso", backbone, "protonet", clips=clips, seeds=2, cache=False)
    assert pooled.figures["errors"] == pytest.approx(1 - pooled.acc)
    # The same draws of subjects as for the accuracy.
    assert pooled.interval("errors") == pytest.approx(tuple(1 - bound for bound in pooled.interval("acc")[::-1]))
    protocol = fsmer.load_protocol("kshot", way=2, shot=2, episodes=5, query=3)
    averaged = evaluate(protocol, backbone, "protonet", clips=clips, cache=False)
    assert averaged.figures["errors"] == pytest.approx(1 - averaged.acc)
    assert score(["a", "b"], ["a", "a"])["errors"] == 0.5
    pooled.save(tmp_path / "report")
    METRICS._forget({"errors"})
    again = Report.load(tmp_path / "report")
    assert (again.figures, again.per_seed) == (pooled.figures, pooled.per_seed)
    assert again.metrics == {"errors": __name__}
    assert again.to_dict() == pooled.to_dict()


@pytest.mark.usefixtures("clean")
def test_pages_show_metrics_from_outside_and_comparisons_those_of_all_reports(
    backbone: TinyBackbone, clips: fsmer.ClipSet
) -> None:
    register_metric("errors")(lambda confusion: 1 - confusion.trace() / max(confusion.sum(), 1))
    report, other = (evaluate("loso", backbone, one, clips=clips, cache=False) for one in ("protonet", "cosine"))
    value = f"{report.figures['errors']:.4f}"
    page = report.to_html()
    assert '<div class="name">errors</div><div class="value">' + value in page
    assert __name__ in page[page.index('<div class="name">errors') :]
    both = fsmer.compare(report, other, draws=100)
    assert ">errors</th>" in both.to_html()
    assert f"<b>{value}</b>" in both.to_html()
    assert "errors" in both.markdown().splitlines()[2]
    assert value in both.markdown()
    assert f"errors {value}" in str(both)
    assert [one["errors"] for one in both.to_dict()["reports"]] == [report.figures["errors"], other.figures["errors"]]
    without = fsmer.compare(report, replace(other, metrics={}), draws=100)
    assert "errors" not in without.markdown()
    assert ">errors</th>" not in without.to_html()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("value", [float("nan"), "none", ZeroDivisionError()])
def test_a_metric_without_a_finite_number_is_named(value: Any) -> None:
    @register_metric("odd")
    def odd(confusion: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    with pytest.raises(DataError, match="'odd'"):
        score(["a", "b"], ["a", "a"])


@pytest.mark.parametrize("name", ["uf1", "clips", "two words", "acc_interval"])
def test_a_metric_cannot_take_the_name_of_another_entry(name: str) -> None:
    with pytest.raises(PluginError, match=name):
        register_metric(name)(lambda confusion: 0.0)


@pytest.mark.usefixtures("clean")
def test_a_second_thing_of_a_name_is_refused_and_a_repeated_one_is_not() -> None:
    def make(label: str) -> Any:
        return type(label, (ProtoNet,), {"__qualname__": label})

    register_method("twice-for-tests")(make("First"))
    register_method("twice-for-tests")(make("First"))
    with pytest.raises(PluginError, match="twice-for-tests"):
        register_method("twice-for-tests")(make("Second"))


@pytest.mark.parametrize(
    ("plugin", "remedy"),
    [
        ("dist (entry)", "install 'dist'"),
        ("one.py", "--import"),
        ("far_module", "--import"),
        ("__main__", "run the code"),
    ],
)
def test_a_plugin_that_is_missing_has_one_remedy(plugin: str, remedy: str) -> None:
    with pytest.raises(UnknownNameError, match=remedy) as caught:
        METHODS.find("nobody-has-this", plugin)
    assert sum(word in str(caught.value) for word in ("install '", "--import", "run the code")) == 1


@pytest.mark.usefixtures("clean")
def test_the_same_definition_may_be_registered_again_and_a_changed_one_is_refused() -> None:
    def define(body: str) -> Any:
        space: dict[str, Any] = {"__name__": "notebook", "register_metric": register_metric}
        exec(f"@register_metric('again')\ndef again(confusion):\n    return {body}\n", space)
        return space["again"]

    define("1.0")
    kept = define("1.0")
    with pytest.raises(PluginError, match=r"'again'.*again of notebook"):
        define("2.0")
    assert METRICS["again"] is kept
    for value in (1, 2):
        if value == 1:
            register_metric("valued")(lambda confusion, value=value: value)
        else:
            with pytest.raises(PluginError, match=r"'valued'.*a lambda"):
                register_metric("valued")(lambda confusion, value=value: value)


@pytest.mark.parametrize("register", [register_backbone, register_method, register_protocol, register_dataset])
@pytest.mark.parametrize("name", [TinyBackbone, None, "", "two words", "a/b", "../up", 3])
def test_a_name_that_is_no_plain_one_is_refused(register: Any, name: Any) -> None:
    with pytest.raises(PluginError, match="cannot name"):
        register(name)


@pytest.mark.parametrize("register", [register_backbone, register_method, register_protocol, register_dataset])
@pytest.mark.parametrize("thing", [dict, lambda: 1, 3], ids=["class", "function", "number"])
def test_a_thing_of_another_kind_is_refused(register: Any, thing: Any) -> None:
    with pytest.raises(PluginError, match=r"'wrong-kind'.*expected"):
        register("wrong-kind")(thing)


def test_an_abstract_class_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(PluginError, match="forward in Half"):
        register_backbone("half")(type("Half", (Backbone,), {}))


BARE = {
    "backbone.py": """
from fsmer.backbones import Backbone, register_backbone
from fsmer.data import InputSpec


@register_backbone("bare-net")
class Bare(Backbone):
    def __init__(self, width):
        super().__init__(input_spec=InputSpec(), embed_dim=width, config={"width": width})

    def forward(self, inputs):
        return inputs.flatten(1)
""",
    "rest.py": """
from dataclasses import dataclass
from fsmer.datasets import Adapter, register_dataset
from fsmer.episodic import Protocol, register_protocol
from fsmer.transfer import Method, register_method


@register_method("bare-method")
@dataclass(frozen=True)
class Bare(Method):
    width: int

    def fit_head(self, embeddings, codes, way, prior=None):
        raise NotImplementedError


@register_protocol("bare_kind")
@dataclass(frozen=True, kw_only=True)
class BareKind(Protocol):
    width: int

    def deal(self, clips, classes, codes):
        raise NotImplementedError


@register_dataset("bare-lab")
class BareLab(Adapter):
    title = "Bare lab"
    frames_per_second = 100.0

    def __init__(self, width):
        self.width = width
""",
}


@pytest.mark.usefixtures("clean")
def test_a_plugin_without_defaults_or_documentation_breaks_no_listing(tmp_path: Path) -> None:
    for name, text in BARE.items():
        (tmp_path / name).write_text(text)
        import_plugin(tmp_path / name)
    (model,) = fsmer.list_models("bare*")
    assert (model.summary, model.parameters, model.flops, model.input_specs) == ("", None, None, ())
    assert "width" in model.notes
    held = {one.name: one for one in list_methods()}
    assert (held["bare-method"].params, held["bare-method"].summary) == ({}, "")
    (lab,) = (one for one in fsmer.list_datasets() if one.name == "bare-lab")
    assert lab.title == "Bare lab"
    assert load_adapter("casme2").name == "casme2"
    with pytest.raises(PluginError, match=r"bare-lab.*width"):
        load_adapter("bare-lab")
    with pytest.raises(ProtocolError, match=r"bare-kind.*width"):
        fsmer.load_protocol("bare-kind")
    runner = CliRunner()
    for command, name in (("models", "bare-net"), ("protocols", "bare-kind"), ("datasets", "bare-lab")):
        for more in ([], ["--json"]):
            shown = runner.invoke(app, [command, *more])
            assert shown.exit_code == 0, shown.output
            assert name in shown.stdout


def test_listings_are_plain_text() -> None:
    texts = [one.summary for one in list_methods()]
    texts += [text for one in fsmer.list_models() for text in (one.summary, one.card())]
    assert not [text for text in texts if "`" in text]
    assert without_marks(":class:`~fsmer.Backbone`, ``code`` and `name`") == "Backbone, code and name"


@pytest.mark.usefixtures("clean")
def test_a_package_that_failed_can_be_mended_and_imported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mended_package"
    package.mkdir()
    (package / "part.py").write_text(FILES["metric.py"].replace("kappa", "mended"))
    (package / "__init__.py").write_text("from mended_package import part\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        import_plugin("mended_package")
    assert "mended" not in METRICS
    assert not [name for name in sys.modules if name.startswith("mended_package")]
    (package / "__init__.py").write_text("from mended_package import part  # mended\n")
    importlib.invalidate_caches()
    import_plugin("mended_package")
    assert METRICS.origin("mended") == "mended_package"


@pytest.mark.parametrize("target", [None, "", 3, b"plugin.py"])
def test_what_names_no_plugin_is_refused(target: Any) -> None:
    with pytest.raises(PluginError, match=r"path of a \.py file"):
        import_plugin(target)


def test_a_folder_a_name_without_its_ending_and_an_empty_file_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "only_here.py").write_text("VALUE = 1\n")
    with pytest.raises(PluginError, match="folder is a folder"):
        import_plugin("folder")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    with pytest.raises(PluginError, match=r"only_here\.py"):
        import_plugin("only_here")
    with pytest.warns(UserWarning, match=r"only_here\.py registers nothing"):
        import_plugin("only_here.py")


def test_an_exception_outside_the_usual_ones_is_one_sentence_too(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("class Odd(BaseException):\n    pass\n\nraise Odd('stop')\n")
    with pytest.raises(PluginError, match="Odd: stop"):
        import_plugin(tmp_path / "odd.py")
