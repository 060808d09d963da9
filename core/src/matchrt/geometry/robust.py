"""Homography, fundamental and essential matrix from matches, by OpenCV's USAC with a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from matchrt.errors import UsageError

RobustMethod = Literal["magsac", "ransac"]
"""How a model is scored: MAGSAC++ (Barath et al., 2020) or the inlier count of RANSAC (Fischler and Bolles, 1981)."""


@dataclass(frozen=True, eq=False)
class RobustFit:
    """A matrix and the matches that agree with it.

    `matrix` is float64 (3, 3), or None where the matches determine none (too few, or degenerate). `inliers` is bool
    (N,), one for each match given, all False without a matrix. `threshold_px` is the largest residual of an inlier, in
    pixels. `reason` says in words why there is no matrix, and is empty otherwise.
    """

    matrix: NDArray[np.float64] | None
    inliers: NDArray[np.bool_]
    threshold_px: float
    reason: str = ""

    @property
    def match_count(self) -> int:
        """How many matches were given."""
        return len(self.inliers)

    @property
    def inlier_count(self) -> int:
        """How many of them are inliers."""
        return int(self.inliers.sum())

    def __bool__(self) -> bool:
        return self.matrix is not None


def find_homography(
    kp0: ArrayLike,
    kp1: ArrayLike,
    *,
    threshold_px: float = 3.0,
    confidence: float = 0.9999,
    max_iterations: int = 10_000,
    seed: int = 0,
    method: RobustMethod = "magsac",
) -> RobustFit:
    """The homography H that takes image 0 to image 1: [kp1, 1] ~ H [kp0, 1], with H[2, 2] = 1.

    `kp0` and `kp1` are matched points (N, 2) as (x, y) in pixels. Fewer than four matches, or points on one line, give
    an estimate without a matrix. The same input gives the same output. Raises `UsageError` for arrays of wrong shape
    and options out of range.
    """
    points = _checked_points(kp0, kp1)
    options = _checked_options(threshold_px, confidence, max_iterations, seed, method)

    def fit(cv2: Any, a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Any, Any]:
        result: tuple[Any, Any] = cv2.findHomography(a, b, _parameters(cv2, *options, lo_sample=75, lo_iterations=15))
        return result

    estimate = _estimate(fit, *points, minimum=4, threshold_px=threshold_px)
    if estimate.matrix is None:
        return estimate
    inliers = estimate.inliers
    if _on_one_line(points[0][inliers]) or _on_one_line(points[1][inliers]):
        return _nothing(len(inliers), threshold_px, "the inliers lie on one line")
    if abs(estimate.matrix[2, 2]) < 1e-12:
        return _nothing(len(inliers), threshold_px, "the homography sends the origin to infinity")
    return RobustFit(estimate.matrix / estimate.matrix[2, 2], inliers, threshold_px)


def find_fundamental(
    kp0: ArrayLike,
    kp1: ArrayLike,
    *,
    threshold_px: float = 3.0,
    confidence: float = 0.9999,
    max_iterations: int = 10_000,
    seed: int = 0,
    method: RobustMethod = "magsac",
) -> RobustFit:
    """The fundamental matrix F with [kp1, 1]ᵀ F [kp0, 1] = 0, of unit Frobenius norm.

    Points as in `find_homography`; at least eight matches are needed. Matches on a plane determine no unique F: one of
    the consistent ones comes back.
    """
    options = _checked_options(threshold_px, confidence, max_iterations, seed, method)

    def fit(cv2: Any, a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Any, Any]:
        parameters = _parameters(cv2, *options, lo_sample=50, lo_iterations=10)
        result: tuple[Any, Any] = cv2.findFundamentalMat(a, b, parameters)
        return result

    return _unit(_estimate(fit, *_checked_points(kp0, kp1), minimum=8, threshold_px=threshold_px))


def find_essential(
    kp0: ArrayLike,
    kp1: ArrayLike,
    K0: ArrayLike,
    K1: ArrayLike,
    *,
    threshold_px: float = 1.0,
    confidence: float = 0.9999,
    max_iterations: int = 10_000,
    seed: int = 0,
    method: RobustMethod = "magsac",
) -> RobustFit:
    """The essential matrix E with [kp1, 1]ᵀ K1⁻ᵀ E K0⁻¹ [kp0, 1] = 0, of unit Frobenius norm.

    Points as in `find_homography`, in pixels; `K0` and `K1` are the cameras' (3, 3) matrices. At least five matches are
    needed. The threshold is in pixels of the mean focal length.
    """
    options = _checked_options(threshold_px, confidence, max_iterations, seed, method)
    cameras = [np.ascontiguousarray(K, dtype=np.float64) for K in (K0, K1)]
    for name, camera in zip(("K0", "K1"), cameras, strict=True):
        if camera.shape != (3, 3) or not np.isfinite(camera).all() or camera[0, 0] <= 0 or camera[1, 1] <= 0:
            raise UsageError(f"{name} is a (3, 3) camera matrix with positive focal lengths; got {camera.tolist()}")

    def fit(cv2: Any, a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[Any, Any]:
        parameters = _parameters(cv2, *options, lo_sample=50, lo_iterations=10)
        result: tuple[Any, Any] = cv2.findEssentialMat(a, b, cameras[0], cameras[1], None, None, parameters)
        return result

    return _unit(_estimate(fit, *_checked_points(kp0, kp1), minimum=5, threshold_px=threshold_px))


def corner_error(H: ArrayLike | None, H_true: ArrayLike, size: tuple[int, int]) -> float:
    """The mean distance, in pixels of image 1, between the four corners of image 0 under two homographies.

    `size` is image 0's (height, width); the corners are its corner pixels' centres (HPatches' measure, DeTone et al.,
    2018). Infinite where `H` is None or sends a corner to infinity.
    """
    if H is None:
        return float("inf")
    height, width = size
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [width - 1, height - 1, 1], [0, height - 1, 1]], dtype=np.float64)
    warped = [corners @ np.asarray(matrix, dtype=np.float64).T for matrix in (H, H_true)]
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = warped[0][:, :2] / warped[0][:, 2:] - warped[1][:, :2] / warped[1][:, 2:]
        error = float(np.linalg.norm(difference, axis=1).mean())
    return error if np.isfinite(error) else float("inf")


def _estimate(
    fit: Any, kp0: NDArray[np.float64], kp1: NDArray[np.float64], *, minimum: int, threshold_px: float
) -> RobustFit:
    import cv2

    count = len(kp0)
    finite = np.isfinite(kp0).all(axis=1) & np.isfinite(kp1).all(axis=1)
    usable = int(finite.sum())
    if usable < minimum:
        return _nothing(count, threshold_px, f"{usable} matches, and at least {minimum} are needed")
    a, b = kp0[finite], kp1[finite]
    if _on_one_line(a) or _on_one_line(b):
        return _nothing(count, threshold_px, "all points lie on one line")
    try:
        matrix, mask = fit(cv2, a, b)
    except cv2.error:
        matrix, mask = None, None
    if matrix is None or mask is None or matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not matrix.any():
        return _nothing(count, threshold_px, "no model agrees with enough matches")
    inliers = np.zeros(count, dtype=np.bool_)
    inliers[finite] = mask.ravel() != 0
    if inliers.sum() < minimum:
        return _nothing(count, threshold_px, f"the best model has {int(inliers.sum())} inliers, fewer than {minimum}")
    return RobustFit(matrix.astype(np.float64), inliers, threshold_px)


def _parameters(
    cv2: Any,
    threshold_px: float,
    confidence: float,
    max_iterations: int,
    seed: int,
    method: RobustMethod,
    *,
    lo_sample: int,
    lo_iterations: int,
) -> Any:
    """OpenCV's own settings for `USAC_MAGSAC`, with our seed."""
    parameters = cv2.UsacParams()
    parameters.threshold = threshold_px
    parameters.confidence = confidence
    parameters.maxIterations = max_iterations
    parameters.randomGeneratorState = seed
    parameters.isParallel = False
    parameters.sampler = cv2.SAMPLING_UNIFORM
    parameters.loSampleSize = lo_sample
    parameters.loIterations = lo_iterations
    magsac = method == "magsac"
    parameters.score = cv2.SCORE_METHOD_MAGSAC if magsac else cv2.SCORE_METHOD_RANSAC
    parameters.loMethod = cv2.LOCAL_OPTIM_SIGMA if magsac else cv2.LOCAL_OPTIM_INNER_LO
    parameters.final_polisher = cv2.MAGSAC if magsac else cv2.LSQ_POLISHER
    return parameters


def _unit(estimate: RobustFit) -> RobustFit:
    if estimate.matrix is None:
        return estimate
    return RobustFit(estimate.matrix / np.linalg.norm(estimate.matrix), estimate.inliers, estimate.threshold_px)


def _nothing(count: int, threshold_px: float, reason: str) -> RobustFit:
    return RobustFit(None, np.zeros(count, dtype=np.bool_), threshold_px, reason)


def _on_one_line(points: NDArray[np.float64]) -> bool:
    """Whether the points (N, 2) stray from a common line, or point, by less than a thousandth of a pixel (RMS)."""
    centred = points - points.mean(axis=0)
    return bool(np.linalg.svd(centred, compute_uv=False)[-1] < 1e-3 * np.sqrt(len(points)))


def _checked_points(kp0: ArrayLike, kp1: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.array(kp0, dtype=np.float64), np.array(kp1, dtype=np.float64)
    if a.ndim != 2 or a.shape[1] != 2 or a.shape != b.shape:
        raise UsageError(f"matched points are two arrays (N, 2) of the same length; got shapes {a.shape} and {b.shape}")
    return a, b


def _checked_options(
    threshold_px: float, confidence: float, max_iterations: int, seed: int, method: RobustMethod
) -> tuple[float, float, int, int, RobustMethod]:
    if not (np.isfinite(threshold_px) and threshold_px > 0):
        raise UsageError(f"the inlier threshold is in pixels and above 0; got {threshold_px}")
    if not 0 < confidence < 1:
        raise UsageError(f"the confidence lies between 0 and 1; got {confidence}")
    if max_iterations < 1:
        raise UsageError(f"at least one iteration is needed; got {max_iterations}")
    if not 0 <= seed < 2**31:
        raise UsageError(f"the seed lies between 0 and 2147483647; got {seed}")
    if method not in ("magsac", "ransac"):
        raise UsageError(f'the method is "magsac" or "ransac"; got {method!r}')
    return threshold_px, confidence, max_iterations, seed, method
