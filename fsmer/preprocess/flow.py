"""Optical flow between two frames, head motion taken out of it, its strain, and the maps that backbones expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, MediaError, SpecMismatchError, unknown_name
from fsmer.parameters import typed_value
from fsmer.preprocess.frame_source import as_rgb

Flow = NDArray[np.float32]
Grey = NDArray[np.uint8]
Floats = NDArray[np.float64]


class FlowMethod(Protocol):
    """An estimator of dense flow; its fields are its parameters."""

    def __call__(self, first: Grey, second: Grey) -> Flow:
        """Displacement in pixels from `first` to `second`, both grey (H, W): u right, v down, (2, H, W)."""


@dataclass(frozen=True)
class Farneback:
    """Polynomial expansion (Farneback, SCIA 2003), the flow of MERAU and of the attribute 3D-ResNet.

    Neither paper gives parameters (MERAU section III-B2, attribute paper section IV-A); the defaults are those of
    OpenCV's documented example, which public code of this field copies. Parameters are called as in OpenCV; `gaussian`
    weighs the window by a Gaussian instead of a box.
    """

    pyr_scale: float = 0.5
    levels: int = 3
    winsize: int = 15
    iterations: int = 3
    poly_n: int = 5
    poly_sigma: float = 1.2
    gaussian: bool = False

    def __call__(self, first: Grey, second: Grey) -> Flow:
        flags = cv2.OPTFLOW_FARNEBACK_GAUSSIAN if self.gaussian else 0
        settings: list[Any] = [*astuple(self)[:-1], flags]
        flow = cv2.calcOpticalFlowFarneback(first, second, np.zeros((*first.shape, 2), np.float32), *settings)
        return np.ascontiguousarray(np.moveaxis(flow, 2, 0), np.float32)


@dataclass(frozen=True)
class TVL1:
    """Total variation with L1 data term (Zach, Pock & Bischof, DAGM 2007), the flow of FR and of STSTNet.

    FR (section IV-B) gives no parameters; the defaults are those of OpenCV's ``DualTVL1OpticalFlow``, which is used
    where the contrib modules of OpenCV are installed. Elsewhere scikit-image's solver runs with the same weight of the
    data term: OpenCV's lambda 0.15 on brightness 0..255 is an attachment of 0.15 * 255 = 38 on 0..1 (its own default
    is 15). It treats the coupling and the stopping rule a little differently.
    """

    attachment: float = 38.0  # weight of the data term for brightness 0..1: the smaller, the smoother the flow
    tightness: float = 0.3  # coupling of the two half steps (OpenCV: theta)
    warps: int = 5  # a pyramid level
    iterations: int = 10  # a warp
    tolerance: float = 1e-4  # stop when the flow changes less

    def __call__(self, first: Grey, second: Grey) -> Flow:
        if hasattr(cv2, "optflow"):
            solver = cv2.optflow.DualTVL1OpticalFlow_create(
                theta=self.tightness, warps=self.warps, epsilon=self.tolerance**0.5, innnerIterations=self.iterations
            )
            solver.setLambda(self.attachment / 255)
            found = solver.calc(first, second, None)
            return np.ascontiguousarray(np.moveaxis(found, 2, 0), np.float32)
        from skimage.registration import optical_flow_tvl1

        rows, columns = optical_flow_tvl1(
            first.astype(np.float32) / 255,
            second.astype(np.float32) / 255,
            attachment=self.attachment,
            tightness=self.tightness,
            num_warp=self.warps,
            num_iter=self.iterations,
            tol=self.tolerance,
        )
        return np.stack([columns, rows]).astype(np.float32)


@dataclass(frozen=True)
class DIS:
    """Dense inverse search (Kroeger et al., ECCV 2016): the fastest of the three.

    OpenCV's medium preset, but down to full resolution and with more refinement: movements here are smaller than a
    pixel of the preset's finest level.
    """

    finest_scale: int = 0  # finest pyramid level, 0 is full resolution
    patch_size: int = 8  # pixels
    patch_stride: int = 3  # pixels
    descent_iterations: int = 25  # gradient steps a patch
    refinement_iterations: int = 5  # fixed-point steps of the variational refinement
    alpha: float = 20.0  # weight of smoothness
    delta: float = 5.0  # weight of brightness constancy
    gamma: float = 10.0  # weight of gradient constancy

    def __call__(self, first: Grey, second: Grey) -> Flow:
        solver = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        own = ("FinestScale", "PatchSize", "PatchStride", "GradientDescentIterations")
        refined = (f"VariationalRefinement{name}" for name in ("Iterations", "Alpha", "Delta", "Gamma"))
        for name, value in zip((*own, *refined), astuple(self), strict=True):
            getattr(solver, f"set{name}")(value)
        found = solver.calc(first, second, np.zeros((*first.shape, 2), np.float32))
        return np.ascontiguousarray(np.moveaxis(found, 2, 0), np.float32)


FLOW_METHODS: Mapping[str, Callable[..., FlowMethod]] = {"dis": DIS, "farneback": Farneback, "tvl1": TVL1}


def list_flow_methods() -> list[str]:
    """Names of the flow estimators."""
    return sorted(FLOW_METHODS)


def load_flow_method(name: str, parameters: Mapping[str, Any] | None = None) -> FlowMethod:
    """The estimator of that name with its defaults, or with some `parameters` changed.

    `UnknownNameError` where there is none, or no such parameter of it; `DataError` for a value of another type.
    """
    if name not in FLOW_METHODS:
        raise unknown_name("flow method", name, FLOW_METHODS)
    method = FLOW_METHODS[name]
    kinds = {one.name: str(one.type) for one in fields(method)}  # type: ignore[arg-type]
    changed = {}
    for key, value in (parameters or {}).items():
        if key not in kinds:
            raise unknown_name("parameter", key, kinds, of=f"flow method {name!r}")
        try:
            changed[key] = typed_value(value, kinds[key])
        except ValueError as error:
            raise DataError(f"{key}={value!r} of flow method {name!r} is not understood; expected {error}.") from error
    return method(**changed)


def optical_flow(first: ArrayLike, second: ArrayLike, method: str | FlowMethod = "farneback") -> Flow:
    """Dense flow from one image to another.

    Parameters
    ----------
    first, second : images of one size
        Grey or colour, see `fsmer.preprocess.frame_source.as_rgb`.
    method : str or FlowMethod
        See `list_flow_methods`.

    Returns
    -------
    float32 array of shape (2, H, W)
        u (right) and v (down) in pixels on the grid of `first`.

    Raises
    ------
    MediaError
        The images differ in size or are smaller than 16 pixels.
    """
    rgb = as_rgb(first, "the first image"), as_rgb(second, "the second image")
    one, two = (np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in rgb)
    if one.shape != two.shape or min(one.shape) < 16:
        raise MediaError(
            f"flow needs two images of one size, 16x16 pixels or more, but got {one.shape[0]}x{one.shape[1]} and "
            f"{two.shape[0]}x{two.shape[1]}; crop or resize them first."
        )
    return (load_flow_method(method) if isinstance(method, str) else method)(one, two)


@dataclass(frozen=True)
class HeadMotion:
    """Affine motion that most of a flow field follows."""

    # (2, 3), ``(u, v) = matrix @ (x, y, 1)`` with x and y in crop widths from the centre and u, v in the flow's unit
    matrix: Floats
    inliers: float  # share of the field's weight that follows it, 0..1

    def field(self, size: tuple[int, int]) -> Flow:
        """The motion on a grid, (2, height, width)."""
        height, width = size
        columns, rows = _axes(size)
        matrix = self.matrix
        parts = [matrix[row, 0] * columns[None, :] + matrix[row, 1] * rows[:, None] + matrix[row, 2] for row in (0, 1)]
        return np.stack(np.broadcast_arrays(*parts)).astype(np.float32).reshape(2, height, width)


def head_motion(flow: Flow, weight: NDArray[Any] | None = None, *, iterations: int = 20) -> HeadMotion:
    """Fit one affine motion to a flow field, without regard to what moves against the rest of the face.

    Affine motions through triples of coarse cells are tried (always the same triples) and the one with the smallest
    median residual is kept; iteratively reweighted least squares with Geman-McClure weights then refine it. Up to half
    of the field (2, H, W) may move otherwise, all of it in one direction even. `weight`, (H, W), is how much each pixel
    counts (0 keeps it out), e.g. 0 off the face.
    """
    _, height, width = flow.shape
    # A grid of some 50 x 50 points gives as good a fit as every pixel.
    step = max(1, min(height, width) // 50)
    columns, rows = (axis[::step] for axis in _axes((height, width)))
    x, y = (part.ravel() for part in np.meshgrid(columns, rows))
    basis = np.stack([x, y, np.ones_like(x)], axis=1)
    values = flow[:, ::step, ::step].reshape(2, -1).T.astype(np.float64)
    base = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)[::step, ::step].ravel()
    counted = np.flatnonzero(base > 0)
    if len(counted) < 3:
        return HeadMotion(np.zeros((2, 3)), 0.0)
    solved = _steadiest_motion(basis[counted], values[counted])
    solved, trust = robust_fit(basis, values, base, solved, iterations)
    return HeadMotion(np.ascontiguousarray(solved.T), float(trust.sum() / base.sum()))


def robust_fit(
    basis: Floats, values: Floats, weight: NDArray[Any], solved: Floats, iterations: int
) -> tuple[Floats, Floats]:
    """Iteratively reweighted least squares with Geman-McClure weights, from `solved` on; and the last weights."""
    for _ in range(iterations):
        error = np.linalg.norm(values - basis @ solved, axis=1)
        scale = 1.5 * float(np.median(error[weight > 0])) + 1e-9
        trust = weight / (1 + (error / scale) ** 2) ** 2
        weighted = basis * trust[:, None]
        # The small ridge keeps a field of one point or line solvable.
        solved = np.linalg.solve(weighted.T @ basis + 1e-9 * np.eye(len(solved)), weighted.T @ values)
    return solved, trust


def _steadiest_motion(basis: Floats, values: Floats, *, triples: int = 48, judges: int = 300) -> Floats:
    """Affine motion (3, 2) with the smallest median residual among the plain fit and those through three points."""
    random = np.random.Generator(np.random.PCG64(0))
    chosen = random.integers(len(basis), size=(triples, 3))
    corners = basis[chosen]
    # Twice the triangle's area: narrow ones extrapolate their noise.
    wide = np.abs(np.linalg.det(corners)) > 0.05
    tried = [np.linalg.lstsq(basis, values, rcond=None)[0][None]]
    if wide.any():
        tried.append(np.linalg.solve(corners[wide], values[chosen[wide]]))
    motions = np.concatenate(tried)
    some = random.integers(len(basis), size=judges)
    errors = np.linalg.norm(values[some] - basis[some] @ motions, axis=2)
    return np.asarray(motions[int(np.median(errors, axis=1).argmin())])


def remove_head_motion(flow: Flow, weight: NDArray[Any] | None = None) -> Flow:
    """The flow less its `head_motion`."""
    return np.asarray(flow - head_motion(flow, weight).field((flow.shape[1], flow.shape[2])))


def _axes(size: tuple[int, int]) -> tuple[Floats, Floats]:
    height, width = size
    return (np.arange(width) + 0.5) / width - 0.5, (np.arange(height) + 0.5) / width - 0.5 * height / width


def optical_strain(flow: Flow, *, shear: float = 0.5) -> NDArray[np.float32]:
    """Magnitude of the strain, ``sqrt(ux^2 + vy^2 + shear (uy + vx)^2)``, (H, W), in the flow's unit per crop width.

    One-sided differences, as in `fsmer.synthetic.flow_maps.optical_strain`, so that the maps are those that the default
    model was pretrained on. A `shear` of 0.5 is the tensor's norm (Shreve et al. 2011) with its two equal off-diagonal
    entries; code of the STSTNet family uses 0.25.
    """
    gradients = np.empty((2, *flow.shape), np.float32)
    # One long row is faster than many short ones; what crosses from row to row lies in the last column.
    line = flow.reshape(-1)
    np.subtract(line[1:], line[:-1], out=gradients[0].reshape(-1)[:-1])
    np.subtract(flow[:, 1:], flow[:, :-1], out=gradients[1, :, :-1])
    gradients[0, :, :, -1], gradients[1, :, -1] = 0, 0
    gradients *= flow.shape[2]
    (ux, vx), (uy, vy) = gradients
    # In place: fresh memory for every term would take longer than the sums.
    uy += vx
    uy *= uy
    uy *= np.float32(shear)
    ux *= ux
    vy *= vy
    ux += vy
    ux += uy
    return np.asarray(np.sqrt(ux))


def resize_area(maps: NDArray[Any] | Sequence[NDArray[Any]], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize maps (channels, H, W) by area averages (linearly where they grow); values keep their unit."""
    height, width = size
    if maps[0].shape == (height, width):
        return np.asarray(maps, np.float32)
    grows = height > maps[0].shape[0] or width > maps[0].shape[1]
    flags = cv2.INTER_LINEAR if grows else cv2.INTER_AREA
    return np.stack([cv2.resize(np.asarray(one, np.float32), (width, height), interpolation=flags) for one in maps])


def flow_map(flow: Flow, spec: InputSpec, *, remove_head: bool = False, shear: float = 0.5) -> NDArray[np.float32]:
    """A flow field (2, H, W) in pixels of a face crop as the map that `spec` asks for, (channels, height, width).

    Displacements become thousandths of the crop width, strain is taken at full resolution, then everything is averaged
    down to the spec's size. `remove_head` takes the head's affine motion out first; `shear` is `optical_strain`'s.
    A min-max channel without any movement is all 0. Channels other than u, v and strain and normalisations other than
    ``"signed"`` and ``"minmax"`` raise `SpecMismatchError`.
    """
    if spec.normalisation not in ("signed", "minmax") or not set(spec.channels) <= {"u", "v", "strain"}:
        raise SpecMismatchError(
            f"flow maps cannot be made as {spec.describe()}: channels u, v, strain and normalisation 'signed' or "
            "'minmax' are expected."
        )
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise DataError(f"the flow has shape {flow.shape}, but (2, height, width) is expected; put channels first.")
    moved = remove_head_motion(flow) if remove_head else flow
    scaled = moved * np.float32(1000 / flow.shape[2])
    planes = {"u": scaled[0], "v": scaled[1]}
    if "strain" in spec.channels:
        planes["strain"] = optical_strain(scaled, shear=shear)
    maps = resize_area([planes[name] for name in spec.channels], spec.size)
    if spec.normalisation == "signed":
        return maps
    low = maps.min(axis=(1, 2), keepdims=True)
    return (maps - low) / np.maximum(maps.max(axis=(1, 2), keepdims=True) - low, 1e-12)
