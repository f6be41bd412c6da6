"""Transforms: errors beside the Cramer-Rao bound, the choice of model, chains, sets and real frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from reference import match as star_lists
from reference import transform as reference
from scipy import ndimage, special

from fastack import _transform
from fastack.errors import FrameError, MatchError
from fastack.options import TransformOptions
from fastack.transform import compose, consistent, fit, from_wcs, register
from fastack.types import StarFlag, Stars, Transform

CASES = 40  # of each class; 1000 in benchmarks/truth_transform.py


def _fit(case: reference.Case, **options: object) -> Transform:
    errors = {"reference_err": case.reference_err, "frame_err": case.frame_err}
    return fit(case.a, case.b, **errors, options=TransformOptions(**options))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("outliers", [0.0, 0.1])
@pytest.mark.parametrize("model", reference.MODELS)
def test_fit_is_that_of_its_twin(model: str, outliers: float, known: bool) -> None:
    """30 cases of 4 to 300 stars, seed 4: the same model and stars, the same numbers but for rounding."""
    rng = np.random.default_rng([4, reference.MODELS.index(model), known])
    for _ in range(30):
        n = int(np.exp(rng.uniform(np.log(4), np.log(300))))
        case = reference.case(model, rng, n=max(n, 24), outliers=outliers, strength=3.0)
        a, b = case.a[:n], case.b[:n]
        variance = (case.reference_err**2 + case.frame_err**2)[:n] if known else np.ones(n)
        origin, scale = (a.min(axis=0) + a.max(axis=0)) / 2, np.ptp(a, axis=0).max() / 2
        u, v = ((a - origin) / scale).T
        parity, start = rng.choice([1.0, -1.0]), rng.uniform(size=n) < 0.95
        start[:3] = True
        twin = reference.Fit(
            reference.monomials(u, v), b, variance, known, 4.0, tuple(origin), float(scale), parity, start
        )
        for wanted in (None, *reference.MODELS):
            if wanted is not None and n < reference.WIDTH[wanted]:
                continue
            number = -1 if wanted is None else reference.MODELS.index(wanted)
            found = _transform.fit_pairs(
                a, b, variance, known, 4.0, *origin, scale, parity, start.view(np.uint8), number
            )
            expected = twin.climb() if wanted is None else twin.reach(wanted)
            assert reference.MODELS[found[0]] == expected.model
            np.testing.assert_array_equal(found[3], expected.keep)
            # a fit of as many stars as terms may be badly determined: coefficients go with the errors they have
            size = np.sqrt(np.abs(np.diag(twin.covariance(expected)))).max()
            np.testing.assert_allclose(found[1], expected.c, rtol=1e-8, atol=1e-6 * size + 1e-7)
            np.testing.assert_allclose(found[2], twin.covariance(expected), rtol=1e-5, atol=1e-6 * size**2)


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_what_a_fit_starts_from_is_that_of_its_twin(n: int) -> None:
    rng = np.random.default_rng([6, n])
    b = rng.uniform(0, 1000, (n, 2))
    predicted = b + rng.standard_t(1, (n, 2))
    np.testing.assert_array_equal(
        _transform.near_prediction(predicted, b, 2.0), reference.near_prediction(predicted, b, 2.0)
    )
    errors = rng.choice([0.0, np.nan, *rng.uniform(0.01, 0.3, n)], (2, n))
    for first, second in ((*errors,), (errors[0], None), (None, None), (np.zeros(n), np.full(n, 0.1))):
        variance, known = _transform.variances(first, second, n, 1.5)
        expected = reference.variances(first, second, n, 1.5)
        assert known == expected[1]
        np.testing.assert_allclose(variance, expected[0], rtol=1e-14)


@pytest.mark.parametrize("outliers", [0.0, 0.1])
@pytest.mark.parametrize("model", reference.MODELS)
def test_corner_error_against_the_bound(model: str, outliers: float) -> None:
    """40 cases of 40 to 500 stars, seed 5, in the true model.

    The mean of (error / bound)^2 has a relative scatter of at most sqrt(2 / 2 / 40), for a shift (two free
    numbers): 1.2^2 lies 2.8 sigma above 1 there, and further off for the others. Undetected outliers cost a
    little more.
    """
    rng = np.random.default_rng([5, reference.MODELS.index(model)])
    ratios = []
    for _ in range(CASES):
        case = reference.case(model, rng, n=int(rng.integers(40, 500)), outliers=outliers)
        ratios.append(reference.corner_error(case, _fit(case, model=model)) / case.bound)
    assert np.sqrt(np.mean(np.square(ratios))) < (1.2 if not outliers else 1.3)


@pytest.mark.parametrize("model", reference.MODELS)
def test_model_is_the_true_one(model: str) -> None:
    """40 cases, seed 6, neglected terms of 10 sigma: too low never; too high at a rate below 2 %."""
    rng = np.random.default_rng([6, reference.MODELS.index(model)])
    found = [_fit(reference.case(model, rng, n=int(rng.integers(30, 500)))).model for _ in range(CASES)]
    steps = [reference.MODELS.index(one) - reference.MODELS.index(model) for one in found]
    assert min(steps) == 0
    assert sum(step > 0 for step in steps) <= 3  # more than 3 of 40 at 2 %: 0.8 % of all runs


def test_wrong_pairs_do_not_hide_a_distortion() -> None:
    """200 quadratic cases of 40 to 60 stars, seed 17, a tenth of them wrong: none may stop at a lower model.

    A lower model leaves the distortion of ten sigmas and more in the corners, so that no error may exceed six times
    the bound (chance, of two numbers at four corners: below 1e-6 a case).
    """
    rng = np.random.default_rng(17)
    for _ in range(200):
        case = reference.case("quadratic", rng, n=int(rng.integers(40, 60)), outliers=0.1)
        assert reference.corner_error(case, _fit(case)) < 6 * case.bound


def test_hundred_bright_stars() -> None:
    """100 stars of SNR 50 and more, affine: 0.02 px at the corners."""
    rng = np.random.default_rng(7)
    cases = [reference.case("affine", rng, n=100, snr=50) for _ in range(40)]
    assert max(reference.corner_error(case, _fit(case)) for case in cases) < 0.02


def test_covariance_predicts_the_scatter() -> None:
    """100 fields, seed 8: scatter of a corner as the covariance says, within 4 sigma of chi^2."""
    for model in reference.MODELS:
        pulls = []
        rng = np.random.default_rng(8)
        for _ in range(100):
            case = reference.case(model, rng, n=40)
            found = _fit(case, model=model)
            terms = found._terms(case.corners[:1])
            sigma = np.sqrt(terms @ found.covariance @ terms.T)[0, 0]
            pulls.append((found(case.corners[:1])[0, 0] - case.truth[0, 0]) / sigma)
        assert np.mean(np.square(pulls)) == pytest.approx(1, abs=4 * np.sqrt(2 / 100))


def test_errors_that_are_too_small_get_a_floor() -> None:
    """Bright stars claim 0.001 px but scatter by 0.1: they must not rule the fit."""
    rng = np.random.default_rng(9)
    a = rng.uniform(0, 1000, (200, 2))
    err = np.where(np.arange(200) < 5, 1e-3, 0.05)
    squares = []
    for _ in range(50):
        found = fit(a, a + np.array([3, 4]) + rng.normal(0, 0.1, a.shape), frame_err=err)
        squares.append(np.mean((found(a) - a - (3, 4)) ** 2))
    # 0.1 px in 200 stars is 0.007 px; five stars alone would give 0.045
    assert np.sqrt(np.mean(squares)) < 1.5 * 0.1 / np.sqrt(200)


def test_gross_outliers() -> None:
    rng = np.random.default_rng(10)
    case = reference.case("affine", rng, n=100)
    case.b[:30] = rng.uniform(0, 2048, (30, 2))
    found = _fit(case, model="affine")
    assert found.n <= 70
    assert reference.corner_error(case, found) < 6 * case.bound


def test_big_frames_are_well_conditioned() -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        case = reference.case("cubic", rng, n=400, side=16384.0)
        found = _fit(case)
        assert found.model == "cubic"
        assert reference.corner_error(case, found) < 4 * case.bound
        assert np.linalg.cond(found._terms(case.a)) < 100


@pytest.mark.parametrize(("n", "highest"), [(3, "similarity"), (5, "similarity"), (8, "affine"), (14, "quadratic")])
def test_few_stars_stay_low(n: int, highest: str) -> None:
    rng = np.random.default_rng(12)
    for _ in range(30):
        a = rng.uniform(0, 1000, (n, 2))
        warped = a + 3e-5 * (a - 500) ** 2 + rng.normal(0, 0.05, a.shape)
        assert reference.MODELS.index(fit(a, warped).model) <= reference.MODELS.index(highest)


def test_stars_in_a_row_stay_low() -> None:
    rng = np.random.default_rng(13)
    a = np.stack([np.linspace(0, 1000, 50), 500 + rng.normal(0, 2, 50)], axis=1)
    assert fit(a, a * [1.1, 1.0] + rng.normal(0, 0.1, a.shape)).model in ("shift", "similarity")


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2)), TransformOptions(), "needs 3"),
        (np.eye(2), np.eye(2), TransformOptions(model="affine"), "needs 3"),
        (np.ones((9, 2)), np.ones((9, 2)), TransformOptions(), "one point"),
        (np.full((9, 2), np.nan), np.ones((9, 2)), TransformOptions(), "0 pairs"),
    ],
)
def test_too_little_is_refused(a: np.ndarray, b: np.ndarray, options: TransformOptions, message: str) -> None:
    with pytest.raises(MatchError, match=message):
        fit(a, b, options=options)


def test_arguments() -> None:
    a = np.random.default_rng(1).uniform(0, 9, (9, 2))
    with pytest.raises(ValueError, match="9 reference positions but 8"):
        fit(a, a[:8])
    with pytest.raises(ValueError, match="errors have shape"):
        fit(a, a, frame_err=np.ones(8))
    assert fit(a.tolist(), a.astype(">f8"), frame_err=np.full(9, np.nan)).model == "shift"


def test_exact_pairs_give_the_exact_map() -> None:
    a = np.random.default_rng(1).uniform(0, 1000, (50, 2))
    truth = np.array([[0.9, -0.2, 5.0], [0.2, 0.9, -7.0]])
    found = fit(a, a @ truth[:, :2].T + truth[:, 2])
    assert found.model == "similarity"
    np.testing.assert_allclose(found(a), a @ truth[:, :2].T + truth[:, 2], atol=1e-9)
    np.testing.assert_allclose(found.inverse(found(a)), a, atol=1e-9)


def _lists(kind: str, seed: int) -> tuple[Stars, Stars, star_lists.Case]:
    case = star_lists.case(kind, np.random.default_rng(seed))
    return Stars.make(case.a), Stars.make(case.b), case


@pytest.mark.parametrize("kind", ["turned", "mirrored", "half shared", "60 % unmatched", "hot pixels"])
def test_register(kind: str) -> None:
    """10 fields: the corner error stays within 5 times what the true pairs allow (0.3 px, similarity)."""
    for seed in range(10):
        a, b, case = _lists(kind, seed)
        transform, pairs = register(a, b)
        again, same = register(a, b, guess=transform)
        corners = np.column_stack([case.corners, np.ones(16)]) @ case.truth.T
        allowed = max(5 * np.sqrt(2) * 0.3 * np.sqrt(4 / len(case.pairs)), 0.1)
        assert np.abs(transform(case.corners) - corners).max() < allowed
        np.testing.assert_allclose(again(case.corners), transform(case.corners), atol=0.05)
        true = {tuple(pair) for pair in case.pairs}
        assert len(true & {tuple(pair) for pair in pairs.index}) > 0.95 * len(true)
        assert abs(len(same) - len(pairs)) <= 2


def test_register_takes_plain_positions() -> None:
    a, b, _ = _lists("turned", 3)
    transform, pairs = register(a, b)
    for plain in ((a.xy, b.xy), (a.xy.tolist(), np.ma.masked_invalid(b.xy))):
        same, again = register(*plain)
        np.testing.assert_array_equal(same.matrix, transform.matrix)
        np.testing.assert_array_equal(again.index, pairs.index)
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        register(a.xy.ravel(), b.xy)


def test_register_follows_a_drift_of_two_pixels() -> None:
    """Sky and hot pixels lie within the tolerance of each other, and the guess is the identity."""
    rng = np.random.default_rng(14)
    sky, fixed = rng.uniform(0, 800, (200, 2)), rng.uniform(0, 800, (100, 2))
    error = rng.normal(0, 0.1, (2, 300, 2))
    a = Stars.make(np.concatenate([sky, fixed]) + error[0])
    b = Stars.make(np.concatenate([sky + np.array([1.5, 0.5]), fixed]) + error[1])
    for guess in (None, Transform.identity()):
        transform, pairs = register(a, b, guess=guess)
        np.testing.assert_allclose(transform([[400, 400]]) - 400, [[1.5, 0.5]], atol=5 * 0.14 / np.sqrt(200))
        assert (pairs.index[:, 0] < 200).mean() > 0.98


def test_register_through_distortion() -> None:
    """Cubic distortion of 6 px at the corners: pairs beyond the tolerance of a similarity."""
    rng = np.random.default_rng(15)
    a = rng.uniform(0, 4000, (400, 2))
    r2 = np.sum((a - 2000) ** 2, axis=1, keepdims=True) / 2000**2
    b = 4000 - (a + (a - 2000) * r2 * 0.001)
    transform, pairs = register(Stars.make(a), Stars.make(b + rng.normal(0, 0.1, b.shape)))
    assert transform.model == "cubic"
    assert len(pairs) > 390


def test_compose() -> None:
    rng = np.random.default_rng(16)
    one = Transform.affine([[0.9, -0.3, 20], [0.3, 0.9, -10]])
    two = Transform.affine([[-1.0, 0.01, 900], [0, -1.0, 700]])
    xy = rng.uniform(-1000, 1000, (20, 2))
    np.testing.assert_allclose(compose(one, two)(xy), two(one(xy)), atol=1e-9)
    first, second = (_fit(reference.case(model, rng, n=300)) for model in ("quadratic", "affine"))
    xy = rng.uniform(0, 2048, (50, 2))
    chain = compose(first, second)
    assert chain.model == "quadratic"
    np.testing.assert_allclose(chain(xy), second(first(xy)), atol=1e-6)
    terms, inner = chain._terms(xy), first._terms(xy)
    variance = np.einsum("ij,jk,ik->i", inner, first.covariance, inner) * second.magnification**2
    outer = second._terms(first(xy))
    variance += np.einsum("ij,jk,ik->i", outer, second.covariance, outer)
    np.testing.assert_allclose(np.einsum("ij,jk,ik->i", terms, chain.covariance, terms), variance, rtol=1e-6)


def _turned(angle: float, scale: float = 1.0, dx: float = 0.0, mirror: float = 1.0) -> Transform:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[c, -s * mirror], [s, c * mirror]])
    return Transform.affine(np.column_stack([linear, (500, 500) - linear @ (500 + dx, 500)]))


def test_consistent_set() -> None:
    good = [_turned(0.001 * k, dx=5 * k) for k in range(10)] + [_turned(np.pi)]
    odd = [_turned(0, 1.05), _turned(0.1, mirror=-1.0), _turned(0, dx=5000), None]
    odd.append(Transform.affine([[1.1, 0, 0], [0, 0.95, 0]]))
    reasons = consistent([*good, *odd], [(1000, 1000)] * 16)
    assert reasons[:11] == [None] * 11
    for reason, word in zip(reasons[11:], ["scale", "mirrored", "footprint", None, "stretches"], strict=True):
        assert word is None or word in reason
    assert reasons[14] is None
    mirrored = [_turned(0.1, mirror=-1.0)] * 3
    assert consistent([*good, *mirrored], [(1000, 1000)] * 14) == [None] * 14
    odds = [20.0] * 11 + [100.0]
    assert consistent([*good, mirrored[0]], [(1000, 1000)] * 12, log_odds=odds) == [None] * 12


def _wcs(crval: tuple[float, float], angle: float = 0.0, scale: float = 1.0) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = crval, [512, 512]
    c, s = scale / 3600 * np.cos(angle), scale / 3600 * np.sin(angle)
    wcs.wcs.cd = [[-c, s], [s, c]]
    return wcs


def test_from_wcs() -> None:
    one, two = _wcs((150.0, 20.0)), _wcs((150.05, 20.02), 0.5)
    found = from_wcs(one, two, (1024, 1024))
    xy = np.random.default_rng(17).uniform(0, 1023, (100, 2))
    sky = one.all_pix2world(xy, 0)
    assert np.abs(found(xy) - two.all_world2pix(sky, 0)).max() < 0.012
    with pytest.raises(FrameError, match="no cubic polynomial"):
        from_wcs(_wcs((150.0, 20.0), scale=60), _wcs((157.0, 27.0), 0.5, scale=60), (1024, 1024))


def _maxima(path: Path) -> Stars:
    """Local maxima 8 sigma above the sky with their centres of gravity in 3x3 pixels."""
    image = fits.getdata(path).astype(float)
    image -= np.median(image)
    image -= ndimage.uniform_filter(np.minimum(image, 3 * 1.4826 * np.median(np.abs(image))), 25)
    noise = 1.4826 * np.median(np.abs(image))
    peak = (image == ndimage.maximum_filter(image, 5)) & (image > 8 * noise)
    y, x = np.nonzero(peak)
    inside = (y > 1) & (x > 1) & (y < image.shape[0] - 2) & (x < image.shape[1] - 2)
    y, x = y[inside], x[inside]
    near = np.clip(np.stack([image[y + j, x + i] for j in (-1, 0, 1) for i in (-1, 0, 1)]), 0, None)
    flux = near.sum(axis=0)
    dx, dy = np.array([-1, 0, 1] * 3) @ near / flux, np.repeat([-1, 0, 1], 3) @ near / flux
    order = np.argsort(-flux)
    return Stars.make(np.stack([x + dx, y + dy], axis=1)[order])


@pytest.mark.real
def test_real_night_with_drift_and_hot_pixels(data_root: Path) -> None:
    """Every twelfth frame of a night that drifts to dx +276, dy -63 px and 0.58 degree."""
    paths = sorted((data_root / "hatp32").glob("*.FITS"))[::12]
    lists = [_maxima(path) for path in paths]
    transforms = [register(lists[0], stars)[0] for stars in lists]
    assert consistent(transforms, [(500, 650)] * len(lists)) == [None] * len(lists)
    for transform in transforms:
        assert transform.magnification == pytest.approx(1.0, abs=1e-3)
        assert abs(transform.rotation) < 0.65
    drift = transforms[-1].inverse([[325, 250]])[0] - (325, 250)
    assert drift[0] == pytest.approx(260, abs=25)
    # the chain by way of the middle frame leads to the same place
    middle = lists[len(lists) // 2]
    chain = compose(register(lists[0], middle)[0], register(middle, lists[-1])[0])
    np.testing.assert_allclose(chain([[325, 250]]), transforms[-1]([[325, 250]]), atol=0.1)


def test_saturated_and_sharp_stars_stay_out_of_the_fit() -> None:
    rng = np.random.default_rng(18)
    xy = rng.uniform(0, 1000, (60, 2))
    flags = np.zeros(60)
    flags[:10], flags[10:15] = StarFlag.SATURATED, StarFlag.SHARP
    moved = xy + np.array([30, 10]) + rng.normal(0, 0.05, xy.shape)
    moved[:10] += 0.3
    transform, pairs = register(Stars.make(xy, flags=flags), Stars.make(moved))
    assert pairs.index[:, 0].min() >= 15
    np.testing.assert_allclose(transform([[500, 500]]), [[530, 510]], atol=5 * 0.05 / np.sqrt(45))


@pytest.mark.parametrize("more", [2, 6, 18])
def test_tails_are_those_of_scipy(more):
    """To 1e-9 of themselves, over all that a field of 3 to 5000 stars may ask for."""
    for free in (1, 3, 20, 900, 10_000):
        for value in (1e-3, 0.5, 1.0, 3.0, 30.0, 1e4):
            assert _transform.f_tail(more, free, value) == pytest.approx(special.fdtrc(more, free, value), rel=1e-9)
        for excess in (1.2, 2.0, 10.0):
            value = excess * free + 2.1
            assert _transform.chi2_tail(free, value) == pytest.approx(special.chdtrc(free, value), rel=1e-9)
        assert _transform.chi2_tail(free, free) == 1
