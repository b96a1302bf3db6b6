"""How movements are told from rest: the spotter's settings, and how a face moves while nothing happens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsmer.preprocess.region_shift import Vectors

__all__ = ["SpotterSettings"]

# Least spread of noise in a coordinate of a region, thousandths of the face width.
FLOOR = 0.1
# How much more than the quiet share of the instants the usual one may move and still be rest.
UNREST = 1.3


@dataclass(frozen=True)
class SpotterSettings:
    """How movements are told from rest; times in seconds.

    Parameters
    ----------
    rate : float
        Of recordings with more frames a second, every second, third ... frame is used, so that no less than this
        many a second remain.
    settle : float
        What is observed before the first decision, to learn how restless the face is.
    memory : float
        Over how long the rest level is learnt.
    step : float
        Between these instants movement is measured for the rest level.
    smooth : float
        Regions are averaged over so long.
    quiet : float
        Share of the instants that count as rest.
    times : float
        A movement must be so many times the usual restlessness, each direction in which the regions move together
        measured by its own.
    least : float
        And move the regions together by this much (root of the sum of squares, thousandths of the face width); half
        a pixel on a face of 224 is 2.2.
    most : float
        This much is a movement on however restless a face.
    farthest : float
        No skin moves so far (thousandths of the face width): something else came before the face.
    covered : float
        Share of the face that may differ from its moved onset; more is a hand before it.
    minimum, longest : float
        Shortest movement, and the longest: what lasts longer ends there.
    hold : float
        A face that stays as it is for so long has got a new rest.
    held : float
        A movement that does not come back, as what only drifts does not, must reach so many times `times` (or `most`),
        as many times `noise`, and its square times `least`.
    slow : float
        Seconds; a movement that takes longer from onset to apex, as a head that drifts does, must be larger by as many
        times, or reach `most`.
    turn : float
        A movement must be larger, a region, than this share of what the head has moved in the meantime.
    noise : float
        And so many times what frames at rest differ from each other in the same measure.
    blink : float
        Where the lids move so many times as far as any other region, it was a blink.
    renew : int
        Frames between two searches for the face.

    Notes
    -----
    `turn` was chosen on drawn recordings of 20 s (seeds 501 to 508, three of each), `noise` and `held` on dark and
    compressed drawings of faces at rest (seeds 7001 to 7004) and on the former; what a talking mouth is, on drawings
    that talk (seed 7013). The growth of `turn` with the motion of the head, `covered`, and that `most` is enough for
    `held`, were also tried on a film of a real performance. Nothing was chosen on seeds of the benchmark from 11 on.
    """

    rate: float = 50.0
    settle: float = 1.6
    memory: float = 30.0
    step: float = 0.2
    smooth: float = 0.12
    quiet: float = 0.6
    times: float = 2.1
    least: float = 2.0
    most: float = 16.0
    farthest: float = 90.0
    covered: float = 0.12
    minimum: float = 0.1
    longest: float = 2.0
    hold: float = 0.5
    held: float = 1.5
    slow: float = 0.2
    turn: float = 0.05
    noise: float = 2.0
    blink: float = 2.0
    renew: int = 50


@dataclass(frozen=True)
class Restlessness:
    """How the regions move while nothing happens.

    Parameters
    ----------
    whiten : array of shape (2R, 2R)
        Brings movements, flattened, to coordinates in which rest moves equally in all of them, its usual length 1.
    """

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
