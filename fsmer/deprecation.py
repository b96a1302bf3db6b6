"""What goes in a later release: it works on for two minor releases and warns whoever uses it.

The cycle is written in ``CONTRIBUTING.md``. `DEPRECATIONS` lists all marks; a test finds those that are overdue.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from typing_extensions import deprecated as warning_on_use

from fsmer.errors import DataError, FsmerDeprecationWarning

__all__ = ["DEPRECATIONS", "Deprecation", "deprecated", "deprecated_attributes", "deprecated_parameter"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Deprecation:
    """One thing that goes.

    Parameters
    ----------
    name : str
        What it is called, with its module.
    since : str
        First release that warns, such as ``"0.2"``.
    removal : str
        Release in which it is gone, at least two minor releases later, such as ``"0.4"``.
    instead : str
        What to use in its place, as it follows "use".

    Examples
    --------
    >>> import warnings
    >>> from fsmer.deprecation import Deprecation
    >>> mark = Deprecation("fsmer.old", since="0.2", removal="0.4", instead="fsmer.new")
    >>> mark.message
    'fsmer.old is deprecated since fsmer 0.2 and goes in fsmer 0.4; use fsmer.new instead.'
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     mark.warn(1)
    >>> caught[0].category.__name__
    'FsmerDeprecationWarning'
    """

    name: str
    since: str
    removal: str
    instead: str

    @property
    def message(self) -> str:
        """The sentence of the warning."""
        return (
            f"{self.name} is deprecated since fsmer {self.since} and goes in fsmer {self.removal}; "
            f"use {self.instead} instead."
        )

    def warn(self, stacklevel: int) -> None:
        """Warn the caller of the function that is `stacklevel` calls above this one.

        Parameters
        ----------
        stacklevel : int
            1 is the function that calls this method, 2 its caller.
        """
        # Python shows a warning once for each line that it points to.
        warnings.warn(self.message, FsmerDeprecationWarning, stacklevel=stacklevel + 1)


DEPRECATIONS: list[Deprecation] = []


def _marked(thing: Any, part: str, since: str, removal: str, instead: str) -> Deprecation:
    mark = Deprecation(f"{part}{thing.__module__}.{thing.__qualname__}", since, removal, instead)
    DEPRECATIONS.append(mark)
    return mark


def deprecated(*, since: str, removal: str, instead: str) -> Callable[[T], T]:
    """Decorator of a function, method or class that goes: every use warns with a `FsmerDeprecationWarning`.

    Type checkers warn too where ``typing_extensions.deprecated("...", category=None)`` stands above it, since they read
    that name alone.

    Parameters
    ----------
    since : str
        First release that warns, such as ``"0.2"``.
    removal : str
        Release in which it is gone, at least two minor releases later, such as ``"0.4"``.
    instead : str
        What to use in its place, as it follows "use".

    Returns
    -------
    callable
        The decorator. Its function or class does what it did.

    Examples
    --------
    >>> import warnings
    >>> from fsmer.deprecation import deprecated
    >>> @deprecated(since="0.2", removal="0.4", instead="sum")
    ... def add(numbers):
    ...     return sum(numbers)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     total = add([1, 2])
    >>> total, str(caught[0].message).split("; ")[1]
    (3, 'use sum instead.')
    """

    def mark(thing: T) -> T:
        message = _marked(thing, "", since, removal, instead).message
        return warning_on_use(message, category=FsmerDeprecationWarning)(thing)

    return mark


def deprecated_parameter(
    old: str, *, since: str, removal: str, instead: str, renamed: str | None = None
) -> Callable[[F], F]:
    """Decorator of a function that still takes a keyword which its signature no longer has, with a warning.

    Parameters
    ----------
    old : str
        The keyword that goes.
    since : str
        First release that warns, such as ``"0.2"``.
    removal : str
        Release in which it is gone, at least two minor releases later, such as ``"0.4"``.
    instead : str
        What to use in its place, as it follows "use".
    renamed : str, optional
        The parameter that gets the value. Default: none, and the value has no effect.

    Returns
    -------
    callable
        The decorator. Its function raises a `DataError` where both keywords are given.

    Examples
    --------
    >>> import warnings
    >>> from fsmer.deprecation import deprecated_parameter
    >>> @deprecated_parameter("n", since="0.2", removal="0.4", instead="shot", renamed="shot")
    ... def support_size(way, *, shot=5):
    ...     return way * shot
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     size = support_size(3, n=1)
    >>> size, caught[0].category.__name__
    (3, 'FsmerDeprecationWarning')
    """

    def mark(function: F) -> F:
        found = _marked(function, f"the parameter {old!r} of ", since, removal, instead)

        @functools.wraps(function)
        def with_old_keyword(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                found.warn(2)
                value = kwargs.pop(old)
                if renamed is not None:
                    if renamed in kwargs:
                        raise DataError(
                            f"{function.__qualname__} was given {old!r} and {renamed!r}, which are the same parameter; "
                            f"leave out {old!r}."
                        )
                    kwargs[renamed] = value
            return function(*args, **kwargs)

        return with_old_keyword  # type: ignore[return-value]

    return mark


def deprecated_attributes(module: str, moved: Mapping[str, str], *, since: str, removal: str) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a module whose attributes have moved.

    Parameters
    ----------
    module : str
        Name of the module that had them, its ``__name__``.
    moved : mapping of str to str
        Attribute -> module and name that it has now, such as ``{"OLD": "fsmer.data.NEW"}``.
    since : str
        First release that warns, such as ``"0.2"``.
    removal : str
        Release in which it is gone, at least two minor releases later, such as ``"0.4"``.

    Returns
    -------
    callable
        To be bound to ``__getattr__`` in that module. It raises an ``AttributeError`` for other names.

    Examples
    --------
    >>> import warnings
    >>> from fsmer.deprecation import deprecated_attributes
    >>> find = deprecated_attributes("old", {"Error": "fsmer.errors.FsmerError"}, since="0.2", removal="0.4")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     error = find("Error")
    >>> error.__name__, len(caught)
    ('FsmerError', 1)
    """
    marks = {name: Deprecation(f"{module}.{name}", since, removal, place) for name, place in moved.items()}
    DEPRECATIONS.extend(marks.values())

    def find(name: str) -> Any:
        if name not in marks:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        marks[name].warn(2)
        place, _, attribute = moved[name].rpartition(".")
        return getattr(import_module(place), attribute)

    return find
