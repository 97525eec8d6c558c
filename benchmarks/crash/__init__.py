"""The engine behind ``benchmarks/faults.py`` and ``tests/datastates/crash``: power cuts, kills and damage.

log         what processes did to the file system, merged into one order
disk        a file system that forgets: which of that was durable at a moment, and what was not
power_loss  every state that a power cut could leave, drawn from a disk
runs        the jobs that are recorded: saving with retention, two ranks, going on after a kill, ...
verdict     what a directory must still give after a crash, and whether it does
mutation    each fsync of the product left out in turn: the replay must notice
kills       real processes, killed before each of their operations
flips       a bit flipped, a file cut, in every kind of file
"""
