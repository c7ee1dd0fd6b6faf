"""Which texts are nearly the same: MinHash signatures of their shingles, and all pairs whose signatures agree enough.

A text's shingles are its runs of SHINGLE words (lower case, no punctuation; each Chinese or Japanese character counts
as a word). Two texts are near-duplicates when their signatures agree in THRESHOLD of PERMUTATIONS places: an estimate
of the Jaccard index of their shingles, with a standard error of at most 0.045.
"""

import math
import os
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

SHINGLE = 5
THRESHOLD = 0.8
PERMUTATIONS = 128
WORD = re.compile(r"[⺀-鿿]|[^\W⺀-鿿]+")


def shingles(text: str) -> set[str]:
    """The runs of SHINGLE words of a text; a shorter text is one run."""
    words = WORD.findall(text.lower())
    return {" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}


@cache
def _blank() -> Any:
    """The signature of nothing; drawing its permutations anew for each text would cost as much as the text."""
    # Nothing here multiplies matrices: threads for that would only take memory, and numpy's library for it spins for
    # ever where it cannot start them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)


def signature(text: str) -> bytes:
    """The MinHash of a text's shingles: PERMUTATIONS numbers of 32 bits, the same each time."""
    made = _blank().copy()
    made.update_batch(each.encode("utf-8", "surrogatepass") for each in shingles(text))
    return bytes(made.hashvalues.tobytes())


def pairs(signatures: "array[int]") -> Iterator[tuple[int, int, float]]:
    """(earlier, later, similarity) of near-duplicates, by their places in `signatures` (one after the other).

    Not all of them: enough to reach every member of a group of near-duplicates from every other. None is missed: the
    places are cut into more bands than a pair within the threshold has places that differ, so that one band at least
    is the same in both. (datasketch's own index misses some, and takes several times the memory.)
    """
    import numpy as np

    values = np.asarray(signatures).reshape(-1, PERMUTATIONS)
    enough = math.ceil(THRESHOLD * PERMUTATIONS)
    bands = PERMUTATIONS - enough + 1
    width = PERMUTATIONS // bands
    groups = Groups(len(values))
    for start in range(0, bands * width, width):
        for members in _alike(np, values[:, start : start + width]):
            roots = np.array([groups.root(each) for each in members])
            while (roots != roots[0]).any():
                first, root = int(members[0]), roots[0]
                others = members[roots != root]
                same = np.count_nonzero(values[others] == values[first], axis=1)
                for other, agreeing in zip(others[same >= enough], same[same >= enough], strict=True):
                    if groups.join(first, int(other)):
                        yield first, int(other), float(agreeing) / PERMUTATIONS
                        roots[roots == roots[np.searchsorted(members, other)]] = root
                members, roots = members[1:], roots[1:]


def _alike(np: Any, band: Any) -> Iterator[Any]:
    """The places (ascending) of each set of rows that are the same, where there are two or more."""
    order = np.lexsort(band.T[::-1])
    changes = np.flatnonzero((band[order[1:]] != band[order[:-1]]).any(axis=1)) + 1
    for group in np.split(order, changes):
        if len(group) > 1:
            yield np.sort(group)


class Groups:
    """Things joined two by two into groups; a group's root is its first member."""

    def __init__(self, count: int) -> None:
        self.above = list(range(count))

    def root(self, thing: int) -> int:
        """The first member of a thing's group."""
        while self.above[thing] != thing:
            self.above[thing] = self.above[self.above[thing]]
            thing = self.above[thing]
        return thing

    def join(self, one: int, other: int) -> bool:
        """Make one group of two things' groups; whether they were two."""
        first, second = sorted((self.root(one), self.root(other)))
        self.above[second] = first
        return first != second


def groups(count: int, joined: Iterable[tuple[int, int]]) -> list[int]:
    """The root of each of `count` things after these pairs were joined."""
    made = Groups(count)
    for one, other in joined:
        made.join(one, other)
    return [made.root(thing) for thing in range(count)]
