"""Header text: finding the units of a file, mending cards that no FITS reader should meet, reading values.

Decimal commas, numbers stored as text, values without quotes and bytes that are no ASCII are mended before
astropy sees them, so that no access to a header ever raises; what was mended is told. Single values are read from the
text itself: of most frames nothing else is asked, and astropy takes longer to start than all their headers take.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastack.errors import FrameError
from fastack.storage import truncated

if TYPE_CHECKING:
    from astropy.io import fits

_BLOCK = 2880


class Unit(NamedTuple):
    """One header-data unit as it was found."""

    number: int
    cards: list[tuple[str, str]]  # keyword and 80-character image, CONTINUE cards joined to theirs
    repairs: list[str]
    values: dict[str, str]  # first value of the structural keywords
    offset: int  # of the data
    compressed: bool  # a tile-compressed image

    @property
    def name(self) -> str:
        """EXTNAME, or an empty text."""
        return self.values.get("EXTNAME", "").strip("' ").strip()

    @property
    def table(self) -> dict[str, str]:
        """Values of the cards that tell how a compressed image lies in its table."""
        return {keyword: _strip_comment(card[10:80]) for keyword, card in self.cards if _TABLE_ONLY.fullmatch(keyword)}

    @property
    def axes(self) -> list[int]:
        """NAXIS1, NAXIS2 ... of the image, uncompressed."""
        z = "Z" if self.compressed else ""
        return [self.integer(f"{z}NAXIS{i + 1}") for i in range(self.integer(f"{z}NAXIS"))]

    @property
    def is_image(self) -> bool:
        """Whether it holds one plane of pixels."""
        if self.number and not self.compressed and self.values.get("XTENSION", "").strip("' ") != "IMAGE":
            return False
        axes = self.axes
        return len(axes) >= 2 and min(axes) > 0 and all(n == 1 for n in axes[2:])

    def integer(self, keyword: str, default: int = 0) -> int:
        """Value of a structural keyword."""
        try:
            return int(float(self.values.get(keyword, default)))
        except (ValueError, OverflowError):
            return default

    def data_bytes(self) -> int:
        """Bytes of the data that follow the header, without padding."""
        axes = [self.integer(f"NAXIS{i + 1}") for i in range(self.integer("NAXIS"))]
        if not axes:
            return 0
        pixels = math.prod(axes)
        size = abs(self.integer("BITPIX")) // 8
        return size * self.integer("GCOUNT", 1) * (self.integer("PCOUNT") + pixels)


_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[ED][+-]?\d+)?"
_KEYWORD = re.compile(r"[A-Z0-9_-]{1,8}")
# What may stand after "= ": a closed string, a logical, a number, a complex one or nothing; then a comment.
_VALUE = re.compile(
    rf" *(?:'(?P<text>(?:[^']|'')*)'|(?P<logical>[TF])|(?P<number>{_NUMBER})"
    rf"|\( *(?P<real>{_NUMBER}) *, *(?P<imaginary>{_NUMBER}) *\)|) *(?:/ *(?P<comment>.*))?",
    re.DOTALL,
)
_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|Z?NAXIS\d*|PCOUNT|GCOUNT|EXTNAME|ZIMAGE|ZBITPIX|B(?:SCALE|ZERO|LANK)|ZBLANK"
)
_COMMENTARY = ("COMMENT", "HISTORY", "")
# Printable ASCII stays, everything else becomes "?".
_PRINTABLE = bytes(c if 32 <= c < 127 else ord("?") for c in range(256))


def walk(path: Path, file: Any, size: int | None, *, first: bool) -> tuple[list[Unit], Unit]:
    """All header-data units of a file that may hold images, and the primary one."""
    units: list[Unit] = []
    position = 0
    while size is None or position < size:
        text, offset = _read_header(path, file, position, first=not units)
        if text is None:
            break
        unit = _parse(len(units), text, offset)
        units.append(unit)
        length = unit.data_bytes()
        if size is not None and offset + length > size:
            raise truncated(path, size, offset + length)
        position = offset + -(-length // _BLOCK) * _BLOCK
        if size is None and first and unit.is_image:
            break  # a gzip file is not inflated to its end only to see what follows
    if not units:
        raise FrameError(f"{path}: is empty; leave it out or fetch it again")
    return units, units[0]


def _read_header(path: Path, file: Any, position: int, *, first: bool) -> tuple[str | None, int]:
    """Text of the header at `position` without END, and the offset of what follows it."""
    file.seek(position)
    data = b""
    while True:
        block = file.read(8 * _BLOCK if not data else 32 * _BLOCK)
        if not data:
            if first and not block.startswith(b"SIMPLE"):
                kind = _kind(block)
                raise FrameError(f"{path}: is not a FITS file{kind}; leave it out or convert it")
            if not first and not block.startswith(b"XTENSION"):
                return None, position  # padding or a foreign trailer
        start = max(0, len(data) - 80)
        data += block
        while (start := data.find(b"END", start)) >= 0:
            if start % 80 == 0 and not data[start + 3 : start + 80].strip(b" \0"):
                end = position + -(-(start + 80) // _BLOCK) * _BLOCK
                return data[:start].translate(_PRINTABLE).decode("ascii"), end
            start += 1
        if not block:
            raise FrameError(f"{path}: the header has no END card: the file is truncated or damaged; fetch it again")
        if len(data) > 1 << 24:
            raise FrameError(f"{path}: no END card in the first 16 MiB: no FITS header; leave it out")


_MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"II*": "TIFF",
    b"MM\0*": "TIFF",
    b"<": "HTML or XML",
    b"XISF": "XISF",
}


def _kind(block: bytes) -> str:
    """Guess the format of a file that is no FITS file."""
    for magic, kind in _MAGIC.items():
        if block.startswith(magic):
            return f" but looks like {kind}"
    return ""


def _parse(number: int, text: str, offset: int) -> Unit:
    """Cards of one header, mended where astropy could not read them."""
    cards: list[tuple[str, str]] = []
    repairs: list[str] = []
    values: dict[str, str] = {}
    for start in range(0, len(text), 80):
        image = text[start : start + 80]
        keyword = image[:8].rstrip()
        if keyword == "CONTINUE" and cards:
            cards[-1] = (cards[-1][0], cards[-1][1] + image)
            continue
        if keyword in _COMMENTARY:
            if image.strip():
                cards.append((keyword, image))
            continue
        good = _KEYWORD.fullmatch(keyword) and image[8:10] == "= " and _VALUE.fullmatch(image, 10)
        if not good and not (keyword == "HIERARCH" and _good_hierarch(image)):
            keyword, image, repair = _mend(image)
            repairs.append(repair)
        cards.append((keyword, image))
        if _STRUCTURE.fullmatch(keyword):
            values.setdefault(keyword, _strip_comment(image[10:]))
    compressed = values.get("ZIMAGE") == "T"
    return Unit(number, cards, repairs, values, offset, compressed)


def _good_hierarch(image: str) -> bool:
    name, equals, value = image[9:].partition("=")
    return bool(equals and re.fullmatch(r"[A-Za-z0-9_\- ]+", name) and _VALUE.fullmatch(value))


def _strip_comment(value: str) -> str:
    """Strip the comment from a value field."""
    match = re.match(r" *('(?:[^']|'')*')", value)
    return match[1] if match else value.partition("/")[0].strip()


def _mend(image: str) -> tuple[str, str, str]:
    """Turn a card that astropy cannot read into one that it can, and say what was done."""
    name, equals, rest = image.partition("=")
    keyword = name.strip().upper()
    if not equals or not _KEYWORD.fullmatch(keyword):
        text = image.rstrip()
        return "COMMENT", f"COMMENT {text[:72]:<72}", f"card {text[:30]!r} is no FITS card: kept as a comment"
    value, slash, comment = rest.partition("/")
    if _VALUE.fullmatch(value.upper()) and "'" not in value:  # a small e in an exponent, a small t or f
        rest = value.upper() + slash + comment
    if _VALUE.fullmatch(rest):
        mended = f"{keyword:<8}= {rest.strip()}"
        return keyword, f"{mended[:80]:<80}", f"{keyword}: card was not in the standard's form"
    value = value.strip().strip("'").rstrip().replace("'", "''")[:66]
    value = value if value.count("''") * 2 == value.count("'") else value.replace("'", "")
    mended = f"{keyword:<8}= '{value:<8}'"
    if slash:
        mended += f" / {comment.strip()}"
    return keyword, f"{mended[:80]:<80}", f"{keyword} {value!r} is no FITS value: kept as text"


_TABLE_ONLY = re.compile(
    r"XTENSION|SIMPLE|EXTEND|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|T(?:TYPE|FORM|UNIT|DISP|NULL|SCAL|ZERO|DIM)\d+|THEAP"
    r"|Z(?:IMAGE|SIMPLE|EXTEND|TENSION|BITPIX|NAXIS\d*|TILE\d+|CMPTYPE|NAME\d+|VAL\d+|MASKCMP|QUANTIZ|DITHER0|PCOUNT"
    r"|GCOUNT|BLOCKED|HECKSUM|DATASUM|SCALE|ZERO|BLANK)|CHECKSUM|DATASUM|INHERIT"
)


def merge(primary: Unit, image: Unit) -> tuple[str, list[str]]:
    """Text of one readable header of both units, the image's cards before the primary's."""
    shape = image.axes
    bitpix = image.integer("ZBITPIX" if image.compressed else "BITPIX")
    structure = {"SIMPLE": "T", "BITPIX": bitpix, "NAXIS": 2, "NAXIS1": shape[0], "NAXIS2": shape[1]}
    text = [f"{keyword:<8}= {value:>20}".ljust(80) for keyword, value in structure.items()]
    own = {keyword for keyword, _ in image.cards}
    units = [image] if image is primary else [primary, image]
    repairs: list[str] = []
    for unit in units:
        for keyword, card in unit.cards:
            if _TABLE_ONLY.fullmatch(keyword) or (
                keyword == "EXTNAME" and unit.compressed and "COMPRESSED_IMAGE" in card
            ):
                continue
            if unit is image or keyword in _COMMENTARY or keyword not in own:
                text.append(card)
        repairs += unit.repairs
    return "".join(text), repairs


@functools.lru_cache(maxsize=32)
def parsed(cards: str) -> fits.Header:
    """Header of a text: the text of a thousand frames is small, their headers would not be."""
    from astropy.io import fits

    return fits.Header.fromstring(cards)


class Cards:
    """Values of the cards of a text, with notes on what had to be assumed.

    Parameters
    ----------
    text : str
        Cards of 80 characters, mended.
    notes : list of str, optional
        To which the notes are added.
    """

    def __init__(self, text: str, notes: list[str] | None = None) -> None:
        self.notes = [] if notes is None else notes
        self._text = text
        self._at: dict[str, int] = {}  # where the first card of a keyword begins
        for start in range(0, len(text), 80):
            keyword = text[start : start + 8].rstrip()
            if keyword == "HIERARCH":
                keyword = text[start + 8 : start + 80].partition("=")[0].strip().upper()
            self._at.setdefault(keyword, start)

    @classmethod
    def of(cls, header: fits.Header) -> Cards:
        """Those of a header of astropy's that can be read."""
        images = []
        for card in header.cards:
            try:
                images.append(card.image)
            except ValueError:  # VerifyError is one
                continue
        return cls("".join(images))

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._at

    def get(self, keyword: str) -> Any:
        """Value of a card, or an empty text."""
        field = self._field(keyword)
        if field is None:
            return ""
        if field["text"] is not None:
            return self._long_text(keyword, field["text"])
        if field["logical"]:
            return field["logical"] == "T"
        if field["number"]:
            digits = field["number"].replace("D", "E")
            return float(digits) if "." in digits or "E" in digits else int(digits)
        if field["real"]:
            return complex(*(float(field[part].replace("D", "E")) for part in ("real", "imaginary")))
        return ""

    def _field(self, keyword: str) -> re.Match[str] | None:
        """Value and comment of a card."""
        start = self._at.get(keyword)
        if start is None:
            return None
        begin = start + 10
        if self._text.startswith("HIERARCH", start):
            begin = self._text.index("=", start) + 1
        return _VALUE.fullmatch(self._text, begin, start + 80)

    def _long_text(self, keyword: str, part: str) -> str:
        """Text of a card and of the CONTINUE cards after it."""
        text = part.replace("''", "'").rstrip()
        start = self._at[keyword] + 80
        while text.endswith("&") and self._text.startswith("CONTINUE", start):
            field = _VALUE.fullmatch(self._text, start + 8, start + 80)
            more = field["text"] or "" if field else ""
            text = text[:-1] + more.replace("''", "'").rstrip()
            start += 80
        return text

    def decimals(self, keyword: str) -> int:
        """Digits after the point as the number was written, trailing zeros included."""
        field = self._field(keyword)
        match = re.search(r"[.,](\d+)", field["number"] or field["text"] or "") if field else None
        return len(match[1]) if match else 0

    def text(self, *keywords: str) -> tuple[str, str] | None:
        """First keyword with a text that says something, and the text."""
        for keyword in keywords:
            value = str(self.get(keyword)).strip()
            if value and value.lower() not in ("unknown", "n/a", "none", "undefined", "null"):
                return keyword, value
        return None

    def number(self, *keywords: str, quiet: bool = False) -> tuple[str, float] | None:
        """First keyword with a finite number, and the number."""
        for keyword in keywords:
            value = self.get(keyword)
            if isinstance(value, bool) or value == "":
                continue
            if isinstance(value, str):
                parsed = parse_number(value)
                if parsed is None:
                    continue
                if not quiet:
                    comma = " with a decimal comma" if "," in value else ""
                    self.notes.append(f"{keyword} {value.strip()!r} read as the number {parsed:g}{comma}")
                value = parsed
            try:
                value = float(value)
            except (TypeError, ValueError):
                continue
            if math.isfinite(value):
                return keyword, value
        return None

    def comment(self, keyword: str) -> str:
        """Comment of a card in small letters."""
        field = self._field(keyword)
        return (field["comment"] or "").rstrip().lower() if field else ""


def parse_number(text: str) -> float | None:
    """Read a number from a text card.

    Parameters
    ----------
    text : str
        Fortran exponents and a decimal comma are understood.

    Returns
    -------
    float or None
        None where the text is no finite number.
    """
    match = re.fullmatch(r"\s*([+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[EeDd][+-]?\d+)?)\s*", text)
    if match is None:
        return None
    value = float(match[1].replace(",", ".").replace("D", "E").replace("d", "e"))
    return value if math.isfinite(value) else None
