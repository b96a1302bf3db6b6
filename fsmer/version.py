"""The version of fsmer."""

__version__ = "0.1.0"
