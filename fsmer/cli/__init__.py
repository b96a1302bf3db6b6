"""The command ``fsmer``: thin wrappers around the library for shell scripts and first visitors."""

from fsmer.cli.app import main

__all__ = ["main"]
