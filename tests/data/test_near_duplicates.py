"""Near-duplicates: none within the threshold is missed, and the signature is a fair estimate."""

import random
from array import array
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from tools.data import near_duplicates


def signed(texts: list[str]) -> "array[int]":
    """Their signatures, one after the other."""
    made = array("I")
    for text in texts:
        made.frombytes(near_duplicates.signature(text))
    return made


def agree(one: str, other: str) -> float:
    """The share of places in which two signatures agree."""
    mine, theirs = (array("I", near_duplicates.signature(each)) for each in (one, other))
    return sum(a == b for a, b in zip(mine, theirs, strict=True)) / near_duplicates.PERMUTATIONS


def closeness(words: list[str], other: list[str]) -> float:
    """The Jaccard index of two texts' shingles."""
    mine, theirs = (near_duplicates.shingles(" ".join(each)) for each in (words, other))
    return len(mine & theirs) / len(mine | theirs)


def test_shingles_are_words_without_case_and_marks_and_characters_where_words_have_no_spaces() -> None:
    assert near_duplicates.shingles("The lamp, the LAMP: of it all!") == {
        "the lamp the lamp of",
        "lamp the lamp of it",
        "the lamp of it all",
    }
    assert near_duplicates.shingles("a b") == {"a b"} and near_duplicates.shingles("") == {""}
    assert "我 要 一 个 苹" in near_duplicates.shingles("我要一个苹果")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some.lists(some.sampled_from(["a b c d e f g", "a b c d e f h", "x", "", "a b c d e f g h i j k"]), max_size=9))
def test_groups_are_those_of_all_pairs_that_agree_enough(texts: list[str]) -> None:
    check_groups(texts)


@pytest.mark.parametrize("changes", [1, 4, 8])
def test_groups_of_longer_texts_are_those_of_all_pairs_too(changes: int) -> None:
    """Texts a few words apart: pairs on both sides of the threshold."""
    rng = random.Random(changes)
    words = [str(rng.randrange(1000)) for _ in range(150)]
    texts = []
    for _ in range(40):
        near = list(words)
        for _ in range(rng.randrange(changes + 1)):
            near[rng.randrange(len(near))] = str(rng.randrange(1000))
        texts.append(" ".join(near))
    check_groups(texts)


def check_groups(texts: list[str]) -> None:
    """That `pairs` joins what a comparison of all with all joins, and says the share that it found."""
    found = list(near_duplicates.pairs(signed(texts)))
    for one, other, share in found:
        assert one < other and share == agree(texts[one], texts[other]) >= near_duplicates.THRESHOLD
    all_pairs = [
        (one, other)
        for one, other in combinations(range(len(texts)), 2)
        if agree(texts[one], texts[other]) >= near_duplicates.THRESHOLD
    ]
    wanted = near_duplicates.groups(len(texts), all_pairs)
    assert near_duplicates.groups(len(texts), [(one, other) for one, other, _ in found]) == wanted
    assert len(found) == len(texts) - len(set(wanted))


def test_the_signatures_agree_as_the_shingles_do() -> None:
    rng = random.Random(0)
    words = [str(rng.randrange(1000)) for _ in range(200)]
    for cut in (0, 10, 30, 60, 120):
        other = words[cut:]
        assert abs(agree(" ".join(words), " ".join(other)) - closeness(words, other)) < 4 * 0.045
