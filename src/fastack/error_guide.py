"""What other programs have to be told about the errors of a stack: GAIA, SExtractor, photutils."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastack.errors import FrameError, StackError
from fastack.uncertainty import NoiseCorrelation

if TYPE_CHECKING:
    from astropy.io import fits


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ErrorGuide:
    """All that another program has to be told about the errors of one stack."""

    path: Path
    frames: int
    gain: float | None  #: effective, e-/ADU
    gain_err: float | None  #: of a gain that was estimated from the frames, e-/ADU
    rdnoise: float | None  #: effective, e-
    bias: float | None  #: level for photon statistics, ADU; see `uncertainty.bias_level`
    sky: float | None  #: ADU
    noise: float | None  #: of a background pixel, ADU
    fwhm: float | None  #: pixel
    scatter: float | None  #: of bright stars from frame to frame, relative, where no gain is known
    correlation: NoiseCorrelation

    def text(self, radius: float | None = None) -> str:
        """Instructions for people.

        Parameters
        ----------
        radius : float, optional
            Of the aperture that is asked for, pixel; default 1.5 FWHM.

        Returns
        -------
        str
            A few lines for each program.
        """
        r = radius or (round(1.5 * self.fwhm, 1) if self.fwhm else 5.0)
        near, far = float(self.correlation.at(r)), float(self.correlation.squared[-1])
        star = float(self.correlation.at(r, star=True))
        name = self.path.name
        rms = self.path.with_suffix(".rms.fits").name
        lines = [f"{name}: {self.frames} frames" + (f", FWHM {self.fwhm:.2f} px" if self.fwhm else "")]
        if self.sky is not None and self.noise is not None:
            lines.append(f"  sky {self.sky:.2f} adu, scatter of a background pixel {self.noise:.3g} adu")
        if self.gain is not None:
            lines.append(f"  effective gain {self.gain:.4g} e-/adu: 100 adu of an object are {100 * self.gain:.0f} e-,")
            lines.append(f"  whose photon noise is {100 / np.sqrt(100 * self.gain):.1f} %")
            if self.gain_err is not None:
                lines.append(f"  (no header tells the gain: estimated from the frames, +- {self.gain_err:.2g} e-/adu)")
            if self.rdnoise is not None:
                lines.append(f"  effective read noise {self.rdnoise:.3g} e-")
        else:
            lines.append("  gain unknown: no frame tells it. Give --gain to fastack stack, or estimate it from")
            lines.append(f"  the frames: fastack errors {name} --gain-from d*.fits")
            if self.scatter is not None:
                lines.append(
                    f"  UNCERT takes the noise of stars from their scatter in the frames ({100 * self.scatter:.2g} %"
                )
                lines.append("  of bright ones), so that photutils needs no gain")
        lines.append(f"Starlink GAIA, aperture photometry, 'photon statistics', aperture radius {r:g} px")
        if self.gain is not None and self.bias is not None:
            lines.append(f"  photons per data unit  {self.gain:.4f}")
            lines.append(f"  bias level             {self.bias_at(r):.3f}")
            lines.append("  (the level at which photon noise alone would be zero, for this radius; it holds the read")
            lines.append(f"  noise too and may be negative. For large apertures: {self.bias:.3f})")
        else:
            lines.append("  needs the gain")
        lines.append(f"SExtractor, for the image '{name}[0]'")
        lines.append(f"  GAIN          {self.gain:.4f}" if self.gain is not None else "  GAIN          needs the gain")
        lines.append("  WEIGHT_TYPE   MAP_RMS")
        lines.append(f"  WEIGHT_IMAGE  {rms}   (fastack errors {name} --rms-map {rms})")
        lines.append(f"  DETECT_THRESH counts in units of this map, which is {far:.3f} times a pixel's own noise")
        lines.append("photutils")
        lines.append("  error = UNCERT plane * factor; it holds the photons of the stars, so no calc_total_error")
        radii = " ".join(f"{v:6.0f}" for v in self.correlation.radius[:-1])
        lines.append(f"  aperture radius, px  {radii}  large")
        lines.append("  factor               " + " ".join(f"{v:6.3f}" for v in self.correlation.proportional))
        lines.append("  where your version counts partial pixels squared, and for independent pixels")
        lines.append("  factor               " + " ".join(f"{v:6.3f}" for v in self.correlation.squared))
        lines.append(f"  radius {r:g} px: {near:.3f}; for stars much brighter than the sky {star:.3f}")
        low = 100 * (1 - 1 / far)
        lines.append("'sky variance', and any error from the scatter of background pixels")
        lines.append(f"  is {low:.0f} % too small for large apertures, as resampling made neighbouring pixels alike;")
        lines.append(f"  multiply it by {near:.3f} at radius {r:g} px. The object's photon noise is not in it either.")
        return "\n".join(lines)

    def bias_at(self, radius: float) -> float | None:
        """Bias level that makes photon statistics right on the sky for apertures of one radius.

        Parameters
        ----------
        radius : float
            Of the aperture, pixel.

        Returns
        -------
        float or None
            ADU: `bias` moved towards the sky by the square of NOISCORR there over that of large apertures.
        """
        if self.bias is None or self.sky is None:
            return self.bias
        part = float(self.correlation.at(radius) / self.correlation.squared[-1]) ** 2
        return self.sky - (self.sky - self.bias) * part


def read_guide(path: str | Path) -> ErrorGuide:
    """Read from a stack what other programs have to be told.

    Parameters
    ----------
    path : str or Path
        File that fastack wrote.

    Returns
    -------
    ErrorGuide
        Its `text` is for people.

    Raises
    ------
    FrameError
        If the file cannot be read.
    StackError
        If it is no stack of fastack.
    """
    file = Path(path)
    header, _ = _open(file, None)

    def number(*keywords: str) -> float | None:
        for keyword in keywords:
            value = header.get(keyword)
            if isinstance(value, (int, float)) and np.isfinite(value):
                return float(value)
        return None

    return ErrorGuide(
        path=file,
        frames=int(number("NCOMBINE") or 0),
        gain=number("EGAIN", "GAIN"),
        gain_err=number("GAINERR"),
        rdnoise=number("RDNOISE"),
        bias=number("BIASLEV"),
        sky=number("SKYLEVEL"),
        noise=number("SKYNOISE"),
        fwhm=number("FWHM"),
        scatter=number("STARSCAT"),
        correlation=NoiseCorrelation.read(header),
    )


def rms_map(path: str | Path, radius: float | None = None) -> fits.HDUList:
    """Background noise of a stack as a map for SExtractor.

    Parameters
    ----------
    path : str or Path
        File that fastack wrote.
    radius : float, optional
        Of the aperture for which the errors shall be right, pixel; default: large ones.

    Returns
    -------
    astropy.io.fits.HDUList
        ``NOISCORR / sqrt(WEIGHT)`` in ADU, float32; 1e30, which SExtractor leaves out, where there is no value.

    Raises
    ------
    FrameError
        If the file cannot be read.
    StackError
        If it is no stack of fastack.
    """
    from astropy.io import fits

    header, weight = _open(Path(path), "WEIGHT")
    correlation = NoiseCorrelation.read(header)
    factor = float(correlation.squared[-1] if radius is None else correlation.at(radius))
    known = np.isfinite(weight) & (weight > 0)
    rms = np.full(weight.shape, 1e30, np.float32)
    rms[known] = factor / np.sqrt(weight[known])
    hdu = fits.PrimaryHDU(rms)
    hdu.header["BUNIT"] = ("adu", "one sigma of the background")
    hdu.header["NOISCORR"] = (round(factor, 4), "factor for correlated noise, included")
    hdu.header.add_history(f"background noise of {Path(path).name} for SExtractor's MAP_RMS")
    return fits.HDUList([hdu])


def _open(path: Path, plane: str | None) -> tuple[fits.Header, Any]:
    """Primary header of a stack, and one of its planes."""
    from astropy.io import fits

    try:
        with fits.open(path, memmap=False) as file:
            header = file[0].header
            if "FASTREF" not in header or "WEIGHT" not in file:
                raise StackError(
                    f"{path}: is no stack of fastack (no FASTREF card, no WEIGHT plane): stack the frames with"
                    f" 'fastack stack FRAMES -o mosaic.fits', whose file knows its errors"
                )
            if "NOISCORR" not in header:
                raise StackError(f"{path}: has no NOISCORR card: stack the frames again with this version of fastack")
            return header.copy(), None if plane is None else np.asarray(file[plane].data, np.float32)
    except FileNotFoundError:
        raise FrameError(f"{path}: does not exist; name the FITS file that fastack stack wrote") from None
    except OSError as error:
        raise FrameError(f"{path}: cannot be read as FITS ({error}); name the file that fastack stack wrote") from None
