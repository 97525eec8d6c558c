"""Failures on demand: what can be done to a running job, when, to whom, and what became of it.

targets   the processes of a job, found by what its launcher put into their environment
acts      what is done to one of them, one function per kind
plan      which acts, when, to which ranks: a pure function of a seed
strike    carries a plan out
report    joins what was done with the timelines of the ranks; JSON and a picture
inside    failures that a process must do to itself: sleep in the training thread, hold the GIL
"""

from elaswave.chaos.cli import main

__all__ = ["main"]
