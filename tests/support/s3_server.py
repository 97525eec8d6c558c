"""An S3 server in a process of its own (nanio, files on disk), and a proxy before it that breaks what a test says.

The proxy stands still, fails or counts requests; it runs in the test's process, so nothing has to be waited for by
time. A server that was killed and started again still has every object, and every part of unfinished uploads.
"""

import http.client
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

KEY, SECRET = "a-test", "a-test-secret"


class S3Server:
    """One server on 127.0.0.1; its objects are under ``data``."""

    def __init__(self, data: Path, *buckets: str) -> None:
        self.data = data
        for bucket in buckets:
            (data / bucket).mkdir(parents=True)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, on the port it had before, and wait until it answers."""
        where = ["--data-dir", str(self.data), "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nanio", "serve", *where, "--log-level", "warning", "--no-access-log"],
            env={**os.environ, "NANIO_ACCESS_KEY": KEY, "NANIO_SECRET_KEY": SECRET},
            start_new_session=True,
        )
        end_s = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, "the S3 server ended at once"
                assert time.monotonic() < end_s, "the S3 server does not answer"

    def kill(self) -> None:
        """SIGKILL. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def options(self) -> dict[str, Any]:
        """``storage_options`` of a tier here."""
        return storage_options(self.port)

    def objects(self, bucket: str) -> dict[str, Path]:
        """Every object of a bucket."""
        root = self.data / bucket
        found = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
        return {key: path for key, path in found.items() if not key.startswith(".nanio")}

    def num_unfinished(self) -> int:
        """Multipart uploads under way or given up."""
        return sum(1 for _ in (self.data / ".nanio" / "multipart").iterdir())


def storage_options(port: int) -> dict[str, Any]:
    return {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}


class Request(NamedTuple):
    """A request that the proxy saw, and the answer's status; 0 while it is held, or if there was none."""

    method: str
    target: str
    size_bytes: int
    status: int

    @property
    def part(self) -> int | None:
        """Number of the part that it sends."""
        found = re.search(r"partNumber=(\d+)", self.target)
        return int(found[1]) if found and self.method == "PUT" else None


Which = Callable[[Request], bool]


class S3Proxy:
    """Forwards to a server; see :meth:`fail` and :meth:`hold`."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._changed = threading.Condition()
        self._log: list[Request] = []
        self._faults: list[tuple[Which, list[int]]] = []
        self._held: Which | None = None
        self._num_held = 0
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, format: str, *args: object) -> None:
                return

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def options(self) -> dict[str, Any]:
        return storage_options(self._http.server_port)

    def log(self) -> list[Request]:
        """Every request that was answered, in order."""
        with self._changed:
            return list(self._log)

    def sent_parts(self) -> list[int]:
        """Numbers of the parts that the server took, in order."""
        return [request.part for request in self.log() if request.part is not None and request.status == 200]

    def fail(self, which: Which, *statuses: int) -> None:
        """Answer the next requests that are ``which`` with these statuses; the server does not see them."""
        with self._changed:
            self._faults.append((which, list(statuses)))

    def hold(self, which: Which) -> None:
        """Let requests that are ``which`` stand still until :meth:`release`."""
        with self._changed:
            self._held = which

    def wait_held(self, num_requests: int = 1) -> None:
        """Until so many stand still."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._num_held >= num_requests, timeout=60)

    def wait_until(self, condition: Callable[[list[Request]], bool]) -> None:
        """Until the log is so."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self._log), timeout=60), self._log

    def release(self) -> None:
        with self._changed:
            self._held = None
            self._changed.notify_all()

    def close(self) -> None:
        self.release()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handle(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        request = Request(handler.command, handler.path, len(body), 0)
        status = self._injected(request)
        try:
            if status is None:
                status, headers, answer = self._forward(handler, body)
            else:
                code = "AccessDenied" if status == 403 else "InternalError"
                headers, answer = [], f"<Error><Code>{code}</Code><Message>by the test</Message></Error>".encode()
            self._answer(handler, status, headers, answer)
        except OSError:  # the server, or the client, was killed
            status, handler.close_connection = 0, True
        with self._changed:
            self._log.append(request._replace(status=status))
            self._changed.notify_all()

    def _injected(self, request: Request) -> int | None:
        with self._changed:
            if self._held is not None and self._held(request):
                self._num_held += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._held is None, timeout=60)
                self._num_held -= 1
            for which, statuses in self._faults:
                if statuses and which(request):
                    return statuses.pop(0)
        return None

    def _forward(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[Any], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        try:
            upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.putheader("Connection", "close")
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            upstream.close()

    @staticmethod
    def _answer(
        handler: http.server.BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        handler.send_response_only(status)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(body)
