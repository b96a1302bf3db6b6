"""A kind of protocol that fsmer does not know, added by one file: learn from the first subjects, judge the last ones.

    fsmer protocols --import examples/protocol_from_outside.py
    fsmer evaluate first-subjects --data DIR --import examples/protocol_from_outside.py

Run by itself, this file evaluates the default model on synthetic clips.
"""

from dataclasses import dataclass

import numpy as np

from fsmer.episodic import FoldEpisodes, Protocol, register_protocol
from fsmer.errors import ProtocolError


@register_protocol("first_subjects")
@dataclass(frozen=True)
class FirstSubjects(Protocol):
    """One episode: the support is every clip of the first subjects by name, the query every clip of the others.

    Parameters
    ----------
    share : float
        Part of the subjects on the support side, between 0 and 1.
    """

    summary = "learn from the first subjects, judge the others"

    share: float = 0.5

    def check_parameters(self):
        if not 0 < self.share < 1:
            raise ProtocolError(f"share={self.share!r} is not possible; give a number between 0 and 1.")

    def deal(self, clips, classes, codes):
        subjects = clips.subject_codes()
        count = len(clips.subject_names)
        learnt = np.arange(count) < max(1, min(count - 1, round(self.share * count)))
        return FoldEpisodes(classes, codes, subjects, ["first subjects"], lambda index: (learnt, ~learnt))


if __name__ == "__main__":
    import fsmer

    clips = fsmer.synthetic_clips(n=60, seed=3)
    protocol = fsmer.load_protocol("first-subjects", share=0.6)
    print(protocol.hash, list(protocol.split(clips)))
    print(fsmer.evaluate(protocol, "facs-flow", clips=clips))
