"""One file over HTTP: resumed where it stopped, tried again after what passes, never taken for whole before it is.

What has arrived lies in a ``.part`` file, with what the server said about the file beside it in ``.part.json``. The
next attempt, or the next call, asks for the rest only, and only of the same file: the one with the SHA-256 that the
host announces (Hugging Face does), else with the same ETag or date (``If-Range``). If the server ignores the range, or
its file has changed, the file is fetched from its beginning.

Why the standard library: pooch cannot resume; huggingface_hub serves one of the two hosts, keeps the files in a cache
of its own, and cannot be pointed at the plain file server of a hospital.

``Connections`` is what the threads of one download share: how patient they are, which hosts have answered, and a way
to stop. urllib honors HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE. ``Connections`` also hands over what a host announces
about a file while it redirects to its storage, never leaves https on the way, and can be interrupted while it waits
for bytes.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kitsseg.errors import InputError
from kitsseg.files.atomic import atomic_path
from kitsseg.files.json_records import read_record
from kitsseg.version import __version__

if TYPE_CHECKING:
    import io

__all__ = [
    "Connections",
    "HostError",
    "Patience",
    "Stopped",
    "fetch_file",
    "forget_part",
    "part_of",
    "part_size",
]


class Stopped(Exception):
    """The download was told to stop."""


@dataclass(frozen=True)
class Patience:
    """How often something that may pass is tried again, and how long is waited.

    Attributes:
        attempts: in a row without one new byte, then it is an error.
        first_attempts: the same as long as the host has never answered: offline is said at once.
        first_wait_s: after the first failure; it doubles with each, up to ``longest_wait_s``.
        longest_asked_wait_s: a server that asks for more (Retry-After) is not waited for.
        stall_s: without a byte for so long, a connection counts as dropped.
    """

    attempts: int = 6
    first_attempts: int = 3
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_asked_wait_s: float = 600.0
    stall_s: float = 30.0


class Connections:
    """Opens URLs for several threads until it is told to ``stop``."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self.answered: set[str] = set()  # hosts
        self._stopping = threading.Event()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()

    def open(self, url: str, headers: Mapping[str, str]) -> tuple[Any, str | None]:
        """Open a URL. Returns (response, the SHA-256 that the host announces or None); raises as urllib, Stopped."""
        self.check_stopped()
        announced: dict[str, str | None] = {}
        opener = urllib.request.build_opener(_Http(self._keep), _Https(self._keep), _Redirect(announced))
        request = urllib.request.Request(url, headers=headers)
        response = opener.open(request, timeout=self.patience.stall_s)
        return response, announced.get("sha256") or _announced_sha256(response.headers)

    def stop(self) -> None:
        """Make all threads raise Stopped soon, also those that wait."""
        self._stopping.set()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # wakes up who waits for bytes

    def check_stopped(self) -> None:
        """Raise Stopped if it was told to stop."""
        if self._stopping.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep; raises Stopped as soon as it is told to stop."""
        if self._stopping.wait(seconds):
            raise Stopped

    def _keep(self, new: socket.socket) -> None:
        with self._lock:
            self._sockets.add(new)
        self.check_stopped()


def _watched(kind: Any, keep: Callable[[socket.socket], None]) -> Any:
    """The connection class ``kind`` that hands its socket to ``keep``."""

    class Connection(kind):  # type: ignore[misc]  # one of two classes of the standard library
        def connect(self) -> None:
            super().connect()
            keep(self.sock)

    return Connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, keep: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self.connection = _watched(http.client.HTTPConnection, keep)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self.connection, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, keep: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self.connection = _watched(http.client.HTTPSConnection, keep)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self.connection, request)


class _Redirect(urllib.request.HTTPRedirectHandler):
    def __init__(self, announced: dict[str, str | None]) -> None:
        self.announced = announced

    def redirect_request(
        self, request: urllib.request.Request, body: Any, code: int, message: str, headers: Any, url: str
    ) -> urllib.request.Request | None:
        # urllib would follow ftp as well
        allowed = ("https",) if request.type == "https" else ("https", "http")
        if urlsplit(url).scheme.lower() not in allowed:
            raise urllib.error.URLError(f"it redirects to {url}, which is not {' or '.join(allowed)}")
        self.announced["sha256"] = self.announced.get("sha256") or _announced_sha256(headers)
        return super().redirect_request(request, body, code, message, headers, url)


def _announced_sha256(headers: email.message.Message) -> str | None:
    """Hugging Face names the SHA-256 of a large file in X-Linked-ETag."""
    tag = headers.get("X-Linked-ETag", "").strip('"').lower()
    return tag if re.fullmatch("[0-9a-f]{64}", tag) else None


_CHUNK_BYTES = 1 << 18
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP status of what may be better in a while
_KEPT = "Call again to go on: what has arrived is kept."


class HostError(InputError):
    """A host cannot be reached: none of its files can be had now."""


class _Passing(Exception):
    """What may be better at the next attempt, not before ``wait_s`` seconds if the server asks for them."""

    def __init__(self, reason: str, wait_s: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.unreachable = wait_s, unreachable


def part_of(path: Path) -> Path:
    """Where the beginning of a file lies until it is whole."""
    return path.with_name(f"{path.name}.part")


def part_size(part: Path) -> int:
    """Bytes that have arrived."""
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def forget_part(part: Path) -> None:
    """Remove a beginning, and what is known about it."""
    part.unlink(missing_ok=True)
    _facts_path(part).unlink(missing_ok=True)


def fetch_file(
    url: str,
    part: Path,
    connections: Connections,
    on_bytes: Callable[[int], object] = lambda size: None,
    most_bytes: int | None = None,
) -> str | None:
    """Fetch ``url`` into the file ``part``, from where it stops, up to the end that the server announces.

    Args:
        connections: the Connections of this download; its patience says how often, and how long to wait.
        on_bytes: called with the size that ``part`` has reached.
        most_bytes: the file cannot be larger; a longer one is cut off, and an error.

    Returns: the SHA-256 that the host announces, or None. Whether the file is right is for the caller to check.
    Raises: HostError; InputError if the file cannot be had; Stopped; OSError of the disk. ``part`` is kept.
    """
    patience, host = connections.patience, urlsplit(url).netloc
    reached, failures = part_size(part), 0
    while True:
        try:
            return _attempt(url, part, connections, on_bytes, most_bytes)
        except _Passing as problem:
            failures = 0 if part_size(part) > reached else failures + 1
            reached = max(reached, part_size(part))
            if problem.wait_s > patience.longest_asked_wait_s:
                wait = f"{host} asks to wait {problem.wait_s:.0f} s"
                raise InputError(
                    f"{url}: {problem}; {wait}. Call again later: what has arrived is kept."
                ) from None
            tries = patience.attempts if host in connections.answered else patience.first_attempts
            if failures >= tries and problem.unreachable:
                raise HostError(
                    f"{host}: cannot be reached ({problem}). Check the network and the proxy (HTTPS_PROXY), or give "
                    f"--from with a folder of the files. {_KEPT}"
                ) from None
            if failures >= tries:
                raise InputError(f"{url}: {problem}, {failures} times without progress. {_KEPT}") from None
            backoff = min(patience.longest_wait_s, patience.first_wait_s * 2 ** max(failures - 1, 0))
            connections.wait(max(problem.wait_s, backoff * random.uniform(0.5, 1.0)))


def _attempt(
    url: str,
    part: Path,
    connections: Connections,
    on_bytes: Callable[[int], object],
    most_bytes: int | None,
) -> str | None:
    """One request; returns the announced SHA-256 once ``part`` is as long as the server says."""
    facts: dict[str, Any] = _read_facts(part, url) or {}
    have = part_size(part)
    if not facts or not (facts["sha256"] or facts["validator"]):
        have = 0
    elif have and have == facts["total"]:
        whole: str | None = facts["sha256"]
        return whole
    headers = {"User-Agent": f"kitsseg/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if not facts["sha256"]:
            headers["If-Range"] = facts["validator"]
    host = urlsplit(url).netloc
    try:
        response, announced = connections.open(url, headers)
        connections.answered.add(host)
        with response:
            known = _Known(url, part, facts, have, most_bytes)
            return _receive(response, announced, known, connections, on_bytes)
    except urllib.error.HTTPError as error:
        connections.answered.add(host)
        with error:
            return _without_body(error, url, part, facts, have)
    except (OSError, http.client.HTTPException) as error:
        connections.check_stopped()
        if getattr(error, "filename", None):
            raise  # of the disk
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise HostError(
                f"{host}: its certificate is not trusted ({reason.verify_message}). If your network inspects https, "
                "name its certificates in SSL_CERT_FILE."
            ) from error
        unreachable = isinstance(error, urllib.error.URLError)
        raise _Passing(_one_line(reason), unreachable=unreachable) from error


@dataclass(frozen=True)
class _Known:
    """What an attempt begins with: the address, the part of the file that is there, what was recorded, its length.

    Attributes:
        most_bytes: the file cannot be larger.
    """

    url: str
    part: Path
    facts: dict[str, Any]
    have: int
    most_bytes: int | None


def _receive(
    response: Any,
    announced: str | None,
    known: _Known,
    connections: Connections,
    on_bytes: Callable[[int], object],
) -> str | None:
    url, part, facts, have = known.url, known.part, known.facts, known.have
    validator = _validator(response.headers)
    total: int | None
    if response.status == 206 and have:
        found = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})",
            response.headers.get("Content-Range", "").strip(),
        )
        same = announced == facts["sha256"] if facts["sha256"] else validator in (facts["validator"], None)
        if not found or not same or int(found[1]) != have or facts["total"] not in (None, int(found[2])):
            forget_part(part)
            raise _Passing(
                "its file has changed while it was fetched, or it sends another range than asked for"
            )
        total = int(found[2])
    elif response.status == 200:
        length = response.headers.get("Content-Length", "")
        have, total = 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        facts = {"url": url, "sha256": announced, "validator": validator, "total": total}
    else:
        raise InputError(f"{url}: expected the file, found HTTP status {response.status}. Check the address.")
    if total is not None:
        _check_length(known, total)
    with _open(part, have) as file:
        if not have:
            _write_facts(part, facts)
        on_bytes(have)
        while chunk := response.read1(_CHUNK_BYTES):
            connections.check_stopped()
            have += len(chunk)
            _check_length(known, have)
            _write(file, chunk, part)
            on_bytes(have)
    connections.check_stopped()
    if total is not None and have < total:
        raise _Passing(f"the connection ended after {have} of {total} bytes")
    if total is not None and have > total:
        forget_part(part)
        raise _Passing(f"it sent {have} bytes, more than the {total} it announced")
    named: str | None = facts["sha256"]
    return named


def _check_length(known: _Known, size: int) -> None:
    """Raise InputError for a file that is longer than it can be; what has arrived of it goes."""
    if known.most_bytes is not None and size > known.most_bytes:
        forget_part(known.part)
        raise InputError(
            f"{known.url}: it sends {size:,} bytes or more, but this file has {known.most_bytes:,} at most. Check the "
            "address; does a proxy answer in its place?"
        )


def _without_body(
    error: urllib.error.HTTPError, url: str, part: Path, facts: dict[str, Any], have: int
) -> str | None:
    """What an HTTP error status means."""
    if error.code == 416 and have:  # nothing from there on: all was there, or the file is another one
        if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
            whole: str | None = facts["sha256"]
            return whole
        forget_part(part)
        raise _Passing("its file has become shorter") from error
    status = f"HTTP status {error.code} ({error.reason})" if error.reason else f"HTTP status {error.code}"
    if error.code in _PASSING:
        raise _Passing(status, _asked_wait_s(error.headers)) from error
    raise InputError(
        f"{url}: {status}. The host does not give this file: check the address, or give --from with a folder of files."
    ) from error


def _asked_wait_s(headers: email.message.Message) -> float:
    asked = headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", asked):
        return float(asked)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    return 0.0


def _validator(headers: email.message.Message) -> str | None:
    """What If-Range may hold: a strong ETag, else a date."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _one_line(reason: object) -> str:
    return " ".join((getattr(reason, "strerror", None) or str(reason) or type(reason).__name__).split())


@dataclass(kw_only=True)
class _Facts:
    """Content of ``.part.json``: what the server said about the file whose beginning has arrived."""

    url: str
    sha256: str | None
    validator: str | None
    total: int | None


def _facts_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_facts(part: Path, url: str) -> dict[str, Any] | None:
    """What is known about the file whose beginning is ``part``; None if nothing, or if it is of another address."""
    try:
        facts = read_record(_facts_path(part), _Facts, "what is known of a download", "")
    except (FileNotFoundError, InputError):  # then the file is fetched from its beginning
        return None
    usable = facts.validator is None or facts.validator.isprintable()  # it goes into a header
    return vars(facts) if facts.url == url and usable else None


def _write_facts(part: Path, facts: Mapping[str, Any]) -> None:
    with atomic_path(_facts_path(part)) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")


def _open(part: Path, have: int) -> io.FileIO:
    """To go on at ``have`` bytes, or with an emptied file: before new facts are written, so that they never mix."""
    part.parent.mkdir(parents=True, exist_ok=True)
    return part.open("ab" if have else "wb", buffering=0)


def _write(file: io.FileIO, chunk: bytes, part: Path) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        error.filename = str(part)  # says that it is the disk, and which file
        raise
