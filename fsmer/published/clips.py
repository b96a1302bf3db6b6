"""Clips for a cell of a published table: those at hand of its data sets, or synthetic ones in their place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import torch

from fsmer.backbones import create_model
from fsmer.data import ClipSet, InputSpec
from fsmer.data.facs import EMOTION_ORDER
from fsmer.data.schemes import canonical_dataset, load_scheme
from fsmer.datasets.catalog import DATASETS, dataset_info
from fsmer.episodic import Protocol
from fsmer.errors import DataError, MissingDatasetError, SpecMismatchError
from fsmer.published.tables import Settings

__all__ = ["clips_of_dataset", "dataset_labels", "dataset_titles", "media_specs", "stand_in_clips"]

SYNTHETIC_PEOPLE = 2  # every class stays where one subject is left out
DOMAINS = ("lab", "clinic", "field")


def media_specs(settings: Settings) -> tuple[InputSpec, ...]:
    """The media that a cell's network expects."""
    return _specs_of(settings.model, json.dumps(dict(settings.arguments), sort_keys=True))


@cache
def _specs_of(model: str, arguments: str) -> tuple[InputSpec, ...]:
    with torch.device("meta"):  # shapes alone: nothing is drawn or stored
        return create_model(model, **json.loads(arguments)).input_specs


def clips_of_dataset(sets: Sequence[ClipSet], dataset: str, specs: Sequence[InputSpec], model: str) -> ClipSet:
    """The clips of a data set from the first of the sets whose media the network expects."""
    refusal: SpecMismatchError | None = None
    for clips in sets:
        codes = [code for code, name in enumerate(clips.dataset_names) if canonical_dataset(name) == dataset]
        if not codes:
            continue
        try:
            for spec in specs:
                if spec.kind not in clips.specs:
                    raise SpecMismatchError(
                        f"the clips of {dataset} hold no {spec.kind}, but {model!r} expects {spec.describe()}; prepare "
                        f"them for it ('fsmer prepare {dataset} --for {model}')."
                    )
                clips.specs[spec.kind].check_feeds(spec, who=repr(model))
        except SpecMismatchError as error:
            refusal = refusal or error
            continue
        return clips[np.isin(clips.dataset_codes(), codes)]
    if refusal is None:
        raise MissingDatasetError(f"needs {dataset}, which is not among the clips.")
    raise refusal


@lru_cache(maxsize=64)
def stand_in_clips(dataset: str, labels: tuple[str, ...], each: int, specs: tuple[InputSpec, ...]) -> ClipSet:
    """Synthetic clips under the name of a data set, as many of each label."""
    from fsmer.synthetic.clips import synthetic_clips

    number = sorted(DATASETS).index(dataset)
    count = each * len(labels)
    pool = synthetic_clips(DOMAINS[number % len(DOMAINS)], n=3 * count, seed=number, specs=specs)
    emotions = [EMOTION_ORDER.index(str(name)) % len(labels) for name in pool.table["emotion"]]
    # A class gets clips of its own emotions first, and any others where these do not suffice.
    left, rows = list(range(len(pool))), []
    for place in range(count):
        row = next((row for row in left if emotions[row] == place % len(labels)), left[0])
        left.remove(row)
        rows.append(row)
    return ClipSet.from_arrays(
        # Read once: drawing faces takes longer than all that follows.
        {spec.kind: pool.read(spec.kind, rows) for spec in specs},
        [labels[place % len(labels)] for place in range(count)],
        subjects=[f"s{place // len(labels) % SYNTHETIC_PEOPLE}" for place in range(count)],
        datasets=dataset,
        ids=[f"{dataset}-{place:03d}" for place in range(count)],
        aus=pool.table["aus"].astype(str).iloc[rows].tolist(),
        spec=[pool.specs[spec.kind] for spec in specs],
    )


def dataset_labels(protocol: Protocol, dataset: str, scheme: str | None) -> tuple[str, ...]:
    """One label of the data set for each class that the protocol reads from it."""
    if scheme is None:
        subset = protocol.params.get("class_subset")
        if not subset:
            raise DataError(f"protocol {protocol.name!r} does not say which classes of {dataset} it tells apart.")
        return tuple(str(name) for name in subset)
    found = load_scheme(scheme)
    table = found.mapping.get(dataset, found.mapping.get("*", {}))
    held = [name for name in found.classes if name in table.values()]
    return tuple(next(label for label, into in table.items() if into == name) for name in held)


def dataset_titles(datasets: Sequence[str]) -> str:
    """Titles of data sets with "and" before the last."""
    names = [info.title if (info := dataset_info(name)) is not None else name for name in datasets]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
