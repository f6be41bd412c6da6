"""What is known of an image once it has its place on the sky: WCS, residuals, zero point."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fastack.plate import Plate
from fastack.sphere import ARCSEC
from fastack.types import Array, CatalogueStars, StarFlag, Stars

if TYPE_CHECKING:
    from astropy.io import fits
    from astropy.wcs import WCS

Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroPoint:
    """Photometric zero point: ``mag = zp - 2.5 log10(flux)``."""

    zp: float  #: magnitude of 1 ADU
    err: float  #: standard error of `zp`, magnitude
    scatter: float  #: robust standard deviation of one star, magnitude; colour terms included
    n: int  #: stars behind it
    limiting_mag: float  #: magnitude of a star with 5 times the noise of the sky under its PSF
    band: str  #: of the catalogue


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Solution:
    """An image's place on the sky."""

    wcs: WCS  #: TAN or TAN-SIP
    pairs: Index  #: (n, 2) rows of the detections and of `catalogue`
    residuals: Array  #: (n, 2) catalogue minus solution along east and north, arcsec
    expected: Array = field(repr=False)  #: (n, 2) error of each residual that the stated errors and `extra` predict
    rms_ra: float  #: arcsec
    rms_dec: float  #: arcsec
    log_odds: float  #: natural logarithm of the odds against chance
    order: int  #: of the polynomial; 1 is a plain TAN
    scale: float  #: arcsec per pixel at the centre
    rotation: float  #: position angle of the image's +y axis, from north through east, degree
    parity: int  #: +1 as on the sky (det CD < 0), -1 mirrored
    extra: float  #: scatter per axis beyond the stated errors, arcsec
    map_error: float  #: distance from the true coordinates to be expected where it is largest, arcsec
    shape: tuple[int, int]  #: of the image
    catalogue: CatalogueStars = field(repr=False)  #: what it was solved against
    xy: Array = field(repr=False)  #: (n, 2) the pairs' pixels
    model: Plate = field(repr=False)

    @property
    def n(self) -> int:
        """Stars behind it."""
        return len(self.pairs)

    @property
    def name(self) -> str:
        """Of the catalogue."""
        return self.catalogue.name

    @property
    def epoch(self) -> float:
        """Julian year of the catalogue's positions."""
        return self.catalogue.epoch

    @property
    def centre(self) -> tuple[float, float]:
        """Right ascension and declination of the image's centre, degree."""
        return self.model.ra, self.model.dec

    def header(self, kind: Literal["sip", "tpv"] = "sip") -> fits.Header:
        """The WCS cards: one representation, ICRS.

        Parameters
        ----------
        kind : {"sip", "tpv"}
            TAN-SIP (ds9, GAIA, astropy, Siril) or TPV (SExtractor, SWarp, SCAMP). Both are the same polynomial.

        Returns
        -------
        astropy.io.fits.Header
        """
        if kind not in ("sip", "tpv"):
            raise ValueError(f"kind is {kind!r}, not 'sip' or 'tpv'")
        header = self.model.cards(self.shape, kind)
        header["ASTRRMS1"] = (self.rms_ra / 3600, "[deg] rms of the stars along RA")
        header["ASTRRMS2"] = (self.rms_dec / 3600, "[deg] rms of the stars along Dec")
        header["ASTRERR"] = (self.map_error / 3600, "[deg] expected error at the worst corner")
        header["ASTRNUM"] = (self.n, "stars behind the astrometric solution")
        header["ASTRCAT"] = (self.name[:60], "catalogue")
        header["ASTREPOC"] = (round(self.epoch, 6), "[yr] Julian epoch of the catalogue positions")
        header["ASTRODDS"] = (round(self.log_odds, 1), "ln(odds) against a chance match")
        return header

    def zero_point(self, stars: Stars, *, noise: float | None = None, fwhm: float | None = None) -> ZeroPoint:
        """Zero point of the image's magnitudes in the catalogue's band.

        Parameters
        ----------
        stars : Stars
            The detections that were solved.
        noise : float, optional, ADU
            Standard deviation of the sky in one pixel. With `fwhm` it gives the limiting magnitude,
            5 noise sqrt(4 pi) FWHM/2.355 being the flux of a 5-sigma star; without, the errors of the faintest
            detections do.
        fwhm : float, optional, pixel

        Returns
        -------
        ZeroPoint
            All NaN where no pair has both flux and magnitude.
        """
        flux, mag = stars.flux[self.pairs[:, 0]], self.catalogue.mag[self.pairs[:, 1]]
        clean = ~stars.has(StarFlag.SATURATED | StarFlag.BLENDED | StarFlag.EDGE)[self.pairs[:, 0]]
        good = (flux > 0) & np.isfinite(flux) & np.isfinite(mag)
        good = good & clean if (good & clean).sum() >= 5 else good
        if not good.any():
            nan = float("nan")
            return ZeroPoint(zp=nan, err=nan, scatter=nan, n=0, limiting_mag=nan, band=self.catalogue.band)
        value = mag[good] + 2.5 * np.log10(flux[good])
        keep = np.ones(len(value), bool)
        for _ in range(5):
            zp = float(np.median(value[keep]))
            scatter = 1.4826 * float(np.median(np.abs(value[keep] - zp)))
            now = np.abs(value - zp) <= 4 * max(scatter, 1e-3)
            if np.array_equal(now, keep):
                break
            keep = now
        n = int(keep.sum())
        if noise is not None and fwhm is not None:
            limit = 5 * noise * np.sqrt(4 * np.pi) * fwhm / 2.3548
        else:
            faint = stars.flux_err[np.isfinite(stars.flux_err) & (stars.flux_err > 0)]
            limit = 5 * float(np.quantile(faint, 0.1)) if len(faint) else np.nan
        return ZeroPoint(
            zp=zp,
            err=float(1.2533 * scatter / np.sqrt(n)),
            scatter=scatter,
            n=n,
            limiting_mag=zp - 2.5 * float(np.log10(limit)),
            band=self.catalogue.band,
        )


def plots(solution: Solution, path: str | Path) -> None:
    """Residuals as vectors over the image and as histograms.

    Parameters
    ----------
    solution : Solution
    path : path-like
        Where to; the suffix chooses the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rms = float(np.hypot(solution.rms_ra, solution.rms_dec))
    # residuals are along east and north; the arrows stand in pixels
    arrows = np.linalg.solve(solution.model.matrix / ARCSEC, solution.residuals.T).T
    length = 0.06 * max(solution.shape) / max(rms / solution.scale, 1e-9)
    quiver = left.quiver(
        *solution.xy.T, *(arrows * length).T, angles="xy", scale_units="xy", scale=1, width=0.002, color="C0"
    )
    left.quiverkey(quiver, 0.85, 1.03, rms / solution.scale * length, f'{rms:.3g}"', labelpos="E")
    left.set(xlim=(0, solution.shape[1]), ylim=(0, solution.shape[0]), aspect="equal", xlabel="x [px]", ylabel="y [px]")
    left.set_title(f"{solution.n} stars of {solution.name or 'the catalogue'}, order {solution.order}", loc="left")
    limit = 4 * max(solution.rms_ra, solution.rms_dec)
    for values, label, value in zip(
        solution.residuals.T, ("RA cos Dec", "Dec"), (solution.rms_ra, solution.rms_dec), strict=True
    ):
        right.hist(values, bins=33, range=(-limit, limit), histtype="step", label=f'{label}: rms {value:.3g}"')
    right.set(xlabel="catalogue - solution [arcsec]", ylabel="stars")
    right.margins(y=0.2)
    right.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=110)
