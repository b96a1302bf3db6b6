"""Classifiers of scikit-learn as methods: answered, measured, saved and loaded like every other one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.utils import all_estimators
from tiny_backbone import TinyBackbone

import fsmer
from fsmer.errors import FsmerError, SupportError, UnknownNameError, WeightsError
from fsmer.io import write_json
from fsmer.transfer.recognizer import ESTIMATOR_FILE, Recognizer
from fsmer.transfer.registry import load_method
from fsmer.transfer.sklearn_methods import CLASSIFIERS, COMPOSED, PARTS
from fsmer.transfer.source_model import MethodError

CLASSES = 3
SAVED = {
    "support vectors": SVC(C=2.0),
    "neighbours": KNeighborsClassifier(1),
    "kernels": GaussianProcessClassifier(RBF() + WhiteKernel()),
    "trees": RandomForestClassifier(5),
    "one against the rest": OneVsRestClassifier(LinearSVC()),
    "pipeline": make_pipeline(StandardScaler(), PCA(2), SVC(C=3.0)),
    "array": GaussianNB(priors=np.array([0.2, 0.5, 0.3])),
    "weights of classes": SVC(class_weight={0: 1.0, 1: 2.0}),
    "stack": StackingClassifier([("near", KNeighborsClassifier(1)), ("trees", RandomForestClassifier(3))], cv=2),
}


class Nearest(ClassifierMixin, BaseEstimator):
    """A classifier that is not scikit-learn's."""

    def fit(self, rows: Any, labels: Any) -> Nearest:
        self.classes_, self.rows, self.labels = np.unique(labels), rows, labels
        return self

    def predict(self, rows: Any) -> Any:
        return self.labels[((rows[:, None] - self.rows) ** 2).sum(axis=2).argmin(axis=1)]


class Silent:
    """A classifier without parameters."""

    def fit(self, rows: Any, labels: Any) -> Silent:
        return self

    def predict(self, rows: Any) -> Any:
        return np.zeros(len(rows))


class Broken(Nearest):
    """A classifier whose parameters cannot be asked for."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        raise ZeroDivisionError


class Unsure(Nearest):
    """A classifier whose probabilities do not sum to 1."""

    def predict_proba(self, rows: Any) -> Any:
        return np.full((len(rows), len(self.classes_)), 0.7)


class Nameless(Nearest):
    """A classifier that does not keep its classes as an array."""

    def fit(self, rows: Any, labels: Any) -> Nameless:
        super().fit(rows, labels)
        self.classes_ = self.classes_.tolist()
        return self


@pytest.fixture(scope="module")
def backbone() -> TinyBackbone:
    return TinyBackbone(8).eval()


@pytest.fixture(scope="module")
def clips(backbone: TinyBackbone) -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", 40, seed=1, specs=backbone.input_specs)


def blobs(way: int = CLASSES, shots: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (1, S, 4) and codes (1, S) of classes far apart."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.arange(way).repeat_interleave(shots)
    return (10 * torch.eye(way, 4)[codes] + torch.randn(len(codes), 4, generator=generator))[None], codes[None]


def rewrite_schema(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / ESTIMATOR_FILE
    with zipfile.ZipFile(path) as packed:
        held = {name: packed.read(name) for name in packed.namelist()}
    schema = json.loads(held["schema.json"])
    change(schema)
    held["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in held.items():
            packed.writestr(name, data)


def many_voters(c: float) -> VotingClassifier:
    """A classifier of so many parts that its repr is cut in the middle."""
    named = [(f"member_with_a_long_name_{number:03d}", SVC(C=1.5 + number)) for number in range(60)]
    return VotingClassifier([*named[:30], ("odd", SVC(C=c)), *named[30:]])


@pytest.mark.slow  # scikit-learn imports all of itself to list them
def test_the_classifiers_that_can_be_named_are_all_of_scikit_learn() -> None:
    found = {name for name, cls in all_estimators("classifier") if not name.startswith("_")}
    several_labels = {"ClassifierChain", "MultiOutputClassifier"}
    assert set(CLASSIFIERS) | set(COMPOSED) == found - several_labels | {"Pipeline"}
    for name, module in PARTS.items():
        part = getattr(__import__(f"sklearn.{module}", fromlist=[name]), name)
        assert isinstance(part, type)


# Of whole numbers, and of a guess.
RARE = {"CategoricalNB", "DummyClassifier", "HistGradientBoostingClassifier"}


@pytest.mark.parametrize("name", sorted(set(CLASSIFIERS) - RARE))
def test_every_classifier_that_is_named_by_text_learns_classes_apart(name: str) -> None:
    support, codes = blobs()
    asked = load_method(f"sklearn:{name}").get_params()
    params = {"n_estimators": "5"} if "n_estimators" in asked else {}
    if name in ("ComplementNB", "MultinomialNB"):
        support, params = support.abs(), {"standardize": "false"}
    found = load_method(f"sklearn:{name}", **params).fit_head(support, codes, CLASSES).logits(support)
    assert (found.argmax(-1) == codes).double().mean() > 0.9


@pytest.mark.parametrize("name", ["sklearn:sklearn.svm.SVC", "sklearn:SVC", "sklearn"])
def test_a_name_and_an_object_are_the_same_method(name: str) -> None:
    method = load_method(name, kernel="linear", C="0.5", gamma="auto")
    assert method == load_method(SVC(kernel="linear", C=0.5, gamma="auto"))
    assert method.name == "sklearn:sklearn.svm.SVC"
    assert load_method(method.name, **method.get_params()) == method
    assert clone(method) == method
    assert method != load_method(name, kernel="linear")
    assert method.estimator is not load_method(method).estimator


@pytest.mark.parametrize(
    ("name", "params", "error", "fact"),
    [
        ("sklearn:os.system", {}, UnknownNameError, "os.system"),
        ("sklearn:sklearn.svm.SVX", {}, UnknownNameError, "SVC"),
        ("sklearn:sklearn.preprocessing.StandardScaler", {}, UnknownNameError, "StandardScaler"),
        ("sklearn:sklearn.tree.SVC", {}, UnknownNameError, "SVC"),
        ("sklearn:SVC", {"kernell": "rbf"}, UnknownNameError, "'kernel'"),
        ("sklearn:SVC", {"standardize": "perhaps"}, MethodError, "standardize"),
        ("sklearn:VotingClassifier", {}, MethodError, "VotingClassifier.* in Python"),
        ("sklearn:sklearn.pipeline.Pipeline", {}, MethodError, "Pipeline.* in Python"),
        ("sklearn:svc", {}, UnknownNameError, "'sklearn:sklearn.svm.SVC'"),
        ("sklearn.svm.SVC", {}, UnknownNameError, "'sklearn:sklearn.svm.SVC'"),
        ("SVC", {}, UnknownNameError, "'sklearn:sklearn.svm.SVC'"),
        ("cosin", {}, UnknownNameError, "'cosine'"),
        ("sklearn:ClassifierChain", {}, UnknownNameError, "ClassifierChain"),
        ("sklearn:SVC", {"seed": "x"}, MethodError, "'sklearn:sklearn.svm.SVC'"),
        (SVC, {}, MethodError, "list_methods"),
        (StandardScaler(), {}, MethodError, "StandardScaler"),
        (make_pipeline(StandardScaler()), {}, MethodError, "Pipeline is a transformer"),
        (SVR(), {}, MethodError, "SVR is a regressor"),
        (KMeans(), {}, MethodError, "KMeans is a clusterer"),
        (IsolationForest(), {}, MethodError, "IsolationForest is a"),
        (MultiOutputClassifier(SVC()), {}, MethodError, "MultiOutputClassifier"),
        (OneVsRestClassifier(Silent()), {}, MethodError, "set_params"),
        (Silent(), {}, MethodError, "set_params"),
        (Broken(), {}, MethodError, "Broken"),
        (7, {}, MethodError, "int"),
    ],
)
def test_what_is_no_classifier_is_refused_by_its_name(
    name: Any, params: dict[str, Any], error: type[FsmerError], fact: str
) -> None:
    with pytest.raises(error, match=fact):
        load_method(name, **params)


@pytest.mark.parametrize("estimator", [*SAVED.values(), LinearSVC(), Nearest(), SVC(decision_function_shape="ovo")])
def test_probabilities_of_every_kind_of_classifier_tell_classes_apart(estimator: Any) -> None:
    support, codes = blobs()
    # A class without support has none.
    head = load_method(estimator).fit_head(support, codes, CLASSES + 1)
    logits = head.logits(support)
    assert logits.shape == (1, support.shape[1], CLASSES + 1)
    shares = logits.softmax(-1)
    assert torch.allclose(shares.sum(-1), torch.ones(1, support.shape[1]))
    assert (shares[..., CLASSES] == 0).all()
    assert (logits.argmax(-1) == codes).all()
    assert torch.equal(head.logits(support[0]), logits)


def test_probabilities_are_those_of_the_classifier_on_standardised_embeddings() -> None:
    support, codes = blobs()
    rows, labels = support[0].double().numpy(), codes[0].numpy()
    forest = RandomForestClassifier(5, random_state=3)
    expected = make_pipeline(StandardScaler(), clone(forest)).fit(rows, labels).predict_proba(rows)
    shares = load_method(forest).fit_head(support, codes, CLASSES).logits(support).softmax(-1)
    assert shares[0].numpy() == pytest.approx(expected, abs=1e-6)
    plain = clone(forest).fit(rows, labels).predict_proba(rows)
    shares = load_method(forest, standardize=False).fit_head(support, codes, CLASSES).logits(support).softmax(-1)
    assert shares[0].numpy() == pytest.approx(plain, abs=1e-6)
    binary, codes = blobs(2)
    scores = LinearSVC(random_state=0).fit(binary[0].double().numpy(), codes[0].numpy())
    found = load_method(LinearSVC(), standardize="false").fit_head(binary, codes, 2).logits(binary).softmax(-1)
    decision = torch.from_numpy(scores.decision_function(binary[0].double().numpy()))
    assert found[0, :, 1].double().numpy() == pytest.approx(torch.sigmoid(decision).numpy(), abs=1e-5)


def test_a_support_of_one_class_gives_it_everything_and_an_empty_one_is_refused() -> None:
    support, codes = blobs(1)
    shares = load_method("sklearn:SVC").fit_head(support, codes, 2).logits(support).softmax(-1)
    assert shares[0].tolist() == [[1.0, 0.0]] * len(codes[0])
    with pytest.raises(SupportError):
        load_method("sklearn:SVC").fit_head(support[:, :0], codes[:, :0], 2)


def test_parameters_that_cannot_be_are_told_in_one_sentence() -> None:
    support, codes = blobs()
    with pytest.raises(MethodError, match="'C'"):
        load_method("sklearn:SVC", C=-1).fit_head(support, codes, CLASSES)
    for estimator, fact in ((Unsure(), r"Unsure.*0\.7.*sum to 1"), (Nameless(), "Nameless")):
        with pytest.raises(MethodError, match=fact):
            load_method(estimator).fit_head(support, codes, CLASSES).logits(support)
    with pytest.raises(FsmerError, match="n_neighbors"):
        load_method(KNeighborsClassifier(99)).fit_head(support, codes, CLASSES).logits(support)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (many_voters(1.0), many_voters(2.0)),
        (GaussianNB(priors=np.array([0.5, 0.5])), GaussianNB(priors=np.array([0.4, 0.6]))),
        (GaussianNB(priors=np.linspace(0, 1, 2000)), GaussianNB(priors=np.r_[np.linspace(0, 1, 1999), 2])),
        (KNeighborsClassifier(metric=lambda a, b: 0.0), KNeighborsClassifier(metric=lambda a, b: 1.0)),
        (RandomForestClassifier(max_features=1), RandomForestClassifier(max_features=1.0)),
        (OneVsRestClassifier(RandomForestClassifier()), OneVsRestClassifier(RandomForestClassifier(max_features=None))),
    ],
)
def test_classifiers_that_differ_anywhere_are_different_methods(one: Any, other: Any) -> None:
    assert load_method(one) == load_method(clone(one))
    assert load_method(one) != load_method(other)
    assert load_method(one).to_dict() != load_method(other).to_dict() or load_method(one).to_dict()["name"].endswith(
        "RandomForestClassifier"
    )
    assert json.dumps(load_method(one).to_dict()) != json.dumps(load_method(other).to_dict())


def test_lists_are_given_by_text() -> None:
    method = load_method("sklearn:MLPClassifier", hidden_layer_sizes="[10,5]", max_iter="20")
    assert method == load_method(MLPClassifier(hidden_layer_sizes=(10, 5), max_iter=20))


def test_mappings_of_lists_are_saved(backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path) -> None:
    metric: dict[str, Any] = {"metric": "seuclidean", "algorithm": "brute", "metric_params": {"V": [1.0, 2.0] * 4}}
    recognizer = fsmer.adapt(backbone, clips, KNeighborsClassifier(1, **metric))
    again = Recognizer.load(recognizer.save(tmp_path / "saved"))
    assert again.method == recognizer.method
    assert np.array_equal(again.predict_proba(clips), recognizer.predict_proba(clips))


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_recognizer_gives_the_same_answers_and_learns_on(
    name: str, backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    recognizer = fsmer.adapt(backbone, clips[:20], SAVED[name])
    recognizer.save(tmp_path / "saved")
    recognizer.save(tmp_path / "saved")  # over itself
    again = Recognizer.load(tmp_path / "saved")
    assert np.array_equal(again.predict_proba(clips), recognizer.predict_proba(clips))
    assert again.method == recognizer.method
    more = again.update(clips[20:])
    assert np.array_equal(more.predict_proba(clips), fsmer.adapt(backbone, clips, SAVED[name]).predict_proba(clips))
    assert not [path for path in (tmp_path / "saved").iterdir() if path.suffix in (".pkl", ".joblib")]


@pytest.mark.parametrize("name", ["support vectors", "neighbours"])
def test_folds_and_episodes_are_evaluated_with_it(
    name: str, backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    folds = fsmer.evaluate("loso", backbone, SAVED[name], clips=clips, out=tmp_path / "out")
    assert folds.uf1 > 0.4
    kshot = fsmer.load_protocol("kshot", way=2, shot=2, episodes=10, query=3)
    assert fsmer.evaluate(kshot, backbone, SAVED[name], clips=clips).uf1 > 0.5
    # scikit-learn's own are trusted, as fsmer's own are.
    assert folds.run["from_outside"] == []
    assert fsmer.Report.load(tmp_path / "out").method["params"]["standardize"] is True
    # One fold by hand is the same.
    one = clips.subjects[0]
    held = clips.subjects == one
    alone = fsmer.adapt(backbone, clips[~held], SAVED[name], classes=clips.classes).predict(clips[held])
    asked = folds.predictions.set_index("clip").loc[clips.ids[held], "predicted"]
    assert asked.tolist() == alone.tolist()


def test_parameters_are_chosen_on_inner_folds(backbone: TinyBackbone, clips: fsmer.ClipSet) -> None:
    chosen = fsmer.evaluate(
        "loso", backbone, "sklearn:KNeighborsClassifier", clips=clips, select="nested", grid={"n_neighbors": ["1", 3]}
    )
    told = json.dumps(chosen.selection)
    assert '"n_neighbors": 1' in told
    assert '"n_neighbors": 3' in told


def test_a_classifier_from_outside_is_isolated_and_named_and_cannot_be_saved(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    for estimator, part in (
        (Nearest(), "Nearest"),
        (make_pipeline(FunctionTransformer(np.abs), SVC()), "FunctionTransformer"),
        (make_pipeline(StandardScaler(), SVC(), memory=str(tmp_path)), "cache"),
        (KNeighborsClassifier(metric=lambda a, b: 0.0), "function"),
    ):
        report = fsmer.evaluate("loso", backbone, estimator, clips=clips, cache=False)
        assert "method" in report.run["from_outside"][0]
        with pytest.raises(WeightsError, match=part):
            fsmer.adapt(backbone, clips, estimator).save(tmp_path / "refused")
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    "put",
    [
        FunctionTransformer(np.abs),
        {"not": "a classifier"},
        make_pipeline(FunctionTransformer(np.abs), SVC()),
        make_pipeline(StandardScaler(), PCA(2)),
        make_pipeline(StandardScaler(), SVC(), memory="elsewhere"),
        OneVsRestClassifier(PCA(2)),
        PCA(2),
        SVC(C=2.0),
        KNeighborsClassifier(),
        RandomForestClassifier(10**7),
        Nearest(),
        SVC(kernel=Nearest()),
        b"no zip",
    ],
)
def test_a_file_with_anything_but_classifiers_of_scikit_learn_is_refused(
    put: Any, backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    folder = fsmer.adapt(backbone, clips, SVC()).save(tmp_path / "saved")
    if isinstance(put, bytes):
        (folder / ESTIMATOR_FILE).write_bytes(put)
    else:
        skops.io.dump(put, folder / ESTIMATOR_FILE)
    with pytest.raises(WeightsError, match=str(folder)):
        Recognizer.load(folder)


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("get_params", "5"),
        ("__sklearn_clone__", "5"),
        ("set_params", '"x"'),
        ("C", None),
        ("_sklearn_version", '"0.0"'),
    ],
)
def test_attributes_that_a_file_names_are_not_taken_over(
    key: str, content: str | None, backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    recognizer = fsmer.adapt(backbone, clips, SVC())
    folder = recognizer.save(tmp_path / "saved")

    def change(schema: dict[str, Any]) -> None:
        attributes = schema["content"]["content"]
        attributes[key] = attributes["kernel"] | {"content": content}
        if content is None:
            del attributes[key]

    rewrite_schema(folder, change)
    # What the file lacks is the default, as its config says.
    assert np.array_equal(Recognizer.load(folder).predict_proba(clips), recognizer.predict_proba(clips))


def test_a_file_and_a_config_that_disagree_are_refused(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    folder = fsmer.adapt(backbone, clips, SVC(C=2.0)).save(tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    method = config["recognizer"]["method"]
    without = {key: value for key, value in method["params"].items() if key != "C"}
    for fact, params in (
        ("'C'", method["params"] | {"C": 3.0}),
        ("'C'", without),
        ("'kernel'", method["params"] | {"kernel": "linear"}),
        ("'other'", method["params"] | {"other": 1}),
    ):
        config["recognizer"]["method"] = method | {"params": params}
        write_json(folder / "config.json", config, sealed=True)
        with pytest.raises(WeightsError, match=fact):
            Recognizer.load(folder)


@pytest.mark.parametrize(
    ("estimator", "fact"),
    [
        (RandomForestClassifier(10**7), "n_estimators"),
        (BaggingClassifier(BaggingClassifier(n_estimators=1000), n_estimators=1000), "estimators"),
        (MLPClassifier(hidden_layer_sizes=(10**6,)), "hidden_layer_sizes"),
        (make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=10**6)), "estimators"),
    ],
)
def test_what_a_file_asks_to_be_fitted_is_bounded(
    estimator: Any, fact: str, backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    recognizer = fsmer.adapt(backbone, clips, SVC())
    folder = recognizer.save(tmp_path / "saved")
    skops.io.dump(estimator, folder / ESTIMATOR_FILE)
    config = json.loads((folder / "config.json").read_text())
    config["recognizer"]["method"] = load_method(estimator).to_dict()
    write_json(folder / "config.json", config, sealed=True)
    with pytest.raises(WeightsError, match=fact):
        Recognizer.load(folder)
    recognizer.method = load_method(estimator)
    with pytest.raises(WeightsError, match=fact):
        recognizer.save(tmp_path / "refused")


def test_parameters_that_an_earlier_version_described_by_their_repr_are_read(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    kernel = RBF(2.0) + WhiteKernel()
    folder = fsmer.adapt(backbone, clips, GaussianProcessClassifier(kernel)).save(tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    config["recognizer"]["method"]["params"]["kernel"] = repr(kernel)
    write_json(folder / "config.json", config, sealed=True)
    assert Recognizer.load(folder).method == load_method(GaussianProcessClassifier(kernel))


def test_a_support_that_cannot_be_fitted_names_the_folder(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    recognizer = fsmer.adapt(backbone, clips, KNeighborsClassifier())
    recognizer.method = load_method(SVC(C=-1))
    folder = recognizer.save(tmp_path / "saved")
    with pytest.raises(WeightsError, match=f"{folder}.*'C'"):
        Recognizer.load(folder)


def test_no_module_is_imported_because_a_file_names_it(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fsmer.adapt(backbone, clips, SVC()).save(tmp_path / "saved")
    (tmp_path / "trap_of_skops.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    rewrite_schema(folder, lambda schema: schema.update({"__module__": "trap_of_skops", "__class__": "Trap"}))
    with pytest.raises(WeightsError, match="trap_of_skops"):
        Recognizer.load(folder)
    (folder / ESTIMATOR_FILE).unlink()
    with pytest.raises(WeightsError, match=ESTIMATOR_FILE):
        Recognizer.load(folder)


def test_what_a_fitted_classifier_computes_with_never_comes_from_the_file(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    recognizer = fsmer.adapt(backbone, clips, SVC())
    folder = recognizer.save(tmp_path / "saved")
    wrong = SVC().fit(np.zeros((4, 2)), [0, 0, 1, 1])
    wrong.support_vectors_ = np.full((2, 2), np.nan)
    skops.io.dump(wrong, folder / ESTIMATOR_FILE)
    assert np.array_equal(Recognizer.load(folder).predict_proba(clips), recognizer.predict_proba(clips))


def test_without_skops_a_recognizer_is_not_saved_and_the_extra_to_install_is_named(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = fsmer.adapt(backbone, clips, SVC())
    folder = recognizer.save(tmp_path / "saved")
    monkeypatch.setitem(__import__("sys").modules, "skops.io", None)
    with pytest.raises(FsmerError, match=r"fsmer\[sklearn-methods\]"):
        recognizer.save(tmp_path / "other")
    Recognizer.load(folder)  # reads it itself
    assert not (tmp_path / "other").exists()


def test_explaining_such_a_recognizer_shows_what_moves_its_embedding(
    backbone: TinyBackbone, clips: fsmer.ClipSet
) -> None:
    found = fsmer.adapt(backbone, clips, KNeighborsClassifier(3)).explain(clips[:1], steps=2)
    (one,) = found if isinstance(found, list) else [found]
    assert "embedding" in one.about
    assert one.probabilities.sum() == pytest.approx(1)
