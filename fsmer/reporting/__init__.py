"""Reports as pages, pictures, comparisons and statistics."""

from __future__ import annotations

from fsmer.reporting.html import report_page

__all__ = ["report_page"]
__dir__ = __all__.copy  # tab completion shows public names only
