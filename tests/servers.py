"""VizieR, the Gaia archive and Sesame on loopback, as far as astroquery asks them, with all their bad days.

Requests are read as the real services read them (VizieR's ASU script, TAP's asynchronous jobs), answers are rendered in
the shapes of the recorded ones: VizieR's TABLEDATA, the archive's gzipped BINARY2.
"""

from __future__ import annotations

import gzip
import io
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import votable
from astropy.table import Table

# units and datatypes as VizieR gives them
_VIZIER = {
    "RAJ2000": ("deg", "double"),
    "DEJ2000": ("deg", "double"),
    "RA_ICRS": ("deg", "double"),
    "DE_ICRS": ("deg", "double"),
    "e_RAJ2000": ("mas", "short"),
    "e_DEJ2000": ("mas", "short"),
    "EpRA": ("yr", "float"),
    "EpDE": ("yr", "float"),
    "f.mag": ("mag", "float"),
    "a.mag": ("mag", "float"),
    "Gmag": ("mag", "float"),
}
CYGNUS = 299.59, 35.20  # of the UCAC4 rows
GEMINI = 110.212, 24.0  # of the Gaia rows
_HTML = b"<html><head><title>Bad Gateway</title></head><body><h1>502 Proxy Error</h1></body></html>"
_VIZIER_ERROR = b"""<?xml version="1.0" encoding="UTF-8"?>
<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">
<INFO ID="Error" name="Error" value="The database is not currently reachable." />
<INFO name="QUERY_STATUS" value="ERROR">
 -- no connection
</INFO>
<RESOURCE></RESOURCE>
</VOTABLE>
"""


def ucac4_table(path) -> Table:
    """The columns of VizieR's I/322A from its CSV."""
    return Table.read(path, format="ascii.csv")


def gaia_tables(path) -> tuple[Table, Table]:
    """Real Gaia rows as gaiadr3.gaia_source and as VizieR's I/355/gaiadr3 give them."""
    source = Table.read(path)
    names = ["source_id", "ra", "dec", "ra_error", "dec_error", "pmra", "pmdec", "pmra_error", "pmdec_error"]
    source = source[[*names, "parallax", "phot_g_mean_mag", "ref_epoch"]]
    source["ref_epoch"] = np.full(len(source), 2016.0)
    for name, unit in {"ra": "deg", "dec": "deg", "ra_error": "mas", "pmra": "mas/yr", "ref_epoch": "yr"}.items():
        source[name].unit = unit
    return source, _as_vizier(source)


def survey_tables(ra, dec, mag, *, epoch: float = 2016.0, pm=(0.0, 0.0), seed: int = 1) -> dict[str, Table]:
    """Stars at their true places (degree) at `epoch` as UCAC4 and both servers of Gaia would list them.

    Each has the proper motion `pm` (mas/yr, along east and north) plus its own of 5 mas/yr, positions at the
    catalogue's epoch with errors drawn: 20 mas in UCAC4, 0.1 mas in Gaia.
    """
    rng = np.random.default_rng(seed)
    n = len(ra)
    motion = rng.normal(0, 5, (2, n)) + np.reshape(pm, (2, 1))

    def at(year: float, error: float) -> np.ndarray:
        moved = motion * (year - epoch) + rng.normal(0, error, (2, n))
        return np.array([ra + moved[0] / 3.6e6 / np.cos(np.radians(dec)), dec + moved[1] / 3.6e6])

    def constant(value: float) -> np.ndarray:
        return np.full(n, value)

    place = at(2000.0, 20.0)
    ucac4 = Table(
        {
            "RAJ2000": place[0] % 360, "e_RAJ2000": constant(20), "DEJ2000": place[1], "e_DEJ2000": constant(20),
            "EpRA": constant(2000.0), "EpDE": constant(2000.0), "pmRA": motion[0], "e_pmRA": constant(0.5),
            "pmDE": motion[1], "e_pmDE": constant(0.5), "f.mag": mag, "a.mag": mag,
        }
    )  # fmt: skip
    place = at(2016.0, 0.1)
    gaia = Table(
        {
            "ra": place[0] % 360, "dec": place[1], "ra_error": constant(0.1), "dec_error": constant(0.1),
            "pmra": motion[0], "pmdec": motion[1], "pmra_error": constant(0.02), "pmdec_error": constant(0.02),
            "parallax": constant(1.0), "phot_g_mean_mag": mag, "ref_epoch": constant(2016.0),
        }
    )  # fmt: skip
    return {"I/322A/out": ucac4, "gaiadr3.gaia_source": gaia, "I/355/gaiadr3": _as_vizier(gaia)}


def _as_vizier(gaia: Table) -> Table:
    """Rows of gaiadr3.gaia_source as VizieR names them."""
    vizier = gaia[[name for name in gaia.colnames if name not in ("ref_epoch", "source_id")]]
    vizier.rename_columns(
        ["ra", "dec", "ra_error", "dec_error", "pmra", "pmdec", "pmra_error", "pmdec_error", "parallax"],
        ["RA_ICRS", "DE_ICRS", "e_RA_ICRS", "e_DE_ICRS", "pmRA", "pmDE", "e_pmRA", "e_pmDE", "Plx"],
    )
    vizier.rename_column("phot_g_mean_mag", "Gmag")
    return vizier


def vizier_votable(table: Table | None, limit: int) -> bytes:
    """A VizieR answer."""
    fields, rows = [], []
    if table is not None:
        for name in table.colnames:
            unit, kind = _VIZIER.get(name, ("mas/yr" if "pm" in name else "mas", "float"))
            fields.append(f'    <FIELD name="{name}" ucd="pos" datatype="{kind}" unit="{unit}"/>')
        for row in table:
            cells = ("" if np.ma.is_masked(v) or not np.isfinite(v) else str(v) for v in row)
            rows.append("<TR>" + "".join(f"<TD>{cell}</TD>" for cell in cells) + "</TR>")
    inner = "\n".join(
        [
            ' <TABLE ID="I_322A_out" name="I/322A/out">',
            "  <DESCRIPTION>The catalogue</DESCRIPTION>",
            *fields,
            "<DATA><TABLEDATA>",
            *rows,
            "</TABLEDATA></DATA>",
            "</TABLE>",
        ]
    )
    text = f"""<?xml version="1.0" encoding="UTF-8"?>
<VOTABLE version="1.4" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
  xmlns="http://www.ivoa.net/xml/VOTable/v1.3"
  xsi:schemaLocation="http://www.ivoa.net/xml/VOTable/v1.3 http://www.ivoa.net/xml/VOTable/v1.3">
 <DESCRIPTION>
   VizieR Astronomical Server vizier.cds.unistra.fr
 </DESCRIPTION>
<INFO ID="VERSION" name="votable-version" value="1.99+ (14-Oct-2013)"/>
<INFO ID="MaxTuples" name="-out.max" value="{limit}"/>
<RESOURCE ID="yCat_1322" name="I/322A">
  <COOSYS ID="J2000_2000.000" system="eq_FK5" equinox="J2000" epoch="2000.000"/>
{inner if table is not None else ""}
</RESOURCE>
</VOTABLE>
"""
    return text.encode()


def archive_votable(table: Table, status: str = "OK") -> bytes:
    """A Gaia archive answer, before gzip."""
    tree = votable.from_table(table)
    tree.resources[0].infos.append(votable.tree.Info(name="QUERY_STATUS", value=status))
    tree.set_all_tables_format("binary2")
    buffer = io.BytesIO()
    tree.to_xml(buffer)
    return buffer.getvalue()


class Servers:
    """All three services on one port, and how they behave.

    `script` is a list of moods, one for each request for data; the last one stays. Moods: ok, slow, cut (fewer bytes
    than announced), drip (a byte now and then), short (half of an answer, announced as a whole), 500, 400, html,
    noise, empty, none (a document without a table), overflow, error, wrong (another table), bad (a row that is no
    number).
    """

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.script = ["ok"]
        self.jobs: dict[str, dict[str, str]] = {}
        self.asked: list[dict[str, str]] = []  #: every request for data
        self.agents: list[str] = []
        self.names = {"M27": (299.901417, 22.721361)}
        self.polls = 0  #: how often a job is still executing
        self.stop = threading.Event()
        services = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                services.agents.append(self.headers.get("User-Agent", ""))
                if self.path == "/viz-bin/votable":
                    services.vizier(self, dict(line.partition("=")[::2] for line in body.splitlines()))
                elif self.path == "/tap-server/tap/async":
                    services.launch(self, dict(urllib.parse.parse_qsl(body)))
                else:
                    self.send_error(404)

            def do_GET(self):
                if found := re.fullmatch(r"/tap-server/tap/async/(\w+)/(phase|error|results/result)", self.path):
                    services.job(self, *found.groups())
                elif self.path.startswith("/sesame/"):
                    services.sesame(self, urllib.parse.unquote(self.path.partition("?")[2]))
                else:
                    self.send_error(404)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # clients that ran out of patience

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        for thread in threading.enumerate():
            if thread.name == "fastack-request":  # given up, and ended by the end of its connection
                thread.join(timeout=30)

    def mood(self) -> str:
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    # --- the services

    def vizier(self, handler, query: dict[str, str]) -> None:
        self.asked.append({"service": "vizier", **query})
        ra, dec = re.fullmatch(r"([\d.]+)([+-][\d.]+)", query["-c"]).groups()
        limit = int(query["-out.max"])
        table = self.tables[query["-source"]]
        keep = _cone(table[table.colnames[0]] if "RAJ2000" not in table.colnames else table["RAJ2000"],
                     table["DEJ2000"] if "DEJ2000" in table.colnames else table["DE_ICRS"],
                     float(ra), float(dec), float(query["-c.rd"]))  # fmt: skip
        for name in ("f.mag", "Gmag"):
            if name in query:
                keep &= np.ma.filled(table[name], np.nan) <= float(query[name].removeprefix("<="))
        table = table[keep][query["-out"].split(",")][:limit]
        mood = self.mood()
        if mood == "empty":
            table = table[:0]
        data = vizier_votable(None if mood == "none" else table, limit)
        if mood == "error":
            data = _VIZIER_ERROR
        elif mood == "overflow":
            data = data.replace(b"</RESOURCE>", b'<INFO name="QUERY_STATUS" value="OVERFLOW"/></RESOURCE>')
        elif mood == "wrong":
            data = data.replace(b'name="RA', b'name="XX')
        elif mood == "bad":
            data = re.sub(rb"<TR><TD>[^<]*</TD>", b"<TR><TD>12h</TD>", data, count=1)
        elif mood == "hole":
            data = re.sub(rb"<TR><TD>[^<]*</TD>", b"<TR><TD></TD>", data, count=1)
        self.answer(handler, mood, data, "text/xml")

    def launch(self, handler, query: dict[str, str]) -> None:
        self.asked.append({"service": "gaia", **query})
        if self.script[0] in ("500", "400", "slow"):
            return self.answer(handler, self.mood(), b"", "text/html")
        name = f"{1700000000000 + len(self.jobs)}O"
        self.jobs[name] = {"query": query["QUERY"], "polls": str(self.polls)}
        handler.send_response(303)
        handler.send_header("Location", f"{self.url}/tap-server/tap/async/{name}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def job(self, handler, name: str, what: str) -> None:
        job = self.jobs[name]
        if what == "phase":
            left = int(job["polls"])
            job["polls"] = str(left - 1)
            failed = self.script[0] == "error"
            phase = "EXECUTING" if left > 0 else "ERROR" if failed else "COMPLETED"
            return self.answer(handler, "ok", phase.encode(), "text/plain")
        if what == "error":
            self.mood()
            return self.answer(handler, "ok", b"<html><li><b>Message: </b>Cannot parse query</li></html>", "text/html")
        number = r"([-+\d.]+)"
        query = job["query"]
        circle = re.search(rf"CIRCLE\('ICRS', {number}, {number}, {number}\)", query).groups()
        table = self.tables["gaiadr3.gaia_source"]
        keep = _cone(table["ra"], table["dec"], *(float(v) for v in circle))
        if bright := re.search(rf"phot_g_mean_mag <= {number}", query):
            keep &= np.asarray(table["phot_g_mean_mag"]) <= float(bright[1])
        names = [n.strip() for n in re.search(r"SELECT TOP \d+ (.*) FROM", query)[1].split(",")]
        table = table[keep][names][: int(re.search(r"TOP (\d+)", query)[1])]
        mood = self.mood()
        if mood in ("empty", "none"):
            table = table[:0]
        if mood == "wrong":
            table.rename_column("ra", "xx")
        if mood == "hole":
            table["ra"][0] = np.nan
        data = archive_votable(table, "OVERFLOW" if mood == "overflow" else "OK")
        if mood == "bad":
            data = re.sub(rb"(encoding=.base64.>\s*)\w{8}", rb"\1????????", data, count=1)
        # the archive gzips by itself, and does so whether or not it was asked to
        self.answer(handler, mood, gzip.compress(data), "application/x-votable+xml")

    def sesame(self, handler, name: str) -> None:
        mood = self.mood()
        text = f"# {name}\n#=S=Simbad:    1\n"
        if name in self.names:
            ra, dec = self.names[name]
            text += f"%C.0 PN\n%J {ra:.6f} {dec:+.6f} = 19:59:36.34 +22:43:16.9\n"
        else:
            text += "#! *** Nothing found ***\n"
        self.answer(handler, mood, (text + "#====Done====\n").encode(), "text/plain")

    def answer(self, handler, mood: str, data: bytes, kind: str) -> None:
        code, announced = 200, None
        if mood == "slow":
            self.stop.wait(20)
        elif mood in ("500", "503", "400"):
            code, data, kind = int(mood), b"<html>sorry</html>", "text/html"
        elif mood == "html":
            data, kind = _HTML, "text/html"
        elif mood == "noise":
            data = np.random.default_rng(1).bytes(3000)
        elif mood == "cut":
            announced, data = len(data), data[: len(data) // 2]
        elif mood == "short":
            data = data[: len(data) // 2]
        handler.send_response(code)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data) if announced is None else announced))
        handler.end_headers()
        while mood == "drip" and data and not self.stop.wait(0.05):
            handler.wfile.write(data[:1])
            handler.wfile.flush()
            data = data[1:]
        handler.wfile.write(data)
        if announced is not None:
            handler.wfile.flush()
            handler.close_connection = True


def _cone(ra, dec, ra0: float, dec0: float, radius: float) -> np.ndarray:
    there = SkyCoord(np.asarray(ra, float), np.asarray(dec, float), unit="deg")
    return np.asarray(there.separation(SkyCoord(ra0, dec0, unit="deg")) <= radius * u.deg)
