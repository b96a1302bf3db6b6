"""Any scikit-learn classifier as a method: fitted anew on the embeddings of each support."""

from __future__ import annotations

import importlib
import io
import json
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsmer.backbones import ClassDirections
from fsmer.errors import FsmerError, SupportError, WeightsError, unknown_name
from fsmer.io import read_bytes
from fsmer.memory import out_of_memory
from fsmer.transfer.heads import FittedHead
from fsmer.transfer.method import Method
from fsmer.transfer.recognizer import ESTIMATOR_FILE
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import MethodError

__all__ = ["EstimatorHead", "SklearnMethod"]

# What may be named by text and read from a file, by the module that exports it; no other class of any package is.
CLASSIFIERS = {
    name: module
    for module, names in {
        "calibration": "CalibratedClassifierCV",
        "discriminant_analysis": "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
        "dummy": "DummyClassifier",
        "ensemble": "AdaBoostClassifier BaggingClassifier ExtraTreesClassifier GradientBoostingClassifier "
        "HistGradientBoostingClassifier RandomForestClassifier StackingClassifier VotingClassifier",
        "gaussian_process": "GaussianProcessClassifier",
        "linear_model": "LogisticRegression LogisticRegressionCV PassiveAggressiveClassifier Perceptron "
        "RidgeClassifier RidgeClassifierCV SGDClassifier",
        "model_selection": "FixedThresholdClassifier TunedThresholdClassifierCV",
        "multiclass": "OneVsOneClassifier OneVsRestClassifier OutputCodeClassifier",
        "multioutput": "ClassifierChain MultiOutputClassifier",
        "naive_bayes": "BernoulliNB CategoricalNB ComplementNB GaussianNB MultinomialNB",
        "neighbors": "KNeighborsClassifier NearestCentroid RadiusNeighborsClassifier",
        "neural_network": "MLPClassifier",
        "semi_supervised": "LabelPropagation LabelSpreading SelfTrainingClassifier",
        "svm": "LinearSVC NuSVC SVC",
        "tree": "DecisionTreeClassifier ExtraTreeClassifier",
    }.items()
    for name in names.split()
}
KERNELS = (
    *("CompoundKernel", "ConstantKernel", "DotProduct", "ExpSineSquared", "Exponentiation", "Matern", "PairwiseKernel"),
    *("Product", "RBF", "RationalQuadratic", "Sum", "WhiteKernel"),
)
# Bytes of its content; parameters take a few thousand.
LIMIT = 8 << 20
_WORDS = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class EstimatorHead(FittedHead):
    """Classifiers of scikit-learn, one for each of E episodes, fitted to numbers of classes as labels."""

    fitted: tuple[Any, ...]
    way: int
    kind: str = "estimator"

    def __len__(self) -> int:
        return len(self.fitted)

    def logits(self, queries: Tensor) -> Tensor:
        """Logarithms of the probabilities, (E, Q, C); minus infinity for a class without support. See `Head.logits`."""
        own = queries if queries.ndim == 3 else [queries] * len(self)
        found = queries.new_full((len(self), queries.shape[-2], self.way), float("-inf"))
        for episode, (estimator, rows) in enumerate(zip(self.fitted, own, strict=True)):
            try:
                shares = _probabilities(estimator, rows.double().numpy())
            except Exception as error:  # classifiers from outside raise whatever they like
                refusal = f"the classifier cannot answer ({_reason(error)}); give more clips or other parameters."
                raise MethodError(refusal) from error
            found[episode][:, torch.from_numpy(estimator.classes_)] = torch.from_numpy(shares).log().float()
        return found


@register_method("sklearn")
@dataclass(frozen=True, eq=False)
class SklearnMethod(Method):
    """A classifier of scikit-learn on the embeddings, such as ``sklearn:sklearn.svm.SVC`` or ``sklearn:SVC``.

    Each support gets a clone of the classifier. Probabilities are those of its ``predict_proba``; without it the
    softmax of its ``decision_function`` (of 0 and its value for two classes); without that, or with a column a pair of
    classes, 1 for the class that it predicts. A class without support has probability 0; with a single class in the
    support that class has probability 1.

    Parameters
    ----------
    estimator : classifier of scikit-learn, or any with its methods ``fit``, ``predict`` and ``get_params``
        Not changed. Its parameters are parameters of the method.
    standardize : bool
        Fit to embeddings standardised by the support's own mean and deviation, as the method ``logistic`` does:
        kernels and distances are made for numbers of about 1.
    seed : int
        In place of every ``random_state`` that is None.
    """

    batched: ClassVar[bool] = True
    saves_head: ClassVar[bool] = False

    estimator: Any = None
    standardize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimator is None:
            object.__setattr__(self, "estimator", _listed_class("SVC")())
        kind = type(self.estimator)
        module = f"sklearn.{CLASSIFIERS[kind.__name__]}" if _is_listed(kind) else kind.__module__
        object.__setattr__(self, "name", f"sklearn:{module}.{kind.__qualname__}")

    @classmethod
    def from_params(cls, params: Mapping[str, Any], member: str = "") -> Self:
        """The classifier named `member`, as text such as ``sklearn.svm.SVC`` or ``SVC``."""
        kind = _listed_class(member or "SVC")
        names = kind._get_param_names()
        own = {key: _read_text(value) for key, value in params.items() if key in names}
        try:
            made = kind(**own)
        except TypeError as error:
            raise MethodError(
                f"{kind.__name__} cannot be made from text alone ({error}); make it in Python and give the object."
            ) from error
        return cls(made).set_params(**{key: value for key, value in params.items() if key not in own})

    @classmethod
    def wrap(cls, estimator: Any) -> SklearnMethod:
        """A classifier as a method; one of other parts than scikit-learn's own gets one episode at a time.

        Raises `MethodError` where it is none.
        """
        lacking = [one for one in ("fit", "predict", "get_params") if not callable(getattr(estimator, one, None))]
        if lacking or isinstance(estimator, type):
            given = repr(estimator) if isinstance(estimator, type) else f"of type {type(estimator).__name__}"
            raise MethodError(
                f"the method given is {given}, but a name of fsmer.list_methods, a Method, or a classifier of "
                "scikit-learn (an object with fit, predict and get_params) is expected."
            )
        return (OtherEstimator if _foreign_part(estimator) else SklearnMethod)(_clone(estimator))

    @classmethod
    def from_folder(cls, told: Mapping[str, Any], folder: Path) -> SklearnMethod:
        """The classifier that `save_files` wrote; it is fitted to the saved support afterwards.

        Raises `WeightsError` for a file that is missing or damaged, or holds anything but classifiers of scikit-learn
        and plain values, and `FsmerError` without the package skops.
        """
        path = folder / ESTIMATOR_FILE
        try:
            data = read_bytes(path, LIMIT)
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                if sum(one.file_size for one in packed.infolist()) > LIMIT:
                    raise ValueError(f"it unpacks to more than {LIMIT:,} bytes")
            trusted = [f"sklearn.gaussian_process.kernels.{name}" for name in KERNELS]
            estimator = _skops().loads(data, trusted=trusted)
        except FsmerError:
            raise
        except Exception as error:  # a file from anybody can fail in any way
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise WeightsError(
                f"{path} cannot be read as a classifier ({reason}); save the recognizer anew."
            ) from error
        if foreign := _foreign_part(estimator) or ("" if _is_listed(type(estimator)) else "no classifier"):
            raise WeightsError(
                f"{path} holds {foreign}, but classifiers of scikit-learn and plain values are all that is read from a "
                "file; make the recognizer anew with one of these."
            )
        # A clone has parameters alone: nothing that a fitted classifier computes with comes from the file.
        given = told["params"]
        return cls(_clone(estimator)).set_params(**{key: given[key] for key in ("standardize", "seed") if key in given})

    def save_files(self, folder: Path) -> None:
        """Write the classifier, before it was fitted, to `folder`.

        Raises `WeightsError` where it has parts that are neither classifiers of scikit-learn nor plain values, and
        `FsmerError` without the package skops.
        """
        if foreign := _foreign_part(self.estimator):
            raise WeightsError(
                f"the classifier {type(self.estimator).__name__} cannot be saved, for it holds {foreign}, and only "
                "classifiers of scikit-learn and plain values are read from a file; use such a one, or adapt anew "
                "where it is needed."
            )
        _skops().dump(self.estimator, folder / ESTIMATOR_FILE)

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> FittedHead:
        """A clone of the classifier an episode."""
        self._need_support(codes)
        each = zip(embeddings.double().numpy(), codes.numpy(), strict=True)
        return EstimatorHead(tuple(self._fit_one(rows[of >= 0], of[of >= 0]) for rows, of in each), way)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Those of the classifier, `standardize` and `seed`; values that are not plain as text."""
        given = self.estimator.get_params(deep=False)
        own = {key: value if _is_plain(value) else repr(value) for key, value in given.items()}
        return {**own, "standardize": self.standardize, "seed": self.seed}

    def set_params(self, **params: Any) -> Self:
        """A method with these parameters changed; text is read as JSON where it is JSON, and ``none`` as None."""
        fields: dict[str, Any] = {key: params.pop(key) for key in ("standardize", "seed") if key in params}
        known = [*self.estimator.get_params(), "standardize", "seed"]
        for key in params:
            if key not in known:
                raise unknown_name("parameter", key, known, of=f"the method {self.name!r}")
        made = _clone(self.estimator)
        if params:
            made.set_params(**{key: _read_text(value) for key, value in params.items()})
        return replace(self, estimator=made, **self._typed(fields))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.name)

    def __sklearn_clone__(self) -> Self:
        return self

    def _fit_one(self, rows: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
        from sklearn.dummy import DummyClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.utils._param_validation import InvalidParameterError

        present = np.unique(labels)
        if len(present) < 2:
            return DummyClassifier(strategy="most_frequent").fit(rows, labels)
        made = _clone(self.estimator)
        params = made.get_params().items()
        drawn = [key for key, value in params if key.endswith("random_state") and value is None]
        made.set_params(**dict.fromkeys(drawn, self.seed))
        fitted = make_pipeline(StandardScaler(), made) if self.standardize else made
        try:
            return fitted.fit(rows, labels)
        except InvalidParameterError as error:
            raise MethodError(f"{self.name!r} has an impossible parameter: {error}") from error
        except Exception as error:
            raise SupportError(
                f"{self.name!r} cannot be fitted to {len(rows)} clips of {len(present)} classes ({_reason(error)}); "
                "give more clips or other parameters."
            ) from error


class OtherEstimator(SklearnMethod):
    """A classifier with parts that are not listed here; it declares nothing, so that its episodes are isolated."""

    @property
    def origin(self) -> str:
        """The package of the classifier."""
        return type(self.estimator).__module__.partition(".")[0]


def _reason(error: Exception) -> str:
    """What a classifier from outside complains of, in one line; raised as it is where memory has run out."""
    if out_of_memory(error):
        raise error
    return " ".join(str(error).split()).rstrip(".")


def _probabilities(estimator: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of shape (Q, classes of the estimator)."""
    shape = (len(rows), len(estimator.classes_))
    if hasattr(estimator, "predict_proba"):
        found = np.asarray(estimator.predict_proba(rows), dtype=np.float64)
        if found.shape == shape:
            return found
    pairs = any(key.endswith("function_shape") and value == "ovo" for key, value in estimator.get_params().items())
    if hasattr(estimator, "decision_function") and not pairs:
        scores = np.asarray(estimator.decision_function(rows), dtype=np.float64)
        scores = np.stack([np.zeros(len(rows)), scores], axis=1) if scores.ndim == 1 else scores
        if scores.shape == shape:
            return torch.softmax(torch.from_numpy(scores), dim=1).numpy()
    return np.asarray(estimator.predict(rows)[:, None] == estimator.classes_, dtype=np.float64)


def _listed_class(name: str) -> Any:
    """The classifier of a name such as ``sklearn.svm.SVC`` or ``SVC``."""
    module, _, short = name.rpartition(".")
    known = CLASSIFIERS.get(short)
    if known is None or module not in ("", f"sklearn.{known}"):
        raise unknown_name("classifier of scikit-learn", short if module.startswith("sklearn") else name, CLASSIFIERS)
    try:
        return getattr(importlib.import_module(f"sklearn.{known}"), short)
    except AttributeError as error:
        raise MethodError(f"the scikit-learn that is installed has no {short}; upgrade it.") from error


def _is_listed(kind: type) -> bool:
    return kind.__name__ in CLASSIFIERS and _listed_class(kind.__name__) is kind


def _foreign_part(value: Any) -> str:
    """What of an estimator is neither a listed class nor a plain value, in words; nothing where all is."""
    if hasattr(value, "get_params") and not isinstance(value, type):
        kernels = sys.modules.get("sklearn.gaussian_process.kernels")
        name = type(value).__name__
        if not _is_listed(type(value)) and not (name in KERNELS and getattr(kernels, name, None) is type(value)):
            return f"a {type(value).__module__}.{type(value).__qualname__}"
        return next(filter(None, map(_foreign_part, value.get_params(deep=False).values())), "")
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_foreign_part, value)), "")
    return "" if _is_plain(value) else f"a value of type {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.number))


def _read_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    try:
        found = _WORDS[word] if word in _WORDS else json.loads(value)
    except ValueError:
        return value
    return tuple(found) if isinstance(found, list) else found


def _clone(estimator: Any) -> Any:
    from sklearn.base import clone

    return clone(estimator)


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise FsmerError(
            "recognizers with a classifier of scikit-learn are saved and loaded by the package skops, which is not "
            "installed; install fsmer[sklearn-methods]."
        ) from error
    return skops.io
