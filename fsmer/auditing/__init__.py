"""`audit`: check a results folder, a list of splits or a folder of clips for what makes figures worth nothing.

It checks for the leaks and errors that the field's published scripts are known for (Varanka et al., "Data leakage and
evaluation issues in micro-expression analysis", IEEE TAFFC 2024): a person on both sides, the same clip or nearly the
same media on both sides, labels that disagree, classes nobody learnt, figures averaged over folds, choices made on the
test side.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fsmer.auditing.findings import Audit, Finding, Table
from fsmer.auditing.media import NEAR, audit_clips, near_duplicates
from fsmer.auditing.results import Claim, audit_predictions, audit_report, read_claims
from fsmer.auditing.splits import audit_splits, audit_ststnet
from fsmer.data.ststnet_release import STSTNET_FOLDER
from fsmer.errors import DataError
from fsmer.evaluation.run_folder import unfinished_words

__all__ = ["NEAR", "Audit", "Finding", "audit", "near_duplicates"]
__dir__ = __all__.copy  # tab completion shows public names only


def audit(path: str | os.PathLike[str], *, stated: Mapping[str, float] | None = None, near: float = NEAR) -> Audit:
    """Check results, splits or clips for leaks and errors.

    Parameters
    ----------
    path : path
        A folder that `fsmer.evaluate` wrote; a CSV table of predictions (clip, subject, fold, label, predicted) or of
        splits (clip, subject, fold and/or a column that says train or test, label, dataset); the STSTNet folder layout
        ``norm_u_v_os/<subject>/u_train|u_test/<label>/<clip>.png``; or a folder of clips that `fsmer.read_clips` reads.
        Columns may have the usual other names (``sub``, ``y_true``, ``pred``).
    stated : mapping of str to float, optional
        Figures that somebody claims for these predictions, e.g. ``{"uf1": 0.86}``, as fractions or percent. They are
        compared with what the predictions give, pooled and averaged over folds.
    near : float, default 0.97
        Correlation from which two maps count as nearly the same, see `near_duplicates`.

    Returns
    -------
    Audit
        One finding for everything that is wrong.

    Raises
    ------
    DataError
        Nothing is there, it has none of the known forms, or it cannot be read.

    Examples
    --------
    >>> import fsmer
    >>> folder = fsmer.synthetic_clips(n=24, subjects=4).save("my-clips")
    >>> fsmer.audit(folder).findings
    ()
    """
    source = Path(path)
    if not 0 < near <= 1:
        raise DataError(f"near={near} is no correlation of near-duplicates; give a number above 0 and up to 1.")
    if not source.exists():
        raise DataError(
            f"{source} does not exist; give a results folder, a CSV of splits or predictions, or a folder of clips."
        )
    claimed = read_claims(stated or {})
    if source.is_file():
        table = Table.read(source)
        if "predicted" in table:
            return audit_predictions(source, table, claimed)
        if "fold" in table or "side" in table:
            _refuse_stated(claimed, source)
            return audit_splits(source, table, near)
        raise DataError(
            f"{source} names neither predictions nor folds nor train and test sides; its columns are "
            f"{', '.join(table.header)}."
        )
    if (source / "report.json").is_file():
        return audit_report(source, claimed)
    if (source / "predictions.csv").is_file():
        raise DataError(
            f"{source} holds predictions.csv without report.json, so the run did not finish; run it again to the end, "
            "or audit that file."
        )
    _refuse_stated(claimed, source)
    if (source / STSTNET_FOLDER).is_dir() or any(source.glob("*/u_test")) or any(source.glob("*/u_train")):
        return audit_ststnet(source, near)
    if (source / "clips.json").is_file() or (source / "index.csv").is_file():
        return audit_clips(source, near)
    raise DataError(
        unfinished_words(source)
        or f"{source} has no form that can be audited: it holds neither report.json nor <subject>/u_test nor index.csv "
        "nor clips.json."
    )


def _refuse_stated(claimed: Mapping[str, Claim], source: Path) -> None:
    if claimed:
        raise DataError(f"a stated figure needs predictions to check it against, {source} has none; leave it out.")
