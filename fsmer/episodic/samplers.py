"""`KShotSampler`: the settings by which K-shot episodes are drawn."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from numpy.typing import ArrayLike

from fsmer.episodic.checks import MOST_SEED, check_whole
from fsmer.episodic.plan import EpisodeBatch, EpisodePlan
from fsmer.errors import ProtocolError

__all__ = ["KShotSampler"]


@dataclass(frozen=True)
class KShotSampler:
    """Draws K-shot episodes: `way` classes, `shot` support clips of each, and query clips outside the support.

    Parameters
    ----------
    way : int, optional
        Classes an episode, drawn anew for each; None takes all of them.
    shot : int, default 5
        Support clips of each class (K). 0 gives empty supports.
    query : int or "rest", default "rest"
        Query clips of each class, or every remaining clip of the episode's classes (what MERAU calls D_test).
    balance : {"class", "natural"}, default "class"
        How a counted query is spread: `query` clips of each class, or ``way * query`` clips drawn from all that remain,
        so that frequent classes are asked for more often. The support always has `shot` clips of each class. With
        ``query="rest"`` nothing is drawn and the setting has no effect.
    subject_disjoint : bool, default False
        No subject has clips in both support and query. For each episode a coin deals every subject to one of the sides,
        and the clips are drawn from theirs; with ``query="rest"`` the query is every clip of the subjects that the
        support does not hold.
    classes : tuple of str, optional
        Fixed subset of classes to draw from; None takes every class that has clips.
    seed : int, default 0
        Seed of the episodes, from 0 to 2**64 - 1. One seed, one list of episodes.

    Raises
    ------
    ProtocolError
        A setting is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import fsmer
    >>> sampler = fsmer.KShotSampler(way=2, shot=1, query=2, seed=7)
    >>> batch = sampler.draw(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 3)
    >>> batch.support.shape, batch.query.shape
    ((3, 2), (3, 4))
    """

    way: int | None = None
    shot: int = 5
    query: int | Literal["rest"] = "rest"
    balance: Literal["class", "natural"] = "class"
    subject_disjoint: bool = False
    classes: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            twice = [name for name, count in Counter(self.classes).items() if count > 1]
            if twice:
                raise ProtocolError(f"classes names {twice[0]!r} more than once; name each class once.")
            if len(self.classes) < 2:
                raise ProtocolError(f"classes={self.classes!r}: an episode needs at least two classes.")
        if self.way is not None:
            check_whole("way", self.way, 2)
            if self.classes is not None and self.way > len(self.classes):
                raise ProtocolError(
                    f"way={self.way} is too high for the {len(self.classes)} named classes ({', '.join(self.classes)})."
                )
        check_whole("shot", self.shot, 0)
        if self.query != "rest":
            if isinstance(self.query, str):
                raise ProtocolError(f"query={self.query!r} is not understood; give clips per class or 'rest'.")
            check_whole("query", self.query, 1)
        if self.balance not in ("class", "natural"):
            raise ProtocolError(f"balance={self.balance!r} is not understood; choose 'class' or 'natural'.")
        if not isinstance(self.subject_disjoint, bool):
            raise ProtocolError(f"subject_disjoint={self.subject_disjoint!r} is not understood; choose true or false.")
        check_whole("seed", self.seed, 0, MOST_SEED)

    def plan(
        self,
        codes: ArrayLike,
        subject_codes: ArrayLike | None = None,
        *,
        names: Sequence[str] | None = None,
        order: ArrayLike | None = None,
    ) -> EpisodePlan:
        """Index the clips once, so that any number of episodes can be drawn from them.

        Parameters
        ----------
        codes : array of int
            Class of each clip as an index into `names`, shape (N,); negative for clips to leave out.
        subject_codes : array of int, optional
            Subject of each clip, shape (N,); needed for `subject_disjoint`.
        names : sequence of str, optional
            Class names; without them classes are called by their code.
        order : array of int, optional
            Order in which to take the clips, shape (N,), so that episodes need not depend on the row order
            (protocols take the clips by id).

        Returns
        -------
        EpisodePlan
            It draws episodes by their number.

        Raises
        ------
        ProtocolError
            The clips cannot give such episodes; the message names the class and its count.

        Examples
        --------
        >>> import fsmer
        >>> plan = fsmer.KShotSampler(way=2, shot=1, query=1).plan([0, 0, 0, 1, 1, 1])
        >>> plan.draw(0, 4).support.shape
        (4, 2)
        """
        return EpisodePlan(self, codes, subject_codes, names=names, order=order)

    def draw(
        self,
        codes: ArrayLike,
        n_episodes: int,
        subject_codes: ArrayLike | None = None,
        *,
        names: Sequence[str] | None = None,
        start: int = 0,
    ) -> EpisodeBatch:
        """Draw some episodes.

        Parameters
        ----------
        codes : array of int
            Class of each clip, see `plan`.
        n_episodes : int
            How many episodes to draw.
        subject_codes : array of int, optional
            Subject of each clip, see `plan`.
        names : sequence of str, optional
            Class names, see `plan`.
        start : int, default 0
            Number of the first episode.

        Returns
        -------
        EpisodeBatch
            The episodes ``start`` to ``start + n_episodes - 1``.
        """
        return self.plan(codes, subject_codes, names=names).draw(start, start + n_episodes)
