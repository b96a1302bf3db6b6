"""The action-unit table is whole and readable, and no character of an annotation is lost in parsing."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsmer.data import ACTION_UNITS, ParsedAU, action_unit, au_numbers, describe_aus, parse_aus
from fsmer.data.facs import ACTION_UNIT_ORDER, units_of_description
from fsmer.errors import DataError, UnknownNameError
from fsmer.synthetic.class_descriptions import unit_shares
from fsmer.synthetic.domains import THREE_CLASSES

# Table II of the attribute-embedding 3D-ResNet paper.
TABLE_II = (
    1,
    2,
    4,
    5,
    6,
    7,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
    16,
    17,
    18,
    20,
    22,
    23,
    24,
    25,
    26,
    27,
    28,
    41,
    42,
    43,
    44,
    45,
    46,
)


def test_the_table_holds_the_thirty_units_with_words_for_what_moves() -> None:
    assert tuple(ACTION_UNITS) == TABLE_II
    assert {unit.region for unit in ACTION_UNITS.values()} == {"brow", "eye", "nose", "cheek", "mouth", "chin", "jaw"}
    assert (
        len({unit.phrase for unit in ACTION_UNITS.values()}) == len({unit.name for unit in ACTION_UNITS.values()}) == 30
    )
    for number, unit in ACTION_UNITS.items():
        assert unit.number == number
        assert len(unit.phrase.split()) >= 3
        assert str(unit) == f"AU{number} {unit.name}"


def test_misprints_of_the_paper_are_put_right() -> None:
    assert action_unit(6).name == "Cheek Raiser"
    assert action_unit(13).name == "Cheek Puffer"
    assert not any("check" in unit.name.lower() for unit in ACTION_UNITS.values())


@pytest.mark.parametrize("number", [12, "12", "AU12", " au 12 ", np.int64(12)])
def test_a_unit_is_found_by_number_or_text(number: object) -> None:
    assert action_unit(number).name == "Lip Corner Puller"  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [3, 0, "AU99", "smile", "1 2", ""])
def test_an_unknown_unit_is_refused_with_what_there_is(number: object) -> None:
    with pytest.raises(UnknownNameError, match="1, 2, 4"):
        action_unit(number)  # type: ignore[arg-type]


def test_units_together_read_as_text() -> None:
    text = describe_aus([6, 12, 38])
    assert text == f"{action_unit(6).phrase}; {action_unit(12).phrase}; action unit 38 acts"


# -- the grammar ------------------------------------------------------------------------------------------------------


def unit(number: int, sides: str = "", intensities: str = "", **more: object) -> ParsedAU:
    return ParsedAU(number, tuple(sides), tuple(intensities), **more)  # type: ignore[arg-type]


def bare(text: str | float | None) -> list[ParsedAU]:
    from dataclasses import replace

    return [replace(one, text="") for one in parse_aus(text)]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        # CASME, MMEW
        ("4", [unit(4)]),
        ("4+17", [unit(4), unit(17)]),
        (4, [unit(4)]),
        (4.0, [unit(4)]),
        ("4.0", [unit(4)]),
        (np.int64(12), [unit(12)]),
        (np.float64(12), [unit(12)]),
        # CASME II
        ("4+L10", [unit(4), unit(10, "L")]),
        ("R12+R14", [unit(12, "R"), unit(14, "R")]),
        # CAS(ME)^3
        ("T10+B25", [unit(10, "T"), unit(25, "B")]),
        ("1,2, 5", [unit(1), unit(2), unit(5)]),
        ("1，2、5", [unit(1), unit(2), unit(5)]),
        # SAMM
        ("A12B + 4A/B", [unit(12, "A", "B"), unit(4, "", "AB")]),
        ("L12 or L14", [unit(12, "L", choice=0, option=0), unit(14, "L", choice=0, option=1)]),
        ("(R6 or R12)+R15", [unit(6, "R", choice=0), unit(12, "R", choice=0, option=1), unit(15, "R")]),
        ("4+L12 or L14", [unit(4), unit(12, "L", choice=0), unit(14, "L", choice=0, option=1)]),
        ("A/L12", [unit(12, "AL")]),
        ("ref(7B)+43", [unit(7, "", "B", reference=True), unit(43)]),
        ("ref(43)", [unit(43, reference=True)]),
        ("ref(L10)", [unit(10, "L", reference=True)]),
        ("ref (4 + 7)", [unit(4, reference=True), unit(7, reference=True)]),
        # 4DME
        ("AU4(k)+L7", [unit(4, static=True), unit(7, "L")]),
        ("AUR2+12(k)+45", [unit(2, "R"), unit(12, static=True), unit(45)]),
        ("4 (K)", [unit(4, static=True)]),
        # hands that type
        (" au 4 ; l12 ", [unit(4), unit(12, "L")]),
        ("４＋Ｒ１２（ｋ）", [unit(4), unit(12, "R", static=True)]),
        ("4?+7", [unit(4, uncertain=True), unit(7)]),
        ("4/7", [unit(4, choice=0), unit(7, choice=0, option=1)]),
        ("4A/B12", [unit(4, "", "A", choice=0), unit(12, "B", choice=0, option=1)]),
        ("(4+7)", [unit(4), unit(7)]),
        ("(4+7) or 12", [unit(4, choice=0), unit(7, choice=0), unit(12, choice=0, option=1)]),
        ("(4 or 7) or 12", [unit(4, choice=0), unit(7, choice=0, option=1), unit(12, choice=0, option=2)]),
        ("ref(4 or 7)", [unit(4, reference=True, choice=0), unit(7, reference=True, choice=0, option=1)]),
        (
            "1 or 2 + 4 or 5",
            [unit(1, choice=0), unit(2, choice=0, option=1), unit(4, choice=1), unit(5, choice=1, option=1)],
        ),
    ],
)
def test_every_form_of_the_data_sets_is_read_whole(text: str | float, units: list[ParsedAU]) -> None:
    parsed = parse_aus(text)
    assert bare(text) == units
    assert parsed.unparsed == ()
    assert parsed.unclear is False


@pytest.mark.parametrize("text", [None, "", "  ", float("nan"), np.nan])
def test_an_empty_cell_has_no_units(text: str | float | None) -> None:
    parsed = parse_aus(text)
    assert (len(parsed), parsed.unparsed, parsed.unclear) == (0, (), False)


@pytest.mark.parametrize(
    ("text", "numbers", "unparsed", "unclear"),
    [
        ("?", (), (), True),
        ("4+?", (4,), (), True),
        ("soft focus", (), ("soft focus",), False),
        ("4 + soft focus+7", (4, 7), ("soft focus",), False),
        ("4+slight smile, blurred", (4,), ("slight smile", "blurred"), False),
        ("1214", (), ("1214",), False),
        ("0", (), ("0",), False),
        ("4.5", (), ("4.5",), False),
        ("12x+4", (4,), ("12x",), False),
        ("4 or smile", (4,), ("or", "smile"), False),
        ("4/", (4,), ("/",), False),
        ("/", (), ("/",), False),
        ("\\", (), ("\\",), False),
        ("4 or or 7", (4, 7), ("or", "or"), False),
        ("(4", (4,), ("(",), False),
        ("4)+7", (4, 7), (")",), False),
        ("ref(4", (4,), ("ref(",), False),
        ("4 (weak)", (4,), ("weak",), False),
        ("((1 or 2)+4) or 6", (6,), ("((1 or 2)+4)",), False),
        ("R 12", (12,), ("R",), False),
    ],
)
def test_what_is_no_unit_is_handed_back(text: str, numbers: tuple, unparsed: tuple, unclear: bool) -> None:
    parsed = parse_aus(text)
    assert parsed.numbers() == numbers
    assert parsed.unparsed == unparsed
    assert parsed.unclear is unclear


def test_alternatives_are_kept_apart_and_the_first_is_taken_by_default() -> None:
    parsed = parse_aus("(R6 or R12+14)+R15 or 17")
    assert parsed.numbers() == (6, 14, 15)
    assert parsed.numbers(alternatives="all") == (6, 12, 14, 15, 17)
    assert parsed.numbers(alternatives="none") == (14,)
    assert [[[one.number for one in option] for option in choice] for choice in parsed.choices] == [
        [[6], [12]],
        [[15], [17]],
    ]
    assert au_numbers("L12 or L14") == (12,)
    assert au_numbers("L12 or L14", alternatives="all") == (12, 14)
    with pytest.raises(DataError, match="'first', 'all' or 'none'"):
        au_numbers("4", alternatives="second")


def test_units_that_do_not_move_are_left_out_unless_asked_for() -> None:
    assert au_numbers("ref(7B)+43") == (43,)
    assert au_numbers("AUR2+12(k)+45") == (2, 45)
    assert au_numbers("AUR2+12(k)+ref(7)", still=True) == (2, 7, 12)
    assert [one.moves for one in parse_aus("ref(7B)+43+4(k)")] == [False, True, False]


@pytest.mark.parametrize("cell", [["4"], b"4", True, {}])
def test_a_cell_of_another_type_is_refused(cell: object) -> None:
    with pytest.raises(DataError, match="text, a number or None"):
        parse_aus(cell)  # type: ignore[arg-type]


# -- nothing is lost --------------------------------------------------------------------------------------------------

FULL_WIDTH = str.maketrans("０１２３４５６７８９＋，（）", "0123456789+,()")
# fmt: off
PIECES = st.sampled_from([
    "4", "12", "1214", "0", "4.0", "4.5", "４", "L", "R", "A", "T", "B", "E", "AU", "au", "4A/B", "or", "ref",
    "ref(", "(k)", "+", ",", "，", "；", "(", ")", "（", "/", "?", "-", ".", "#", "\\", "x", "soft", "focus",
    " ", "\t", " or ",
])
# fmt: on


def letters(text: str) -> Counter[str]:
    return Counter(
        re.sub(r"[\s+,;()/|?]", "", text.translate(FULL_WIDTH).replace("；", ";").replace("、", ",")).lower()
    )


@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=20) | st.text("(4or7)/+ ref", max_size=40))
def test_every_character_of_a_cell_is_in_exactly_one_result(text: str) -> None:
    parsed = parse_aus(text)
    results = [one.text for one in parsed.units] + list(parsed.unparsed)
    # Only separators, brackets, question marks and the words "or" and "ref(" are structure rather than content.
    gone = letters(text)
    gone.subtract(letters("".join(results)))
    gone = +gone
    words, references = gone["o"], gone["f"]
    assert gone == +Counter({"o": words, "r": words + references, "e": references, "f": references})
    assert not letters("".join(results)) - letters(text)
    # Every run of digits is found again, as a whole.
    runs = re.findall(r"[0-9]+", text.translate(FULL_WIDTH))
    assert Counter(runs) == Counter(
        run for result in results for run in re.findall(r"[0-9]+", result.translate(FULL_WIDTH))
    )
    for one in parsed.units:
        assert str(one.number) in one.text.translate(FULL_WIDTH)
    if "?" in text and not parsed.unclear:
        assert any(one.uncertain for one in parsed.units) or any("?" in word for word in parsed.unparsed)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "L", "R", "A", "T", "B"]), st.sampled_from(TABLE_II), st.sampled_from(["", *"ABCDE"])
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["+", " + ", ",", "，"]),
)
def test_written_units_are_read_back(units: list[tuple[str, int, str]], plus: str) -> None:
    text = plus.join(f"{side}{number}{intensity}" for side, number, intensity in units)
    assert [("".join(one.sides), one.number, "".join(one.intensities)) for one in parse_aus(text)] == units


def test_deep_brackets_and_long_cells_are_read_without_failing() -> None:
    parsed = parse_aus("(" * 5000 + "4" + ")" * 5000)
    assert parsed.numbers() == (4,)
    assert "".join(parsed.unparsed).count("(") == "".join(parsed.unparsed).count(")") == 4992
    assert len(parse_aus("4+" * 20_000)) == 20_000


# ---- classes in words


@pytest.mark.parametrize(
    ("words", "units"),
    [
        ("cheek raiser, lip corner puller", (6, 12)),
        ("Lip Corner Puller and CHEEK RAISER", (6, 12)),
        ("AU4 + 7", (4, 7)),
        ("12", (12,)),
        ("brow lowerer; AU 17.", (4, 17)),
        (action_unit(12).phrase, (12,)),
        ("happiness", ()),
        ("cheek raiser, joy", ()),
        ("3", ()),
        ("", ()),
    ],
)
def test_a_description_gives_its_action_units_or_none_at_all(words, units):
    assert units_of_description(words) == units


def test_every_unit_is_found_by_its_name_and_by_its_phrase():
    for number, unit in ACTION_UNITS.items():
        assert units_of_description(unit.name) == units_of_description(unit.phrase) == (number,)


def test_shares_of_a_class_follow_its_emotions_or_its_words():
    smile = unit_shares("6+12")
    assert [ACTION_UNIT_ORDER[place] for place in np.flatnonzero(smile)] == [6, 12]
    np.testing.assert_array_equal(smile, unit_shares("cheek raiser, lip corner puller"))
    negative = [unit_shares(emotion) for emotion, coarse in THREE_CLASSES.items() if coarse == "negative"]
    np.testing.assert_allclose(unit_shares("negative"), np.mean(negative, axis=0), rtol=1e-6)
    assert unit_shares("panic") is None
    assert 0 < unit_shares("happiness").max() <= 1
