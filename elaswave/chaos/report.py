"""What became of every act: the milestones of the ranks that lived on, as JSON and as a picture."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from elaswave.chaos.acts import WITHOUT_VICTIM
from elaswave.chaos.strike import Done
from elaswave.timeline import MILESTONES, read_milestones

Milestones = dict[int, list[dict[str, Any]]]
"""By pid, in the order of time."""


def milestones_of(directory: Path) -> Milestones:
    """The timelines of all processes that keep one there."""
    return {int(path.name.split(".")[0]): read_milestones(path) for path in sorted(directory.glob("*.timeline.jsonl"))}


def follow(done: Done, milestones: Milestones, before_s: float) -> dict[str, dict[str, float]]:
    """For every process but the victim, seconds from the act to its first milestone of each kind, in their order.

    Milestones at or after ``before_s``, when the next act began, belong to that one. A process that saw no loss has
    no entry.
    """
    reached = {}
    victim = None if done.kind in WITHOUT_VICTIM else done.pid
    for pid, notes in milestones.items():
        times: dict[str, float] = {}
        for note in notes:
            if pid != victim and done.at_s <= note["at_s"] < before_s and _is_next(note["what"], times):
                times[note["what"]] = note["at_s"] - done.at_s
        if times:
            reached[str(pid)] = times
    return reached


def _is_next(what: str, times: dict[str, float]) -> bool:
    """A step that is committed before anybody has seen a loss is none of the recovery's."""
    return what in MILESTONES and what not in times and (what == MILESTONES[0] or MILESTONES[0] in times)


def make_report(done: Sequence[Done], milestones: Milestones, **about: Any) -> dict[str, Any]:
    """JSON-ready: the acts with what followed each, and medians over the ranks and acts."""
    ends = [*(one.at_s for one in done[1:]), float("inf")]
    acts = [
        {**dataclasses.asdict(one), "ranks": follow(one, milestones, end)} for one, end in zip(done, ends, strict=True)
    ]
    medians = {}
    for milestone in MILESTONES:
        times = [times[milestone] for act in acts for times in act["ranks"].values() if milestone in times]
        medians[f"{milestone}_s_median"] = statistics.median(times) if times else None
    by_kind = {kind: sum(one.kind == kind for one in done) for kind in sorted({one.kind for one in done})}
    return {**about, "num_acts": len(done), "by_kind": by_kind, **medians, "acts": acts}


# ---- the picture ----------------------------------------------------------------------------------------------------

COLOURS = {"loss": "#d62728", "revoked": "#ff7f0e", "agreed": "#1f77b4", "edited": "#9467bd", "committed": "#2ca02c"}
WIDTH, ROW, LEFT, TOP = 1200, 22, 110, 50


def draw(done: Sequence[Done], milestones: Milestones) -> str:
    """An SVG: a row per process, a line down for each act, a dot for each milestone."""
    times = [one.at_s for one in done] + [note["at_s"] for notes in milestones.values() for note in notes]
    begin_s, end_s = (min(times), max(times)) if times else (0.0, 1.0)
    scale = (WIDTH - LEFT - 20) / max(end_s - begin_s, 1e-9)

    def x(at_s: float) -> float:
        return LEFT + (at_s - begin_s) * scale

    height = TOP + ROW * len(milestones) + 20
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif">']
    for place, (what, colour) in enumerate(COLOURS.items()):
        parts.append(f'<circle cx="{LEFT + 110 * place}" cy="12" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 110 * place + 8}" y="16" font-size="11">{what}</text>')
    for one in done:
        title = escape(f"{one.kind}, rank {one.rank} {one.phase} at {one.at_s - begin_s:.3f} s {one.problem}")
        at = f'x1="{x(one.at_s):.2f}" x2="{x(one.at_s):.2f}" y1="{TOP - 14}" y2="{height}"'
        parts.append(f'<line {at} stroke="#888" stroke-dasharray="3 2"><title>{title}</title></line>')
        parts.append(f'<text x="{x(one.at_s):.2f}" y="{TOP - 18}" font-size="9">{escape(one.kind)}</text>')
    for row, (pid, notes) in enumerate(milestones.items()):
        y = TOP + ROW * row + ROW / 2
        name = f"rank {notes[0]['rank']}, pid {pid}" if notes and "rank" in notes[0] else f"pid {pid}"
        parts.append(f'<text x="4" y="{y + 4}" font-size="10">{name}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        for note in notes:
            colour, title = COLOURS.get(note["what"], "#000"), escape(str(note))
            size = 2 if note["what"] == "committed" else 4
            circle = f'<circle cx="{x(note["at_s"]):.2f}" cy="{y}" r="{size}" fill="{colour}">'
            parts.append(f"{circle}<title>{title}</title></circle>")
    return "\n".join([*parts, "</svg>\n"])
