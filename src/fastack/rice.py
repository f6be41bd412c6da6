"""Rice-coded tiles of compressed FITS images (fpack): where they lie in a file, and how their rows are read.

FITS standard 4.0, section 10; the code is that of Rice, Yeh and Miller (1993, Proc. 9th AIAA Computing in Aerospace
Conference, 93-4541).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastack import _pixels

Bytes = NDArray[np.uint8]

_WIDTHS = {"L": 1, "X": 0.125, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class RiceTiles:
    """The table that holds an image of integers in Rice-coded tiles."""

    shape: tuple[int, int]  #: (ny, nx) of the image
    tile: tuple[int, int]  #: (ny, nx) of a tile
    bytes: int  #: of a pixel
    block: int  #: pixels that share one number of split bits
    table: int  #: first byte of the table in the file
    row_bytes: int  #: of the table
    column: int  #: first byte of the tiles' descriptors in a row of the table
    wide: bool  #: whether their numbers have 64 bits, not 32
    heap: int  #: first byte of the heap in the file

    @classmethod
    def described(cls, cards: Mapping[str, str], shape: tuple[int, int], offset: int) -> RiceTiles | None:
        """Read the header of a compressed image.

        Parameters
        ----------
        cards : mapping of str to str
            Values of the table's header by keyword, without comments.
        shape : (ny, nx)
            Of the image.
        offset : int
            First byte of the table in the file.

        Returns
        -------
        RiceTiles or None
            None where the image is packed in any other way, or the header is not complete.
        """
        try:
            return cls._described({k: v.strip("' ").strip() for k, v in cards.items()}, shape, offset)
        except (KeyError, ValueError):
            return None

    @classmethod
    def _described(cls, cards: Mapping[str, str], shape: tuple[int, int], offset: int) -> RiceTiles | None:
        settings = {cards[f"ZNAME{i}"]: int(cards[f"ZVAL{i}"]) for i in range(1, 9) if f"ZNAME{i}" in cards}
        bits = int(cards["ZBITPIX"])
        size = settings.get("BYTEPIX", 4)
        if cards["ZCMPTYPE"] not in ("RICE_1", "RICE_ONE") or bits != 8 * size or size not in (1, 2, 4):
            return None
        at, column, wide = 0.0, None, False
        for i in range(1, int(cards["TFIELDS"]) + 1):
            match = re.match(r"(\d*)([A-Z])", cards[f"TFORM{i}"])
            if match is None:
                return None
            if cards[f"TTYPE{i}"] == "COMPRESSED_DATA" and match[2] in "PQ":
                column, wide = round(at), match[2] == "Q"
            at += int(match[1] or 1) * _WIDTHS[match[2]]
        tile = (int(cards.get("ZTILE2", 1)), int(cards.get("ZTILE1", shape[1])))
        row_bytes, rows = int(cards["NAXIS1"]), int(cards["NAXIS2"])
        count = -(-shape[0] // tile[0]) * -(-shape[1] // tile[1])
        if column is None or rows != count or int(cards.get("ZNAXIS", 2)) != 2:
            return None
        return cls(
            shape=shape,
            tile=(min(tile[0], shape[0]), min(tile[1], shape[1])),
            bytes=size,
            block=settings.get("BLOCKSIZE", 32),
            table=offset,
            row_bytes=row_bytes,
            column=column,
            wide=wide,
            heap=offset + int(cards.get("THEAP", row_bytes * rows)),
        )

    def load(self, read: Callable[[Bytes, int], None], y0: int, y1: int) -> Bytes | None:
        """Decode rows of the image.

        Parameters
        ----------
        read : callable
            Fills an array from a place in the file.
        y0, y1 : int
            Rows of the image.

        Returns
        -------
        (y1 - y0, nx * bytes) ndarray of uint8, or None
            Big-endian pixels; None where a tile is not Rice-coded after all.

        Raises
        ------
        ValueError
            If a tile is damaged.
        """
        out = np.empty((y1 - y0, self.shape[1] * self.bytes), np.uint8)
        if y1 <= y0:
            return out
        across = -(-self.shape[1] // self.tile[1])
        first, last = y0 // self.tile[0] * across, ((y1 - 1) // self.tile[0] + 1) * across
        table = np.empty((last - first, self.row_bytes), np.uint8)
        read(table, self.table + first * self.row_bytes)
        size = 16 if self.wide else 8
        own = np.ascontiguousarray(table[:, self.column : self.column + size])
        # length and place in the heap
        found = own.view(">i8" if self.wide else ">i4").astype(np.int64)
        if (found[:, 0] == 0).any():
            return None
        start, end = int(found[:, 1].min()), int(found.sum(axis=1).max())
        if (found < 0).any():
            raise ValueError("a tile's place is negative")
        packed = np.empty(end - start, np.uint8)
        read(packed, self.heap + start)
        where = np.stack([found[:, 1] - start, found[:, 0]], axis=1)
        _pixels.decode_rice(
            out, packed, where, shape=self.shape, tile=self.tile, bytes=self.bytes, block=self.block, y0=y0
        )
        return out
