"""Draws the pictures of the synthetic frames: ``python docs/pictures_frames.py`` writes them beside this file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fsmer.data.facs import action_unit
from fsmer.synthetic.domains import load_domain
from fsmer.synthetic.recordings import SyntheticVideo, synthetic_recording, synthetic_videos
from fsmer.synthetic.scene import Camera

HERE = Path(__file__).parent
# One typical individual movement each: all action units as strong as clearly visible ones are.
CLEAR = replace(load_domain("lab"), intensity=(1.0, 1.0), variety=0.3, asymmetry=0.1)
SHOWN = ((1, 2), (4,), (6, 12), (9,), (14,), (15,))
CELL = (240, 172)
TITLE = 48
AMPLIFY = 2.5


def peak(video: SyntheticVideo) -> float:
    """Largest displacement in pixels."""
    return float(np.hypot(*video.expression_flow).max())


def title(units: tuple[int, ...], factor: float) -> Image.Image:
    """What a cell shows, above it."""
    picture = Image.new("RGB", (CELL[1], TITLE), "white")
    names = ",\n".join(action_unit(unit).name.lower() for unit in units)
    draw = ImageDraw.Draw(picture)
    draw.text((4, 2), f"AU {'+'.join(map(str, units))}   movement x {factor:.1f}", "black", ImageFont.load_default(13))
    draw.multiline_text((4, 19), names, "#666666", ImageFont.load_default(11), spacing=2)
    return picture


def flickering_action_units() -> None:
    """Onset and apex of some action units in turn, with two steps between, enlarged as it says above each."""
    strips: list[list[Image.Image]] = []
    for number, units in enumerate(SHOWN):
        options = {
            "domain": CLEAR,
            "seed": 12,
            "start": (18, 13, 14, 2, 16, 9)[number],
            "size": CELL,
            "frames": 9,
            "frames_per_second": 25,
            "units": units,
            "camera": Camera.perfect(),
        }
        plain = next(synthetic_videos(1, **options))
        video = next(synthetic_videos(1, amplify=AMPLIFY, **options))
        head = title(units, peak(video) / peak(plain))
        middle = (video.onset + video.apex) // 2
        cells = []
        for frame in (video.onset, middle, video.apex, middle):
            cell = Image.new("RGB", (CELL[1], CELL[0] + TITLE), "white")
            cell.paste(head, (0, 0))
            cell.paste(Image.fromarray(video.frames[frame]), (0, TITLE))
            cells.append(cell)
        strips.append(cells)
    frames = []
    for time in range(4):
        sheet = Image.new("RGB", (3 * CELL[1] + 16, 2 * (CELL[0] + TITLE) + 8), "white")
        for number, cells in enumerate(strips):
            row, column = divmod(number, 3)
            sheet.paste(cells[time], (column * (CELL[1] + 8), row * (CELL[0] + TITLE + 8)))
        frames.append(sheet)
    # One palette for all, so that nothing but the faces changes.
    palette = frames[2].quantize(224, Image.Quantize.MEDIANCUT)
    first, *others = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in frames]
    path = HERE / "action_units.gif"
    first.save(path, save_all=True, append_images=others, duration=[700, 90, 700, 90], loop=0, optimize=True)


def individuals() -> None:
    """A strip of made-up individuals, cropped as for flow maps and in their rooms."""
    crops = [video.frames[0] for video in synthetic_videos(8, domain="lab", seed=4, size=(208, 150), frames=3)]
    rooms = [synthetic_recording(1, domain="field", seed=seed, size=(225, 300)).frame(0) for seed in (1, 2, 6, 9)]
    upper, lower = np.concatenate(crops, axis=1), np.concatenate(rooms, axis=1)
    Image.fromarray(np.concatenate([upper, lower])).save(HERE / "synthetic_frames.png", optimize=True)


if __name__ == "__main__":
    flickering_action_units()
    individuals()
