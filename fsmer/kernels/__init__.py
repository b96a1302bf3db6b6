"""Compiled code and random numbers below the networks."""

from fsmer.kernels.arithmetic import describe

__all__ = ["describe"]
