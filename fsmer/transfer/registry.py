"""Which methods there are, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsmer.errors import UnknownNameError
from fsmer.listing import Listing
from fsmer.plugins import METHODS, OWN
from fsmer.transfer.heads import MethodError

__all__ = ["MethodInfo", "list_methods", "load_method", "register_method"]

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

    from fsmer.transfer.method import Method

# Class decorator that enters a method in the registry under a name, if wanted with other values of its parameters.
register_method = METHODS.register


@dataclass(frozen=True)
class MethodInfo:
    """One line of `list_methods`; `params` is empty where a plugin's method has parameters without defaults.

    `transductive` methods look at all query clips together.
    """

    name: str
    summary: str
    params: dict[str, Any]
    transductive: bool = False

    @property
    def said(self) -> str:
        """The summary, and whether the method is transductive."""
        stamp = "" if not self.transductive or "transductive" in self.summary else " (transductive)"
        return (self.summary or "-") + stamp


def load_method(name: str | Method | ClassifierMixin, **params: Any) -> Method:
    """The method of that name with `params` in place of its defaults.

    Parameters
    ----------
    name : str, Method or classifier of scikit-learn
        A name of `list_methods`, or a method to change parameters of. Classifiers of scikit-learn are named like
        ``"sklearn:sklearn.svm.SVC"``, or given as they are, see `fsmer.transfer.sklearn_methods.SklearnMethod`.
    **params : object
        Parameters of the method in place of its defaults. Text is read as the parameter's type, so that a command line
        can hand values on: ``steps="50"``, ``scale="none"``.

    Returns
    -------
    Method
        A method of its own.

    Raises
    ------
    UnknownNameError
        No such method or parameter; the nearest names are suggested.
    MethodError
        A value that the method cannot work with.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.load_method("cosine", steps=50).steps
    50
    >>> nearest = fsmer.load_method("sklearn:sklearn.neighbors.KNeighborsClassifier", n_neighbors="1")
    >>> nearest.get_params()["n_neighbors"]
    1
    """
    if isinstance(name, type):
        raise MethodError(
            f"a method was given as the class {name.__name__}; give what it makes, {name.__name__}(...), or a name of "
            "fsmer.list_methods."
        )
    if not isinstance(name, str):
        # What is no method may be a classifier of scikit-learn.
        method = name if hasattr(name, "fit_head") else METHODS["sklearn"].wrap(name)
        return method.set_params(**params)
    family, _, member = name.partition(":")
    known = family if member else name
    if known not in METHODS and (near := METHODS["sklearn"].nearest(name, 0.85)):
        raise UnknownNameError(
            f"unknown method {name!r}: did you mean {' or '.join(map(repr, near))}? fsmer.list_methods has the others."
        )
    return METHODS.find(known).from_params(METHODS.preset(family) | params, member)


def list_methods() -> list[MethodInfo]:
    """All methods with their summaries and default parameters, sorted by name.

    Returns
    -------
    list of MethodInfo
        One entry a method.

    Examples
    --------
    >>> import fsmer
    >>> [method.name for method in fsmer.list_methods()][:2]
    ['alpha_tim', 'cosine']
    """
    found = Listing[MethodInfo](title="methods", row=_method_row)
    for name in sorted(METHODS):
        preset, summary = METHODS.preset(name), METHODS.summary(name)
        try:
            params = METHODS[name].from_params(preset).get_params()
        # Code from outside raises whatever it likes, and the other methods are listed all the same.
        except Exception:
            if METHODS.origin(name) == OWN:
                raise
            params = {}
        if preset:
            implied = ", ".join(f"{key}={value}" for key, value in preset.items())
            summary = f"{summary.removesuffix('.')}, with {implied}."
        found.append(MethodInfo(name=name, summary=summary, params=params, transductive=METHODS[name].transductive))
    return found


def _method_row(one: MethodInfo) -> dict[str, str]:
    return {"method": one.name, "what it does": one.said}
