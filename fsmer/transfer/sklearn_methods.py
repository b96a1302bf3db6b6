"""Any scikit-learn classifier as a method: fitted anew on the embeddings of each support."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsmer.backbones import ClassDirections
from fsmer.errors import FsmerError, SupportError, UnknownNameError, WeightsError, reason_of, unknown_name
from fsmer.io import read_bytes
from fsmer.outside import outside_call
from fsmer.probabilities import unsound_answers
from fsmer.transfer.heads import FittedHead
from fsmer.transfer.method import Method
from fsmer.transfer.recognizer import ESTIMATOR_FILE
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import MethodError

__all__ = ["EstimatorHead", "SklearnMethod"]


def _by_name(**modules: str) -> dict[str, str]:
    return {name: module.replace("__", ".") for module, names in modules.items() for name in names.split()}


# Modules of what may be read from a file, by name; no other class of any package is. Classifiers are named by text too,
CLASSIFIERS = _by_name(
    calibration="CalibratedClassifierCV",
    discriminant_analysis="LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
    dummy="DummyClassifier",
    ensemble="AdaBoostClassifier BaggingClassifier ExtraTreesClassifier GradientBoostingClassifier "
    "HistGradientBoostingClassifier RandomForestClassifier",
    gaussian_process="GaussianProcessClassifier",
    linear_model="LogisticRegression LogisticRegressionCV PassiveAggressiveClassifier Perceptron RidgeClassifier "
    "RidgeClassifierCV SGDClassifier",
    naive_bayes="BernoulliNB CategoricalNB ComplementNB GaussianNB MultinomialNB",
    neighbors="KNeighborsClassifier NearestCentroid RadiusNeighborsClassifier",
    neural_network="MLPClassifier",
    semi_supervised="LabelPropagation LabelSpreading",
    svm="LinearSVC NuSVC SVC",
    tree="DecisionTreeClassifier ExtraTreeClassifier",
)
# but for those that are made of other classifiers.
COMPOSED = _by_name(
    ensemble="StackingClassifier VotingClassifier",
    model_selection="FixedThresholdClassifier TunedThresholdClassifierCV",
    multiclass="OneVsOneClassifier OneVsRestClassifier OutputCodeClassifier",
    pipeline="Pipeline",
    semi_supervised="SelfTrainingClassifier",
)
PARTS = (
    CLASSIFIERS
    | COMPOSED
    | _by_name(
        decomposition="PCA",
        gaussian_process__kernels="CompoundKernel ConstantKernel DotProduct ExpSineSquared Exponentiation Matern "
        "PairwiseKernel Product RBF RationalQuadratic Sum WhiteKernel",
        preprocessing="MaxAbsScaler MinMaxScaler Normalizer PowerTransformer QuantileTransformer RobustScaler "
        "StandardScaler",
    )
)
# Fitting takes as long as these say, and whoever reads a file has not chosen them; `FITS` bounds those of `COUNTS`
# multiplied with each other, over all that a classifier is made of.
LIMITS = {
    "n_estimators": 20_000, "code_size": 1_000, "n_restarts_optimizer": 1_000, "Cs": 1_000, "max_iter": 1_000_000,
    "hidden_layer_sizes": 10_000, "max_iter_predict": 1_000_000, "n_iter_no_change": 1_000_000, "n_jobs": 256,
}  # fmt: skip
COUNTS = ("n_estimators", "code_size", "n_restarts_optimizer")
FITS = 50_000
# Bytes of its content; parameters take a few thousand.
LIMIT = 8 << 20
KEYS = {"str": str, "int": int, "float": float}


@dataclass(frozen=True)
class EstimatorHead(FittedHead):
    """Classifiers of scikit-learn, one for each of E episodes, fitted to numbers of classes as labels."""

    fitted: tuple[Any, ...]
    way: int
    name: str = "the classifier"
    kind: str = "estimator"

    def __len__(self) -> int:
        return len(self.fitted)

    def logits(self, queries: Tensor) -> Tensor:
        """Logarithms of the probabilities, (E, Q, C); minus infinity for a class without support. See `Head.logits`."""
        own = queries if queries.ndim == 3 else [queries] * len(self)
        found = queries.new_full((len(self), queries.shape[-2], self.way), float("-inf"))
        for episode, (estimator, rows) in enumerate(zip(self.fitted, own, strict=True)):
            with outside_call(f"the answer of {self.name}", MethodError, "give more clips or other parameters"):
                shares = _probabilities(estimator, rows.double().numpy())
                found[episode][:, torch.from_numpy(estimator.classes_)] = torch.from_numpy(shares).log().float()
        return found


@register_method("sklearn")
@dataclass(frozen=True, eq=False)
class SklearnMethod(Method):
    """A classifier of scikit-learn on the embeddings, such as ``sklearn:sklearn.svm.SVC`` or ``sklearn:SVC``.

    Each support gets a clone of the classifier. Probabilities are those of its ``predict_proba``; without it the
    softmax of its ``decision_function`` (of 0 and its value for two classes); without that, or with a column a pair of
    classes, 1 for the class that it predicts. A class without support has probability 0; with a single class in the
    support that class has probability 1. What is made of other estimators, such as a ``Pipeline``, cannot be named by
    text: make it in Python and give the object.

    Parameters
    ----------
    estimator : classifier of scikit-learn, or any with its ``fit``, ``predict``, ``get_params`` and ``set_params``
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
            object.__setattr__(self, "estimator", _part("SVC")())
        object.__setattr__(self, "name", f"sklearn:{_path_of(type(self.estimator))}")

    @classmethod
    def from_params(cls, params: Mapping[str, Any], member: str = "") -> Self:
        """The classifier named `member`, as text such as ``sklearn.svm.SVC`` or ``SVC``."""
        module, _, short = (member or "SVC").rpartition(".")
        if short not in CLASSIFIERS | COMPOSED or module not in ("", f"sklearn.{PARTS[short]}"):
            near = " or ".join(map(repr, cls.nearest(member)))
            hint = f"did you mean {near}?" if near else "check the spelling."
            known = ", ".join(sorted(CLASSIFIERS))
            raise UnknownNameError(f"unknown classifier of scikit-learn {member!r}: {hint} Known: {known}.")
        if short in COMPOSED:
            raise MethodError(f"{short} is made of other estimators; make it in Python and give it as the method.")
        return cls(_part(short)()).set_params(**params)

    @classmethod
    def nearest(cls, given: str, cutoff: float = 0.5) -> list[str]:
        """Full names of classifiers whose own name, the part behind the last full stop, is like that of `given`."""
        named = CLASSIFIERS | COMPOSED
        names = {short.lower(): f"sklearn:sklearn.{module}.{short}" for short, module in named.items()}
        asked = given.rpartition(".")[2].lower()
        return [names[one] for one in difflib.get_close_matches(asked, names, 1 if asked in names else 3, cutoff)]

    @classmethod
    def wrap(cls, estimator: Any) -> SklearnMethod:
        """A classifier as a method; one of other parts than scikit-learn's own gets one episode at a time.

        Raises `MethodError` where it is none.
        """
        needed = ("fit", "predict", "get_params", "set_params")
        # Asked of the class, since some have a method only after they were fitted.
        if not all(callable(getattr(type(estimator), one, None)) for one in needed):
            given = repr(estimator) if isinstance(estimator, type) else f"of type {type(estimator).__name__}"
            raise MethodError(
                f"the method given is {given}, but a name of fsmer.list_methods, a Method, or a classifier of "
                f"scikit-learn (an object with {', '.join(needed)}) is expected."
            )
        name = type(estimator).__name__
        remedy = "give one that keeps scikit-learn's rules for get_params and set_params"
        with outside_call(f"copying the classifier {name} by its parameters", MethodError, remedy):
            other = _other_kind(estimator)
            wrapped = (OtherEstimator if _foreign_part(estimator) else SklearnMethod)(_clone(estimator))
            wrapped.get_params()
        if other:
            raise MethodError(f"{name} is {other}; give a classifier that predicts one class a clip.")
        return wrapped

    @classmethod
    def from_folder(cls, told: Mapping[str, Any], folder: Path) -> SklearnMethod:
        """The classifier that `save_files` wrote; it is fitted to the saved support afterwards.

        Raises `WeightsError` for a file that is missing or damaged, holds anything but the classes of `PARTS` and plain
        values, is at odds with `told`, or asks for more than `LIMITS`.
        """
        path, given = folder / ESTIMATOR_FILE, told["params"]
        with outside_call(f"reading {path} as a classifier", WeightsError, "save the recognizer anew"):
            with zipfile.ZipFile(io.BytesIO(read_bytes(path, LIMIT))) as packed:
                if sum(one.file_size for one in packed.infolist()) > LIMIT:
                    raise ValueError(f"it unpacks to more than {LIMIT:,} bytes")
                estimator = _read_node(json.loads(packed.read("schema.json")), packed)
            if type(estimator).__name__ not in CLASSIFIERS | COMPOSED:
                raise ValueError(f"a {type(estimator).__name__} is no classifier")
            if foreign := _foreign_part(estimator) or _other_kind(estimator):
                raise ValueError(f"it holds {foreign}")
            _count_fits(estimator)
            own = {key: given[key] for key in ("standardize", "seed") if key in given}
            method = cls(estimator).set_params(**own)
            if differing := method._differing(told):
                raise ValueError(f"{differing} is another one in the config of the recognizer")
        return method

    def save_files(self, folder: Path) -> None:
        """Write the classifier, before it was fitted, to `folder`.

        Raises `WeightsError` where it has parts that are neither classifiers of scikit-learn nor plain values, and
        `FsmerError` without the package skops.
        """
        name = f"the classifier {type(self.estimator).__name__} cannot be saved"
        if foreign := _foreign_part(self.estimator):
            raise WeightsError(
                f"{name}, for it holds {foreign}, and only parts of scikit-learn and plain values are read from a "
                "file; use such ones, or adapt anew where it is needed."
            )
        try:
            import skops.io

            _count_fits(self.estimator)
            skops.io.dump(self.estimator, folder / ESTIMATOR_FILE)
        except ImportError as error:
            refusal = f"{name} without the package skops, which is not installed; install fsmer[sklearn-methods]."
            raise FsmerError(refusal) from error
        except ValueError as error:
            raise WeightsError(f"{name} ({reason_of(error)}); use smaller parameters.") from error

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> FittedHead:
        """A clone of the classifier an episode."""
        self._need_support(codes)
        each = zip(embeddings.double().numpy(), codes.numpy(), strict=True)
        fitted = tuple(self._fit_one(rows[of >= 0], of[of >= 0]) for rows, of in each)
        return EstimatorHead(fitted, way, repr(self.name))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Those of the classifier, `standardize` and `seed`; what is not plain is text that differs where it does."""
        own = {key: _described(value) for key, value in self.estimator.get_params(deep=False).items()}
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
        return replace(self, estimator=made, **self._typed(fields, self.name))

    def __eq__(self, other: object) -> bool:
        # As text, since 1 and 1.0 are different parameters: one feature and all of them.
        return type(other) is type(self) and repr(self.to_dict()) == repr(other.to_dict())

    def __hash__(self) -> int:
        return hash(self.name)

    def __sklearn_clone__(self) -> Self:
        return self

    def _differing(self, told: Mapping[str, Any]) -> str:
        """The first thing that a recognizer's config says otherwise; nothing where it says the same."""
        given, known = dict(told["params"]), inspect.signature(type(self.estimator)).parameters
        if told["name"] != self.name:
            return f"the name {self.name!r}"
        for key, value in self.estimator.get_params(deep=False).items():
            said = json.dumps(given.pop(key, _described(known[key].default)))
            # An earlier version wrote what is not plain as its repr.
            if said not in (json.dumps(_described(value)), json.dumps(repr(value))):
                return f"the parameter {key!r}"
        # Parameters that scikit-learn has taken out since were of no effect.
        left = [key for key, value in given.items() if key not in ("standardize", "seed") and value != "deprecated"]
        return f"the parameter {left[0]!r}" if left else ""

    def _fit_one(self, rows: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
        from sklearn.dummy import DummyClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.utils._param_validation import InvalidParameterError

        classes = len(np.unique(labels))
        if classes < 2:
            return DummyClassifier(strategy="most_frequent").fit(rows, labels)
        what = f"fitting {self.name!r} to {len(rows)} clips of {classes} classes"
        with outside_call(what, SupportError, "give more clips or other parameters"):
            made = _clone(self.estimator)
            drawn = [key for key, value in made.get_params().items() if key.endswith("random_state") and value is None]
            made.set_params(**dict.fromkeys(drawn, self.seed))
            try:
                return (make_pipeline(StandardScaler(), made) if self.standardize else made).fit(rows, labels)
            except InvalidParameterError as error:
                raise MethodError(f"{self.name!r} has an impossible parameter: {error}") from error


class OtherEstimator(SklearnMethod):
    """A classifier with parts that are not listed here; it declares nothing, so that its episodes are isolated."""

    @property
    def origin(self) -> str:
        """The package of the classifier."""
        return type(self.estimator).__module__.partition(".")[0]


def _probabilities(estimator: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of shape (Q, classes of the estimator)."""
    shape = (len(rows), len(estimator.classes_))
    if hasattr(estimator, "predict_proba"):
        found = np.asarray(estimator.predict_proba(rows), dtype=np.float64)
        if found.shape == shape:
            if (wrong := unsound_answers(found)).any():
                row = ", ".join(f"{value:g}" for value in found[wrong.argmax()])
                raise ValueError(f"its predict_proba gives ({row}), but probabilities sum to 1")
            return found
    pairs = any(key.endswith("function_shape") and value == "ovo" for key, value in estimator.get_params().items())
    if hasattr(estimator, "decision_function") and not pairs:
        scores = np.asarray(estimator.decision_function(rows), dtype=np.float64)
        scores = np.stack([np.zeros(len(rows)), scores], axis=1) if scores.ndim == 1 else scores
        if scores.shape == shape:
            return torch.softmax(torch.from_numpy(scores), dim=1).numpy()
    return np.asarray(estimator.predict(rows)[:, None] == estimator.classes_, dtype=np.float64)


def _part(name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"sklearn.{PARTS[name]}"), name)
    except AttributeError as error:
        raise MethodError(f"the scikit-learn that is installed has no {name}; upgrade it.") from error


def _is_part(kind: Any) -> bool:
    return getattr(kind, "__name__", "") in PARTS and _part(kind.__name__) is kind


def _path_of(kind: Any) -> str:
    """Where a class or function is found by its users."""
    return f"{f'sklearn.{PARTS[kind.__name__]}' if _is_part(kind) else kind.__module__}.{kind.__qualname__}"


def _other_kind(estimator: Any) -> str:
    """What an estimator is if it is no classifier of one label, in words; one that does not say it is believed."""
    from sklearn.utils import get_tags

    tags = get_tags(estimator) if hasattr(estimator, "__sklearn_tags__") else None
    if tags is None or (tags.estimator_type is None and tags.transformer_tags is None):
        return ""
    if tags.estimator_type != "classifier":
        return f"a {tags.estimator_type or 'transformer'} and no classifier".replace("_", " ")
    return "" if tags.target_tags.single_output else "a classifier of many labels a clip"


def _foreign_part(value: Any) -> str:
    """What of an estimator is neither a listed class nor a plain value, in words; nothing where all is."""
    inner: Iterable[Any] = ()
    if hasattr(value, "get_params") and not isinstance(value, type):
        params = value.get_params(deep=False)
        if not _is_part(type(value)):
            return f"a {_path_of(type(value))}"
        if params.get("memory"):  # where results are stored on a disk is no business of a file
            return "a cache"
        inner = params.values()
    elif isinstance(value, dict) and all(type(key) in KEYS.values() for key in value):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    elif not (value is None or isinstance(value, (bool, int, float, str, np.number, np.ndarray))) or (
        isinstance(value, np.ndarray) and value.dtype.kind not in "biuf"
    ):
        return f"a value of type {type(value).__name__}"
    return next(filter(None, map(_foreign_part, inner)), "")


def _described(value: Any) -> Any:
    """A parameter as plain values that differ where it does: estimators and functions are text."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _described(value[key]) for key in sorted(value, key=repr)}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_described, value)) if type(value) in (list, tuple) else list(map(_described, value))
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "get_params") and not isinstance(value, type):
        params = value.get_params(deep=False).items()
        return f"{_path_of(type(value))}({', '.join(f'{key}={_described(one)!r}' for key, one in sorted(params))})"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{_path_of(named)} {hashlib.sha256(cloudpickle.dumps(value)).hexdigest()[:16]}"


def _count_fits(value: Any) -> float:
    """How many classifiers an estimator, or a list of them, fits; ``ValueError`` beyond `LIMITS` and `FITS`."""
    if isinstance(value, (list, tuple)):
        return sum(map(_count_fits, value))
    if not hasattr(value, "get_params"):
        return 0
    params, found = value.get_params(deep=False), 1.0
    for name, limit in LIMITS.items():
        asked = params.get(name)
        for number in asked if name == "hidden_layer_sizes" and isinstance(asked, (list, tuple)) else [asked]:
            if isinstance(number, Real) and not number <= limit:
                raise ValueError(f"{name}={number} is more than {limit:,}")
        # Each iteration of this one is an estimator.
        counts = name in COUNTS or (name == "max_iter" and type(value).__name__ == "HistGradientBoostingClassifier")
        found *= max(1.0, float(asked)) if counts and isinstance(asked, Real) else 1.0
    found *= max(1, sum(map(_count_fits, params.values())))
    if found > FITS:
        raise ValueError(f"it fits {found:,.0f} estimators, more than {FITS:,}")
    return found


def _read_node(node: Any, packed: zipfile.ZipFile) -> Any:
    """What an entry of the schema of skops stands for.

    It is read here and not by skops, whose objects get any attributes that a file names: what is made here are the
    classes of `PARTS`, from their parameters alone.
    """
    match node:
        case {"__loader__": "JsonNode", "content": str(text)}:
            return json.loads(text)
        case {"__loader__": "ListNode" | "TupleNode" as kind, "content": list(items)}:
            return (list if kind == "ListNode" else tuple)(_read_node(one, packed) for one in items)
        case {"__loader__": "DictNode", "content": dict(items), "key_types": {"content": list(kinds)}}:
            types = [KEYS[of["__class__"]] for of in kinds]
            return {of(key): _read_node(one, packed) for of, (key, one) in zip(types, items.items(), strict=True)}
        case {"__loader__": "NdArrayNode", "type": "numpy", "file": str(name)}:
            return np.load(io.BytesIO(packed.read(name)), allow_pickle=False)[()]
        case {"__loader__": "ObjectNode", "__class__": str(name), "content": {"content": state}} if name in PARTS:
            if (kind := _part(name)).__module__ == node["__module__"]:
                known = inspect.signature(kind).parameters
                return kind(**{key: _read_node(state[key], packed) for key in known if key in state})
    named = [str(node.get(key))[:100] for key in ("__module__", "__class__")] if isinstance(node, dict) else ["a value"]
    raise ValueError(f"it holds {'.'.join(named)}, but listed classes of scikit-learn and plain values are read")


def _read_text(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        with suppress(ValueError):
            found = json.loads({"none": "null", "true": "true", "false": "false"}.get(word, value))
            return tuple(found) if isinstance(found, list) else found
    return value


def _clone(estimator: Any) -> Any:
    from sklearn.base import clone

    return clone(estimator)
