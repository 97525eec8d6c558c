"""What a run tells after every step."""

import json
from collections.abc import Callable
from pathlib import Path

import datastates
from gpt.config import Config

Metrics = dict[str, float]
MetricsHook = Callable[[int, Metrics], None]  # on_metrics(step, {name: value}), after every step, on rank 0


def write_json_lines(config: Config, start: int) -> MetricsHook:
    """Append to metrics.jsonl. A step whose checkpoint a killed job did not finish comes twice, with equal losses.

    Every bit of a float is kept: Python prints the shortest text that reads back as the same number.
    """
    file = open(Path(config.run_dir) / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 (open as long as the job)
    return lambda step, metrics: print(json.dumps({"step": step, "start": start} | metrics), file=file)


def write_tensorboard(config: Config, start: int) -> MetricsHook:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return lambda step, metrics: None
    board = SummaryWriter(config.run_dir, purge_step=start)

    def on_metrics(step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            board.add_scalar(name, value, step)
        board.flush()  # the process leaves without the interpreter's farewell: see the end of this file

    return on_metrics


def print_progress(config: Config, _start: int) -> MetricsHook:
    def on_metrics(step: int, metrics: Metrics) -> None:
        if "loss" not in metrics:
            print(f"step {step:>4}/{config.steps}  eval loss {metrics['eval_loss']:.4f}", flush=True)
            return
        line = f"step {step:>4}/{config.steps}  loss {metrics['loss']:.4f}  {metrics['tokens_per_s']:>7,.0f} tokens/s"
        if "checkpoint_stall_ms" in metrics:
            line += f"  stall {metrics['checkpoint_stall_ms']:6.1f} ms  durable lag {metrics['durable_lag_steps']}"
        print(line + (f"  eval loss {metrics['eval_loss']:.4f}" if "eval_loss" in metrics else ""), flush=True)

    return on_metrics


def checkpoint_metrics(step: int, before: datastates.CheckpointStats, now: datastates.CheckpointStats) -> Metrics:
    """Return what checkpoints cost this step, in the call and at the gate, and how far behind storage is."""
    stall_s = now.call_s_total - before.call_s_total + now.gate_wait_s_total - before.gate_wait_s_total
    lag_steps = step - (-1 if now.last_durable_step is None else now.last_durable_step)
    metrics = {"checkpoint_stall_ms": stall_s * 1e3, "durable_lag_steps": lag_steps}
    return metrics | ({"durable_mb_s": now.last_durable_mb_s} if now.last_durable_mb_s else {})
