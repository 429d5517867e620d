"""Fetch one file over HTTP: resume where the download stopped, and try again after an error that may pass.

The bytes that have arrived lie in a ``.part`` file; ``.part.json`` beside it holds what the server said about the file.
The next attempt, or the next call, asks only for the rest, and only of the same file: one with the SHA-256 that the
host announced (Hugging Face does), else one with the same ETag or date (``If-Range``). If the server ignores the range,
or its file has changed, the file is fetched from its beginning.

huggingface_hub gives the address of the imaging (``HF_ENDPOINT``), the user's token, the offline mode and the host's
rate limits. The HTTP client that it brings makes all requests, also those to a plain file server. Its function
``hf_hub_download`` is not called: after a kill it begins again at the first byte, it gives a file its name without
comparing the hash that the host announced, and it writes an endless body until the disk is full
(docs/dependencies.md).
"""

from __future__ import annotations

import contextlib
import email.utils
import importlib
import random
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kitsseg.errors import InputError, one_line
from kitsseg.files.json_records import read_record, write_record
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

_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP status of errors that may pass
_MOST_REDIRECTS = 10
_KEPT = "Run the same command again to go on: the bytes that have arrived are kept."


class Stopped(Exception):
    """The download was told to stop."""


class HostError(InputError):
    """A host cannot be reached, so that none of its files can be fetched now."""


class _Passing(Exception):
    """An error that may have passed at the next attempt.

    Attributes:
        wait_s: seconds that the server asks to wait before it; None if it does not ask.
        unreachable: the host, if it gave no answer; else None.
    """

    def __init__(self, reason: str, wait_s: float = 0.0, unreachable: str | None = None) -> None:
        super().__init__(reason)
        self.wait_s, self.unreachable = wait_s, unreachable


@dataclass(frozen=True)
class Patience:
    """How often a request is tried again after an error that may pass, and how long to wait between attempts.

    Attributes:
        attempts: give up after so many attempts in a row that bring no new byte.
        first_attempts: give up after so many attempts if the host has never answered, as when the machine is offline.
        first_wait_s: seconds after the first failure; they double with each failure, up to ``longest_wait_s``.
        longest_wait_s: longest wait between two attempts, in seconds.
        longest_asked_wait_s: give up if a server asks to wait longer than this (Retry-After).
        stall_s: a connection that brings no byte for so many seconds counts as dropped.
    """

    attempts: int = 6
    first_attempts: int = 3
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_asked_wait_s: float = 600.0
    stall_s: float = 30.0


class Connections:
    """What the threads of one download share: the HTTP client, which hosts have answered, and a way to ``stop``."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self.answered: set[str] = set()  # hosts
        self._client: Any = None
        self._stopping = threading.Event()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    @contextlib.contextmanager
    def open(self, url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, str | None]]:
        """Open a URL and follow its redirects, but never from https to http.

        Gives (response of the client, whose body has not been read; the SHA-256 that the host announces or None).
        Raises: InputError for a redirect that is not allowed; HostError in offline mode; Stopped; the client's errors.
        """
        self.check_stopped()
        client = self._make_client()
        announced: str | None = None
        headers = {**_hub_headers(url), **headers}
        request = client.build_request("GET", url, headers=headers, extensions={"trace": self._on_event})
        for _ in range(_MOST_REDIRECTS):
            response = client.send(request, stream=True, follow_redirects=False)
            self.answered.add(urlsplit(url).netloc)
            with contextlib.closing(response):
                announced = announced or _announced_sha256(response.headers)
                if response.next_request is None:
                    yield response, announced
                    return
            allowed = ("https",) if request.url.scheme == "https" else ("https", "http")
            request = response.next_request  # without the token, unless it goes to the same host
            if request.url.scheme not in allowed:
                raise InputError(
                    f"{url}: it redirects to {request.url}, which is not {' or '.join(allowed)}. Check the address."
                )
        raise InputError(f"{url}: it redirects more than {_MOST_REDIRECTS} times. Check the address.")

    def stop(self) -> None:
        """Make all threads raise Stopped soon, also those that wait."""
        self._stopping.set()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            _wake(each)

    def check_stopped(self) -> None:
        """Raise Stopped if it was told to stop."""
        if self._stopping.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep; raises Stopped as soon as it is told to stop."""
        if self._stopping.wait(seconds):
            raise Stopped

    def _make_client(self) -> Any:
        with self._lock:
            if self._client is None:
                client = _httpx()
                try:
                    self._client = client.Client(timeout=self.patience.stall_s)
                except (ValueError, ImportError, OSError, client.InvalidURL) as error:
                    raise HostError(
                        "The proxy or the certificates that the environment names cannot be used "
                        f"({one_line(error)}). Check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE."
                    ) from error
            return self._client

    def _on_event(self, name: str, facts: dict[str, Any]) -> None:
        """Called by the client; keeps the sockets of new connections, for ``stop``."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            new = facts["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.add(new)
            if self._stopping.is_set():
                _wake(new)


def _wake(waiting: socket.socket) -> None:
    """End a connection, so that the thread that waits for its bytes goes on."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(waiting, socket.SHUT_RDWR)


def _httpx() -> Any:
    """The HTTP client that huggingface_hub brings: httpx2 since its version 2, httpx before."""
    try:
        return importlib.import_module("httpx2")
    except ModuleNotFoundError:
        return importlib.import_module("httpx")


def _hub_headers(url: str) -> dict[str, str]:
    """The user's token, if there is one, for an address of the Hub: it raises the limit of requests.

    Raises: HostError in the Hub's offline mode.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    if not url.startswith(f"{constants.ENDPOINT}/"):
        return {}
    if constants.HF_HUB_OFFLINE:
        raise HostError(
            f"{urlsplit(url).netloc}: not asked for files, as HF_HUB_OFFLINE is set. Unset it, or give --from with a "
            "folder of the files."
        )
    headers: dict[str, str] = build_hf_headers()
    return {name: value for name, value in headers.items() if name.lower() == "authorization"}


def _announced_sha256(headers: Mapping[str, str]) -> str | None:
    """Hugging Face names the SHA-256 of a large file in X-Linked-ETag."""
    tag = headers.get("X-Linked-ETag", "").strip('"').lower()
    return tag if re.fullmatch("[0-9a-f]{64}", tag) else None


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
        url: of the file.
        part: the ``.part`` file.
        connections: the Connections of this download, with the patience for errors that may pass.
        on_bytes: called with the size that ``part`` has reached.
        most_bytes: upper limit of the file's size. A longer file is cut off, and an error is raised.

    Returns: the SHA-256 that the host announces, or None. Whether the file is right is for the caller to check.
    Raises: HostError; InputError if the file cannot be had; Stopped; OSError of the disk. ``part`` is kept.
    """
    patience, host = connections.patience, urlsplit(url).netloc
    reached, failures = part_size(part), 0
    while True:
        try:
            return _attempt(_Wanted(url, part, most_bytes, on_bytes), connections)
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
                    f"{problem.unreachable}: cannot be reached ({problem}). Check the network and the proxy "
                    f"(HTTPS_PROXY), or give --from with a folder of the files. {_KEPT}"
                ) from None
            if failures >= tries:
                raise InputError(f"{url}: {problem}, {failures} times without progress. {_KEPT}") from None
            backoff = min(patience.longest_wait_s, patience.first_wait_s * 2 ** max(failures - 1, 0))
            connections.wait(max(problem.wait_s, backoff * random.uniform(0.5, 1.0)))


@dataclass(frozen=True)
class _Wanted:
    """A file that is fetched: its address, the ``.part`` file, its largest size, and the callback for progress."""

    url: str
    part: Path
    most_bytes: int | None
    on_bytes: Callable[[int], object]

    def check_length(self, size: int) -> None:
        """Raise InputError for a file that is longer than it can be, and remove its ``.part`` file."""
        if self.most_bytes is not None and size > self.most_bytes:
            forget_part(self.part)
            raise InputError(
                f"{self.url}: it sends {size:,} bytes or more, but this file has {self.most_bytes:,} at most. Check "
                "the address, and whether a proxy answers in place of the host."
            )


def _attempt(wanted: _Wanted, connections: Connections) -> str | None:
    """One request; returns the announced SHA-256 once the part is as long as the server says."""
    facts, have = _read_facts(wanted), part_size(wanted.part)
    if not (facts.sha256 or facts.validator):
        have = 0  # no telling whether the rest would be of the same file
    elif have and have == facts.total:
        return facts.sha256
    headers = {"User-Agent": f"kitsseg/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if facts.validator and not facts.sha256:
            headers["If-Range"] = facts.validator
    httpx = _httpx()
    try:
        with connections.open(wanted.url, headers) as (response, announced):
            if response.status_code not in (200, 206):
                return _without_body(response, wanted, facts, have)
            return _receive(response, announced, wanted, facts, have, connections)
    except httpx.InvalidURL as error:
        raise InputError(
            f"{wanted.url}: not a valid address ({one_line(error)}). Correct the address."
        ) from error
    except httpx.RequestError as error:
        connections.check_stopped()
        host, reason = urlsplit(str(error.request.url)).netloc, _cause(error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise HostError(
                f"{host}: its certificate is not trusted ({reason.verify_message}). If your network inspects https, "
                "name its certificates in SSL_CERT_FILE."
            ) from error
        unreachable = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError))
        raise _Passing(one_line(reason), unreachable=host if unreachable else None) from error


def _receive(
    response: Any,
    announced: str | None,
    wanted: _Wanted,
    facts: _Facts,
    have: int,
    connections: Connections,
) -> str | None:
    """Write the server's headers to ``.part.json``, then the body of a response to the ``.part`` file."""
    part, validator = wanted.part, _validator(response.headers)
    if response.status_code == 206 and have:
        found = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})",
            response.headers.get("Content-Range", "").strip(),
        )
        same = announced == facts.sha256 if facts.sha256 else validator in (facts.validator, None)
        if not found or not same or int(found[1]) != have or facts.total not in (None, int(found[2])):
            forget_part(part)
            raise _Passing(
                "its file has changed while it was fetched, or it sends another range than asked for"
            )
        total: int | None = int(found[2])
    elif response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        have, total = 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        facts = _Facts(url=wanted.url, sha256=announced, validator=validator, total=total)
    else:
        raise InputError(
            f"{wanted.url}: expected the file, found a part of it (HTTP status 206). Check the address."
        )
    wanted.check_length(total or 0)
    with _open(part, have) as file:
        if not have:
            write_record(_facts_path(part), facts)
        wanted.on_bytes(have)
        try:
            for chunk in response.iter_raw():
                connections.check_stopped()
                have += len(chunk)
                wanted.check_length(have)
                _write(file, chunk, part)
                wanted.on_bytes(have)
        except _httpx().RemoteProtocolError:
            if total is None:
                raise
    connections.check_stopped()
    if total is not None and have < total:
        raise _Passing(f"the connection ended after {have} of {total} bytes")
    if total is not None and have > total:
        forget_part(part)
        raise _Passing(f"it sent {have} bytes, more than the {total} it announced")
    return facts.sha256


def _without_body(response: Any, wanted: _Wanted, facts: _Facts, have: int) -> str | None:
    """Handle a response with an HTTP status that brings no bytes of the file."""
    code, reason = response.status_code, response.reason_phrase
    if code == 416 and have:  # nothing from there on: all was there, or the file is another one
        if response.headers.get("Content-Range", "").strip() == f"bytes */{have}":
            return facts.sha256
        forget_part(wanted.part)
        raise _Passing("its file has become shorter")
    status = f"HTTP status {code} ({reason})" if reason else f"HTTP status {code}"
    if code in _PASSING:
        raise _Passing(status, _asked_wait_s(response.headers))
    if code < 400:
        raise InputError(f"{wanted.url}: expected the file, found {status}. Check the address.")
    check = (
        "the address and your token (HF_TOKEN)"
        if "Authorization" in response.request.headers
        else "the address"
    )
    raise InputError(
        f"{wanted.url}: {status}. The host does not give this file: check {check}, or give --from with a folder of "
        "files."
    )


def _asked_wait_s(headers: Mapping[str, str]) -> float:
    """How long a server asks to wait: by Retry-After, seconds or a date, or by the Hub's header RateLimit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked, waits = headers.get("Retry-After", "").strip(), [0.0]
    if re.fullmatch("[0-9]{1,9}", asked):
        waits.append(float(asked))
    else:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            waits.append(email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    with contextlib.suppress(ValueError):  # a number of thousands of digits
        limits = parse_ratelimit_headers(headers)
        if limits and not limits.remaining:
            waits.append(limits.reset_in_seconds)
    return max(waits)


def _validator(headers: Mapping[str, str]) -> str | None:
    """What If-Range may hold: a strong ETag, else a date."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _cause(error: BaseException) -> BaseException:
    """The error of the operating system or of TLS from which an error of the client comes, or that error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Content of ``.part.json``: what the server said about the file whose beginning has arrived."""

    url: str
    sha256: str | None
    validator: str | None
    total: int | None


def _facts_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_facts(wanted: _Wanted) -> _Facts:
    """The facts about the file whose beginning is there; empty if they are damaged or of another address."""
    with contextlib.suppress(FileNotFoundError, InputError):
        facts = read_record(_facts_path(wanted.part), _Facts, "what is known of a download", "")
        validator = facts.validator or ""  # it goes into a header
        if facts.url == wanted.url and validator.isascii() and validator.isprintable():
            return facts
    return _Facts(url=wanted.url, sha256=None, validator=None, total=None)


def _open(part: Path, have: int) -> io.FileIO:
    """Open the ``.part`` file to go on at ``have`` bytes; 0 empties it.

    It is opened before new facts are written, so that facts and bytes never belong to two files.
    """
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
