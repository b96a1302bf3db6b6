"""Conditions on a table of clips, such as ``dataset == 'smic' and subject != '006'``: read and applied, never run.

The grammar:

- columns by name; names with blanks, dashes or the like stand in backticks: ```frame rate` > 100``;
- literals: text in quotes, numbers, ``True`` and ``False``;
- ``== != < <= > >=`` between a column and a literal or another column, also chained: ``3 < onset <= 40``;
- ``in`` and ``not in`` with a list of literals: ``subject in ['006', '007']`` (``subject == ['006', '007']`` is the
  same);
- ``is missing`` and ``is not missing``;
- of text ``startswith``, ``endswith`` and ``contains`` (plain text, no pattern), and ``lower``, ``upper``, ``strip``:
  ``clip.lower().endswith('_a')``; ``clip.str.lower()`` is the same;
- ``and``, ``or``, ``not`` (also written ``&``, ``|``, ``~``) and parentheses; a column of booleans is a condition of
  its own;
- line ends count as blanks, and what follows a ``#`` on its line is a remark.

Text is compared with text, numbers with numbers, booleans with booleans; anything else is an error. A missing value
(NaN, None, empty text) fits nothing but ``is missing``: neither ``label == 'a'`` nor ``label != 'a'`` nor
``not (label == 'a')`` holds for a clip without a label.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fsmer.data.table import CORE_COLUMNS, plain_texts
from fsmer.errors import DataError

__all__ = ["condition_mask", "fitting_rows"]

LONGEST, DEEPEST, MOST_COMPARISONS = 20_000, 40, 200
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_TESTS: dict[str, Any] = {"startswith": str.startswith, "endswith": str.endswith, "contains": operator.contains}
_CHANGES: dict[str, Callable[[str], str]] = {"lower": str.lower, "upper": str.upper, "strip": str.strip}

_ALLOWED = (
    "write for instance dataset == 'smic' and subject != '006'; allowed are columns, text in quotes, numbers, True, "
    "False, == != < <= > >=, in [...], is missing, and, or, not, parentheses, and of text "
    f"{', '.join([*_TESTS, *_CHANGES])}"
)

# Quoted text comes first, so that backticks, ampersands and number signs inside it stay what they are.
_TOKENS = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`[^`]*`|[&|]|#[^\r\n]*|[\r\n]+")
_BACKTICKED = "_"

Mask = NDArray[np.bool_]
Literal = str | float | bool
Type = type[str] | type[float] | type[bool]

_NAMES: dict[Type, str] = {str: "text", float: "numbers", bool: "booleans"}


@dataclass(frozen=True)
class _Column:
    name: str
    type: Type
    cells: pd.Series
    """Of a type of pandas in which a missing cell makes a comparison missing: neither it nor its contrary holds."""


def condition_mask(where: str, table: pd.DataFrame) -> Mask:
    """Which rows of a table fit a condition of the grammar above; the errors are those of `ClipSet.select`."""
    return _Reader(where, table).mask()


def fitting_rows(
    table: pd.DataFrame, where: str | Callable[[pd.DataFrame], ArrayLike] | None, equals: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Which rows fit a condition and have these values; parameters and errors are those of `ClipSet.select`."""
    mask = np.ones(len(table), bool)
    if callable(where):
        mask = np.asarray(where(table.copy(deep=False)))
        if mask.dtype != bool or mask.shape != (len(table),):
            raise DataError(f"the function {where!r} gives no yes or no per clip; return table['dataset'] == 'smic'.")
    elif where is not None:
        mask = condition_mask(str(where), table)
    for name, value in equals.items():
        if name not in table.columns:
            raise DataError(f"there is no column {name!r} to select by; it has {', '.join(map(str, table.columns))}.")
        wanted = list(value) if isinstance(value, (list, tuple, set, frozenset, np.ndarray)) else [value]
        if name in CORE_COLUMNS:
            wanted = [text or (None if name == "label" else "") for text in plain_texts(wanted, name)]
        mask = mask & table[name].isin(wanted).to_numpy(bool)
    return mask


class _Reader:
    def __init__(self, where: str, table: pd.DataFrame) -> None:
        self.where, self.table, self.comparisons = where, table, 0
        self.columns: dict[str, _Column] = {}

    def mask(self) -> Mask:
        if len(self.where) > LONGEST:
            self.refuse(f"has {len(self.where)} characters, but {LONGEST} at most are read", "give select a function")
        text = _TOKENS.sub(_as_python, self.where).strip()
        if not text:
            self.refuse("is empty", f"leave it out to take all clips, or {_ALLOWED}")
        try:
            with warnings.catch_warnings():
                # Remarks on the style of what was typed.
                warnings.simplefilter("ignore")
                tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            too_deep = isinstance(error, (MemoryError, RecursionError))
            reason = "it is nested too deep" if too_deep else getattr(error, "msg", None) or str(error)
            self.refuse(f"cannot be read ({reason[:100]})", cause=error)
        return self.truth(tree, 0).fillna(False).to_numpy(bool)

    def refuse(self, why: str, remedy: str = _ALLOWED, cause: BaseException | None = None) -> NoReturn:
        shown = self.where if len(self.where) <= 200 else f"{self.where[:200]}..."
        raise DataError(f"the condition {shown!r} {why}; {remedy}.") from cause

    def truth(self, node: ast.expr, depth: int) -> pd.Series:
        if depth > DEEPEST:
            self.refuse(f"is nested more than {DEEPEST} deep", "give select a function")
        if isinstance(node, ast.BoolOp):
            parts = (self.truth(part, depth + 1) for part in node.values)
            return reduce(operator.and_ if isinstance(node.op, ast.And) else operator.or_, parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
            return ~self.truth(node.operand, depth + 1)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            steps = zip(sides, node.ops, sides[1:], strict=False)
            return reduce(operator.and_, (self.step(left, sign, right, depth) for left, sign, right in steps))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TESTS:
            return self.test(node, node.func, depth)
        found = self.operand(node, depth)
        if isinstance(found, _Column) and found.type is bool:
            return found.cells
        self.refuse(f"gives no yes or no per clip at {self.source(node)!r}")

    def step(self, left: ast.expr, sign: ast.cmpop, right: ast.expr, depth: int) -> pd.Series:
        self.comparisons += 1
        if self.comparisons > MOST_COMPARISONS:
            self.refuse(f"makes more than {MOST_COMPARISONS} comparisons", "list many values after 'in'")
        if isinstance(sign, (ast.Is, ast.IsNot)):
            column = self.operand(left, depth + 1)
            if not (isinstance(right, ast.Name) and right.id == "missing" and isinstance(column, _Column)):
                self.refuse("uses 'is' for something else than 'is missing' or 'is not missing' of a column")
            missing = column.cells.isna().astype("boolean")
            return missing if isinstance(sign, ast.Is) else ~missing
        listed = isinstance(right, (ast.List, ast.Tuple, ast.Set))
        if isinstance(sign, (ast.In, ast.NotIn)) or (listed and isinstance(sign, (ast.Eq, ast.NotEq))):
            column = self.operand(left, depth + 1)
            if not (listed and isinstance(column, _Column)):
                self.refuse("uses 'in' for something else than a column and a list of literals in brackets")
            wanted = [self.fitting(self.literal(one), column) for one in right.elts]  # type: ignore[attr-defined]
            held = column.cells.isin(wanted).astype("boolean").mask(column.cells.isna())
            return held if isinstance(sign, (ast.In, ast.Eq)) else ~held
        a, b = self.operand(left, depth + 1), self.operand(right, depth + 1)
        compare = _COMPARISONS[type(sign)]
        if isinstance(a, _Column) and isinstance(b, _Column):
            if a.type is not b.type:
                self.refuse(f"compares {_described(a)} with {_described(b)}", "compare columns of one type")
            return compare(a.cells, b.cells)
        if isinstance(a, _Column):
            return compare(a.cells, self.fitting(b, a))
        if isinstance(b, _Column):
            return compare(self.fitting(a, b), b.cells)
        self.refuse(f"compares {a!r} with {b!r}, and neither is a column")

    def test(self, node: ast.Call, function: ast.Attribute, depth: int) -> pd.Series:
        column = self.text_of(function, depth)
        if len(node.args) != 1 or node.keywords:
            self.refuse(f"gives {function.attr} not one text in quotes")
        given = node.args[0]
        some = given.elts if isinstance(given, (ast.List, ast.Tuple)) else [given]
        words = [word for word in map(self.literal, some) if isinstance(word, str)]
        if len(words) < len(some):
            self.refuse(f"gives {function.attr} something else than text in quotes")
        holds = _TESTS[function.attr]
        found = column.cells.map(lambda cell: any(holds(cell, word) for word in words), na_action="ignore")
        return found.astype("boolean")

    def text_of(self, function: ast.Attribute, depth: int) -> _Column:
        """The column that a method of text is called on, with or without ``.str`` before it."""
        of = function.value
        if isinstance(of, ast.Attribute) and of.attr == "str":
            of = of.value
        column = self.operand(of, depth + 1)
        if not isinstance(column, _Column) or column.type is not str:
            self.refuse(f"uses {function.attr} on {_described(column)}", "use it on a column of text")
        return column

    def operand(self, node: ast.expr, depth: int) -> _Column | Literal:
        if depth > DEEPEST:
            self.refuse(f"is nested more than {DEEPEST} deep", "give select a function")
        if isinstance(node, ast.Name):
            return self.column(node.id)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == _BACKTICKED:
            name = self.literal(node.slice)
            if isinstance(name, str):
                return self.column(name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
            if node.args or node.keywords:
                self.refuse(f"gives {node.func.attr} something in its parentheses, which stay empty")
            column = self.text_of(node.func, depth)
            return _text_column(column.name, column.cells.map(_CHANGES[node.func.attr], na_action="ignore"))
        return self.literal(node)

    def literal(self, node: ast.expr) -> Literal:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign = -1 if isinstance(node.op, ast.USub) else 1
            node = node.operand
            if not isinstance(node, ast.Constant) or isinstance(node.value, (str, bool)):
                self.refuse("has a sign before something else than a number")
        value = node.value if isinstance(node, ast.Constant) else ...
        if isinstance(value, (str, bool)):
            return value
        if isinstance(value, (int, float)):
            # Whole numbers beyond 64 bits are larger than whatever a column holds.
            return sign * (value if isinstance(value, float) or value < 2**63 else np.inf)
        if value is None:
            self.refuse("compares with None", "write for instance label is missing")
        self.refuse(f"holds {self.source(node)!r}, which is not allowed here")

    def column(self, name: str) -> _Column:
        if name not in self.table.columns:
            held = ", ".join(map(str, self.table.columns))
            self.refuse(f"names the column {name!r}, which the table does not have", f"its columns are {held}")
        if name not in self.columns:
            found = _column(name, self.table[name])
            if found is None:
                what = f"names the column {name!r}, which holds something else than text, numbers or booleans"
                self.refuse(what, "give select a function")
            self.columns[name] = found
        return self.columns[name]

    def fitting(self, value: Literal | _Column, column: _Column) -> Any:
        if isinstance(value, _Column) or _type_of(value) is not column.type:
            example = {str: "text in quotes, as in subject == '006'", bool: "True or False", float: "a number"}
            self.refuse(f"compares {_described(column)} with {_described(value)}", f"write {example[column.type]}")
        if value == "":
            self.refuse("compares with empty text, which is a missing value", f"write {column.name} is missing")
        return value

    def source(self, node: ast.expr) -> str:
        try:
            return ast.unparse(node)[:80]
        except RecursionError:
            return type(node).__name__


def _as_python(token: re.Match[str]) -> str:
    text = token[0]
    if text.startswith("`"):
        return f"{_BACKTICKED}[{text[1:-1]!r}]"
    if text[0] in "#\r\n":
        return " "
    # Ampersand and bar bind as loosely as the words, so that a == 'x' & b == 'y' needs no parentheses.
    return {"&": " and ", "|": " or "}.get(text, text)


def _column(name: str, cells: pd.Series) -> _Column | None:
    if isinstance(cells.dtype, pd.CategoricalDtype):
        cells = cells.astype(cells.cat.categories.dtype)
    unknown = cells.dtype == object and cells.isna().all()
    cells = cells.reset_index(drop=True).convert_dtypes()
    types = pd.api.types
    if unknown or isinstance(cells.dtype, pd.StringDtype):
        return _text_column(name, cells)
    if types.is_bool_dtype(cells.dtype):
        return _Column(name, bool, cells)
    number = types.is_integer_dtype(cells.dtype) or types.is_float_dtype(cells.dtype)
    return _Column(name, float, cells) if number else None


def _text_column(name: str, cells: pd.Series) -> _Column:
    """A column of text whose empty cells are missing ones."""
    cells = cells.astype(pd.StringDtype("python"))
    return _Column(name, str, cells.mask(cells == ""))


def _type_of(value: Literal) -> Type:
    return str if isinstance(value, str) else bool if isinstance(value, bool) else float


def _described(value: _Column | Literal) -> str:
    if isinstance(value, _Column):
        return f"the column {value.name!r} of {_NAMES[value.type]}"
    return f"{_NAMES[_type_of(value)].removesuffix('s')} {value!r}"
