"""Run the notebooks of this folder and keep their outputs, or compare them with the outputs that are kept.

python notebooks/execute.py [NAME ...]            run, and write the outputs into the notebooks
python notebooks/execute.py --check [NAME ...]    run, write nothing, and name each text that differs

A cell with the tag ``varies`` prints something else at every run, so its text is not compared; pictures never are.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
VARIES = "varies"
# Absolute paths in a text, whose place differs from machine to machine.
PATHS = re.compile(r"(?<![\w.:/])/(?:[\w.+-]+/)+(?=[\w.+-])")
NUMBERS = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")
# Objects without a text of their own, such as lines of a plot, print where they lie in memory.
ADDRESSES = re.compile(r" at 0x[0-9a-f]+")


def execute(path: Path, timeout: int = 600) -> Any:
    """The notebook with the outputs of a fresh run in an empty folder, on one thread and with a cache of its own."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as cache:
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "FSMER_CACHE": cache}
        # Bars as widgets are for people who wait; without ipywidgets their absence is told.
        settings["PYTHONWARNINGS"] = "ignore:IProgress"
        settings.pop("MPLBACKEND", None)
        nbclient.NotebookClient(
            notebook, timeout=timeout, record_timing=False, resources={"metadata": {"path": work}}
        ).execute(env=settings)
    return normalised(notebook)


def normalised(notebook: Any) -> Any:
    """The notebook with nothing in it that tells where and when it ran."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if "text" in output:
                output["text"] = _anywhere(output["text"])
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _small(output["data"]["image/png"])
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/") and isinstance(value, str):
                    output["data"][kind] = _anywhere(value)
            if "metadata" in output:
                output["metadata"] = {}
    return notebook


def _small(picture: str) -> str:
    """A PNG picture (base64) with at most 128 colours, a third of the size."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(128).save(stream, "png", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _anywhere(text: str) -> str:
    return ADDRESSES.sub("", PATHS.sub("", text))


def texts(cell: Any) -> list[str]:
    """What a code cell prints and shows as text, in order."""
    printed: list[str] = []
    streams = ""
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            streams += output["text"]
        elif "text/plain" in output.get("data", {}):
            printed.append(output["data"]["text/plain"])
    return [*([streams] if streams else []), *printed]


def alike(one: str, other: str) -> bool:
    """Whether two texts have the same words, and numbers that differ by no more than other processors round."""
    if NUMBERS.sub("#", one) != NUMBERS.sub("#", other):
        return False
    pairs = zip(map(float, NUMBERS.findall(one)), map(float, NUMBERS.findall(other)), strict=True)
    return all(math.isclose(a, b, rel_tol=0.1, abs_tol=0.05) for a, b in pairs)


def differences(stored: Any, fresh: Any) -> list[str]:
    """One sentence for each code cell whose text is another in the fresh run."""
    found = []
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        if old.cell_type != "code" or VARIES in old.metadata.get("tags", []):
            continue
        kept, given = texts(old), texts(new)
        if len(kept) != len(given) or not all(map(alike, kept, given)):
            found.append(f"cell {number} gives {given} where the notebook keeps {kept}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb; default all")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a text differs")
    asked = parser.parse_args()
    paths = [FOLDER / f"{name}.ipynb" for name in asked.names] or sorted(FOLDER.glob("*.ipynb"))
    wrong = 0
    with ThreadPoolExecutor(2) as pool:  # each notebook is a process of one thread
        runs = list(pool.map(execute, paths))
    for path, fresh in zip(paths, runs, strict=True):
        if asked.check:
            for sentence in differences(nbformat.read(path, as_version=4), fresh):
                print(f"{path.name}: {sentence}", file=sys.stderr)
                wrong += 1
        else:
            nbformat.write(fresh, path)
        print(f"{path.name}: done")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
