"""Every number that a user can set, with its default, in one place.

The command line has a flag of the same name for each of these fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Self

Kernel = Literal["nearest", "bilinear", "bicubic", "lanczos2", "lanczos3", "lanczos4", "area"]
Model = Literal["auto", "shift", "similarity", "affine", "quadratic", "cubic"]
Reject = Literal[
    "noise", "none", "sigma", "sigma-median", "mad", "minmax", "percentile", "winsorized", "linear-fit", "esd"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundOptions:
    """Sky level and noise on a mesh."""

    cell: int = 64  #: side of a mesh cell, pixel
    clip: float = 3.0  #: clipping limit in a cell, sigma
    rounds: int = 5  #: of clipping, at most
    row_step: int = 1  #: every so many rows of the image one is looked at; a cell keeps eight


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectOptions:
    """Finding stars."""

    threshold: float = 5.0  #: of the matched-filter signal-to-noise ratio
    fwhm: float | None = None  #: of the matched filter, pixel; None: found from the image itself
    max_stars: int | None = None  #: keep the brightest only
    saturation: float | None = None  #: level at and above which a pixel is saturated, ADU


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """Positions, fluxes and shapes of detected stars."""

    max_fits: int = 100  #: isolated bright stars with free profile fits, behind FWHM and ellipticity
    min_snr: float = 10.0  #: of a star that takes part in the frame's PSF
    gain: float | None = None  #: e-/ADU, for the photon noise of the stars; None: background noise alone
    saturation: float | None = None  #: ADU


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectOptions:
    """Which frames are stacked.

    A limit is a number or a string: ``5.0`` pixels, ``4"`` arcseconds, ``50%`` the best half, ``2.5k`` within 2.5
    robust standard deviations of the median.
    """

    fwhm_limit: str | float | None = None  #: FWHM strictly below it
    ellipticity_limit: str | float | None = None
    min_stars: int | None = None
    sky_limit: str | float | None = None  #: ADU
    min_transparency: float | None = None  #: flux scale relative to the best frame, 0 to 1
    filter: str | None = None  #: None: the majority's
    object: str | None = None  #: None: the majority's
    pixel_scale: float | None = None  #: arcsec per pixel; None: from WCS or header


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchOptions:
    """Matching two lists of stars."""

    max_stars: int = 60  #: brightest stars that form triangles first; widened step by step where that fails
    tolerance: float = 2.0  #: distance of a pair after the fit, pixel
    scale_range: tuple[float, float] = (0.8, 1.25)  #: of the magnification between the lists
    min_log_odds: float = 10.0  #: natural logarithm of the odds from which a match is believed
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformOptions:
    """Fitting a transform to pairs of stars."""

    model: Model = "auto"  #: auto: the simplest that the residuals justify
    clip: float = 4.0  #: pairs further out than this many robust sigmas are left out


@dataclass(frozen=True, slots=True, kw_only=True)
class ResampleOptions:
    """Pixels on the output grid."""

    kernel: Kernel = "lanczos3"
    max_lost: float = 0.5  #: sum|k| over missing pixels / sum|k| above which the output pixel is missing


MOST_JITTER = 0.06  #: default; a run allows less where the frames' stars agree better (`registration.jitter`)


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineOptions:
    """Rejecting outliers and averaging."""

    combine: Literal["mean", "median"] = "mean"
    reject: Reject = "noise"
    kappa_low: float = 4.0  #: sigmas below
    kappa_high: float = 4.0  #: sigmas above
    kappa_pair: float = 5.0  #: noise: sigmas of the difference of two samples where the higher one goes
    kappa_grow: float = 2.5  #: noise: sigmas beside a rejected pixel of the same frame; 0: as elsewhere
    kappa_group: float = 5.0  #: noise: sigmas of the mean of 3x3 pixels of one of few frames; 0: no such test
    grow: int = 0  #: noise: pixels around such a group that go with it; from 1 on with any number of frames
    trail_frames: int = 40  #: trails that cross a frame are left out of stacks of at most so many; 0: never
    jitter: float | None = None  #: noise: part of the local range by which samples may differ; None: see `MOST_JITTER`
    star_error: float = 0.2  #: noise: part of what seeing changes in a known star that its model may have wrong
    rounds: int = 4  #: of rejection, at most
    n_low: int = 1  #: minmax: samples dropped at the lower end
    n_high: int = 1
    percentile_low: float = 0.2  #: percentile: relative distance below the median
    percentile_high: float = 0.1
    max_outliers: float = 0.3  #: esd: part of the samples that may be outliers
    significance: float = 0.05  #: esd: of the test
    max_saturated: float = 0.1  #: part of the samples saturated above which an output pixel is missing


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOptions:
    """Masters and detector constants; a value given here counts before the headers."""

    bias: str | None = None  #: master or raw frames
    dark: str | None = None
    flat: str | None = None  #: None: master_flat.fits beside the frames, where there is one
    no_flat: bool = False  #: do not pick up master_flat.fits
    keep_edges: bool = False  #: keep lines at the detector's edge whose level is not the sky's
    gain: float | None = None  #: e-/ADU
    rdnoise: float | None = None  #: e-
    saturation: float | None = None  #: ADU, raw
    flat_floor: float = 0.05  #: of the flat's median, at and below which a pixel is bad
    master_clip: float = 5.0  #: sigmas from the median at which a sample is left out of a master
    max_temperature: float = 2.0  #: a bias or dark further than this from the median is left out, kelvin


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueOptions:
    """Where catalogues come from, and how patiently they are asked for."""

    catalogue_path: str | None = None  #: an observatory's own store; None: FASTACK_CATALOGUES, where that is set
    cache_path: str | None = None  #: None: FASTACK_CACHE, else the user's cache directory
    cache_size: int = 1_000_000_000  #: byte; the pieces used longest ago go first
    timeout: float = 60.0  #: of one step of a request (connect, send, receive), second
    job_timeout: float = 300.0  #: of a whole answer, and of a job at the Gaia archive with its answer, second
    retries: int = 2  #: after a time-out, a broken answer or an error of the server
    backoff: float = 2.0  #: pause before the first retry, second; doubled before each further one
    row_limit: int = 300_000  #: an answer of more stars is an error
    vizier_server: str = "https://vizier.cds.unistra.fr"
    gaia_server: str = "https://gea.esac.esa.int/tap-server/tap"
    sesame_server: str | None = None  #: None: astropy's list of servers


@dataclass(frozen=True, slots=True, kw_only=True)
class AstrometryOptions:
    """Solving a list of stars against a catalogue."""

    min_log_odds: float = 20.7  #: ln(odds) from which a place is believed, before the number of places tried: 1e9
    max_radius: float = 5.0  #: how far from the guess the search goes, degree
    widen_scale: float = 3.0  #: factor either way by which the scale may be wrong when all else has failed; 1: never
    max_order: int = 5  #: of the distortion polynomial
    min_bic: float = 10.0  #: gain in the Bayesian information criterion that justifies a larger model
    max_map_error: float = 1.0  #: expected error of the coordinates, where they are worst, of a solution at most, pixel
    clip: float = 4.0  #: pairs further apart than this many sigmas are left out
    centroid: float = 1.0  #: error of a position that the search allows for, pixel
    position_error: float = 0.3  #: error of a detection whose own is unknown, pixel
    catalogue_error: float = 100.0  #: error of a catalogue star whose own is unknown, mas
    distractors: float = 0.6  #: part of the detections that the catalogue may not know
    verify: int = 100  #: brightest detections that decide the odds of a place
    max_triangles: int = 300_000  #: of catalogue stars in one round of the search


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """A whole run."""

    calibrate: CalibrateOptions = field(default_factory=CalibrateOptions)
    background: BackgroundOptions = field(default_factory=lambda: BackgroundOptions(row_step=2))
    detect: DetectOptions = field(default_factory=DetectOptions)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    select: SelectOptions = field(default_factory=SelectOptions)
    match: MatchOptions = field(default_factory=MatchOptions)
    transform: TransformOptions = field(default_factory=TransformOptions)
    resample: ResampleOptions = field(default_factory=ResampleOptions)
    combine: CombineOptions = field(default_factory=CombineOptions)
    framing: Literal["union", "reference", "intersection"] = "union"
    reference: str | None = None  #: file name; None: the best frame near the middle of the set
    register: str = "stars"  #: stars, wcs, none, or a table of transforms
    grid: str | None = None  #: FITS file or header text whose WCS and size the output takes
    weights: str = "equal"  #: equal, variance, exposure, depth, or a column of `weight_table`
    weight_table: str | None = None
    max_stars: int = 500  #: brightest stars of a frame that are measured and matched
    normalise: bool = True  #: match flux scale and sky to the reference
    match_sky: Literal["mesh", "plane", "level"] = "mesh"  #: how finely the frames' skies are made alike
    subtract_sky: bool = False
    threads: int | None = None  #: None: as many as the processors that this process may use
    memory: int = 2_000_000_000  #: byte; working memory that a run may take
    scratch: str | None = None  #: directory for pixels of compressed frames that `memory` does not hold
    scheduler: str | None = None  #: address of a Dask cluster
    max_size: int | None = None  #: pixels of the output at most; None: 4 times the reference

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Options from flat names.

        Parameters
        ----------
        **settings
            Field names of any stage, ``fwhm_limit=5``; where two stages share a name the stage stands before it,
            ``match_max_stars=100``; see `flat_names`.

        Returns
        -------
        StackOptions
            With every other field at its default.

        Raises
        ------
        TypeError
            If a name is unknown.
        """
        names = flat_names()
        stages: dict[str, dict[str, Any]] = {}
        top: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in names:
                raise TypeError(f"unknown option {name!r}")
            stage, key = names[name]
            if stage:
                stages.setdefault(stage, {})[key] = value
            else:
                top[key] = value
        options = cls()
        groups = {stage: replace(getattr(options, stage), **values) for stage, values in stages.items()}
        return replace(options, **groups, **top)


def flat_names() -> dict[str, tuple[str, str]]:
    """Every option by its flat name.

    Returns
    -------
    dict
        From the flat name to (stage, field); the stage is "" for fields of the run itself.
    """
    default = StackOptions()
    groups = [(f.name, getattr(default, f.name)) for f in fields(StackOptions)]
    names = {name: ("", name) for name, value in groups if not is_dataclass(value)}
    staged = [(stage, f.name) for stage, value in groups if is_dataclass(value) for f in fields(value)]
    keys = [key for _, key in staged]
    for stage, key in staged:
        # detector constants come from the calibration options; the stages get them from there
        if key in ("gain", "saturation") and stage != "calibrate":
            continue
        plain = key not in names and (keys.count(key) == 1 or stage == "calibrate")
        names[key if plain else f"{stage}_{key}"] = (stage, key)
    return names


_SKY: dict[str, Any] = {"catalogue": CatalogueOptions, "astrometry": AstrometryOptions}


def sky_names() -> dict[str, tuple[str, str]]:
    """Every option of the sky coordinates by its flat name.

    Returns
    -------
    dict
        From the flat name to (``"catalogue"`` or ``"astrometry"``, field). A field whose name an option of the stack
        has too gets its stage in front, because `dfstack` takes both.
    """
    taken = {key for _, key in flat_names().values()}
    return {
        f"{stage}_{f.name}" if f.name in taken else f.name: (stage, f.name)
        for stage, options in _SKY.items()
        for f in fields(options)
    }


def sky_options(**settings: Any) -> tuple[CatalogueOptions, AstrometryOptions]:
    """Options of the sky coordinates from flat names; see `sky_names`."""
    names = sky_names()
    values: dict[str, dict[str, Any]] = {stage: {} for stage in _SKY}
    for name, value in settings.items():
        if name not in names:
            raise TypeError(f"unknown option {name!r}")
        stage, key = names[name]
        values[stage][key] = value
    return CatalogueOptions(**values["catalogue"]), AstrometryOptions(**values["astrometry"])
