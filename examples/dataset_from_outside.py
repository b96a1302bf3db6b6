"""A data set that fsmer does not know, added by one file.

    fsmer check lab-videos --root DIR --import examples/dataset_from_outside.py
    fsmer prepare lab-videos --root DIR --out OUT --for facs-flow --import examples/dataset_from_outside.py

Run by itself, this file draws a tiny release and prints its table of clips.
"""

from fsmer.datasets import Adapter, register_dataset, release, roles


@register_dataset("lab-videos")
class LabVideos(Adapter):
    """Lab videos: ``recordings/P03/take2/frame007.png``, with ``sessions.csv`` beside the folder of recordings."""

    title = "Lab videos"
    frames_per_second = 120.0
    # The annotation, the columns of it, and what stands before the number of a subject (P03).
    sheets = ("sessions*.csv",)
    columns = roles(subject="Person", name="Take", onset="Start", apex="Peak", offset="End", aus="FACS", label="Class")
    needed = ("subject", "name", "onset", "offset", "label")
    subject_prefix = "P"
    # Folder with a folder a subject, in which there is a folder a clip.
    places = ("recordings",)
    labels = frozenset({"happiness", "surprise"})
    published = release(clips=2, subjects=2)


def draw_release(root):
    """Draw two clips of twelve frames: a dot that moves up and down again."""
    from PIL import Image, ImageDraw

    rows = ["Person,Take,Start,Peak,End,FACS,Class", "3,take2,0,6,11,6+12,Happiness", "4,take1,1,5,10,1+2,Surprise"]
    (root / "sessions.csv").write_text("\n".join(rows) + "\n")
    for clip in ("P03/take2", "P04/take1"):
        folder = root / "recordings" / clip
        folder.mkdir(parents=True)
        for number in range(12):
            picture = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(picture).ellipse((28, 40 - number, 36, 48 - number), fill="black")
            picture.save(folder / f"frame{number:03d}.png")


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import fsmer

    with TemporaryDirectory() as folder:
        draw_release(Path(folder))
        print(fsmer.check_dataset("lab-videos", folder))
        clips = fsmer.read_dataset("lab-videos", folder)
        print(clips.table[["clip", "subject", "label", "aus", "onset", "apex", "offset"]])
