"""A local HTTP server that knows ETags and ranges, and every way of failing that a download has to survive."""

import http.server
import re
import threading
import time
from contextlib import contextmanager

__all__ = ["fault_server"]

STATUS_FAULTS = {"403": 403, "404": 404, "410": 410, "429": 429, "500": 500, "502": 502, "503": 503}


class FaultServer:
    """What is served, and how.

    Attributes:
        files: path -> bytes.
        faults: path -> names of the faults of the next requests, one for each request.
        always: path -> fault of every request for which ``faults`` has none left. Without any fault the file is served
            as it should be.
        linked: path -> SHA-256 announced while redirecting to the same path below /storage, as Hugging Face does.
        storage: address of the server to whose /storage the requests are redirected; empty: this server.
        requests: (path, Range header or None, If-Range header or None, status sent) in order.
        rate_limit: seconds to wait, sent in a RateLimit header instead of Retry-After, as the Hub does; None: not sent.
        tokens: (path, Authorization header or None) of each request.
    """

    def __init__(self):
        self.files, self.faults, self.always, self.linked, self.requests = {}, {}, {}, {}, []
        self.etags, self.retry_after, self.drip_bytes = True, "0", 4096
        self.storage, self.tokens, self.rate_limit = "", [], None
        self.lock, self.closing = threading.Lock(), threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def next_fault(self, path):
        with self.lock:
            waiting = self.faults.get(path)
            return waiting.pop(0) if waiting else self.always.get(path)

    def asked(self, path):
        """(Range, status) of the requests for a path."""
        return [(asked, status) for there, asked, _, status in self.requests if there == path]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        state, path = self.server.state, self.path
        self.close_connection = True
        if path in state.linked:
            headers = {
                "Location": f"{state.storage}/storage{path}",
                "X-Linked-ETag": f'"{state.linked[path]}"',
            }
            return self.send(302, headers | {"Content-Length": "0"}, b"")
        path = path.removeprefix("/storage")
        fault = state.next_fault(path)
        if fault in STATUS_FAULTS:
            wait = {"Retry-After": state.retry_after} if fault in ("429", "503") else {}
            if state.rate_limit is not None:
                wait = {"RateLimit": f'"resolvers";r=0;t={state.rate_limit}'}
            return self.send(STATUS_FAULTS[fault], wait | {"Content-Length": "4"}, b"oops")
        if fault == "hang up":
            return self.note(None)
        if path not in state.files:
            return self.send(404, {"Content-Length": "0"}, b"")
        return self.serve(path, fault, state.files[path])

    def serve(self, path, fault, data):
        state = self.server.state
        etag = f'"{hash(data) & 0xFFFFFFFF:x}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes"} if state.etags else {}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        current = self.headers.get("If-Range") in (None, etag) or fault == "ignore If-Range"
        start, status = 0, 200
        if asked and current and fault != "ignore range":
            start, status = int(asked[1]), 206
            if start >= len(data):
                return self.send(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"}, b"")
            said = start + 100 if fault == "another range" else start
            headers["Content-Range"] = f"bytes {said}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        half = body[: (len(body) + 1) // 2]
        headers["Content-Length"] = str(len(body))
        if fault == "drop":
            body = half
        elif fault == "drop, then change":
            body, state.files[path] = half, state.changed
        elif fault == "length too long":
            headers["Content-Length"] = str(len(body) + 5000)
        elif fault == "length too short":
            headers["Content-Length"] = str(len(half))
        elif fault == "no length":
            del headers["Content-Length"]
        elif fault == "no length, half":
            del headers["Content-Length"]
            body = half
        elif fault == "chunks, half":
            del headers["Content-Length"]
            headers["Transfer-Encoding"] = "chunked"
            body = b"%x\r\n" % len(half) + half + b"\r\n"
        elif fault == "flip":
            where = len(body) // 3
            body = body[:where] + bytes([body[where] ^ 1]) + body[where + 1 :]
        elif fault == "web page":
            body = b"<!doctype html><title>Please log in</title>"
            headers["Content-Length"] = str(len(body))
        elif fault in ("stall", "silence"):
            self.send(status, headers, half if fault == "stall" else b"")
            state.closing.wait(20)
            return None
        elif fault == "drip":
            self.send(status, headers, b"")
            for i in range(0, len(body), state.drip_bytes):
                self.wfile.write(body[i : i + state.drip_bytes])
                if state.closing.wait(0.02):
                    break
            return None
        return self.send(status, headers, body)

    def note(self, status):
        state = self.server.state
        state.tokens.append((self.path, self.headers.get("Authorization")))
        state.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range"), status))

    def send(self, status, headers, body):
        self.note(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # whoever was served has gone away


@contextmanager
def fault_server():
    """A running FaultServer."""
    state = FaultServer()
    with Server(("127.0.0.1", 0), Handler) as server:
        server.state, state.port = state, server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield state
        finally:
            state.closing.set()
            time.sleep(0.01)
            server.shutdown()
            thread.join()
