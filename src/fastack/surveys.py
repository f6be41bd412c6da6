"""The catalogues that are known by name: where they are served, and how deep they go.

UCAC4 is VizieR's I/322A (Zacharias et al. 2013, AJ 145, 44); Gaia is DR3 (Gaia Collaboration 2023, A&A 674, A1),
VizieR's I/355.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Survey:
    """A catalogue that is served over the network."""

    name: str
    epoch: float
    faintest: float  #: magnitude beyond which it holds next to nothing
    source: str  #: VizieR's table
    columns: tuple[str, ...]  #: of that table
    mag: str  #: column of the magnitude limit


SURVEYS = {
    "ucac4": Survey(
        "UCAC4",
        2000.0,
        17.0,
        "I/322A/out",
        (
            *("RAJ2000", "e_RAJ2000", "DEJ2000", "e_DEJ2000", "EpRA", "EpDE"),
            *("pmRA", "e_pmRA", "pmDE", "e_pmDE", "f.mag", "a.mag"),
        ),
        "f.mag",
    ),
    "gaia": Survey(
        "Gaia DR3",
        2016.0,
        21.5,
        "I/355/gaiadr3",
        ("RA_ICRS", "e_RA_ICRS", "DE_ICRS", "e_DE_ICRS", "Plx", "pmRA", "e_pmRA", "pmDE", "e_pmDE", "Gmag"),
        "Gmag",
    ),
}


def survey_key(source: str | Path) -> str | None:
    """Key of a catalogue that is served; None for anything else."""
    word = re.sub(r"[\s_-]", "", str(source).lower())
    return {"ucac4": "ucac4", "gaia": "gaia", "gaiadr3": "gaia", "gaiaedr3": "gaia"}.get(word)


def useful_limit(name: str, max_mag: float | None) -> float | None:
    """The limit that matters: None where a catalogue ends before it."""
    return None if max_mag is None or max_mag >= SURVEYS[name].faintest else max_mag


def magnitude_limit(name: str, n_detections: int, area_deg2: float, *, margin: float = 3.0) -> float:
    """Magnitude to which a catalogue is wanted for an image with so many detections.

    Where the mean star counts of the sky, ``log10 N(<G) = 2.95 + 0.343 (G - 15) - 0.0084 (G - 15)^2`` per square
    degree, reach `margin` times the density of the detections. The counts hold within 0.1 dex for G < 18 as a mean
    over the sky (0.46 per square degree brighter than 7); single fields differ by a factor of three either way with
    galactic latitude, which is what the margin is for.

    Parameters
    ----------
    name : str
        ``"ucac4"``, ``"gaia"``, or anything else for a file: then the catalogue's own end is not known.
    n_detections : int
        In the image.
    area_deg2 : float
        Area of the image, square degree.
    margin : float, optional

    Returns
    -------
    float
        At least 8, and at most what the catalogue holds: 17 for UCAC4, 21.5 for Gaia.
    """
    if not area_deg2 > 0:
        raise ValueError(f"area is {area_deg2} square degree, not positive")
    key = survey_key(name)
    faintest = SURVEYS[key].faintest if key else 21.5
    wanted = np.log10(max(n_detections, 1) * margin / area_deg2)
    a, b, c = -0.0084, 0.343, 2.95 - wanted
    discriminant = b * b - 4 * a * c
    if discriminant <= 0:
        return faintest
    return float(np.clip(15 + (-b + np.sqrt(discriminant)) / (2 * a), 8.0, faintest))
