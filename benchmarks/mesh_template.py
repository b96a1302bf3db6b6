"""The template that faces by the mesh are aligned with: the mean mesh of drawn faces at rest, in crop widths.

``python -m benchmarks.mesh_template`` writes `fsmer/preprocess/tables/mesh_template.csv`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

import fsmer
from benchmarks.preprocess import DOMAINS, true_pose
from fsmer.io import atomic_path
from fsmer.preprocess.face_mesh import MeshDetector
from fsmer.synthetic.recordings import synthetic_videos
from fsmer.synthetic.scene import Scene

TABLE = Path(fsmer.__file__).parent / "preprocess" / "tables" / "mesh_template.csv"


def template(faces: int, seed: int = 5) -> NDArray[np.float64]:
    """Median over drawn faces of the mesh at rest, (468, 3), made symmetric: x, y and depth in crop widths."""
    detector, size = MeshDetector(), 480
    where = Scene((size / 2, 0.55 * size), 0.4 * size)
    found = []
    for number in range(faces):
        domain = DOMAINS[number % len(DOMAINS)]
        (video,) = synthetic_videos(1, domain=domain, seed=seed, start=number, size=size, frames=3, scene=where)
        truth = true_pose(video)
        seen = detector.detect(video.frames[video.onset])
        if seen and seen[0].points is not None:
            points = seen[0].points
            found.append(np.c_[truth.to_crop(points[:, :2]) * (1, truth.aspect), points[:, 2] / truth.width])
    middle = np.median(found, axis=0)
    # The mesh is symmetric: each point's partner is the one that lies nearest to its mirror image.
    mirrored = middle * (-1, 1, 1)
    distances = np.linalg.norm(mirrored[:, None] - middle[None], axis=2)
    _, partner = linear_sum_assignment(distances)
    return np.asarray((middle + mirrored[np.argsort(partner)]) / 2)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=300, help="drawn faces (default 300)")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    rows = template(options.faces)
    with atomic_path(options.table) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("x", "y", "depth"))
        writer.writerows([f"{value:.4f}" for value in row] for row in rows.tolist())


if __name__ == "__main__":
    main()
