"""What the threads of one download share: how patient they are, which hosts have answered, and a way to stop.

urllib honors HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE. Here it also hands over what a host announces about a file while
it redirects to its storage, never leaves https on the way, and can be interrupted while it waits for bytes.
"""

import contextlib
import http.client
import re
import socket
import threading
import urllib.error
import urllib.request
import weakref
from dataclasses import dataclass

__all__ = ["Connections", "Patience", "Stopped"]


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

    def __init__(self, patience=None):
        self.patience = patience or Patience()
        self.answered = set()  # hosts
        self._stopping = threading.Event()
        self._sockets = weakref.WeakSet()
        self._lock = threading.Lock()

    def open(self, url, headers):
        """Open a URL. Returns (response, the SHA-256 that the host announces or None); raises as urllib, Stopped."""
        self.check_stopped()
        announced = {}
        opener = urllib.request.build_opener(_Http(self._keep), _Https(self._keep), _Redirect(announced))
        request = urllib.request.Request(url, headers=headers)
        response = opener.open(request, timeout=self.patience.stall_s)
        return response, announced.get("sha256") or _announced_sha256(response.headers)

    def stop(self):
        """Make all threads raise Stopped soon, also those that wait."""
        self._stopping.set()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # wakes up who waits for bytes

    def check_stopped(self):
        """Raise Stopped if it was told to stop."""
        if self._stopping.is_set():
            raise Stopped

    def wait(self, seconds):
        """Sleep; raises Stopped as soon as it is told to stop."""
        if self._stopping.wait(seconds):
            raise Stopped

    def _keep(self, new):
        with self._lock:
            self._sockets.add(new)
        self.check_stopped()


def _watched(kind, keep):
    """The connection class ``kind`` that hands its socket to ``keep``."""

    class Connection(kind):
        def connect(self):
            super().connect()
            keep(self.sock)

    return Connection


class _Http(urllib.request.HTTPHandler):
    def __init__(self, keep):
        super().__init__()
        self.connection = _watched(http.client.HTTPConnection, keep)

    def http_open(self, request):
        return self.do_open(self.connection, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, keep):
        super().__init__()
        self.connection = _watched(http.client.HTTPSConnection, keep)

    def https_open(self, request):
        return self.do_open(self.connection, request)


class _Redirect(urllib.request.HTTPRedirectHandler):
    def __init__(self, announced):
        self.announced = announced

    def redirect_request(self, request, body, code, message, headers, url):
        if request.type == "https" and not url.startswith("https:"):
            raise urllib.error.URLError(f"it redirects to {url}, which is not https")
        self.announced["sha256"] = self.announced.get("sha256") or _announced_sha256(headers)
        return super().redirect_request(request, body, code, message, headers, url)


def _announced_sha256(headers):
    """Hugging Face names the SHA-256 of a large file in X-Linked-ETag."""
    tag = headers.get("X-Linked-ETag", "").strip('"').lower()
    return tag if re.fullmatch("[0-9a-f]{64}", tag) else None
