"""Exceptions and warnings, and which one to raise.

* The caller passed something that no file or sky can excuse (a wrong shape, an unknown name): `ValueError` or
  `TypeError`, as everywhere in Python.
* A file cannot be used: `FrameError`, whose message names the file, the cause and the way out. In a run over many
  frames the pipeline catches it, leaves that one frame out and keeps its reason.
* A list of stars does not lead to a result: `DetectionError`, `MatchError`, `SolveError`.
* A catalogue or its server does not answer as it should: `CatalogueError`.
* No honest stack can be made at all: `StackError`.
* The result stands but the user should know something: a `FastackWarning`.

Conditions of the data that belong to one star or pixel are never exceptions: they are flags and NaN.
"""

from __future__ import annotations


class FastackError(Exception):
    """Base of all errors that fastack raises on purpose."""


class FrameError(FastackError, ValueError):
    """A file that cannot be used as a frame."""


class CalibrationError(FrameError):
    """A master frame that does not fit the frames it should calibrate."""


class DetectionError(FastackError, RuntimeError):
    """An image on which no star can be looked for."""


class MatchError(FastackError, RuntimeError):
    """Two lists of stars that could not be matched."""


class SolveError(FastackError, RuntimeError):
    """A list of stars that found no place on the sky."""


class CatalogueError(FastackError, OSError):
    """A catalogue that could not be read, fetched or trusted."""


class StackError(FastackError, RuntimeError):
    """No honest stack can be made; the message says what stood in the way."""


class OutputError(FastackError, OSError):
    """The result could not be written; what stood there before is untouched."""


class FastackWarning(UserWarning):
    """Base of all warnings."""


class HeaderWarning(FastackWarning):
    """A header card was missing, malformed or contradictory; the message says what was assumed."""
