"""Read the action-unit strings of micro-expression annotations into structured units, losing nothing silently."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import numpy as np

from fsmer.errors import DataError

__all__ = ["AUExpression", "ParsedAU", "au_numbers", "parse_aus"]

# Sheets typed with an East Asian keyboard hold full-width forms of the same characters.
FULL_WIDTH = str.maketrans({chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)} | {"、": ",", "\u3000": " "})

DEEPEST = 8
# Annotations have a few dozen characters; what is far longer is none, and would take long to read.
LONGEST = 1 << 16

UNIT = re.compile(
    r"""
    (?<!\w)
    (?:AU\s*)?
    (?P<sides>[LRATB](?:\s*/\s*[LRATB]){0,4})?     # L, R, A, T, B, or A/L: one or the other
    (?P<number>[1-9][0-9]?)(?:\.0+)?               # sheets turn whole numbers into 4.0
    (?P<intensities>[A-E](?:\s*[/-]\s*[A-E]){0,4})? # B, or the range A/B
    (?!\w|\.\d)
    (?P<static>\s*\(\s*k\s*\))?
    (?P<uncertain>\s*\?)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
OTHER = re.compile(
    r"""
    (?P<ref>ref\s*\()
    | (?P<open>\()
    | (?P<close>\))
    | (?P<or>/|\||\bor\b)
    | (?P<separator>[+,;\s]+)
    | (?P<unclear>\?)
    | (?P<word>[^\s+,;()/?|]+)
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class ParsedAU:
    """One action unit as an annotation states it.

    Parameters
    ----------
    number : int
        FACS number.
    sides : tuple of str
        Letters before the number: L left, R right, A asymmetric, T top lip, B bottom lip. Empty when both sides move;
        several when the coder left it open (``A/L12``).
    intensities : tuple of str
        Letters after the number, A (trace) to E (maximum); two for a range (``4A/B``).
    reference : bool
        Written inside ``ref(...)``: there in the reference frame already, not a movement of this clip.
    static : bool
        Marked ``(k)``: held during the clip, not a movement of it.
    uncertain : bool
        Followed by a question mark.
    choice : int or None
        Number of the set of alternatives that it belongs to (``L12 or L14``), None when it stands for itself.
    option : int
        Which alternative of that set; units of one option go together.
    text : str
        The characters it was read from.
    """

    number: int
    sides: tuple[str, ...] = ()
    intensities: tuple[str, ...] = ()
    reference: bool = False
    static: bool = False
    uncertain: bool = False
    choice: int | None = None
    option: int = 0
    text: str = ""

    @property
    def moves(self) -> bool:
        """Whether the unit is a movement of the clip: neither in the reference frame nor held."""
        return not (self.reference or self.static)


@dataclass(frozen=True)
class AUExpression:
    """All that one annotation cell says.

    Parameters
    ----------
    text : str
        The cell.
    units : tuple of ParsedAU
        Every unit in the order written, alternatives included.
    unparsed : tuple of str
        Words, numbers and marks that are no action units, in the order written.
    unclear : bool
        The cell has a question mark that belongs to no unit.
    """

    text: str
    units: tuple[ParsedAU, ...] = ()
    unparsed: tuple[str, ...] = ()
    unclear: bool = False

    def __iter__(self) -> Iterator[ParsedAU]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    @property
    def choices(self) -> tuple[tuple[tuple[ParsedAU, ...], ...], ...]:
        """Every set of alternatives: a tuple of options, each a tuple of units that go together."""
        found: dict[int, dict[int, list[ParsedAU]]] = {}
        for unit in self.units:
            if unit.choice is not None:
                found.setdefault(unit.choice, {}).setdefault(unit.option, []).append(unit)
        return tuple(tuple(tuple(options[one]) for one in sorted(options)) for _, options in sorted(found.items()))

    def numbers(self, *, alternatives: str = "first", still: bool = False) -> tuple[int, ...]:
        """Numbers of the units, sorted, each once; with `still` also those that do not move (reference frame, held).

        Of alternatives such as ``L12 or L14`` take the ``"first"`` option (the coder's first reading), ``"all"`` of
        them, or ``"none"``; `DataError` for another word.
        """
        if alternatives not in ("first", "all", "none"):
            raise DataError(f"alternatives is {alternatives!r}, but 'first', 'all' or 'none' is expected.")
        taken = (
            unit
            for unit in self.units
            if (still or unit.moves)
            and (unit.choice is None or alternatives == "all" or (alternatives == "first" and unit.option == 0))
        )
        return tuple(sorted({unit.number for unit in taken}))


def parse_aus(text: str | float | None) -> AUExpression:
    """Read one action-unit cell.

    Units are joined by ``+``, comma, semicolon or blank. A unit is an optional ``AU``, an optional side, a number of
    one or two digits, an optional intensity, ``(k)`` and ``?``. ``or`` and ``/`` separate alternatives and bind
    closer than ``+``; brackets group; ``ref(...)`` marks units of the reference frame. Everything else ends in
    ``unparsed``.

    Parameters
    ----------
    text : str, float or None
        The cell; numbers as spreadsheets give them, None and NaN for an empty cell.

    Returns
    -------
    AUExpression
        The units, and what was not understood.

    Raises
    ------
    DataError
        The cell is neither text nor a number, or of more than 65,536 characters.

    Examples
    --------
    >>> from fsmer import parse_aus
    >>> [(unit.number, unit.sides, unit.choice, unit.option) for unit in parse_aus("(R6 or R12)+R15")]
    [(6, ('R',), 0, 0), (12, ('R',), 0, 1), (15, ('R',), None, 0)]
    >>> parse_aus("4+soft focus").unparsed
    ('soft focus',)
    """
    written = _written(text)
    if len(written) > LONGEST:
        raise DataError(
            f"an action-unit cell has {len(written):,} characters, but at most {LONGEST:,} are read; check the table."
        )
    return _Reader(written).expression()


def au_numbers(text: str | float | None, *, alternatives: str = "first", still: bool = False) -> tuple[int, ...]:
    """Sorted numbers of the action units that a cell says have moved.

    Of alternatives the first is taken unless asked otherwise, see `AUExpression.numbers`.

    Examples
    --------
    >>> au_numbers("L12 or L14"), au_numbers("ref(7B)+43"), au_numbers(4.0)
    ((12,), (43,), (4,))
    """
    return parse_aus(text).numbers(alternatives=alternatives, still=still)


class _Token(NamedTuple):
    kind: str
    text: str
    unit: ParsedAU | None = None


class _Item(NamedTuple):
    """What stands between two separators: units, or nothing that was understood."""

    units: list[ParsedAU]
    text: str = ""
    nested: bool = False


class _Reader:
    """Recursive descent over the tokens of one cell; whatever does not fit goes to `unparsed` on the spot."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [*_with_matched_brackets(_tokens(text)), _Token("end", "")]
        self.place, self.choices = 0, count()
        self.unparsed: list[str] = []
        self.phrase_open = self.unclear = False

    def expression(self) -> AUExpression:
        units = self._sum()
        # Choices were numbered from the inside out; readers expect them in the order written.
        chosen = list(dict.fromkeys(unit.choice for unit in units if unit.choice is not None))
        units = [unit if unit.choice is None else replace(unit, choice=chosen.index(unit.choice)) for unit in units]
        return AUExpression(self.text, tuple(units), tuple(self.unparsed), self.unclear)

    @property
    def _next(self) -> str:
        return self.tokens[self.place].kind

    def _skip_blanks(self) -> None:
        while self._next == "separator" and self.tokens[self.place].text.isspace():
            self.place += 1

    def _sum(self) -> list[ParsedAU]:
        units: list[ParsedAU] = []
        while self._next not in ("end", "close"):
            if self._next == "separator":
                # A blank does not end a phrase of free text, a plus or comma does.
                self.phrase_open = self.phrase_open and self.tokens[self.place].text.isspace()
                self.place += 1
            else:
                units += self._term()
        return units

    def _term(self) -> list[ParsedAU]:
        items = [self._item()]
        while True:
            start = self.place
            self._skip_blanks()
            if self._next != "or":
                self.place = start
                break
            mark = self.tokens[self.place].text
            self.place += 1
            self._skip_blanks()
            if self._next in ("separator", "close", "end", "or"):
                self._note(mark)
                break
            noted = len(self.unparsed)
            items.append(self._item())
            if not (items[-2].units and items[-1].units):
                # One side is no unit, so the mark joins nothing; it is reported where it stood.
                self.unparsed.insert(noted, mark)
        options = [item for item in items if item.units]
        return self._alternatives(options) if len(options) > 1 else [unit for item in options for unit in item.units]

    def _alternatives(self, options: list[_Item]) -> list[ParsedAU]:
        choice, option = next(self.choices), 0
        units: list[ParsedAU] = []
        for item in options:
            inner = {unit.choice for unit in item.units}
            # (4 or 7) or 12 is a plain choice of three; units that stand for themselves have option 0.
            if inner == {None} or (item.nested and len(inner) == 1):
                units += [replace(unit, choice=choice, option=option + unit.option) for unit in item.units]
                option += item.units[-1].option + 1
            else:
                # Alternatives inside a sum inside alternatives: no data set writes that.
                self._note(item.text)
        return units if option > 1 else [replace(unit, choice=None, option=0) for unit in units]

    def _item(self) -> _Item:
        start, token = self.place, self.tokens[self.place]
        self.place += 1
        if token.unit is not None:
            self.phrase_open = False
            return _Item([token.unit])
        if token.kind in ("open", "ref"):
            self.phrase_open = False
            units = self._sum()
            self.place += 1
            self.phrase_open = False
            if token.kind == "ref":
                units = [replace(unit, reference=True) for unit in units]
            return _Item(units, "".join(inner.text for inner in self.tokens[start : self.place]), nested=True)
        if token.kind == "unclear":
            self.unclear = True
        else:
            self._note(token.text, continues=token.kind == "word")
        return _Item([])

    def _note(self, text: str, *, continues: bool = False) -> None:
        if continues and self.phrase_open:
            text = f"{self.unparsed.pop()} {text}"
        self.unparsed.append(text)
        self.phrase_open = continues


def _tokens(text: str) -> list[_Token]:
    # Patterns are matched on the half-width copy, which has the same length; texts come from the original.
    plain = text.translate(FULL_WIDTH)
    found: list[_Token] = []
    place = 0
    while place < len(text):
        match = UNIT.match(plain, place) or OTHER.match(plain, place)
        if match is None or match.lastgroup is None:
            raise DataError(f"the action-unit cell {text!r} cannot be read at character {place + 1}.")
        kind, written, unit = match.lastgroup, text[place : match.end()], None
        if match.re is UNIT:
            kind, sides, intensities = "unit", _letters(match["sides"]), _letters(match["intensities"])
            marks = {name: match[name] is not None for name in ("static", "uncertain")}
            unit = ParsedAU(int(match["number"]), sides, intensities, **marks, text=written.strip())
        found.append(_Token(kind, written, unit))
        place = match.end()
    return found


def _with_matched_brackets(tokens: list[_Token]) -> list[_Token]:
    # A bracket without its partner, or deeper than any annotation goes, becomes a word, which groups nothing.
    partners: set[int] = set()
    opened: list[int] = []
    for place, token in enumerate(tokens):
        if token.kind in ("open", "ref"):
            opened.append(place)
        elif token.kind == "close" and opened:
            partner = opened.pop()
            if len(opened) < DEEPEST:
                partners |= {partner, place}
    return [
        _Token("word", token.text) if token.kind in ("open", "ref", "close") and place not in partners else token
        for place, token in enumerate(tokens)
    ]


def _letters(written: str | None) -> tuple[str, ...]:
    return tuple(re.findall("[A-Z]", (written or "").upper()))


def _written(text: str | float | None) -> str:
    if isinstance(text, str):
        return text
    if text is None:
        return ""
    if isinstance(text, (int, float, np.integer, np.floating)) and not isinstance(text, bool):
        if text != text:  # not a number: an empty cell
            return ""
        return str(int(text)) if text % 1 == 0 else str(text)
    raise DataError(f"an action-unit cell is a {type(text).__name__}, but text, a number or None is expected.")
