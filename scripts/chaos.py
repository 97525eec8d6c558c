"""Failures on demand against a running job: the same as ``elastates chaos``."""

import sys

from elaswave.chaos import main

if __name__ == "__main__":
    sys.exit(main())
