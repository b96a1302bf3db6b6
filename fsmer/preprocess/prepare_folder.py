"""The folder of a preparation: put together from finished parts, and read again by a later run."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, cast

import numpy as np
import pandas as pd
from typing_extensions import TypedDict

from fsmer.data.media import NpyStore, RowError
from fsmer.data.saved import TABLE, ArrayWriter, read_folder, write_header
from fsmer.data.table import clean_table, write_table
from fsmer.errors import DataError, OutputError
from fsmer.io import atomic_folder, digest, file_digest, read_bytes, write_json, write_text
from fsmer.preprocess.prepare_store import Job, Outcome, Part, SpecGroups, cannot_write, stored_type
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.schema import read_json

RECIPE, REPORT, SETTINGS = "recipe.json", "report.csv", "prepare.json"


class _Settings(TypedDict):
    """Content of a finished folder's settings; earlier versions left out the digests of the report and of all this."""

    format: str
    format_version: int
    recipe: str
    sets: dict[str, Any]
    report: NotRequired[str]
    checksum: NotRequired[str]


def finished_keys(target: Path, settings: Mapping[str, Any], *, resume: bool) -> dict[str, str]:
    """Keys of the clips that a finished folder of the same settings holds, by name."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write the folder {target}: a file of that name is there; choose another folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return {}
    if not ((target / SETTINGS).is_file() and (target / REPORT).is_file()):
        raise OutputError(f"cannot write {target}: it holds other files, which would be lost; choose a new folder.")
    if not resume:
        return {}
    remedy = "choose a new folder, or start anew without resuming to replace it"
    held = read_json(
        target / SETTINGS, _Settings, what="the settings of a prepared folder", remedy=remedy, error=OutputError
    )
    if {name: value for name, value in held.items() if name in settings} != settings:
        raise OutputError(
            f"{target} was prepared with other media or another recipe (hash {held['recipe']}, now "
            f"{settings['recipe']}); {remedy}."
        )
    try:
        content = read_bytes(target / REPORT)
        if held.get("report", digest(content)) != digest(content):
            raise ValueError("it was altered after fsmer wrote it")
        report = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
        return {clip: key for clip, key in zip(report["clip"], report["key"], strict=True) if key}
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{target / REPORT} cannot be read as a report of prepare: {reason}; {remedy}.") from error


def write_result(
    target: Path,
    job: Job,
    table: pd.DataFrame,
    report: pd.DataFrame,
    outcomes: Mapping[str, Outcome],
    settings: Mapping[str, Any],
    earlier: EarlierResult | None,
) -> None:
    """Put the parts together beside the target, then swap."""
    tables = job.parts / "tables"
    keep = table["clip"].map(lambda clip: bool(outcomes[clip].key)).to_numpy(bool)
    kept = table[keep].reset_index(drop=True)
    wanted = [outcomes[clip] for clip in kept["clip"]]
    try:
        shutil.rmtree(tables, ignore_errors=True)
        tables.mkdir()
        readers = [
            _Row(earlier, earlier.rows[one.clip]) if earlier is not None and one.part is None else cast(Part, one.part)
            for one in wanted
        ]
        clean = clean_table(_with_facts(kept, [reader.facts for reader in readers], job.recipe))
        files, columns = _write_tables(tables, job, clean)
        files.append(write_text(tables / REPORT, report.to_csv(index=False, lineterminator="\n")))
        sealed = {**settings, "report": file_digest(tables / REPORT)}
        files.append(write_json(tables / SETTINGS, sealed, sealed=True))
        if not (all(one.origin == "finished" for one in wanted) and _same(files, tables, target)):
            with atomic_folder(target) as whole:
                shutil.copytree(tables, whole, dirs_exist_ok=True)
                for name, arrays in _write_media(whole, job, readers).items():
                    write_header(whole / name, columns, len(clean), arrays)
        shutil.rmtree(job.parts, ignore_errors=True)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise cannot_write(target, cause, job.parts) from error
    finally:
        shutil.rmtree(tables, ignore_errors=True)


def _same(files: Sequence[Path], whole: Path, target: Path) -> bool:
    there = [target / file.relative_to(whole) for file in files]
    return all(old.is_file() and old.read_bytes() == new.read_bytes() for old, new in zip(there, files, strict=True))


def _write_media(whole: Path, job: Job, readers: Sequence[Part | _Row]) -> dict[str, list[ArrayWriter]]:
    """Write the arrays of all clips; the writers by folder."""
    with contextlib.ExitStack() as stack:
        arrays = {
            name: [
                stack.enter_context(ArrayWriter(whole / name, spec, len(readers), stored_type(spec))) for spec in specs
            ]
            for name, specs in job.groups
        }
        for reader in readers:
            media = reader.media()
            for place, group in enumerate(arrays.values()):
                for array in group:
                    array.write(media[f"{place}-{array.spec.kind}"])
    return arrays


@dataclass(frozen=True)
class EarlierResult:
    """The clips of a finished folder that are not damaged."""

    rows: Mapping[str, int]
    stores: Mapping[str, NpyStore]
    facts: pd.DataFrame

    @classmethod
    def of(cls, target: Path, groups: SpecGroups) -> EarlierResult | None:
        """Those in `target`; ``None`` where all must be made again."""
        try:
            folders = [read_folder(target / name) for name, _ in groups]
            table = folders[0][0]
            facts = table[["onset_index", "apex_index", "offset_index", "apex_from", "notes"]]
        except (DataError, KeyError):
            return None
        if any(
            not held["clip"].equals(table["clip"])
            or {spec.kind: (spec, len(table)) for spec in specs}
            != {kind: (store.spec, len(store)) for kind, store in stores.items()}
            for (_, specs), (held, stores) in zip(groups, folders, strict=True)
        ):
            return None  # somebody saved another clip set there
        stores = {
            f"{place}-{kind}": store for place, (_, stores) in enumerate(folders) for kind, store in stores.items()
        }
        # Every block is read once here, so that its digest is known when its clips are taken over.
        whole = [row for row in range(len(table)) if _is_whole(stores.values(), row)]
        return cls({str(table["clip"].iloc[row]): row for row in whole}, stores, facts)


def _is_whole(stores: Iterable[NpyStore], row: int) -> bool:
    try:
        for store in stores:
            store.stored(np.array([row], np.int64))
    except RowError:
        return False
    return True


@dataclass(frozen=True)
class _Row:
    """A clip of a finished folder."""

    earlier: EarlierResult
    row: int

    def media(self) -> dict[str, memoryview]:
        row = np.array([self.row], np.int64)
        return {name: store.stored(row).data for name, store in self.earlier.stores.items()}

    @property
    def facts(self) -> dict[str, Any]:
        values = self.earlier.facts.iloc[self.row].to_dict()
        return {str(name): None if pd.isna(value) else value for name, value in values.items()}


def _with_facts(table: pd.DataFrame, facts: Sequence[Mapping[str, Any]], recipe: PreprocessRecipe) -> pd.DataFrame:
    columns: dict[str, Any] = {
        name: pd.array([one[name] for one in facts], dtype="Int64")
        for name in ("onset_index", "apex_index", "offset_index")
    }
    columns |= {name: pd.array([one[name] for one in facts], dtype="str") for name in ("apex_from", "notes")}
    return table.assign(**columns, recipe=recipe.hash)


def _write_tables(whole: Path, job: Job, clean: pd.DataFrame) -> tuple[list[Path], dict[str, str]]:
    """Everything of the folder that does not depend on the content of the arrays, and the columns of the table."""
    files, columns = [], {}
    for name, _ in job.groups:
        (whole / name).mkdir(exist_ok=True)
        files.append(whole / name / TABLE)
        columns = write_table(files[-1], clean)
    places = dict.fromkeys([whole, *(whole / name for name, _ in job.groups)])
    return [*files, *(job.recipe.save(place / RECIPE) for place in places)], columns
