"""Drawn clips, faces and recordings whose action units, movement and flow are known."""

from fsmer.synthetic.clips import list_domains, synthetic_clips

__all__ = ["list_domains", "synthetic_clips"]
