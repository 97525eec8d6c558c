"""Layouts of global tensors: which rank holds which box.

For now this package holds the boxes of replicated and dim-sharded tensors; signatures, boxing and planning
between layouts extend the same interface.
"""

from oneflow_sbp.boxes import Box, local_box

__all__ = ["Box", "local_box"]
