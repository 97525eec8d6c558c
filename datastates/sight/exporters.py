"""How metrics leave the process: over HTTP, into a file for node-exporter, or through ``prometheus_client``."""

from __future__ import annotations

import http.server
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from datastates.sight.bus import add_sink, remove_sink, sinks
from datastates.sight.events import Event, Failed, Published, RestoreEnded, RestoreFailed, Skipped
from datastates.sight.metrics import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_metrics = Metrics()
_servers: weakref.WeakSet[MetricsServer] = weakref.WeakSet()


def metrics() -> Metrics:
    """The metrics of this process, counted from the first call on."""
    if _metrics not in sinks:
        sinks.insert(0, _metrics)  # before those that look at it
    return _metrics


class MetricsServer:
    """Answers ``GET /metrics`` until closed. A context manager.

    Attributes:
        port: where it listens.
        url: what to scrape.
    """

    def __init__(self, port: int, host: str) -> None:
        self._server = http.server.ThreadingHTTPServer((host, port), _Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, name="ds-metrics", daemon=True)
        self._thread.start()
        _servers.add(self)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def close_in_child(self) -> None:
        """Let go of the port: a forked child has no thread that would answer."""
        self._server.socket.close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _close_all_in_child() -> None:
    for server in list(_servers):
        server.close_in_child()


os.register_at_fork(after_in_child=_close_all_in_child)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = 10  # of a client that says nothing, seconds

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        content = metrics().text().encode()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""


def serve_metrics(port: int = 0, host: str = "127.0.0.1") -> MetricsServer:
    """Serve this process's metrics to Prometheus.

    Args:
        port: 0: the system chooses; see ``MetricsServer.port``.
        host: the default answers this machine alone; nothing asks for a password.

    Raises:
        OSError: the port is taken.
    """
    metrics()
    return MetricsServer(port, host)


class MetricsFile:
    """A file for node-exporter's textfile collector, replaced whole whenever a checkpoint or a restore has ended.

    Its name must end in ``.prom``, or the collector passes it over. A sink: :func:`write_metrics` adds it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix != ".prom":
            raise ValueError(f"{self.path} does not end in .prom, so node-exporter would not read it")
        self.write()

    def write(self) -> None:
        """Replace the file now."""
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")  # no .prom: nobody reads half of it
        unfinished.write_text(metrics().text())
        unfinished.replace(self.path)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Published | Failed | Skipped | RestoreEnded | RestoreFailed):
            self.write()

    def close(self) -> None:
        """Write once more, and leave the file as it is. Idempotent."""
        remove_sink(self)
        self.write()


def write_metrics(path: str | os.PathLike[str]) -> MetricsFile:
    """Keep a file for node-exporter up to date, until closed."""
    file = MetricsFile(path)
    add_sink(file)
    return file


class PrometheusCollector:
    """This process's metrics as a custom collector of ``prometheus_client``: ``REGISTRY.register(...)``.

    Raises:
        ImportError: ``prometheus_client`` is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import core
        except ImportError as error:
            raise ImportError("prometheus_client is not installed: pip install 'elastates[metrics]'") from error
        self._core = core
        self._metrics = metrics()

    def describe(self) -> list[Any]:
        """Nothing: what there is depends on what has happened."""
        return []

    def collect(self) -> Iterator[Any]:
        kinds = {"counter": self._core.CounterMetricFamily, "gauge": self._core.GaugeMetricFamily}
        for family in self._metrics.families():
            names = [name for labels in (*family.values, *family.histograms) for name, _ in labels]
            keys = list(dict.fromkeys(names))
            if family.kind == "histogram":
                made = self._core.HistogramMetricFamily(family.name, family.help, labels=keys)
                for labels, value in family.histograms.items():
                    made.add_metric([text for _, text in labels], value.cumulated(), value.sum_s)
            else:
                made = kinds[family.kind](family.name, family.help, labels=keys)
                for labels, number in family.values.items():
                    made.add_metric([text for _, text in labels], number)
            yield made
