"""Building blocks of self-contained HTML pages: elements that escape their text, tables, charts as SVG, the page."""

from __future__ import annotations

import base64
import functools
import html
import io
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fsmer.text import printable

__all__ = [
    "Html",
    "columns_chart",
    "el",
    "flow_picture",
    "histogram",
    "interval_bar",
    "joined",
    "page",
    "scatter",
    "section",
    "table",
]

# Elements without content, which HTML writes without an end tag.
VOID = frozenset({"br", "img", "link", "meta"})
# Colours of classes and data sets are CSS variables --c0 ... --c7; shapes differ too, for readers who cannot tell them.
COLOURS = 8
SHAPES = ("circle", "triangle", "square", "diamond")
# Flow maps are shrunk to this side: a page of 300 clips has to stay small.
TILE = 56
ARROWS = 9
# Bins of a histogram over 0..1.
BINS = 25

Points = NDArray[np.float64]


class Html(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


def el(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element; text in children and attributes is escaped, what is `Html` is not.

    Parameters
    ----------
    name : str
    *children
        `Html`, anything else as text, or iterables of them; ``None`` is left out.
    **attributes
        ``class_`` stands for ``class`` and ``aria_label`` for ``aria-label``; ``None`` is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(printable(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: Any) -> Html:
    """Children one after the other, escaped unless they are `Html`."""
    return Html("".join(_pieces(children)))


def _pieces(children: Iterable[Any]) -> Iterable[str]:
    for child in children:
        if isinstance(child, Html):
            yield child
        elif isinstance(child, (list, tuple)):
            yield from _pieces(child)
        elif child is not None:
            yield html.escape(printable(str(child)), quote=False)


def section(title: str, *children: Any, stamp: str | None = None) -> Html:
    """A part of the page under its own heading."""
    return el("section", el("h2", title, _stamp(stamp)), *children, id=slug(title))


def slug(title: str) -> str:
    """A heading as the name of a place on the page."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    text: int = 1,
    stamp: str | None = None,
    class_: str | None = None,
    tall: bool = False,
) -> Html:
    """A table that scrolls in its own box where the page is narrow.

    Parameters
    ----------
    caption : str
    head : sequence of str
        One heading a column.
    rows : iterable of sequences
        Cells; the first of each row is its heading.
    text : int
        Columns from the left that hold words; the others hold numbers, which stand right.
    stamp : str, optional
        Beside the caption.
    class_ : str, optional
    tall : bool
        Whether there may be so many rows that they scroll too.
    """
    heading = [el("th", name, scope="col", class_=_number(place, text)) for place, name in enumerate(head)]
    body = [el("tr", *(_cell(value, place, text) for place, value in enumerate(row))) for row in rows]
    whole = el(
        "table",
        el("caption", el("span", caption, _stamp(stamp))),
        el("thead", el("tr", heading)),
        el("tbody", body),
        class_=class_,
    )
    # The box can be focused, so that it scrolls by keyboard too.
    box = "scroll tall" if tall else "scroll"
    return el("div", whole, class_=box, role="region", tabindex="0", aria_label=caption)


def _cell(value: Any, place: int, text: int) -> Html:
    if isinstance(value, Html) and value.startswith("<td"):
        return value
    if place == 0:
        return el("th", value, scope="row")
    return el("td", value, class_=_number(place, text))


def _number(place: int, text: int) -> str | None:
    return "n" if place >= text else None


def _stamp(stamp: str | None) -> Html | None:
    return None if stamp is None else joined(" ", el("span", stamp, class_="stamp"))


def figure(picture: Html, caption: Any, *, stamp: str | None = None, class_: str | None = None) -> Html:
    """A picture with the words below it."""
    return el("figure", picture, el("figcaption", caption, _stamp(stamp)), class_=class_)


def interval_bar(
    value: float,
    bounds: tuple[float, float] | None,
    *,
    label: str,
    points: Sequence[float] = (),
    low: float = 0.0,
    high: float = 1.0,
) -> Html:
    """A figure between `low` and `high` as a dot, its interval as a bar, and further values (seeds) as ticks."""
    width, middle = 200, 12

    def x(number: float) -> str:
        return f"{5 + (width - 10) * min(max((number - low) / (high - low), 0.0), 1.0):.1f}"

    parts = [el("line", x1=5, x2=width - 5, y1=middle, y2=middle, class_="axis")]
    ticks = [5 + (width - 10) * step / 4 for step in range(5)]
    parts += [el("line", x1=f"{at:g}", x2=f"{at:g}", y1=middle - 3, y2=middle + 3, class_="axis") for at in ticks]
    if bounds is not None:
        parts.append(el("line", x1=x(bounds[0]), x2=x(bounds[1]), y1=middle, y2=middle, class_="interval"))
    parts += [el("line", x1=x(one), x2=x(one), y1=middle - 9, y2=middle - 4, class_="seed") for one in points]
    parts.append(el("circle", cx=x(value), cy=middle, r=4.5, class_="dot"))
    return _svg(width, 24, label, *parts)


def scatter(
    points: ArrayLike,
    codes: ArrayLike,
    *,
    hollow: ArrayLike | None = None,
    label: str,
    axes: tuple[str, str] = ("", ""),
) -> Html:
    """Points in two dimensions, coloured and shaped by group.

    Parameters
    ----------
    points : array of shape (N, 2)
    codes : int array of shape (N,)
        Group of each point.
    hollow : bool array of shape (N,), optional
        Points drawn as an outline.
    label : str
        What the picture shows, for readers who do not see it.
    axes : tuple of str
        Words at the horizontal and the vertical axis.
    """
    places: Points = np.asarray(points, dtype=np.float64)
    groups = np.asarray(codes, dtype=np.int64)
    empty = np.zeros(len(groups), dtype=bool) if hollow is None else np.asarray(hollow, dtype=bool)
    width, height, edge = 340, 280, 22
    low, high = places.min(axis=0), places.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    at = (places - low) / spread
    x, y = edge + at[:, 0] * (width - 2 * edge), height - edge - at[:, 1] * (height - 2 * edge)
    parts = [el("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, class_="frame")]
    for group in np.unique(groups):
        for outline in (False, True):
            chosen = (groups == group) & (empty == outline)
            path = " ".join(mark(shape_of(int(group)), a, b) for a, b in zip(x[chosen], y[chosen], strict=True))
            if path:
                parts.append(el("path", d=path, class_=f"g{group % COLOURS} {'ring' if outline else 'full'}"))
    parts.append(el("text", axes[0], x=width / 2, y=height - 6, class_="word", text_anchor="middle"))
    turned = f"translate(12 {height / 2}) rotate(-90)"
    parts.append(el("text", axes[1], transform=turned, class_="word", text_anchor="middle"))
    return _svg(width, height, label, *parts)


def shape_of(group: int) -> str:
    """Shape of a group's points; groups that share a colour differ in it."""
    return SHAPES[(group + group // COLOURS) % len(SHAPES)]


def mark(shape: str, x: float, y: float, size: float = 3.4) -> str:
    """One point as a piece of an SVG path."""
    if shape == "circle":
        return f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z"
    if shape == "triangle":
        return f"M{x - size:.1f} {y + size:.1f}h{2 * size}l{-size} {-2 * size}z"
    if shape == "square":
        return f"M{x - size:.1f} {y - size:.1f}h{2 * size}v{2 * size}h{-2 * size}z"
    reach = 1.3 * size
    return f"M{x - reach:.1f} {y:.1f}l{reach:.2f} {-reach:.2f} {reach:.2f} {reach:.2f} {-reach:.2f} {reach:.2f}z"


def legend(names: Sequence[str]) -> Html:
    """What colours and shapes of `scatter` stand for."""
    items = [
        el(
            "li",
            el(
                "svg",
                el("path", d=mark(shape_of(group), 7, 7, 5), class_=f"g{group % COLOURS} full"),
                viewBox="0 0 14 14",
                width=14,
                height=14,
                aria_hidden="true",
            ),
            name,
        )
        for group, name in enumerate(names)
    ]
    return el("ul", items, class_="legend")


def columns_chart(names: Sequence[str], parts: ArrayLike, *, groups: Sequence[str], label: str) -> Html:
    """Stacked columns of two parts, right (below) and wrong, with a gap between groups.

    Parameters
    ----------
    names : sequence of str
        One a column.
    parts : array of shape (N, 2)
        Heights.
    groups : sequence of str
        One a column; columns of a group stand together.
    label : str
    """
    heights = np.asarray(parts, dtype=np.float64)
    tall, step, top, left = 120.0, 12, 18, 28
    most = max(float(heights.sum(axis=1).max()), 1.0)
    drawn: list[Html] = []
    x, last = float(left), None
    for name, group, (right, wrong) in zip(names, groups, heights, strict=True):
        if group != last:
            x += 0 if last is None else step
            drawn.append(el("text", group, x=f"{x:.0f}", y=11, class_="word strong"))
            last = group
        low, high = tall * right / most, tall * (right + wrong) / most
        bottom = top + tall
        drawn.append(el("rect", x=f"{x:.0f}", y=f"{bottom - low:.1f}", width=9, height=f"{low:.1f}", class_="right"))
        drawn.append(
            el("rect", x=f"{x:.0f}", y=f"{bottom - high:.1f}", width=9, height=f"{high - low:.1f}", class_="wrong")
        )
        turned = f"translate({x + 7:.0f} {bottom + 5:.0f}) rotate(90)"
        drawn.append(el("text", name if len(name) <= 9 else f"{name[:8]}…", transform=turned, class_="word small"))
        x += step
    drawn.append(el("text", f"{most:.0f}", x=left - 5, y=top + 5, class_="word small", text_anchor="end"))
    drawn.append(el("text", "0", x=left - 5, y=top + tall + 2, class_="word small", text_anchor="end"))
    width = max(x + 10, 120)
    drawn.append(el("line", x1=left - 2, x2=f"{x:.0f}", y1=top + tall, y2=top + tall, class_="axis"))
    # Its own width: columns that are squeezed into a narrow page could not be told apart.
    own = f"min-width:{width:.0f}px;max-width:{1.25 * width:.0f}px"
    chart = _svg(width, top + tall + 52, label, *drawn, style=own)
    return el("div", chart, class_="scroll", role="region", tabindex="0", aria_label=label)


def histogram(values: ArrayLike, *, label: str) -> Html:
    """How values between 0 and 1 are spread."""
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), bins=BINS, range=(0.0, 1.0))
    width, tall, edge = 340, 130, 10
    step = (width - 2 * edge) / BINS
    drawn = [
        el(
            "rect",
            x=f"{edge + place * step + 0.5:.1f}",
            y=f"{tall - (tall - 12) * count / max(counts.max(), 1):.1f}",
            width=f"{step - 1:.1f}",
            height=f"{(tall - 12) * count / max(counts.max(), 1):.1f}",
            class_="right",
        )
        for place, count in enumerate(counts.tolist())
        if count
    ]
    drawn.append(el("line", x1=edge, x2=width - edge, y1=tall, y2=tall, class_="axis"))
    drawn += [
        el(
            "text",
            f"{tick / 4:g}",
            x=edge + (width - 2 * edge) * tick / 4,
            y=tall + 14,
            class_="word",
            text_anchor="middle",
        )
        for tick in range(5)
    ]
    return _svg(width, tall + 20, label, *drawn)


def flow_picture(flow: ArrayLike, *, label: str) -> Html:
    """A flow map: strain, or how far skin moves where there is none, in grey, with arrows of u and v on top.

    Parameters
    ----------
    flow : array of shape (2 or 3, H, W)
        Channels u, v and perhaps strain, with zero where nothing moves.
    label : str
    """
    values: Points = np.asarray(flow, dtype=np.float64)
    height, width = values.shape[1:]
    back = values[2] if len(values) > 2 else np.hypot(values[0], values[1])
    span = float(back.max() - back.min()) or 1.0
    shades = np.uint8(np.round(250 - 175 * (back - back.min()) / span))
    scale = min(1.0, TILE / max(height, width))
    image = Image.fromarray(shades).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    side = 100.0
    parts = [
        el("image", href=f"data:image/png;base64,{data}", width=side, height=side, preserveAspectRatio="none"),
        el("path", d=_arrows(values, side), class_="arrows"),
    ]
    return _svg(side, side, label, *parts, class_="flow")


def _arrows(flow: Points, side: float) -> str:
    """Arrows on a grid as one path; the longest spans one and a half cells."""
    height, width = flow.shape[1:]
    rows = np.unique(np.linspace(0, height - 1, min(ARROWS, height) + 2)[1:-1].round().astype(int))
    columns = np.unique(np.linspace(0, width - 1, min(ARROWS, width) + 2)[1:-1].round().astype(int))
    y, x = (part.ravel() for part in np.meshgrid(rows, columns, indexing="ij"))
    ahead = np.stack([flow[0][y, x], flow[1][y, x]], axis=1)
    lengths = np.hypot(*ahead.T)
    longest = float(lengths.max(initial=0.0))
    if longest <= 0:
        return ""
    # Skin that stands still gets no arrow.
    moved = lengths > 0.06 * longest
    start = np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=1)[moved] * side
    way = ahead[moved] / longest * (1.5 * side / len(columns))
    length = np.hypot(*way.T)[:, None]
    along = way / length
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    tip, head = start + way, np.minimum(0.4 * length, 3.2)
    left, right = tip - head * along + 0.6 * head * across, tip - head * along - 0.6 * head * across
    corners = np.stack([start, tip, left, tip, right], axis=1)
    drawn = [[f"{x:.1f} {y:.1f}" for x, y in arrow] for arrow in corners.tolist()]
    return "".join(f"M{a}L{b}M{c}L{d} {e}" for a, b, c, d, e in drawn)


def _svg(width: float, height: float, label: str, *parts: Html, **attributes: Any) -> Html:
    return el(
        "svg",
        el("title", label),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        **attributes,
    )


def page(title: str, *body: Any, oracle: bool = False) -> str:
    """A whole page: it loads nothing, runs no script and forbids itself both."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        ),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("link", rel="icon", href="data:,"),
        el("style", Html(_style())),
    )
    whole = el("html", head, el("body", el("main", *body), class_="oracle" if oracle else None), lang="en")
    return f"<!doctype html>\n{whole}\n"


@functools.cache
def _style() -> str:
    return resources.files("fsmer.reporting").joinpath("page.css").read_text(encoding="utf-8")
