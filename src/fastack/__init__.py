"""Stack astronomical frames: fast, and right to the photon.

The stages stand in ``STAGES`` in the order in which the data pass them; a stage imports base modules, the native
modules and earlier stages only.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

BASE = ("errors", "types", "options", "executor")
STAGES = (
    "wcs",
    "archive",
    "rice",
    "storage",
    "files",
    "cards",
    "detector",
    "frames",
    "calibrate",
    "characterise",
    "make_master",
    "load_calibration",
    "background",
    "gain",
    "detect",
    "measure",
    "trails",
    "select",
    "match",
    "transform",
    "normalise",
    "grid",
    "resample",
    "combine",
    "uncertainty",
    "star_scatter",
    "error_guide",
    "dates",
    "header",
    "sphere",
    "positions",
    "surveys",
    "tables",
    "store",
    "network",
    "catalogue",
    "guess",
    "plate",
    "solution",
    "astrometry",
    "output",
    "masters",
    "report",
    "registration",
    "coadd",
    "platesolve",
    "render",
    "simulate",
    "pipeline",
    "cli",
)

# Public names and the modules they come from, loaded at first use so that ``fastack --version`` is instant.
_PUBLIC = {
    "open_frame": "frames",
    "find_frames": "files",
    "decode": "calibrate",
    "load_calibration": "load_calibration",
    "make_master": "make_master",
    "estimate_background": "background.estimate",
    "detect": "detect",
    "measure": "measure",
    "match": "match",
    "fit_transform": "transform.fit",
    "register": "transform",
    "resample": "resample",
    "combine": "combine",
    "solve": "astrometry",
    "simulate_night": "simulate",
    "stack": "pipeline",
    "StackResult": "pipeline",
    "StackOptions": "options",
    "Stars": "types",
    "Transform": "types",
}

if TYPE_CHECKING:
    from fastack.astrometry import solve
    from fastack.background import estimate as estimate_background
    from fastack.calibrate import decode
    from fastack.combine import combine
    from fastack.detect import detect
    from fastack.files import find_frames
    from fastack.frames import open_frame
    from fastack.load_calibration import load_calibration
    from fastack.make_master import make_master
    from fastack.match import match
    from fastack.measure import measure
    from fastack.options import StackOptions
    from fastack.pipeline import StackResult, stack
    from fastack.resample import resample
    from fastack.simulate import simulate_night
    from fastack.transform import fit as fit_transform
    from fastack.transform import register
    from fastack.types import Stars, Transform

__all__ = [
    "STAGES",
    "StackOptions",
    "StackResult",
    "Stars",
    "Transform",
    "__version__",
    "combine",
    "decode",
    "detect",
    "estimate_background",
    "find_frames",
    "fit_transform",
    "load_calibration",
    "make_master",
    "match",
    "measure",
    "open_frame",
    "register",
    "resample",
    "simulate_night",
    "solve",
    "stack",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fastack' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(".")
    value = getattr(importlib.import_module(f"fastack.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


class _Package(ModuleType):
    """Keeps ``fastack.detect`` the function where the import of the module of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _PUBLIC.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
