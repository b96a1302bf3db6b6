"""Drawn clips, faces and recordings whose action units, movement and flow are known."""

from fsmer.synthetic.clips import synthetic_clips
from fsmer.synthetic.domains import list_domains

__all__ = ["list_domains", "synthetic_clips"]
__dir__ = __all__.copy  # tab completion shows public names only
