"""How movements are told from rest: the spotter's settings, and how a face moves while nothing happens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsmer.preprocess.region_shift import Vectors

# Least spread of noise in a coordinate of a region, thousandths of the face width.
FLOOR = 0.1
# How much more than the quiet share of the instants the usual one may move and still be rest.
UNREST = 1.3


@dataclass(frozen=True)
class SpotterSettings:
    """How movements are told from rest; times in seconds, movements in thousandths of the face width.

    `turn` was chosen on drawn recordings of 20 s (seeds 501 to 508, three of each), `noise` and `held` on dark and
    compressed drawings of faces at rest (seeds 7001 to 7004) and on the former; what a talking mouth is, on drawings
    that talk (seed 7013). The growth of `turn` with the motion of the head, `covered`, and that `most` is enough for
    `held`, were also tried on a film of a real performance. Nothing was chosen on seeds of the benchmark from 11 on.
    """

    rate: float = 50.0  # of faster recordings every second, third ... frame is used; this many a second remain at least
    settle: float = 1.6  # what is observed before the first decision, to learn how restless the face is
    memory: float = 30.0  # over how long the rest level is learnt
    step: float = 0.2  # between these instants movement is measured for the rest level
    smooth: float = 0.12  # regions are averaged over so long
    quiet: float = 0.6  # share of the instants that count as rest
    # A movement must be so many times the usual restlessness, each direction in which the regions move together
    # measured by its own, and move the regions together by `least` (root of the sum of squares; half a pixel on a face
    # of 224 is 2.2). `most` is a movement on however restless a face.
    times: float = 2.1
    least: float = 2.0
    most: float = 16.0
    farthest: float = 90.0  # no skin moves so far: something else came before the face
    covered: float = 0.12  # share of the face that may differ from its moved onset; more is a hand before it
    minimum: float = 0.1  # shortest movement
    longest: float = 2.0  # what lasts longer ends there
    hold: float = 0.5  # a face that stays as it is for so long has got a new rest
    # A movement that does not come back, as what only drifts does not, must reach so many times `times` (or `most`), as
    # many times `noise`, and its square times `least`.
    held: float = 1.5
    # One that takes longer from onset to apex, as a head that drifts does, must be larger by as many times, or reach
    # `most`.
    slow: float = 0.2
    turn: float = 0.05  # it must be larger, a region, than this share of what the head has moved in the meantime
    noise: float = 2.0  # and so many times what frames at rest differ from each other in the same measure
    blink: float = 2.0  # where the lids move so many times as far as any other region, it was a blink
    renew: int = 50  # frames between two searches for the face


@dataclass(frozen=True)
class Restlessness:
    """How the regions move while nothing happens."""

    # (2R, 2R), brings movements, flattened, to coordinates in which rest moves equally in all of them, usual length 1
    whiten: Vectors

    @classmethod
    def learn(cls, steps: Vectors, quiet: float, most: float) -> Restlessness:
        """From movements between instants, (n, 2R), a share `quiet` of which are rest; `most` is no rest any more."""
        size = steps.shape[1]
        energies = np.linalg.norm(steps, axis=1)
        for _ in range(3):
            kept = steps[energies <= np.quantile(energies, quiet)]
            spread = kept.T @ kept / len(kept)
            level = np.trace(spread) / size
            # A few steps are too few to learn how the regions move together.
            blind = 40 / (40 + len(kept))
            variances, axes = np.linalg.eigh((1 - blind) * spread + (blind * level + FLOOR**2) * np.eye(size))
            whiten = (axes / np.sqrt(np.minimum(variances, most**2 / size))) @ axes.T
            energies = np.linalg.norm(steps @ whiten, axis=1)
        # At rest exactly the floor alone would make the level vanish; on a face that never rests it would be movement.
        return cls(whiten / (size**0.5 * float(np.clip(np.quantile(energies, 0.5) / size**0.5, 0.5, UNREST))))

    def of(self, vectors: Vectors) -> Vectors:
        """Movements (..., R, 2) in its coordinates, (..., 2R)."""
        return vectors.reshape(*vectors.shape[:-2], -1) @ self.whiten.T
