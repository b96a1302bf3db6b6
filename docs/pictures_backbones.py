"""Draws a diagram of every backbone: ``python docs/pictures_backbones.py`` writes them to ``docs/backbones``.

Boxes have a fill of their own and dark text, all else is a grey that shows on white and on black, so that one file
serves light and dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent / "backbones"

WIDTH, LEVEL, PLACE, MARGIN = 172, 88, 192, 10
LINE, FONT = 16, 13
GREY = "#7d7d7d"
FILLS = {
    "media": "#cfe3f5",  # what a clip holds
    "layer": "#ececec",  # what is computed
    "point": "#fbe3c6",  # what the paper adds
    "embedding": "#cdebd2",  # what comes out
    "loss": "#f6d3d6",  # what training alone has
}


@dataclass(frozen=True)
class Box:
    """A box of a diagram: levels go down, places to the right; both may lie between two whole numbers."""

    level: float
    place: float
    text: str
    kind: str = "layer"

    @property
    def height(self) -> float:
        """Pixels of a box with so many lines of text."""
        return LINE * (self.text.count("\n") + 1) + 12


def diagram(boxes: dict[str, Box], arrows: Sequence[tuple[str, str]], title: str) -> str:
    """The SVG: boxes, and arrows down from one to another, or sideways on one level. It has room for three places."""
    first = min(box.place for box in boxes.values())
    taken = max(box.place for box in boxes.values()) - first + 1
    shift = max(0.0, 3 - taken) / 2 - first
    boxes = {name: replace(box, place=box.place + shift) for name, box in boxes.items()}
    width = 2 * MARGIN + max(3.0, taken) * PLACE - (PLACE - WIDTH)
    height = 2 * MARGIN + max(box.level * LEVEL + box.height for box in boxes.values())
    parts = [
        f'<svg class="diagram" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="{FONT}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
    ]
    parts += [arrow(boxes[one], boxes[other]) for one, other in arrows]
    parts += [drawn(box) for box in boxes.values()]
    return "\n".join([*parts, "</svg>", ""])


def corner(box: Box) -> tuple[float, float]:
    """Left and upper edge."""
    return MARGIN + box.place * PLACE, MARGIN + box.level * LEVEL


def drawn(box: Box) -> str:
    """A box and its text."""
    left, top = corner(box)
    dash = ' stroke-dasharray="5 3"' if box.kind == "loss" else ""
    parts = [
        f'<rect x="{left:g}" y="{top:g}" width="{WIDTH}" height="{box.height:g}" rx="7" fill="{FILLS[box.kind]}" '
        f'stroke="{GREY}"{dash}/>'
    ]
    for number, line in enumerate(box.text.split("\n")):
        weight = ' font-weight="600"' if number == 0 else ""
        parts.append(
            f'<text x="{left + WIDTH / 2:g}" y="{top + 6 + LINE * (number + 0.78):g}" text-anchor="middle" '
            f'fill="#1b1b1b"{weight}>{escape(line)}</text>'
        )
    return "\n".join(parts)


def arrow(one: Box, other: Box) -> str:
    """A line with bends of 90 degrees between two boxes."""
    (left, top), (to_left, to_top) = corner(one), corner(other)
    if one.level == other.level:
        right = other.place > one.place
        start = left + WIDTH if right else left
        end = to_left - 2 if right else to_left + WIDTH + 2
        path = f"M{start:g} {top + one.height / 2:g}H{end:g}"
    else:
        # Lines bend above the box that they lead to, so that they pass beside the levels between.
        path = f"M{left + WIDTH / 2:g} {top + one.height:g}V{to_top - 15:g}H{to_left + WIDTH / 2:g}V{to_top - 2:g}"
    dash = ' stroke-dasharray="5 3"' if "loss" in (one.kind, other.kind) else ""
    return f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="1.6" marker-end="url(#tip)"{dash}/>'


DIAGRAMS: dict[str, tuple[dict[str, Box], list[tuple[str, str]], str]] = {
    "facs-flow": (
        {
            "map": Box(0, 1, "flow map\nu, v, strain\n3 x 28 x 28", "media"),
            "smooth": Box(1, 1, "smoothing 0.7\nand the mirrored map\n(inference)", "point"),
            "full": Box(2, 0.5, "2 CNNs on 28 x 28\nstandardised, with\n2 coordinate maps"),
            "half": Box(2, 1.5, "2 CNNs on 14 x 14\nthe same, from the\nmap averaged by 2"),
            "unit": Box(3, 1, "4 vectors of 48\neach of unit length\nside by side"),
            "embedding": Box(4, 1, "embedding\n192 numbers", "embedding"),
            "units": Box(5, 0.5, "30 action units\none logit a unit", "point"),
            "classes": Box(5, 1.5, "directions of classes\ncosine, times 12", "point"),
        },
        [
            ("map", "smooth"), ("smooth", "full"), ("smooth", "half"), ("full", "unit"), ("half", "unit"),
            ("unit", "embedding"), ("embedding", "units"), ("embedding", "classes"),
        ],
        "facs-flow: four small networks on one flow map, their vectors side by side",
    ),
    "fr": (
        {
            "u": Box(0, 0.5, "u\n28 x 28", "media"),
            "v": Box(0, 1.5, "v\n28 x 28", "media"),
            "su": Box(1, 0.5, "Inception stream\n2 blocks: 6, 16 filters\n2 x 2 pooling"),
            "sv": Box(1, 1.5, "Inception stream\n2 blocks: 6, 16 filters\n2 x 2 pooling"),
            "z": Box(2, 1, "z, shared feature\n1,024 numbers\n(basic_inception)"),
            "a1": Box(3, 0, "class 1\nattention a₁\nz₁* = a₁ z", "point"),
            "a2": Box(3, 1, "class 2\nattention a₂\nz₂* = a₂ z", "point"),
            "a3": Box(3, 2, "class K\nattention a_K\nz_K* = a_K z", "point"),
            "sum": Box(4, 1, "sum of z₁* ... z_K*\nand one layer"),
            "embedding": Box(5, 1, "embedding\n256 numbers", "embedding"),
            "detectors": Box(4, 2, "K detectors\nthis class or not\n(training)", "loss"),
        },
        [
            ("u", "su"), ("v", "sv"), ("su", "z"), ("sv", "z"), ("z", "a1"), ("z", "a2"), ("z", "a3"), ("a1", "sum"),
            ("a2", "sum"), ("a3", "sum"), ("sum", "embedding"), ("a3", "detectors"),
        ],
        "fr: two Inception streams, one attention branch a class, summed",
    ),
    "ststnet": (
        {
            "map": Box(0, 1, "flow map\nu, v, strain\n3 x 28 x 28", "media"),
            "three": Box(1, 0, "3 filters 3 x 3\nReLU, normalisation", "point"),
            "five": Box(1, 1, "5 filters 3 x 3\nReLU, normalisation", "point"),
            "eight": Box(1, 2, "8 filters 3 x 3\nReLU, normalisation", "point"),
            "pool": Box(2, 1, "maximum of 3 x 3\n16 x 10 x 10\ndropout 0.5"),
            "mean": Box(3, 1, "mean of 2 x 2\n16 x 5 x 5"),
            "embedding": Box(4, 1, "embedding\n400 numbers", "embedding"),
        },
        [
            ("map", "three"), ("map", "five"), ("map", "eight"), ("three", "pool"), ("five", "pool"), ("eight", "pool"),
            ("pool", "mean"), ("mean", "embedding"),
        ],
        "ststnet: three shallow streams on one flow map",
    ),
    "flow_resnet18": (
        {
            "map": Box(0, 0, "flow map\nu, v, signed\n2 x 224 x 224", "media"),
            "prepare": Box(1, 0, "scaling\n1 = a hundredth of\nthe face width"),
            "resnet": Box(2, 0, "ResNet18\nfour stages\n512 numbers"),
            "projection": Box(3, 0, "projection\nlinear, ReLU", "point"),
            "embedding": Box(4, 0, "embedding\n128 numbers", "embedding"),
        },
        [("map", "prepare"), ("prepare", "resnet"), ("resnet", "projection"), ("projection", "embedding")],
        "flow_resnet18: ResNet18 on a flow map, with a projection",
    ),
    "tcae": (
        {
            "source": Box(0, 0, "source frame\n(onset)", "media"),
            "target": Box(0, 2, "target frame\n(apex)", "media"),
            "encoder": Box(1, 1, "encoder\nconvolutions of\nstride 2", "layer"),
            "au": Box(2, 0.5, "action unit codes\n256 numbers a frame", "embedding"),
            "pose": Box(2, 1.5, "pose codes\n256 numbers a frame"),
            "aud": Box(3, 0.5, "decoder\naction unit flow", "loss"),
            "posed": Box(3, 1.5, "decoder\npose flow", "loss"),
            "mixed": Box(4, 1, "both flows, mixed\nwarp the source", "loss"),
            "loss": Box(5, 1, "compare with\nthe target frame\n(training)", "loss"),
            "cycle": Box(4, 2, "one flow alone:\ncodes kept or carried,\nand the way back", "loss"),
        },
        [
            ("source", "encoder"), ("target", "encoder"), ("encoder", "au"), ("encoder", "pose"), ("au", "aud"),
            ("pose", "posed"), ("aud", "mixed"), ("posed", "mixed"), ("mixed", "loss"), ("posed", "cycle"),
        ],
        "tcae: two codes a frame, two flows between frames",
    ),
    "merau": (
        {
            "flow": Box(0, 0, "flow map\nu, v\n2 x 224 x 224", "media"),
            "apex": Box(0, 1.5, "apex frame\n3 x 256 x 256", "media"),
            "resnet": Box(1, 0, "ResNet18\n512 numbers"),
            "encoder": Box(1, 1.5, "encoder of TCAE\nfrozen", "point"),
            "code": Box(2, 1, "action unit code\n256 numbers", "point"),
            "units": Box(2, 2, "detector, frozen\nlogits of 10 units", "point"),
            "pf": Box(3, 0, "projection e_of\n128 numbers"),
            "pc": Box(3, 1, "projection e_a1\n128 numbers"),
            "pl": Box(3, 2, "projection e_a2\n128 numbers"),
            "embedding": Box(4, 1, "embedding\nside by side\n384 numbers", "embedding"),
        },
        [
            ("flow", "resnet"), ("resnet", "pf"), ("apex", "encoder"), ("encoder", "code"), ("code", "units"),
            ("code", "pc"), ("units", "pl"), ("pf", "embedding"), ("pc", "embedding"), ("pl", "embedding"),
        ],
        "merau: flow, action unit code and action unit logits, projected and joined",
    ),
    "mmnet": (
        {
            "onset": Box(0, 1.5, "onset image\n3 x 224 x 224", "media"),
            "apex": Box(0, 0, "apex image\n3 x 224 x 224", "media"),
            "difference": Box(1, 0, "apex - onset\nin units of ImageNet's\ndeviation"),
            "blocks": Box(2, 0, "4 CA blocks\neach hands its map\nto the next", "point"),
            "motion": Box(3, 0, "motion map\n512 x 14 x 14"),
            "small": Box(1, 1.5, "onset, scaled\n3 x 14 x 14"),
            "vit": Box(2, 1.5, "ViT, 2 layers\n196 patches of\none pixel", "point"),
            "position": Box(3, 1.5, "position map\n512 x 14 x 14"),
            "sum": Box(4, 0.75, "sum\n512 x 14 x 14"),
            "embedding": Box(5, 0.75, "embedding\n100,352 numbers", "embedding"),
        },
        [
            ("apex", "difference"), ("onset", "difference"), ("difference", "blocks"), ("blocks", "motion"),
            ("onset", "small"), ("small", "vit"), ("vit", "position"), ("motion", "sum"), ("position", "sum"),
            ("sum", "embedding"),
        ],
        "mmnet: what moved, and where on the face",
    ),
    "r3d_attribute": (
        {
            "frames": Box(0, 0, "16 frames\n3 x 112 x 112", "media"),
            "flows": Box(0, 1, "16 flow maps\nu, v, 112 x 112", "media"),
            "rgb": Box(1, 0, "3D-ResNet\n10, 18 or 34 layers"),
            "of": Box(1, 1, "3D-ResNet\nweights of its own"),
            "zr": Box(2, 0, "z_rgb\n128 numbers"),
            "zf": Box(2, 1, "z_flow\n128 numbers"),
            "embedding": Box(3, 0.5, "embedding z_m\n256 numbers", "embedding"),
            "words": Box(0, 2, "action units in words\n“cheek raiser, ...”", "loss"),
            "bert": Box(1, 2, "BERT, one layer", "loss"),
            "za": Box(2, 2, "z_a\n256 numbers", "loss"),
            "contrast": Box(4, 1.25, "contrastive loss\neach clip to its words\n(training)", "loss"),
        },
        [
            ("frames", "rgb"), ("flows", "of"), ("rgb", "zr"), ("of", "zf"), ("zr", "embedding"), ("zf", "embedding"),
            ("words", "bert"), ("bert", "za"), ("embedding", "contrast"), ("za", "contrast"),
        ],
        "r3d_attribute: frames and flow, drawn towards words",
    ),
    "mubert": (
        {
            "first": Box(0, 0, "I_t (onset)\npatches of 8 x 8", "media"),
            "second": Box(0, 1.5, "I_t+δ (apex)\npatches of 8 x 8", "media"),
            "swap": Box(1, 0, "I_t/s: some blocks\ntaken from I_t+δ\n(training alone)", "loss"),
            "e1": Box(2, 0, "µ-encoder\nthe same for both"),
            "e2": Box(2, 1.5, "µ-encoder\nwith one token for\nthe whole frame"),
            "dma": Box(3, 0.25, "diagonal attention\npatch i with patch i\nalone", "point"),
            "poi": Box(3, 1.5, "patch of interest\nS: what the token\nattends to", "point"),
            "pdma": Box(4, 0.9, "P_dma\nvalues, weighed by\ndiagonal and S"),
            "embedding": Box(5, 1.4, "embedding\nmean over patches", "embedding"),
            "decoder": Box(5, 0.4, "µ-decoder\ngives I_t back\n(training)", "loss"),
        },
        [
            ("first", "swap"), ("second", "e2"), ("swap", "e1"), ("e1", "dma"), ("e2", "dma"), ("e2", "poi"),
            ("dma", "pdma"), ("poi", "pdma"), ("pdma", "embedding"), ("pdma", "decoder"),
        ],
        "mubert: what differs between two frames, patch by patch",
    ),
    "ensemble": (
        {
            "media": Box(0, 1, "media of a clip\nthose of the members", "media"),
            "a": Box(1, 0, "member 1\nfresh weights"),
            "b": Box(1, 1, "member 2\nfresh weights"),
            "c": Box(1, 2, "member M\nfresh weights"),
            "embedding": Box(2, 1, "embedding\nside by side,\ndivided by M", "embedding"),
            "mean": Box(3, 1, "linear classifier\n= mean of the\nmembers' logits", "point"),
        },
        [
            ("media", "a"), ("media", "b"), ("media", "c"), ("a", "embedding"), ("b", "embedding"), ("c", "embedding"),
            ("embedding", "mean"),
        ],
        "ensemble: several networks of one kind",
    ),
}  # fmt: skip


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, (boxes, arrows, title) in DIAGRAMS.items():
        (FOLDER / f"{name}.svg").write_text(diagram(boxes, arrows, title), encoding="utf-8")
