"""``python -m elaswave.launcher`` is ``elastates run``."""

from __future__ import annotations

import sys

from elaswave.launcher import main

if __name__ == "__main__":
    sys.exit(main())
