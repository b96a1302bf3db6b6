"""A matplotlib figure in which text from data is drawn letter by letter."""

import io
import warnings
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from fsmer.text import printable

__all__ = ["PlainFigure"]


class PlainFigure(Figure):
    """A figure made without pyplot whose text is never read as mathematics or handed to LaTeX.

    A letter that no font has is drawn as a box, without a warning.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        """Shown in notebooks, whether pyplot is there or not."""
        stream = io.BytesIO()
        self.savefig(stream, format="png")
        return stream.getvalue()

    def draw(self, renderer: Any) -> None:
        for text in self.findobj(Text):
            text.set_parse_math(False)
            text.set_usetex(False)
            text.set_text(printable(text.get_text()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            super().draw(renderer)
