"""What all tests share: hypothesis without a deadline, and where the real maps are, if they are there at all."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fsmer.backbones import Backbone
    from fsmer.data import ClipSet

REPOSITORY = Path(__file__).resolve().parent.parent

# A shared machine makes single examples slow now and then; that is no failure of the property.
settings.register_profile("fsmer", deadline=None)
settings.load_profile("fsmer")

# A suite that a shell started in the background has key presses switched off, and so have the commands it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Embeddings that tests make are kept apart from those of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root folder of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real flow maps; the test is skipped where they are not at hand (they may not be redistributed)."""
    folder = REPOSITORY.parent / "shared" / "data" / "megc2019-flow"
    if not (folder / "index.csv").is_file():
        pytest.skip(f"the real flow maps are not at hand: no {folder}")
    return folder


@pytest.fixture(scope="session")
def rough_backbone() -> Backbone:
    """`facs-flow` with random weights and fitting batch statistics: embeddings that differ, made in a second."""
    import torch

    from fsmer.backbones import create_model
    from fsmer.synthetic.clips import synthetic_clips

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        backbone = create_model("facs-flow").train()
        inputs = torch.from_numpy(synthetic_clips("broad", 64).media())
        for _ in range(40):
            backbone(inputs)
    return backbone.eval()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """The network of `tiny_runs`, where a file has no other one of its own."""
    from tiny_runs import tiny

    return tiny()


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    """The clips of two data sets of `tiny_runs`, where a file has no other ones of its own."""
    from tiny_runs import two_sets

    return two_sets()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Processes get whole files, but single tests of `tests/fuzz`, each of which has a process of its own anyway."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "fuzz/" in nodeid else super()._split_scope(nodeid)

    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None
