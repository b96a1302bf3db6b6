"""Classifiers of scikit-learn as methods: answered, measured, saved and loaded like every other one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.utils import all_estimators
from tiny_backbone import TinyBackbone

import fsmer
from fsmer.errors import FsmerError, SupportError, UnknownNameError, WeightsError
from fsmer.transfer.recognizer import ESTIMATOR_FILE, Recognizer
from fsmer.transfer.registry import load_method
from fsmer.transfer.sklearn_methods import CLASSIFIERS, KERNELS
from fsmer.transfer.source_model import MethodError

CLASSES = 3
SAVED = {
    "support vectors": SVC(C=2.0),
    "neighbours": KNeighborsClassifier(1),
    "kernels": GaussianProcessClassifier(RBF() + WhiteKernel()),
    "trees": RandomForestClassifier(5),
    "one against the rest": OneVsRestClassifier(LinearSVC()),
}


class Nearest(ClassifierMixin, BaseEstimator):
    """A classifier that is not scikit-learn's."""

    def fit(self, rows: Any, labels: Any) -> Nearest:
        self.classes_, self.rows, self.labels = np.unique(labels), rows, labels
        return self

    def predict(self, rows: Any) -> Any:
        return self.labels[((rows[:, None] - self.rows) ** 2).sum(axis=2).argmin(axis=1)]


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


@pytest.mark.slow  # scikit-learn imports all of itself to list them
def test_the_classifiers_that_can_be_named_are_all_of_scikit_learn() -> None:
    found = {name: cls for name, cls in all_estimators("classifier") if not name.startswith("_")}
    assert set(found) == set(CLASSIFIERS)
    for name, cls in found.items():
        assert getattr(__import__(f"sklearn.{CLASSIFIERS[name]}", fromlist=[name]), name) is cls
    kernels = __import__("sklearn.gaussian_process.kernels", fromlist=["Kernel"])
    assert all(issubclass(getattr(kernels, name), kernels.Kernel) for name in KERNELS)


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
        ("sklearn:VotingClassifier", {}, MethodError, "estimators"),
        (SVC, {}, MethodError, "list_methods"),
        (StandardScaler(), {}, MethodError, "StandardScaler"),
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
    with pytest.raises(FsmerError, match="n_neighbors"):
        load_method(KNeighborsClassifier(99)).fit_head(support, codes, CLASSES).logits(support)


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
        (make_pipeline(PCA(2), SVC()), "Pipeline"),
        (make_pipeline(FunctionTransformer(np.abs), SVC()), "Pipeline"),
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
        make_pipeline(PCA(2), SVC()),
        OneVsRestClassifier(PCA(2)),
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
    with pytest.raises(WeightsError):
        Recognizer.load(folder)


def test_no_module_is_imported_because_a_file_names_it(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fsmer.adapt(backbone, clips, SVC()).save(tmp_path / "saved")
    (tmp_path / "trap_of_skops.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = folder / ESTIMATOR_FILE
    with zipfile.ZipFile(path) as packed:
        held = {name: packed.read(name) for name in packed.namelist()}
    schema = json.loads(held["schema.json"])
    assert schema["__class__"] == "SVC"
    held["schema.json"] = json.dumps(schema | {"__module__": "trap_of_skops", "__class__": "Trap"}).encode()
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in held.items():
            packed.writestr(name, data)
    with pytest.raises(WeightsError, match="trap_of_skops"):
        Recognizer.load(folder)
    path.unlink()
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


def test_without_skops_a_recognizer_is_refused_with_the_extra_to_install(
    backbone: TinyBackbone, clips: fsmer.ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = fsmer.adapt(backbone, clips, SVC())
    folder = recognizer.save(tmp_path / "saved")
    monkeypatch.setitem(__import__("sys").modules, "skops.io", None)
    for act in (lambda: recognizer.save(tmp_path / "other"), lambda: Recognizer.load(folder)):
        with pytest.raises(FsmerError, match=r"fsmer\[sklearn-methods\]"):
            act()
    assert not (tmp_path / "other").exists()


def test_explaining_such_a_recognizer_shows_what_moves_its_embedding(
    backbone: TinyBackbone, clips: fsmer.ClipSet
) -> None:
    found = fsmer.adapt(backbone, clips, KNeighborsClassifier(3)).explain(clips[:1], steps=2)
    (one,) = found if isinstance(found, list) else [found]
    assert "embedding" in one.about
    assert one.probabilities.sum() == pytest.approx(1)
