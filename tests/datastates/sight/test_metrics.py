"""Metrics: counted from real checkpoints, read back by the parser of prometheus_client."""

import builtins
import math
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import torch
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as text_string_to_openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from datastates import Checkpointer, sight
from datastates.sight import exporters
from datastates.sight.metrics import BUCKETS_S, DESCRIBED, Family, HistogramValue, Metrics, exposition

import _elastates

Open = Callable[..., Checkpointer]
State = dict[str, Any]
Samples = dict[tuple[str, str], float]


@pytest.fixture(autouse=True)
def fresh_metrics(monkeypatch: pytest.MonkeyPatch) -> Metrics:
    """Nothing counted by another test."""
    fresh = Metrics()
    monkeypatch.setattr(exporters, "_metrics", fresh)
    return fresh


def samples(text: str, directory: Path) -> dict[str, float]:
    """Sample name and labels other than directory and rank -> value, as the real parser finds them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels["directory"] == str(directory):
                more = {k: v for k, v in sample.labels.items() if k not in ("directory", "rank")}
                found[sample.name + "".join(f"{{{k}={v}}}" for k, v in more.items())] = sample.value
    return found


def test_a_run_in_numbers(open_checkpoints: Open, state: State, tmp_path: Path) -> None:
    metrics = sight.metrics()
    checkpoints = open_checkpoints(keep_last=1)
    checkpoints.checkpoint(4, state).durable.result(60)
    _elastates.set_fault("write", error=5)
    assert checkpoints.checkpoint(5, state).durable.exception(60) is not None
    _elastates.clear_fault()
    path = checkpoints.checkpoint(6, state).durable.result(60)
    checkpoints.restore(state)
    sight.flush()

    found = samples(metrics.text(), tmp_path / "run")
    file_bytes = next(path.glob("*.safetensors")).stat().st_size
    expected = {
        "datastates_checkpoints_begun_total": 3,
        "datastates_checkpoints_durable_total": 2,
        "datastates_checkpoints_failed_total": 1,
        "datastates_published_bytes_total": 2 * file_bytes,
        "datastates_last_durable_step": 6,
        "datastates_restores_total{outcome=ok}": 1,
        "datastates_restore_seconds_count": 1,
        "datastates_call_seconds_count": 3,
        "datastates_stall_seconds_count": 3,
        "datastates_durable_seconds_count": 2,
        "datastates_durable_seconds_bucket{le=+Inf}": 2,
        "datastates_arena_bytes": checkpoints.stats().arena_bytes,
        "datastates_arena_used_bytes": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["datastates_last_durable_timestamp_seconds"] >= path.stat().st_mtime - 1
    assert "datastates_checkpoints_skipped_total" not in found
    checkpoints.close()
    sight.flush()
    found = samples(metrics.text(), tmp_path / "run")
    assert found["datastates_checkpoints_pruned_total"] == 1
    assert found["datastates_arena_bytes"] == 0


def test_a_full_arena_and_the_cause_of_a_wait(open_checkpoints: Open, storage: Any, tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(torch.ones(1 << 20))
    state = {"tensor": tensor, "optimizer": torch.optim.SGD([tensor], lr=0.1)}
    metrics = sight.metrics()
    checkpoints = open_checkpoints(arena_mb=1, chunk_bytes=64 << 10)
    storage.hold(opens_at_gate=False)
    checkpoint = checkpoints.checkpoint(0, state)
    while checkpoints.arena_use() != (1 << 20, 1 << 20):
        assert not checkpoint.durable.done()
    found = samples(metrics.text(), tmp_path / "run")
    assert found["datastates_arena_used_bytes"] == found["datastates_arena_bytes"] == 1 << 20
    storage.hold()  # until the gate is reached
    checkpoints.gate()
    checkpoint.durable.result(60)
    sight.flush()
    found = samples(metrics.text(), tmp_path / "run")
    assert found["datastates_gate_wait_seconds_count"] == 1
    causes = {key: value for key, value in found.items() if key.startswith("datastates_gate_wait_cause_seconds_total")}
    assert "datastates_gate_wait_cause_seconds_total{cause=storage}" in causes
    assert sum(causes.values()) == pytest.approx(found["datastates_gate_wait_seconds_sum"], abs=1e-4)
    assert found["datastates_stall_seconds_sum"] == pytest.approx(
        found["datastates_gate_wait_seconds_sum"] + found["datastates_call_seconds_sum"]
    )


def test_events_of_other_parts_are_counted() -> None:
    metrics, origin = Metrics(), sight.Origin("run", 3)
    metrics(sight.Replicated(origin, step=1, url="s3://b/run", size_bytes=10, seconds=0.5))
    metrics(sight.ReplicationFailed(origin, step=2, url="s3://b/run", error="refused", error_type="OSError"))
    metrics(sight.Skipped(origin, step=2, reason="no room"))
    metrics(sight.DamageFound(origin, step=2, what="a flipped bit"))
    metrics(sight.RestoreFailed(origin, error="none left", error_type="RestoreError", seconds=1.5))
    found = samples(metrics.text(), Path("run"))
    assert found["datastates_replicated_bytes_total"] == 10
    names = ("replicated", "replications_failed", "checkpoints_skipped", "damaged_checkpoints")
    assert [found[f"datastates_{name}_total"] for name in names] == [1, 1, 1, 1]
    assert found["datastates_restores_total{outcome=failed}"] == 1


# ---- the format


def test_what_needs_escaping_survives_the_parser() -> None:
    value = 'a "quoted\\path"\nin two lines'
    family = Family("datastates_x_total", "counter", "back\\slash\nand line", {(("directory", value),): 1.5})
    [parsed] = text_string_to_metric_families(exposition([family]))
    assert parsed.documentation == "back\\slash\nand line"
    assert [(s.name, s.labels, s.value) for s in parsed.samples] == [("datastates_x_total", {"directory": value}, 1.5)]


def test_a_histogram_is_cumulated_and_bounds_belong_to_their_bucket() -> None:
    value = HistogramValue()
    for seconds in (0.001, 0.0011, 0.3, 1e9):
        value = value.with_(seconds)
    rows = dict(value.cumulated())
    assert rows["0.001"] == 1
    assert rows["0.0025"] == rows["0.25"] == 2
    assert (rows["0.5"], rows[str(BUCKETS_S[-1])], rows["+Inf"]) == (3, 3, 4)
    text = exposition([Family("x_seconds", "histogram", "h", histograms={(): value})])
    [parsed] = text_string_to_metric_families(text)
    assert parsed.type == "histogram"
    assert [s.value for s in parsed.samples if s.name == "x_seconds_sum"] == [math.fsum((0.001, 0.0011, 0.3, 1e9))]


def test_names_follow_the_conventions() -> None:
    for name, (kind, help_text) in DESCRIBED.items():
        assert name.startswith("datastates_")
        assert name.endswith("_total") == (kind == "counter"), name
        assert help_text.endswith("."), name
    families = [name.removesuffix("_total") for name in DESCRIBED]  # as OpenMetrics counts them
    assert len(set(families)) == len(families)


# ---- ways out


@pytest.fixture
def server() -> Iterator[sight.MetricsServer]:
    with sight.serve_metrics() as running:
        yield running


def test_http(server: sight.MetricsServer, open_checkpoints: Open, state: State, tmp_path: Path) -> None:
    open_checkpoints().checkpoint(2, state).durable.result(60)
    sight.flush()
    with urllib.request.urlopen(server.url, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    assert samples(text, tmp_path / "run")["datastates_last_durable_step"] == 2
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(server.url.removesuffix("metrics"), timeout=30)
    refused.value.close()


def test_the_endpoint_is_on_loopback_and_ends(server: sight.MetricsServer) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}/metrics"
    server.close()
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", server.port)) != 0


def test_a_forked_child_lets_go_of_the_port(server: sight.MetricsServer) -> None:
    """A data loader's worker may live on after the server was closed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent has seen enough
        os._exit(0)
    server.close()
    with socket.create_server(("127.0.0.1", server.port)) as again:
        assert again.getsockname()[1] == server.port
    os.write(writer, b".")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(reader)
    os.close(writer)


def test_textfile_for_node_exporter(open_checkpoints: Open, state: State, tmp_path: Path) -> None:
    path = tmp_path / "datastates.prom"
    with pytest.raises(ValueError, match=r"\.prom"):
        sight.write_metrics(tmp_path / "metrics.txt")
    file = sight.write_metrics(path)
    open_checkpoints().checkpoint(2, state).durable.result(60)
    sight.flush()
    assert samples(path.read_text(), tmp_path / "run")["datastates_checkpoints_durable_total"] == 1
    file.close()
    assert [entry.name for entry in tmp_path.iterdir() if "prom" in entry.name] == [path.name]


def test_a_collector_of_prometheus_client(open_checkpoints: Open, state: State, tmp_path: Path) -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(sight.PrometheusCollector())
    open_checkpoints().checkpoint(2, state).durable.result(60)
    sight.flush()
    theirs = prometheus_client.generate_latest(registry).decode()
    openmetrics = prometheus_client.openmetrics.exposition.generate_latest(registry).decode()
    assert list(text_string_to_openmetrics_families(openmetrics))
    ours = sight.metrics().text()
    assert samples(theirs, tmp_path / "run") == samples(ours, tmp_path / "run")
    assert samples(ours, tmp_path / "run")["datastates_checkpoints_durable_total"] == 1


def test_without_prometheus_client_the_collector_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"elastates\[metrics\]"):
        sight.PrometheusCollector()
