"""Stack astronomical frames: fast, and right to the photon.

The stages stand in ``STAGES`` in the order in which the data pass them; a stage imports base modules, the native
modules and earlier stages only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

BASE = ("errors", "types", "options", "executor")
STAGES = (
    "wcs",
    "archive",
    "frames",
    "calibrate",
    "background",
    "detect",
    "measure",
    "select",
    "match",
    "transform",
    "normalise",
    "grid",
    "resample",
    "combine",
    "header",
    "catalogue",
    "astrometry",
    "output",
    "report",
    "simulate",
    "pipeline",
    "cli",
)

# Public names and the modules they come from, loaded at first use so that ``fastack --version`` is instant.
_PUBLIC: dict[str, str] = {}

if TYPE_CHECKING:
    pass

__all__ = ["STAGES", "__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fastack' has no attribute {name!r}")
    module = importlib.import_module(f"fastack.{_PUBLIC[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
