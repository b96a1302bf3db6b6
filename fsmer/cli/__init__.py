"""The command ``fsmer``: thin wrappers around the library for shell scripts and first visitors."""

# Commands appear in help in the order in which their files are read.
# isort: off
from fsmer.cli.app import main
from fsmer.cli import listings, measure, learn, apply, data  # noqa: F401
# isort: on

__all__ = ["main"]
