"""The micro-expression data sets: who owns them and where to ask for them.

None of them may be passed on by others; this table is what fsmer can say when one is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fsmer.data.schemes import canonical_dataset
from fsmer.data.text_tables import shipped_rows

__all__ = ["DATASETS", "DatasetInfo", "dataset_info"]

TABLE = Path(__file__).parent / "tables" / "catalog.csv"
_SIGNED = "free for academic research under a signed licence agreement"


@dataclass(frozen=True)
class DatasetInfo:
    """Owner, paper and licence of a data set."""

    key: str  # name in tables and protocols, as `fsmer.data.canonical_dataset` gives it
    title: str  # full name
    owner: str  # institution that gives it out
    paper: str  # that introduces it
    licence: str = _SIGNED
    url: str = ""  # page with the application form; empty where none is known

    def where_to_request(self) -> str:
        """One phrase that says where to request it."""
        page = f", {self.url}" if self.url else ""
        return f"request {self.title} from {self.owner}{page} ({self.licence}; {self.paper})"


DATASETS = {row["key"]: DatasetInfo(**row) for row in shipped_rows(TABLE)}


def dataset_info(name: str) -> DatasetInfo | None:
    """Entry of a data set in any spelling, or None where it is not a known one.

    Examples
    --------
    >>> dataset_info("CASME II").key
    'casme2'
    """
    return DATASETS.get(canonical_dataset(name))
