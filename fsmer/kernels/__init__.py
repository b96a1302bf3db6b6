"""Compiled code and random numbers below the networks."""
