"""The data sets that protocols name; the table itself is with the data, which adapters read too."""

from __future__ import annotations

from fsmer.datasets.catalog import DATASETS, DatasetInfo, dataset_info

__all__ = ["DATASETS", "DatasetInfo", "dataset_info"]
