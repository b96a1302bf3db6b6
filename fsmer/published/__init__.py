"""The published tables, runnable: their numbers as data, and what fsmer measures beside them."""

from __future__ import annotations

from fsmer.published.results import BenchResult, Measured
from fsmer.published.run import run_table
from fsmer.published.tables import Column, PublishedTable, Row, list_tables, load_table

__all__ = ["BenchResult", "Column", "Measured", "PublishedTable", "Row", "list_tables", "load_table", "run_table"]
__dir__ = __all__.copy  # tab completion shows public names only
