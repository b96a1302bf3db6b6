"""What must be the same for a run to go on with the finished episodes of another."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer import kernels
from fsmer.evaluation.run_options import RunOptions
from fsmer.evaluation.setup import Evaluation
from fsmer.evaluation.training_folds import on_cpu
from fsmer.version import __version__

__all__ = ["arithmetic", "run_identity"]


def run_identity(one: Evaluation, options: RunOptions, content: NDArray[np.uint8]) -> dict[str, str]:
    """The identity of a run, in the words of messages; `content` are the content ids of its clips."""
    clips, table = one.clips, hashlib.sha256()
    for values in (clips.ids, clips.datasets, clips.subjects, clips.labels, clips.table["aus"].to_numpy(object)):
        table.update("\n".join(map(str, values.tolist())).encode() + b"\0")
    tried = json.dumps([[point.checkpoint_step, dict(point.values)] for point in one.grid_points], default=str)
    params = {name: value for name, value in one.method.get_params().items() if name != "seed"}
    identity = {
        "version of fsmer": __version__,
        "protocol": f"{one.protocol.name}, hash {one.protocol.hash}",
        "description of classes": _hash(json.dumps(one.descriptions, sort_keys=True)),
        "model": one.start.describe(),
        "method": f"{one.method.name} with {json.dumps(params, sort_keys=True, default=str)}",
        "seed of episodes and bootstrap": str(one.seed),
        "selection": f"{one.rule}, hash {_hash(tried)[:8]}",
        "table of clips": f"{len(clips):,} clips of {', '.join(clips.dataset_names)}, hash {table.hexdigest()[:16]}",
        # The media too: flow that was extracted anew under the same ids is another run.
        "content of the media": f"hash {_hash(content.tobytes())}",
    }
    if found := arithmetic(one):
        identity["arithmetic"] = f"kernels with {json.dumps(found)}"
    return identity | ({"isolation": "process"} if options.isolated else {})


def arithmetic(one: Evaluation) -> dict[str, str]:
    """What of the machine's arithmetic can change a digit: of trainings on a CPU `kernels.describe`, else nothing."""
    trains = one.episodes.source is not None or not one.method.keeps_backbone
    return kernels.describe() if trains and on_cpu(one.backbone) else {}


def _hash(value: Any) -> str:
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:16]
