"""A rank of backend elastic that lets nobody in: whoever replaces it waits for ever."""

import os
import time

import elaswave

run = elaswave.join(backend="elastic")
os.write(1, f"pid {os.getpid()} is in as rank {run.rank}\n".encode())
time.sleep(120)
