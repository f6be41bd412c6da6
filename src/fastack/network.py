"""UCAC4 and Gaia over the network, and places by the names of objects.

UCAC4 comes from VizieR, Gaia from the Gaia archive with VizieR in its place where the archive does not answer. This is
the only module that imports astroquery, and it does so at the first request. An answer is either whole or an error.
"""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fastack.errors import CatalogueError
from fastack.options import CatalogueOptions
from fastack.positions import check_cone, within
from fastack.surveys import SURVEYS, Survey, survey_key, useful_limit
from fastack.tables import Broken, TooMany, one_line, read_votable, stars_of, words_of
from fastack.types import CatalogueStars

if TYPE_CHECKING:
    from astropy.table import Table

T = TypeVar("T")

MARGIN = 3e-4  # degree by which more is asked for: servers turn the centre to FK5 and round it


class _Unreachable(CatalogueError):
    """No connection to the server at all."""


def fetch(
    name: str,
    ra: float,
    dec: float,
    radius: float,
    *,
    max_mag: float | None = None,
    options: CatalogueOptions | None = None,
) -> CatalogueStars:
    """Stars of UCAC4 or Gaia DR3 from their servers, past all stores.

    Parameters
    ----------
    name : {"ucac4", "gaia"}
    ra, dec, radius : float, degree
        Circle, ICRS.
    max_mag : float, optional
        Faintest magnitude: UCAC's f, Gaia's G.
    options : CatalogueOptions, optional

    Returns
    -------
    CatalogueStars
        At J2000 (UCAC4) or J2016.0 (Gaia); possibly none.

    Raises
    ------
    CatalogueError
        In one line: the servers cannot be reached, do not answer in time, answer with an error or with something that
        is no whole catalogue, or there are more stars than the row limit.
    """
    options = options or CatalogueOptions()
    check_cone(ra, dec, radius)
    key = require(name)
    served, max_mag = SURVEYS[key], useful_limit(key, max_mag)
    services: list[tuple[str, Callable[[], Table | None]]] = []
    if key == "gaia":
        services.append((options.gaia_server, lambda: _ask_archive(ra, dec, radius, max_mag, options)))
    services.append((options.vizier_server, lambda: _ask_vizier(served, ra, dec, radius, max_mag, options)))
    failures: list[CatalogueError] = []
    for server, request in services:

        def ask(request: Callable[[], Table | None] = request) -> Table | None:
            return _within(options.job_timeout, request)

        host = urllib.parse.urlsplit(server).netloc

        def answer(ask: Callable[[], Table | None] = ask) -> CatalogueStars:
            table = ask()
            if table is None or not len(table):
                return CatalogueStars.make([], [], epoch=served.epoch, name=served.name)
            if len(table) > options.row_limit:
                raise TooMany(
                    f"more than {options.row_limit} stars within {radius:.3g} degree: ask for a brighter magnitude"
                    " limit or a smaller circle, or raise --row-limit"
                )
            try:
                return stars_of(table, served.name, survey=served)
            except Broken:
                raise
            except (CatalogueError, ValueError, TypeError) as error:
                raise Broken(f"answered with something else than {served.name}: {one_line(error)}") from error

        try:
            stars = _attempts(answer, options)
            return stars[within(stars, ra, dec, radius, None)]
        except TooMany as error:
            raise CatalogueError(f"{served.name} from {host}: {error}") from None
        except CatalogueError as error:
            failures.append(type(error)(f"{host} {error}"))
    text = f"{served.name}: " + "; ".join(str(f) for f in failures)
    text += " (no network?); use" if all(isinstance(f, _Unreachable) for f in failures) else "; try again later, or use"
    raise CatalogueError(f"{text} a local file, or a store filled by 'fastack catalogue fetch'")


def require(name: str) -> str:
    """Key of a catalogue that is served; ValueError for any other name."""
    key = survey_key(name)
    if key is None:
        raise ValueError(f"catalogue is {name!r}, not one of {', '.join(sorted(SURVEYS))}")
    return key


def _within(patience: float, ask: Callable[[], T]) -> T:
    """What `ask` returns, or CatalogueError after so many seconds.

    The time-out of a socket never passes while a server sends a byte now and then, and neither astroquery nor what
    lies below it knows another one. The request is left to a thread that ends with its connection or the process.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=work, name="fastack-request", daemon=True).start()
    try:
        answer, error = answers.get(timeout=patience)
    except queue.Empty:
        # a server that is this slow is not asked twice
        raise CatalogueError(f"had not sent the whole answer after {patience:g} s (--job-timeout)") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _attempts(ask: Callable[[], T], options: CatalogueOptions) -> T:
    """The first good answer, with pauses that double between the attempts."""
    for attempt in range(options.retries + 1):
        if attempt:
            time.sleep(options.backoff * 2 ** (attempt - 1))
        try:
            with _named_errors():
                return ask()
        except Broken as error:
            last = error
    raise Broken(f"{last} ({options.retries + 1} attempts)" if options.retries else str(last)) from last


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """What requests and http.client raise, as one of this module's errors."""
    import requests

    try:
        yield
    except CatalogueError:
        raise
    except (OSError, EOFError, http.client.HTTPException) as error:
        causes = list(_causes(error))
        if any(isinstance(c, (TimeoutError, requests.Timeout)) for c in causes):
            raise Broken("did not answer in time (--timeout)") from error
        if any(isinstance(c, (socket.gaierror, ConnectionRefusedError)) for c in causes) or any(
            isinstance(c, OSError) and c.errno in _NO_ROUTE for c in causes
        ):
            raise _Unreachable("cannot be reached") from error
        if any(isinstance(c, http.client.IncompleteRead) or type(c).__name__ == "IncompleteRead" for c in causes):
            raise Broken("cut the answer off") from error
        raise Broken(f"broke off: {one_line(error)}") from error


_NO_ROUTE = {100, 101, 112, 113}  # errno of a network or host that is down or out of reach


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that led to it."""
    waiting, seen = [error], set()
    while waiting:
        this = waiting.pop()
        if id(this) in seen:
            continue
        seen.add(id(this))
        yield this
        linked = (this.__cause__, this.__context__, getattr(this, "reason", None), *this.args)
        waiting += [e for e in linked if isinstance(e, BaseException)]


def _status(code: int, reason: str) -> None:
    """Raise for anything but success."""
    if code >= 500 or code in (408, 429):
        raise Broken(f"answers {code} {reason}")
    if code >= 400:
        raise CatalogueError(f"refuses the request: {code} {reason}")
    if code != 200:
        raise Broken(f"answers {code} {reason}")


def _ask_vizier(
    served: Survey, ra: float, dec: float, radius: float, max_mag: float | None, options: CatalogueOptions
) -> Table | None:
    """One request to VizieR through astroquery."""
    from astropy.coordinates import Angle, SkyCoord
    from astroquery.vizier import VizierClass

    vizier = VizierClass(
        columns=list(served.columns),
        column_filters={} if max_mag is None else {served.mag: f"<={max_mag:.3f}"},
        timeout=options.timeout,
        row_limit=options.row_limit + 1,
    )
    # astroquery puts https:// before the name of a mirror; a mirror inside an observatory may speak http
    vizier._server_to_url = lambda return_type="votable": f"{options.vizier_server.rstrip('/')}/viz-bin/{return_type}"
    centre = SkyCoord(ra, dec, unit="deg", frame="icrs")
    try:
        # the answer as it came: astroquery's parser takes a limited or erroneous one for a catalogue
        response = vizier.query_region_async(
            centre, radius=Angle(radius + MARGIN, "deg"), catalog=served.source, cache=False
        )
    finally:
        vizier._session.close()
    _status(response.status_code, response.reason)
    return read_votable(response.content)


def _ask_archive(
    ra: float, dec: float, radius: float, max_mag: float | None, options: CatalogueOptions
) -> Table | None:
    """One asynchronous job at the Gaia archive through astroquery's TAP client.

    `astroquery.gaia` asks the archive for its messages when it is imported, without a time-out; the client below it
    does not. Synchronous jobs would be limited to 2000 rows.
    """
    from astroquery.utils.tap.conn.tapconn import ConnectionHandler, TapConn
    from astroquery.utils.tap.core import TapPlus

    opened: list[http.client.HTTPConnection] = []

    class Connections(ConnectionHandler):  # type: ignore[misc]
        """Connections with a time-out, which astroquery's have not, and with an end."""

        def get_connection(self, **how: Any) -> Any:
            connection = super().get_connection(**how)
            connection.timeout = options.timeout
            opened.append(connection)
            return connection

    url = urllib.parse.urlsplit(options.gaia_server)
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    context, _, tap = url.path.strip("/").rpartition("/")
    connection = TapConn(
        secure,
        url.hostname,
        server_context=context,
        tap_context=tap,
        port=port,
        sslport=port,
        connhandler=Connections(url.hostname, port, port),
    )
    query = _adql(ra, dec, radius + MARGIN, max_mag, options.row_limit + 1)
    try:
        return read_votable(_run_job(TapPlus(connhandler=connection), connection, query, options.job_timeout))
    finally:
        for each in opened:
            each.close()


def _run_job(tap: Any, connection: Any, query: str, patience: float) -> bytes:
    """Launch a job, wait for its end and read its result."""
    deadline = time.monotonic() + patience
    try:
        job = tap.launch_job_async(query, background=True)
    except OSError:
        if connection.get_response_status() not in (0, 303):
            _status(connection.get_response_status(), connection.get_response_reason())
        raise
    pause = 0.1
    while (phase := _get(connection, f"async/{job.jobid}/phase").decode("ascii", "replace").strip().upper()) in (
        "PENDING",
        "QUEUED",
        "EXECUTING",
    ):
        if time.monotonic() + pause > deadline:
            # a busy server is not asked twice: the next one may be idle
            raise CatalogueError(f"had not finished the job after {patience:g} s (--job-timeout)")
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
    if phase != "COMPLETED":
        message = _get(connection, f"async/{job.jobid}/error") if phase == "ERROR" else b""
        raise Broken(f"ended the job with {phase[:20]!r} {words_of(message)}".rstrip())
    return _get(connection, f"async/{job.jobid}/results/result")


def _get(connection: Any, path: str) -> bytes:
    """Body of a GET request, redirections followed."""
    for _ in range(4):
        response = connection.execute_tapget(path)
        if response.status not in (301, 302, 303, 307):
            break
        target = urllib.parse.urlsplit(response.getheader("Location") or "").path
        path = path if "/async/" not in target else "async/" + target.split("/async/", 1)[1]
    _status(response.status, response.reason)
    return bytes(response.read())


def _adql(ra: float, dec: float, radius: float, max_mag: float | None, rows: int) -> str:
    """Query of the Gaia archive."""
    bright = "" if max_mag is None else f" AND phot_g_mean_mag <= {max_mag:.3f}"
    return (
        f"SELECT TOP {rows} ra, dec, ra_error, dec_error, pmra, pmdec, pmra_error, pmdec_error, parallax,"
        " phot_g_mean_mag, ref_epoch FROM gaiadr3.gaia_source WHERE 1 = CONTAINS(POINT('ICRS', ra, dec),"
        f" CIRCLE('ICRS', {ra:.8f}, {dec:.8f}, {radius:.8f})){bright}"
    )


def resolve(name: str, *, options: CatalogueOptions | None = None) -> tuple[float, float] | None:
    """Position of an object by its name, from Sesame.

    Parameters
    ----------
    name : str
    options : CatalogueOptions, optional

    Returns
    -------
    (ra, dec) in degree, ICRS, or None
        None where Sesame does not know it, or cannot be reached in time.
    """
    from astropy.coordinates import name_resolve
    from astropy.utils.data import conf

    options = options or CatalogueOptions()
    if not name.strip():
        return None
    servers = [options.sesame_server] if options.sesame_server else name_resolve.sesame_url.get()
    step = min(options.timeout, 15.0)
    try:
        with conf.set_temp("remote_timeout", step), name_resolve.sesame_url.set(servers):
            place = _within(2 * step, lambda: name_resolve.get_icrs_coordinates(name.strip()))
    except (name_resolve.NameResolveError, CatalogueError, OSError, ValueError, http.client.HTTPException):
        return None
    return float(place.ra.deg), float(place.dec.deg)
