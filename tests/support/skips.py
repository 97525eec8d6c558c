"""pytest plugin: ``--expect-no-skips`` fails a run in which a test was skipped that this machine should run.

CI passes it, so that a dependency which silently stopped being installed cannot turn tests off. Tests that carry one
of ``EXCUSED_MARKERS`` may be skipped: CI's machine has no such thing. All skips are printed with their reasons.
"""

import pytest

EXCUSED_MARKERS = {
    "gpu": "CI's machine has no GPU",
    "mounts": "mounting file systems needs privileges that CI's sandbox may withhold",
    "netns": "network namespaces need privileges that CI's sandbox may withhold",
    "slurm": "a Slurm of one's own needs root and packages that CI installs where it can",
}


class SkipPolice:
    """Collects the skips of one run and turns its exit status when one has no excuse."""

    def __init__(self) -> None:
        self.excused: list[str] = []
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a skipped test; an expected failure is none."""
        if report.skipped and not hasattr(report, "wasxfail"):
            markers = EXCUSED_MARKERS.keys() & report.keywords.keys()
            line = f"{report.nodeid}: {_reason(report)}"
            if markers:
                self.excused.append(f"{line} [{', '.join(EXCUSED_MARKERS[name] for name in sorted(markers))}]")
            else:
                self.unexpected.append(line)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A whole module skipped while it was imported has no marker to excuse it."""
        if report.skipped:
            self.unexpected.append(f"{report.nodeid}: {_reason(report)}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail an otherwise good run."""
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was skipped and why."""
        for title, lines in (("excused skips", self.excused), ("UNEXPECTED SKIPS", self.unexpected)):
            if lines:
                terminalreporter.section(title)
                terminalreporter.write_line("\n".join(lines))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
