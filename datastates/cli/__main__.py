"""``python -m datastates.cli``: the same as ``elastates ckpt``."""

import sys

from datastates.cli import main

sys.exit(main())
