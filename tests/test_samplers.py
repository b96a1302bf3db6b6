"""K-shot episodes: what they hold, that they never change, and that impossible ones are refused."""

from __future__ import annotations

import hashlib
import itertools
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fsmer.episodic import EpisodeBatch, KShotSampler, shuffles
from fsmer.errors import ProtocolError

# Clips per class of the MEGC 2019 composite: negative, positive, surprise.
MEGC_COUNTS = (250, 109, 83)
MEGC_CODES = np.repeat([0, 1, 2], MEGC_COUNTS)


def fingerprint(batch: EpisodeBatch) -> str:
    """SHA-256 of classes, support and query as little-endian 32-bit integers, first 16 digits."""
    arrays = [batch.classes, batch.support] + ([batch.query] if batch.query is not None else [])
    return hashlib.sha256(b"".join(a.astype("<i4").tobytes() for a in arrays)).hexdigest()[:16]


# ---- the same episodes for ever


# Never edit these: they say that the episodes of published results can be drawn again.
FROZEN = [
    (KShotSampler(way=3, shot=5, query=15, seed=0), False, "0e5f2662233b736f"),
    (KShotSampler(way=3, shot=5, query="rest", seed=0), False, "81ad420f55030972"),
    (KShotSampler(way=3, shot=5, query=15, seed=1), False, "f41642eb99a9494a"),
    (KShotSampler(way=2, shot=1, query=4, balance="natural", seed=2024), False, "4fa5b1bb69033102"),
    (KShotSampler(way=3, shot=70, query=10, seed=3), False, "907805c776b305b8"),
    (KShotSampler(way=3, shot=5, query=15, subject_disjoint=True, seed=0), True, "c6dca8d45152611c"),
    (
        KShotSampler(way=2, shot=5, query=10, balance="natural", subject_disjoint=True, seed=2**64 - 1),
        True,
        "0c9b0a3694dcf19a",
    ),
    (KShotSampler(way=3, shot=5, query="rest", subject_disjoint=True, seed=0), True, "d5113100eedf1706"),
]


@pytest.mark.parametrize(("sampler", "with_subjects", "expected"), FROZEN)
def test_same_seed_gives_the_frozen_episodes(sampler, with_subjects, expected):
    subjects = np.arange(len(MEGC_CODES)) * 31 % 68 if with_subjects else None
    assert fingerprint(sampler.draw(MEGC_CODES, 200, subjects)) == expected


def test_random_words_are_those_of_splitmix64():
    # Published first outputs of SplitMix64 for the seed 1234567 (Rosetta Code, "Pseudo-random numbers/Splitmix64").
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert shuffles.child_keys(np.array([1234567], dtype=np.uint64), np.arange(5)).tolist() == expected


def splitmix(state: int, index: int) -> int:
    word = (state + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def plain_episode(codes: list[int], seed: int, number: int, way: int, length: int) -> list[list[int]]:
    """One class-balanced episode in plain Python: `length` distinct clips of each class."""

    def shuffled(key: int, n: int, count: int) -> list[int]:
        items = list(range(n))
        for j in range(count):
            t = j + (splitmix(key, j) * (n - j) >> 64)
            items[j], items[t] = items[t], items[j]
        return items[:count]

    members = [[i for i, code in enumerate(codes) if code == c] for c in range(max(codes) + 1)]
    key = splitmix(splitmix(seed, 0), number)
    chosen = range(len(members)) if way == len(members) else sorted(shuffled(splitmix(key, 0), len(members), way))
    return [[members[c][r] for r in shuffled(splitmix(key, 8 + c), len(members[c]), length)] for c in chosen]


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(6, 30), min_size=2, max_size=5),
    seed=st.integers(0, 2**64 - 1),
    shot=st.integers(0, 3),
    query=st.integers(1, 3),
    data=st.data(),
)
def test_episodes_equal_a_plain_python_drawing(counts, seed, shot, query, data):
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    way = data.draw(st.integers(2, len(counts)))
    batch = KShotSampler(way=way, shot=shot, query=query, seed=seed).draw(codes, 3, start=5)
    for i in range(3):
        expected = plain_episode(codes.tolist(), seed, 5 + i, way, shot + query)
        assert batch.support[i].tolist() == [clip for clips in expected for clip in clips[:shot]]
        assert batch.query[i].tolist() == [clip for clips in expected for clip in clips[shot:]]


def test_long_draws_equal_a_plain_python_drawing(monkeypatch):
    sampler = KShotSampler(shot=60, query=20, seed=5)
    expected = [[clip for clips in plain_episode(MEGC_CODES.tolist(), 5, i, 3, 80) for clip in clips] for i in range(4)]
    for sparse_draws in (64, 1000):  # a real array shuffled, and only displaced positions kept
        monkeypatch.setattr(shuffles, "_SPARSE_DRAWS", sparse_draws)
        batch = sampler.draw(MEGC_CODES, 4)
        together = np.concatenate([batch.support.reshape(4, 3, 60), batch.query.reshape(4, 3, 20)], axis=2)
        assert together.reshape(4, -1).tolist() == expected


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize(("query", "balance"), [(4, "class"), (4, "natural"), ("rest", "class")])
def test_an_episode_is_the_same_however_many_are_drawn_with_it(disjoint, query, balance, monkeypatch):
    subjects = np.arange(len(MEGC_CODES)) % 23
    sampler = KShotSampler(way=2, shot=3, query=query, balance=balance, subject_disjoint=disjoint, seed=9)
    whole = sampler.draw(MEGC_CODES, 120, subjects)
    plan = sampler.plan(MEGC_CODES, subjects)
    for start, stop in ((0, 1), (7, 31), (119, 120)):
        part = plan.draw(start, stop)
        assert [part[i] for i in range(len(part))] == [whole[i] for i in range(start, stop)]
    monkeypatch.setattr("fsmer.episodic.plan._BLOCK", 64)
    monkeypatch.setattr(shuffles, "_BUDGET", 64)
    small = sampler.draw(MEGC_CODES, 120, subjects)
    assert fingerprint(small) == fingerprint(whole)


def test_the_support_does_not_depend_on_the_query():
    supports = [
        KShotSampler(shot=5, query=query, balance=balance, seed=4).draw(MEGC_CODES, 50).support.tolist()
        for query, balance in ((15, "class"), (1, "class"), ("rest", "class"), (7, "natural"))
    ]
    assert all(support == supports[0] for support in supports)


def test_fewer_shots_are_the_first_of_more():
    five = KShotSampler(shot=5, seed=4).draw(MEGC_CODES, 50).support.reshape(50, 3, 5)
    one = KShotSampler(shot=1, seed=4).draw(MEGC_CODES, 50).support.reshape(50, 3, 1)
    assert np.array_equal(five[:, :, :1], one)


def test_other_seeds_give_other_episodes():
    drawn = {fingerprint(KShotSampler(seed=seed).draw(MEGC_CODES, 20)) for seed in range(50)}
    assert len(drawn) == 50


def test_the_order_of_rows_does_not_matter_when_one_is_given():
    shuffle = np.random.default_rng(1).permutation(len(MEGC_CODES))
    straight = KShotSampler(shot=5, query=3).plan(MEGC_CODES).draw(0, 30)
    # Row k of the shuffled table is clip shuffle[k]; taking rows by clip number restores the original order.
    mixed = KShotSampler(shot=5, query=3).plan(MEGC_CODES[shuffle], order=np.argsort(shuffle)).draw(0, 30)
    assert np.array_equal(shuffle[mixed.support], straight.support)
    assert np.array_equal(shuffle[mixed.query], straight.query)


# ---- what an episode holds


counts_of_classes = st.lists(st.integers(4, 25), min_size=2, max_size=6)


@settings(max_examples=60)
@given(
    counts=counts_of_classes,
    shot=st.integers(0, 3),
    query=st.one_of(st.integers(1, 4), st.just("rest")),
    balance=st.sampled_from(["class", "natural"]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_counts_are_exact_and_nothing_overlaps(counts, shot, query, balance, seed, data):
    way = data.draw(st.integers(2, len(counts)))
    need = shot + (query if query != "rest" and balance == "class" else 1)
    assume(min(counts) >= need and (query == "rest" or sum(sorted(counts)[:way]) >= way * (shot + query)))
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    batch = KShotSampler(way=way, shot=shot, query=query, balance=balance, seed=seed).draw(codes, 12)
    mask = batch.query_mask()
    for i in range(12):
        episode, classes = batch[i], batch.classes[i]
        assert len(set(classes.tolist())) == way
        assert classes.tolist() == sorted(classes.tolist())
        assert episode.classes == tuple(str(c) for c in classes)
        assert len(set(episode.support.tolist())) == way * shot
        assert codes[episode.support].tolist() == np.repeat(classes, shot).tolist()
        asked = episode.query.tolist()
        assert len(set(asked)) == len(asked)
        assert not set(asked) & set(episode.support.tolist())
        assert set(codes[episode.query].tolist()) <= set(classes.tolist())
        if query == "rest":
            everything = set(np.flatnonzero(np.isin(codes, classes)).tolist())
            assert set(asked) == everything - set(episode.support.tolist())
        elif balance == "class":
            assert codes[episode.query].tolist() == np.repeat(classes, query).tolist()
        else:
            assert len(asked) == way * query
        assert np.flatnonzero(mask[i]).tolist() == sorted(asked)


@settings(max_examples=60)
@given(
    table=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=8, max_size=50),
    shot=st.integers(1, 3),
    query=st.one_of(st.integers(1, 3), st.just("rest")),
    balance=st.sampled_from(["class", "natural"]),
    seed=st.integers(0, 1000),
)
def test_subjects_are_disjoint_and_only_impossible_requests_are_refused(table, shot, query, balance, seed):
    codes, subjects = np.array(table).T
    sampler = KShotSampler(shot=shot, query=query, balance=balance, subject_disjoint=True, seed=seed)
    present = np.unique(codes)
    assume(len(present) > 1)

    def possible(side: set[int]) -> bool:
        learns = np.isin(subjects, list(side))
        taught = all(np.count_nonzero(learns & (codes == c)) >= shot for c in present)
        left = [np.count_nonzero(~learns & (codes == c)) for c in present]
        if query != "rest" and balance == "natural":
            return taught and sum(left) >= query * len(present)
        return taught and min(left) >= (1 if query == "rest" else query)

    people = np.unique(subjects).tolist()
    sides = itertools.chain.from_iterable(itertools.combinations(people, k) for k in range(len(people) + 1))
    if not any(possible(set(side)) for side in sides):
        with pytest.raises(ProtocolError):
            sampler.draw(codes, 4, subjects)
        return
    batch = sampler.draw(codes, 4, subjects)
    mask = batch.query_mask()
    for i in range(4):
        episode = batch[i]
        known, asked = set(subjects[episode.support].tolist()), set(subjects[episode.query].tolist())
        assert not known & asked
        assert codes[episode.support].tolist() == np.repeat(present, shot).tolist()
        assert len(set(episode.support.tolist())) == len(episode.support)
        assert len(set(episode.query.tolist())) == len(episode.query)
        if query == "rest":
            assert episode.query.tolist() == np.flatnonzero(~np.isin(subjects, list(known))).tolist()
            assert set(codes[episode.query].tolist()) == set(present.tolist())
        elif balance == "class":
            assert codes[episode.query].tolist() == np.repeat(present, query).tolist()
        else:
            assert len(episode.query) == query * len(present)
        assert np.flatnonzero(mask[i]).tolist() == sorted(episode.query.tolist())


def test_codes_may_have_gaps_and_left_out_clips():
    codes = np.array([1, 3, 5, 1, 3, 5, -1, -1, 1, 3, 5])
    batch = KShotSampler(shot=1, query=2).draw(codes, 40)
    assert batch.classes.tolist() == [[1, 3, 5]] * 40
    assert not np.isin([6, 7], np.concatenate([batch.support.ravel(), batch.query.ravel()])).any()
    assert not batch.query_mask()[:, [6, 7]].any()
    assert batch.support_labels.tolist() == [[0, 1, 2]] * 40
    assert batch.labels(batch.query).tolist() == [[0, 0, 1, 1, 2, 2]] * 40


def test_labels_are_positions_among_the_episodes_own_classes():
    batch = KShotSampler(way=2, shot=1, query=2, balance="natural", seed=3).draw(np.repeat(np.arange(5), 6), 50)
    own = np.take_along_axis(batch.classes, batch.labels(batch.query), axis=1)
    assert np.array_equal(own, batch.plan.codes[batch.query])
    every = batch.labels(np.arange(30))
    assert every.shape == (50, 30)
    assert set(every.ravel().tolist()) == {-1, 0, 1}
    assert np.array_equal(every >= 0, (batch.plan.codes[None, :, None] == batch.classes[:, None, :]).any(axis=2))


def test_no_shots_leave_every_clip_to_the_query():
    batch = KShotSampler(shot=0).draw(MEGC_CODES, 2)
    assert batch.support.shape == (2, 0)
    assert batch.query is None
    assert batch.query_mask().all()
    assert len(batch[1].query) == 442


def test_query_masks_can_be_asked_for_some_clips():
    for query in (2, "rest"):
        batch = KShotSampler(way=2, shot=3, query=query).draw(MEGC_CODES, 9)
        some = np.array([441, 3, 250, 17, 90])
        assert np.array_equal(batch.query_mask(some), batch.query_mask()[:, some])


def test_a_fixed_subset_of_classes_is_kept_to():
    sampler = KShotSampler(shot=2, query=2, classes=("surprise", "negative"))
    batch = sampler.draw(MEGC_CODES, 30, names=("negative", "positive", "surprise"))
    assert batch.classes.tolist() == [[0, 2]] * 30
    assert batch[0].classes == ("negative", "surprise")


# ---- draws are fair


def test_every_clip_and_every_class_is_drawn_equally_often():
    n = 12_000
    batch = KShotSampler(way=2, shot=2, query=3, seed=11).draw(np.repeat([0, 1, 2], [10, 20, 40]), n)
    times = np.bincount(batch.classes.ravel(), minlength=3)
    assert np.abs(times / n - 2 / 3).max() < 5 * np.sqrt(2 / 9 / n)
    for drawn, count in ((batch.support, 2), (batch.query, 3)):
        seen = np.bincount(drawn.ravel(), minlength=70)
        expected = np.repeat(times * count / [10, 20, 40], [10, 20, 40])
        assert np.abs(seen - expected).max() < 5 * np.sqrt(expected.max())


def test_every_order_of_a_small_class_is_equally_likely():
    n = 24_000
    drawn = KShotSampler(shot=4, query=1, seed=3).draw(np.repeat([0, 1], [5, 5]), n).support[:, :4]
    orders, seen = np.unique(drawn @ [125, 25, 5, 1], return_counts=True)
    assert len(orders) == 120
    # Chi-square with 119 degrees of freedom: 99.99 % lie below 184.
    assert ((seen - n / 120) ** 2 / (n / 120)).sum() < 184


def test_a_natural_query_has_the_proportions_of_the_clips():
    batch = KShotSampler(shot=5, query=15, balance="natural", seed=1).draw(MEGC_CODES, 4000)
    shares = np.bincount(batch.plan.codes[batch.query].ravel()) / batch.query.size
    left = np.array(MEGC_COUNTS) - 5
    assert np.abs(shares - left / left.sum()).max() < 0.005


# ---- size


def test_a_million_clips_are_drawn_from_as_quickly_as_a_few():
    codes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [560_000, 250_000, 190_000]))
    for query in (15, "rest"):
        plan = KShotSampler(way=3, shot=5, query=query).plan(codes)
        start = time.perf_counter()
        batch = plan.draw(0, 20_000)
        # A tenth of the promised 50,000 a second, so that a busy machine does not fail it; `make bench` measures.
        assert time.perf_counter() - start < 20_000 / 5_000
        assert np.array_equal(codes[batch.support], np.broadcast_to(np.repeat([0, 1, 2], 5), batch.support.shape))


# ---- refusals


def refuse(match: str, sampler: KShotSampler, *args, **kwargs) -> None:
    with pytest.raises(ProtocolError, match=match):
        sampler.draw(*args, **kwargs)


def test_a_class_with_too_few_clips_is_named_with_its_count():
    names = ("anger", "fear", "joy")
    codes = np.repeat([0, 1, 2], [30, 7, 30])
    refuse("'fear'.* 7 clips.* 5 .* 3 ", KShotSampler(shot=5, query=3), codes, 1, names=names)
    refuse("'fear'.* 7 clips.* 7 .* 1 ", KShotSampler(shot=7), codes, 1, names=names)
    assert len(KShotSampler(shot=6).draw(codes, 1, names=names)) == 1


@pytest.mark.parametrize(
    ("match", "sampler", "codes"),
    [
        ("way=4 .* 3 ", KShotSampler(way=4, shot=1), MEGC_CODES),
        ("no labelled clips", KShotSampler(shot=1), [-1, -1]),
        ("no labelled clips", KShotSampler(shot=1), np.array([], dtype=int)),
        ("one class", KShotSampler(shot=1), [0, 0, 0]),
        ("2 x 8", KShotSampler(shot=2, query=8, balance="natural"), np.repeat([0, 1], [6, 6])),
        ("class '7'", KShotSampler(shot=1, classes=("0", "7")), [0, 0, 1, 1]),
        ("subject of every clip", KShotSampler(shot=1, subject_disjoint=True), [0, 0, 1, 1]),
        ("whole numbers", KShotSampler(shot=1), [0.5, 1.0]),
        ("one-dimensional", KShotSampler(shot=1), [[0, 1]]),
    ],
)
def test_impossible_requests_are_refused(match, sampler, codes):
    refuse(match, sampler, codes, 1)


def test_a_class_of_one_subject_cannot_be_subject_disjoint():
    codes, subjects = np.repeat([0, 1], [20, 20]), np.array([0] * 20 + list(range(20)))
    refuse("20 clips of class '0'.* one subject", KShotSampler(shot=2, subject_disjoint=True), codes, 1, subjects)


def test_subjects_that_cannot_be_dealt_are_refused_naming_the_class():
    # Class 1: every one of three subjects is needed for five shots.
    codes, subjects = np.repeat([0, 1], [30, 6]), np.array([0, 1, 2] * 10 + [0, 0, 1, 1, 2, 2])
    sampler = KShotSampler(shot=5, query=1, subject_disjoint=True)
    refuse("subject-disjoint episode 0 .* class '1' \\(6 clips\\)", sampler, codes, 3, subjects)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"way": 1}, "way=1"),
        ({"way": 2.5}, "way=2.5"),
        ({"way": True}, "way=True"),
        ({"shot": -1}, "shot=-1"),
        ({"query": 0}, "query=0"),
        ({"query": "all"}, "query='all'.*rest"),
        ({"balance": "even"}, "balance='even'"),
        ({"subject_disjoint": "yes"}, "subject_disjoint='yes'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed="),
        ({"classes": ("a",)}, "at least two classes"),
        ({"classes": ("a", "b", "a")}, "'a'"),
        ({"classes": ("a", "b"), "way": 3}, "way=3 .* 2 "),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ProtocolError, match=match):
        KShotSampler(**settings)


def test_episode_numbers_must_make_sense():
    plan = KShotSampler(shot=1).plan(MEGC_CODES)
    for start, stop in ((-1, 2), (3, 1)):
        with pytest.raises(ProtocolError, match="cannot draw"):
            plan.draw(start, stop)
    assert len(plan.draw(4, 4)) == 0
    with pytest.raises(IndexError):
        plan.draw(0, 2)[2]


def test_subject_codes_must_fit_the_clips():
    sampler = KShotSampler(shot=1, subject_disjoint=True)
    refuse("3 entries for 4 clips", sampler, [0, 0, 1, 1], 1, [0, 1, 2])
    refuse("negative", sampler, [0, 0, 1, 1], 1, [0, 1, -2, 3])
