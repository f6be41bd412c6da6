"""Pairs of stars with a known transform, and the best that any unbiased fit can do with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MODELS = ("shift", "similarity", "affine", "quadratic", "cubic")
TERMS = {"shift": 1, "similarity": 3, "affine": 3, "quadratic": 6, "cubic": 10}
FREE = {"shift": 2, "similarity": 4, "affine": 6, "quadratic": 12, "cubic": 20}


@dataclass(frozen=True)
class Case:
    """Measured pairs, their errors, and the truth at the frame's corners."""

    a: np.ndarray
    b: np.ndarray
    reference_err: np.ndarray
    frame_err: np.ndarray
    corners: np.ndarray  # (4, 2) of the reference
    truth: np.ndarray  # (4, 2) of the frame
    bound: float  # rms over both axes and the corners of the Cramer-Rao bound, pixel
    outlier: np.ndarray  # (n,) stars that are none of the pairs they claim to be


def monomials(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(n, 10) products of powers up to the third."""
    return np.stack([u**i * v**j for i, j in POWERS], axis=1)


POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))


def design(model: str, u: np.ndarray, v: np.ndarray, parity: float) -> np.ndarray:
    """(2n, p) derivatives of all x and then all y by the parameters."""
    one, zero = np.ones_like(u), np.zeros_like(u)
    if model == "shift":
        return np.concatenate([np.stack([one, zero], 1), np.stack([zero, one], 1)])
    if model == "similarity":
        rows = np.stack([one, zero, u, -parity * v], 1), np.stack([zero, one, parity * v, u], 1)
        return np.concatenate(rows)
    terms = monomials(u, v)[:, : TERMS[model]]
    return np.block([[terms, np.zeros_like(terms)], [np.zeros_like(terms), terms]])


def case(
    model: str,
    rng: np.random.Generator,
    *,
    n: int | None = None,
    strength: float = 10.0,
    outliers: float = 0.0,
    snr: float | None = None,
    side: float = 2048.0,
) -> Case:
    """Draw a frame whose true map is of the given model and whose terms beyond the next lower one matter.

    Those terms are random, scaled until their joint significance, the square root of c^T C^-1 c over their
    number with C their covariance in the fit, is at least `strength` (exponential tail above it). Position
    errors follow a range of brightness: 0.6 FWHM / SNR (King 1983, PASP 95, 163) for FWHM 3 px and SNR of
    `snr` or 10 to 1000.
    """
    n = n or int(np.exp(rng.uniform(np.log(20), np.log(500))))
    a = rng.uniform(0, side, (n, 2))
    signal = np.exp(rng.uniform(np.log(snr or 10), np.log(20 * (snr or 50)), n))
    reference_err, frame_err = 0.6 * 3 / signal, 0.6 * 3 / (signal * rng.uniform(0.5, 2, n))
    variance = reference_err**2 + frame_err**2
    u, v = (a - side / 2).T / (side / 2)
    parity = 1.0 if model == "shift" else rng.choice([1.0, -1.0])
    angle = 0.0 if model == "shift" else rng.uniform(0, 2 * np.pi)
    size = side / 2
    low = MODELS[max(MODELS.index(model) - 1, 0)]
    c = np.zeros((10, 2))
    c[1:3] = size * np.array([[np.cos(angle), np.sin(angle)], parity * np.array([-np.sin(angle), np.cos(angle)])])
    c[0] = side / 2 + rng.uniform(-100, 100, 2)

    weight = np.concatenate([1 / variance, 1 / variance])
    full = design(model, u, v, parity)
    normal = full.T * weight @ full
    if model not in ("shift", "similarity"):
        below = design(low, u, v, parity)
        if model != "affine":  # all lower terms take random values of their own, too
            c[1:3] += rng.normal(0, 1e-3 * size, (2, 2))
        extra = np.zeros((10, 2))
        first = {"affine": 1, "quadratic": 3, "cubic": 6}[model]
        extra[first : TERMS[model]] = rng.normal(0, 1, (TERMS[model] - first, 2))
        # what a lower model cannot take up of these terms
        signal_b = (monomials(u, v) @ extra).T.ravel()
        root = np.sqrt(weight)
        left = (
            signal_b * root
            - below * root[:, None] @ np.linalg.lstsq(below * root[:, None], signal_b * root, rcond=None)[0]
        )
        significance = np.sqrt(left @ left / (FREE[model] - FREE[low]))
        c += extra * strength * (1 + rng.exponential(1.0)) / significance
    exact = monomials(u, v) @ c
    corners = np.array([(0, 0), (side, 0), (0, side), (side, side)])
    cu, cv = (corners - side / 2).T / (side / 2)
    at = design(model, cu, cv, parity)
    bound = np.sqrt(np.mean(np.einsum("ij,jk,ik->i", at, np.linalg.inv(normal), at)))
    b = exact + frame_err[:, None] * rng.normal(0, 1, (n, 2))
    a = a + reference_err[:, None] * rng.normal(0, 1, (n, 2))
    outlier = rng.uniform(size=n) < outliers
    b[outlier] += rng.normal(0, 3, (n, 2))[outlier] + rng.choice([-1, 1], (n, 2))[outlier]
    return Case(a, b, reference_err, frame_err, corners, monomials(cu, cv) @ c, float(bound), outlier)


def corner_error(case: Case, transform: object) -> float:
    """Rms over the corners and axes of a transform's error, pixel."""
    return float(np.sqrt(np.mean((transform(case.corners) - case.truth) ** 2)))
