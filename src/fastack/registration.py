"""Registration of a night: every frame's transform from the reference, by stars, by WCS, or from a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from fastack import _match, report, transform
from fastack import wcs as coordinates
from fastack.errors import MatchError, StackError
from fastack.options import MOST_JITTER, Kernel, StackOptions, TransformOptions
from fastack.types import FrameRecord, StarFlag, Transform

_SET = 4  # frames whose models can be compared
_FEW = 0.25  # of the frames: a distortion of the optics would show in more
_HARDLY = 1.25  # times the residuals, with a map that leaves the distortion out

_SEEN = 15  # frames that tell how well all agree
_CLEAR = 50.0  # SNR of stars that tell it
_CLEAR_STARS = 10  # at least
_STEADY = 0.01  # of the local range: what no frame is better than
_SLOPE = 3.0  # part of the local range by which a star's samples change where it moves by a pixel, times sigmas
#: The same of the kernels that change a star with its place between pixels: moved by half a pixel, or wider by up to a
#: quarter of a square pixel.
_BETWEEN_PIXELS = {"nearest": 0.3, "bilinear": 0.15, "area": 0.15, "bicubic": 0.1, "lanczos2": 0.1}
_WIDTHS = 0.06  # scatter of the stars' widths in a frame that their noise may explain
_NOT_CLEAR = (
    StarFlag.SATURATED | StarFlag.EDGE | StarFlag.NO_FIT | StarFlag.SHARP | StarFlag.EXTENDED | StarFlag.BLENDED
)


def register(
    records: Sequence[FrameRecord], reference: FrameRecord, options: StackOptions, reporter: report.Reporter
) -> None:
    """Find every frame's transform; those without one are left out with the reason.

    Parameters
    ----------
    records : sequence of FrameRecord
        Measured frames.
    reference : FrameRecord
        Whose pixels the transforms start from.
    options : StackOptions
        ``register`` says how.
    reporter : Reporter
        Told of progress.
    """
    live = [r for r in records if r.reason is None]
    reporter.start("register", len(live), 0)
    if options.register == "none":
        for r in live:
            r.transform = Transform.identity()
    elif options.register == "wcs":
        _register_by_wcs(live, reference)
    elif options.register == "stars":
        _register_by_stars(live, reference, options, reporter)
        _hold_to_the_set(live, reference, options)
    else:
        _register_by_table(live, reference, options.register)
    reporter.finish()
    solved = [r for r in live if r.reason is None and r.transform is not None]
    reasons = transform.consistent(
        [r.transform for r in solved if r.transform is not None],
        [r.frame.shape for r in solved],
        log_odds=[r.log_odds for r in solved],
    )
    for r, reason in zip(solved, reasons, strict=True):
        if reason is not None and r is not reference:
            r.reason = f"registration: {reason}"


def _register_by_stars(
    live: Sequence[FrameRecord], reference: FrameRecord, options: StackOptions, reporter: report.Reporter
) -> None:
    reference.transform = Transform.identity()
    assert reference.stars is not None
    reference.n_matched = len(reference.stars)
    at = next(i for i, r in enumerate(live) if r is reference)
    # outwards from the reference, so that the neighbour's transform is a good first guess
    order = [*range(at + 1, len(live)), *range(at - 1, -1, -1)]
    failed = []
    guess: Transform | None = Transform.identity()
    for k in order:
        if k == at - 1:
            guess = Transform.identity()
        r = live[k]
        assert r.stars is not None
        try:
            r.transform, pairs = transform.register(
                reference.stars, r.stars, guess=guess, match_options=options.match, options=options.transform
            )
            guess, r.n_matched, r.log_odds = r.transform, len(pairs), pairs.log_odds
            if pairs.weak:
                r.notes += ("registered on three stars alone",)
        except MatchError as error:
            failed.append((r, str(error)))
        reporter.advance()
    # a frame that does not reach the reference may reach a neighbour that does
    progress = True
    while failed and progress:
        progress = False
        for r, message in list(failed):
            near = sorted((abs(live.index(r) - i), i) for i, o in enumerate(live) if o.transform is not None)
            for _, i in near[:3]:
                if live[i] is reference:
                    continue
                if _register_over(r, live[i], reference, options):
                    failed.remove((r, message))
                    progress = True
                    break
    for r, message in failed:
        r.reason = f"registration: {message}"


def _hold_to_the_set(live: Sequence[FrameRecord], reference: FrameRecord, options: StackOptions) -> None:
    """Distortion that few frames of a set show, and hardly, is the error of their stars: an affine map will do.

    Positions on a colour mosaic err alike in whole parts of a frame, which no test of one frame's
    residuals can tell from a distortion.
    """
    solved = [r for r in live if r.transform is not None and r is not reference]
    bent = [r for r in solved if r.transform is not None and r.transform.order > 1]
    if options.transform.model != "auto" or len(solved) < _SET or len(bent) > _FEW * len(solved):
        return
    straight = replace(options.transform, model="affine")
    for r in bent:
        assert r.stars is not None and reference.stars is not None and r.transform is not None
        try:
            plain, pairs = transform.register(
                reference.stars, r.stars, guess=r.transform, match_options=options.match, options=straight
            )
        except MatchError:
            continue
        if plain.rms < _HARDLY * r.transform.rms:
            r.transform, r.n_matched, r.log_odds = plain, len(pairs), pairs.log_odds


def _register_over(record: FrameRecord, neighbour: FrameRecord, reference: FrameRecord, options: StackOptions) -> bool:
    assert record.stars is not None and neighbour.stars is not None and neighbour.transform is not None
    try:
        step, pairs = transform.register(
            neighbour.stars, record.stars, match_options=options.match, options=options.transform
        )
    except MatchError:
        return False
    guess = transform.compose(neighbour.transform, step)
    try:
        assert reference.stars is not None
        record.transform, pairs = transform.register(
            reference.stars, record.stars, guess=guess, match_options=options.match, options=options.transform
        )
    except MatchError:
        record.transform = guess
        record.notes += (f"registered over {neighbour.name}",)
    record.n_matched, record.log_odds = len(pairs), pairs.log_odds
    return True


def _register_by_wcs(live: Sequence[FrameRecord], reference: FrameRecord) -> None:
    base = coordinates.read_wcs(reference.frame.header)
    if base is None:
        raise StackError(f"--register wcs: the reference {reference.name} has no celestial WCS")
    base = trimmed_wcs(base, reference)
    for r in live:
        wcs = coordinates.read_wcs(r.frame.header)
        if wcs is None:
            r.reason = "registration: no celestial WCS in the header"
            continue
        try:
            r.transform = (
                Transform.identity()
                if r is reference
                else transform.from_wcs(base, trimmed_wcs(wcs, r), reference.frame.shape)
            )
        except MatchError as error:
            r.reason = f"registration: {error}"


def trimmed_wcs(wcs: Any, record: FrameRecord) -> Any:
    """WCS of a frame's light area.

    Parameters
    ----------
    wcs : astropy.wcs.WCS
        Of the whole frame.
    record : FrameRecord
        Whose TRIMSEC counts.

    Returns
    -------
    astropy.wcs.WCS
        The same object where nothing is trimmed.
    """
    y0, _, x0, _ = record.frame.trim
    if x0 or y0:
        wcs = wcs.deepcopy()
        wcs.wcs.crpix = np.asarray(wcs.wcs.crpix) - [x0, y0]
        wcs.wcs.set()
    return wcs


def _register_by_table(live: Sequence[FrameRecord], reference: FrameRecord, path: str) -> None:
    table = report.read_transforms(path)
    for r in live:
        r.transform = table.get(r.name)
        if r.transform is None:
            r.reason = f"registration: {path} has no transform for it"
    start = reference.transform
    if start is None:
        raise StackError(f"--register {path}: it has no transform for the reference {reference.name}; use --reference")
    ny, nx = reference.frame.shape
    nodes = np.stack([a.ravel() for a in np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))], axis=1)
    if np.abs(start(nodes) - nodes).max() < 1e-6:
        return
    # the table starts from another frame than this run does
    model: tuple[Literal["affine"], Literal["quadratic"], Literal["cubic"]] = ("affine", "quadratic", "cubic")
    back = transform.fit(nodes, start.inverse(nodes), options=TransformOptions(model=model[start.order - 1]))
    for r in live:
        if r is reference:
            r.transform = Transform.identity()
        elif r.transform is not None:
            r.transform = transform.compose(back, r.transform)


def jitter(used: Sequence[FrameRecord], reference: FrameRecord, kernel: Kernel = "lanczos3") -> float:
    """Part of the local range by which a star's samples may differ between frames, from the stars themselves.

    Parameters
    ----------
    used : sequence of FrameRecord
        Registered frames.
    reference : FrameRecord
        Whose pixels the transforms start from.
    kernel : str
        That the frames are resampled with.

    Returns
    -------
    float
        Part of the range over 3x3 pixels, 0 to 1: what the kernel itself changes, and if that is less at most
        `MOST_JITTER`, which it is where the stars do not tell: less only where the places of bright stars
        differ by no more than their errors, and the stars of a frame are alike in width. For frames whose stars have
        another shape, see `NoiseModel.elongation`.

    Notes
    -----
    Places: variance of the residuals of stars with an SNR of 50 or more, from their median absolute deviation, less
    that of their errors and two sigmas of its own (1.17/sqrt(m) of a sigma from m residuals: Rousseeuw & Croux 1993,
    JASA 88, 1273). Undersampled stars, whose centroids depend on the pixel's phase, show in it.
    """
    return max(_BETWEEN_PIXELS.get(kernel, 0.0), _disagreement(used, reference))


def _disagreement(used: Sequence[FrameRecord], reference: FrameRecord) -> float:
    """`jitter` whatever the kernel."""
    if len(used) < 2 or any(r.transform is None or r.stars is None or r.quality is None for r in used):
        return MOST_JITTER
    some = used[:: -(-len(used) // _SEEN)]
    moved = [_misplaced(r, reference) for r in some if r is not reference]
    if not moved or None in moved:
        return MOST_JITTER
    shift, unsure = np.array(moved, float).T
    widths = np.array([r.quality.fwhm_err * np.sqrt(r.quality.n_fitted) / r.quality.fwhm for r in some if r.quality])
    beyond = np.sqrt(np.maximum(widths**2 - _WIDTHS**2, 0.0))
    found = _STEADY + _SLOPE * np.quantile(shift, 0.9) + np.median(unsure) + beyond.max()
    return float(min(found, MOST_JITTER)) if np.isfinite(found) else MOST_JITTER


def _misplaced(record: FrameRecord, reference: FrameRecord) -> tuple[float, float] | None:
    """Pixels by which stars lie elsewhere than their errors explain, and the error of the whole transform."""
    assert record.stars is not None and record.transform is not None and reference.stars is not None
    a, b = (s[~s.has(_NOT_CLEAR) & (s.snr > _CLEAR)] for s in (reference.stars, record.stars))
    predicted = record.transform(a.xy)
    i, j = _match.nearest_pairs(predicted, np.ascontiguousarray(b.xy), 1.0).T
    if len(i) < _CLEAR_STARS:
        return None
    residual = 1.4826 * float(np.median(np.abs(predicted[i] - b.xy[j])))
    error = float(np.sqrt(np.median((a.xy_err[i] * record.transform.magnification) ** 2 + b.xy_err[j] ** 2)))
    explained = error**2 * (1 + 2 * 2 * 1.17 / np.sqrt(2 * len(i)))
    return float(np.sqrt(max(residual**2 - explained, 0.0))), error / float(np.sqrt(len(i)))
