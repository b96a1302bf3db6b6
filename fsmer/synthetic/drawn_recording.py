"""A sequence of drawn frames, each made from the face at rest when it is asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fsmer.data.spec import CROP_ASPECT
from fsmer.errors import DataError
from fsmer.synthetic import scene
from fsmer.synthetic.domains import UNIT_DISPLACEMENT, Domain
from fsmer.synthetic.face_features import EyePatch
from fsmer.synthetic.faces import DrawnFace, draw_background, draw_face
from fsmer.synthetic.individuals import Appearance, Movement, Person, draw_appearance
from fsmer.synthetic.scene import Array, Camera, Image, Interval, Scene, Waves, composed, inverted, transformed
from fsmer.synthetic.skin import MovingSkin

__all__ = ["SyntheticRecording"]

# Parts of the plane on which faces are drawn: enough for crops, and the whole head.
CLOSE = (-0.76, -1.02, 0.76, 1.02)
BUST = (-0.96, -1.56, 0.96, 0.92)
# Pixels per crop width at which faces are drawn; a sequence takes the first that is fine enough for its size.
DENSITIES = (96, 144, 200, 280, 352, 448, 576, 768, 1024)
# Depth about which the head turns.
PIVOT = 0.45
# Seconds of a blink: closing takes about 0.08, opening twice as long.
BLINK_LENGTH = 0.3
# By how many pixels the piece of the noise tile moves from frame to frame, at most.
TILE_MARGIN = 48


@dataclass(frozen=True)
class _Actor:
    """One individual, drawn and made ready to be sampled at a picture's resolution."""

    person: Person
    traits: Appearance
    face: DrawnFace
    layers: Image
    depth: Array
    depth_scale: float


# Faces of a data set's subjects stay in memory: some 2 MB each for pictures of 224.
@lru_cache(maxsize=24)
def _actor(geometry: float, key: int, seed: int, subject: int, bust: bool, density: int, sampling: float) -> _Actor:
    rng = seeded_generator(seed, key, 1, subject)
    person = Person(Domain("", "", geometry=geometry), rng)
    traits = draw_appearance(rng)
    face = draw_face(person.landmarks, traits, BUST if bust else CLOSE, density)

    def focus(picture: Image) -> Image:
        return cv2.GaussianBlur(picture, (0, 0), 0.4 * sampling).astype(np.uint8, copy=False)

    eyes = tuple(EyePatch(eye.where, focus(eye.lid), eye.height) for eye in face.eyes)
    layers = np.dstack([focus(face.picture), focus(face.cover)])
    depth = cv2.resize(face.depth, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA) - np.float32(PIVOT)
    return _Actor(person, traits, replace(face, eyes=eyes), layers, depth, depth.shape[1] / face.depth.shape[1])


def seeded_generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


class SyntheticRecording:
    """A sequence of drawn frames, made one by one when asked for; iterating gives uint8 (height, width, 3), RGB.

    Make one with `synthetic_recording`. Memory does not grow with the number of frames.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        subject: int,
        key: tuple[int, int],
        *,
        size: tuple[int, int],
        frames: int,
        frames_per_second: float,
        intervals: Sequence[Interval],
        movements: Sequence[Movement],
        place: Scene | Array,
        camera: Camera,
        amplify: float = 1.0,
    ) -> None:
        self.size = size  # height and width in pixels
        self.frames_per_second = frames_per_second  # frame rate
        self.intervals = tuple(intervals)  # every expression, in order of time
        self.subject = f"{domain.name}{subject + 1:03d}"  # whose face it is
        self.camera = camera  # what the recording adds to the moving face
        self._frames, self._movements, self._amplify = frames, tuple(movements), amplify
        self._key = (seed, domain.key, *key)
        self._skins: dict[int, MovingSkin] = {}

        self._to_pixels = scene.plane_to_pixels(place, size)
        # Pixels per crop width decide how finely the face is drawn.
        fine = float(np.sqrt((self._to_pixels[:, :2] ** 2).sum(axis=0)).max())
        corners = np.array([(0, 0), (1, 0), (0, 1), (1, 1)]) * (size[1] - 1, size[0] - 1)
        seen = transformed(inverted(self._to_pixels), corners)
        margin = 0.04
        bust = bool((seen - margin < CLOSE[:2]).any() or (seen + margin > CLOSE[2:]).any())
        density = next((step for step in DENSITIES if step >= 1.4 * fine), DENSITIES[-1])
        sampling = round(max(density / fine, 0.7), 1)
        self._actor = _actor(domain.geometry, domain.key, seed, subject, bust, density, sampling)
        self._mesh = min(max(fine, 64.0), 320.0)

        rng = seeded_generator(*self._key, 7)
        drift = rng.random() ** 2 * camera.head * UNIT_DISPLACEMENT / 1000
        self._sway = Waves(rng, np.array([1.7, 1.7, 1.1, 1.1, 2.8, 2.8]) * drift)
        self._lamp = Waves(rng, np.full(3, camera.light))
        self._start = self._sway.at(self.intervals[0].onset / frames_per_second if self.intervals else 0.0)
        self._blinks = self._draw_blinks(rng)
        self._background = draw_background(size, self._to_pixels, self._actor.traits, rng)
        self._covered = self._always_covered(seen)
        self._noise = _noise_tile(rng, size, camera.noise)
        self._axes = (np.arange(size[1], dtype=np.float32), np.arange(size[0], dtype=np.float32)[:, None])

    def __len__(self) -> int:
        return self._frames

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the frames as a video, encoded as a webcam program would; the ending of `path` names the container."""
        import av

        height, width = self.size
        rate = Fraction(self.frames_per_second).limit_denominator(1001)
        with av.open(os.fspath(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 4_000_000
            for frame in self:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        return Path(path)

    def __iter__(self) -> Iterator[Image]:
        return (self.frame(index) for index in range(self._frames))

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"SyntheticRecording({self._frames} frames of {width}x{height} at {self.frames_per_second:g} a second, "
            f"{len(self.intervals)} expressions)"
        )

    def head(self, index: int) -> Array:
        """Pose of the head at a frame, (6,), see `SyntheticVideo`."""
        return self._sway.at(index / self.frames_per_second) - self._start

    def closure(self, index: int) -> float:
        """How far a blink has closed the lids at a frame, 0 to 1."""
        times = [index / self.frames_per_second - start for start in self._blinks]
        shares = [float(np.interp(time, (0.0, 0.08, 0.13, BLINK_LENGTH), (0.0, 1.0, 1.0, 0.0))) for time in times]
        return max((share * share * (3 - 2 * share) for share in shares), default=0.0)

    def crop(self, index: int = 0) -> Array:
        """Affine map (2, 3) from the face frame to pixels at a frame, the turning of the head left out."""
        matrix = self._matrix(self.head(index))
        return matrix * (1, CROP_ASPECT, 1)

    def box(self, index: int = 0) -> tuple[float, float, float, float]:
        """Left, top, width and height of the canonical crop at a frame, turned upright about its centre."""
        crop = self.crop(index)
        width, height = np.sqrt((crop[:, :2] ** 2).sum(axis=0)).tolist()
        x, y = crop[:, 2].tolist()
        return x - width / 2, y - height / 2, width, height

    def landmarks(self, index: int = 0) -> dict[str, Array]:
        """Landmarks in pixels at a frame, right and left half of the picture, each (2, 2)."""
        places = {}
        for name, both in self._actor.person.landmarks.items():
            points = (both * np.array([1, CROP_ASPECT], np.float32)).astype(np.float32)
            x, y = self._forward(points[:, :1], points[:, 1:], index)
            places[name] = np.concatenate([x, y], axis=1)
        return places

    def flow(self, first: int, second: int, *, head: bool = True) -> Array:
        """True displacement from one frame to another in pixels, float32 (2, height, width), on the first one's grid.

        0 where no head is. Lids that blink are not in it. Without `head` motion the head keeps the first frame's pose.
        """
        first, second = self._check(first), self._check(second)
        x, y, here_x, here_y = self._backward(first, (slice(0, self.size[0]), slice(0, self.size[1])))
        there_x, there_y = self._forward(x, y, second, None if head else first)
        flow = np.stack([there_x - here_x, there_y - here_y]).astype(np.float32)
        flow[:, ~self._cover(x, y)] = 0
        return flow

    def frame(self, index: int) -> Image:
        """Draw one frame, uint8 (height, width, 3), RGB."""
        index = self._check(index)
        where = self._covered or self._around_head(index)
        x, y, _, _ = self._backward(index, where)
        x, y = self._on_face(x, y)
        layers = self._blinking(self.closure(index))
        if self._covered:
            picture: Array = cv2.remap(layers[..., :3], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        else:
            drawn = cv2.remap(layers, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
            picture = self._background.copy()
            behind = picture[where]
            share = cv2.merge([drawn[..., 3]] * 3).astype(np.float32) * np.float32(1 / 255)
            mixed = cv2.multiply(share, cv2.subtract(drawn[..., :3], behind, dtype=cv2.CV_32F))
            picture[where] = cv2.add(behind, mixed, dtype=cv2.CV_8U)
        return self._expose(picture, index)

    def _check(self, index: int) -> int:
        if not -self._frames <= index < self._frames:
            raise DataError(f"there is no frame {index}: the recording has {self._frames} frames, counted from 0.")
        return index % self._frames

    def _matrix(self, pose: Array) -> Array:
        """Affine map (2, 3) from the plane of the face to pixels."""
        shift_x, shift_y, roll, scale = (float(value) for value in pose[:4])
        cosine, sine = (1 + scale) * math.cos(roll), (1 + scale) * math.sin(roll)
        return composed(self._to_pixels, np.array([(cosine, -sine, shift_x), (sine, cosine, shift_y)]))

    def _backward(self, index: int, where: tuple[slice, slice]) -> tuple[Array, Array, Array, Array]:
        """Place at rest, in the plane of the face, of what is seen at every pixel, and the pixels themselves."""
        pose = self.head(index)
        a, b = inverted(self._matrix(pose)).astype(np.float32)
        across, down = self._axes[0][where[1]], self._axes[1][where[0]]
        x: Array = (a[0] * across + a[2]) + a[1] * down
        y: Array = (b[0] * across + b[2]) + b[1] * down
        if pose[4] or pose[5]:
            yaw, pitch = np.float32(pose[4]), np.float32(pose[5])
            # The relief is smooth and the turn small: two steps of the fixed point leave nothing to see.
            depth = self._depth(x, y)
            depth = self._depth(x - yaw * depth, y - pitch * depth)
            x -= yaw * depth
            y -= pitch * depth
        skin, strength = self._skin(index)
        if skin is not None:
            back = skin.backward(x, y, strength)
            x += back[..., 0]
            y += back[..., 1]
        return x, y, across, down

    def _forward(self, x: Array, y: Array, index: int, pose_of: int | None = None) -> tuple[Array, Array]:
        """Pixels at a frame of what rests at `x`, `y`; `pose_of` takes the head's pose from another frame."""
        pose = self.head(index if pose_of is None else pose_of)
        skin, strength = self._skin(index)
        if skin is not None:
            moved = skin.forward(x, y, strength)
            x, y = x + moved[..., 0], y + moved[..., 1]
        if pose[4] or pose[5]:
            depth = self._depth(x, y)
            x, y = x + np.float32(pose[4]) * depth, y + np.float32(pose[5]) * depth
        a, b = self._matrix(pose)
        return a[0] * x + a[1] * y + a[2], b[0] * x + b[1] * y + b[2]

    def _on_face(self, x: Array, y: Array, scale: float = 1.0) -> tuple[Array, Array]:
        """Pixels of the drawn face, of one that is smaller by `scale`, for places in the plane of the face."""
        face = self._actor.face
        density = np.float32(face.density * scale)
        left, top = (np.float32(edge * face.density * scale + 0.5) for edge in face.origin)
        return x * density - left, y * density - top

    def _depth(self, x: Array, y: Array) -> Array:
        across, down = self._on_face(x, y, self._actor.depth_scale)
        return cv2.remap(self._actor.depth, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _cover(self, x: Array, y: Array) -> NDArray[np.bool_]:
        across, down = self._on_face(x, y)
        cover = cv2.remap(self._actor.layers[..., 3], across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return cover > 127

    def _skin(self, index: int) -> tuple[MovingSkin | None, float]:
        """The expression that shows at a frame, and how far it has come."""
        for number, interval in enumerate(self.intervals):
            strength = interval.strength(index)
            if strength > 0:
                if number not in self._skins:
                    self._skins = {number: MovingSkin(self._movements[number], self._mesh, self._amplify)}
                return self._skins[number], strength
        return None, 0.0

    def _around_head(self, index: int) -> tuple[slice, slice]:
        height, width = self._actor.layers.shape[:2]
        face = self._actor.face
        ends = np.array(face.origin) + np.array([(0, 0), (width, height)]) / face.density
        corners = np.array([(x, y) for x in ends[:, 0] for y in ends[:, 1]])
        pixels = transformed(self._matrix(self.head(index)), corners)
        low = np.clip(np.floor(pixels.min(axis=0)).astype(int) - 2, 0, (self.size[1] - 1, self.size[0] - 1))
        high = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + 3, low + 1, (self.size[1], self.size[0]))
        return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))

    def _always_covered(self, corners: Array) -> tuple[slice, slice] | None:
        """The whole picture if the head fills it however it moves, else None; its corners are in the face's plane."""
        face = self._actor.face
        seen = (corners - face.origin) * face.density - 0.5
        reach = 0.04 * face.density
        low, high = np.floor(seen.min(axis=0) - reach).astype(int), np.ceil(seen.max(axis=0) + reach).astype(int)
        cover = self._actor.layers[..., 3]
        inside = (low >= 0).all() and (high < cover.shape[::-1]).all()
        if not inside or cover[low[1] : high[1], low[0] : high[0]].min() < 255:
            return None
        return slice(0, self.size[0]), slice(0, self.size[1])

    def _blinking(self, closure: float) -> Image:
        """The drawn face with its lids as far closed as `closure` says."""
        if closure <= 0:
            return self._actor.layers
        layers = self._actor.layers.copy()
        for eye in self._actor.face.eyes:
            edge = np.float32(1.08 * closure)
            share = np.clip((edge - eye.height) / np.float32(0.14) + np.float32(0.5), 0, 1)
            lash = np.exp(-0.5 * ((eye.height - edge) / np.float32(0.1)) ** 2)
            closed = eye.lid * (1 - np.float32(0.7) * lash[..., None])
            part = layers[..., :3][eye.where]
            part[:] = (part + share[..., None] * (closed - part) + np.float32(0.5)).astype(np.uint8)
        return layers

    def _expose(self, picture: Image, index: int) -> Image:
        """Light, noise and compression."""
        if self.camera.light or self.camera.noise:
            exposed: Array = picture.astype(np.float32)
            if self.camera.light:
                level, across, down = self._lamp.at(index / self.frames_per_second)
                height, width = self.size
                columns = np.linspace(-across, across, width, dtype=np.float32)[None, :]
                rows = np.linspace(-down, down, height, dtype=np.float32)[:, None]
                gain = columns + (rows + np.float32(1 + level))
                exposed = cv2.multiply(exposed, cv2.merge([gain] * 3))
            if self.camera.noise:
                exposed += self._grain(index)
            picture = (np.clip(exposed, 0, 255, out=exposed) + np.float32(0.5)).astype(np.uint8)
        if self.camera.jpeg is not None:
            coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.camera.jpeg])[1]
            picture = np.ascontiguousarray(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))[..., ::-1])
        return picture

    def _grain(self, index: int) -> Array:
        """One frame's noise: a piece of the tile, turned about."""
        rng = seeded_generator(*self._key, 11, index)
        top, left, flip_y, flip_x = rng.integers([TILE_MARGIN, TILE_MARGIN, 2, 2]).tolist()
        piece = self._noise[top : top + self.size[0], left : left + self.size[1]]
        return piece[:: 1 - 2 * flip_y, :: 1 - 2 * flip_x]

    def _draw_blinks(self, rng: np.random.Generator) -> tuple[float, ...]:
        """When blinks begin, in seconds, apart from each other and from onsets and apexes."""
        length = self._frames / self.frames_per_second
        count = int(rng.poisson(self.camera.blinks * length))
        kept = [
            moment / self.frames_per_second for interval in self.intervals for moment in (interval.onset, interval.apex)
        ]
        starts: list[float] = []
        for start in np.sort(rng.uniform(-BLINK_LENGTH / 2, length, count)).tolist():
            apart = not starts or start - starts[-1] > 2 * BLINK_LENGTH
            if apart and not any(start <= moment <= start + BLINK_LENGTH for moment in kept):
                starts.append(start)
        return tuple(starts)


def _noise_tile(rng: np.random.Generator, size: tuple[int, int], level: float) -> Array:
    """Noise from which every frame takes a piece of its own."""
    if not level:
        return np.zeros((0, 0, 3), np.float32)
    shape = (size[0] + TILE_MARGIN, size[1] + TILE_MARGIN)
    grey = rng.standard_normal((*shape, 1), dtype=np.float32)
    tile = 0.7 * grey + 0.7 * rng.standard_normal((*shape, 3), dtype=np.float32)
    return tile * np.float32(level)
