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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from datasketch import MinHash
    from numpy.typing import NDArray

SHINGLE = 5
THRESHOLD = 0.8
PERMUTATIONS = 128
ENOUGH = math.ceil(THRESHOLD * PERMUTATIONS)  # places that agree
WORD = re.compile(r"[⺀-鿿]|[^\W⺀-鿿]+")


def shingles(text: str) -> set[str]:
    """The runs of SHINGLE words of a text; a shorter text is one run."""
    words = WORD.findall(text.lower())
    return {" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))}


@cache
def empty_signature() -> "MinHash":
    """The signature of nothing; drawing its permutations anew for each text would cost as much as the text."""
    # Nothing here multiplies matrices: threads for that would only take memory, and numpy's library for it spins for
    # ever where it cannot start them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)


def signature(text: str) -> bytes:
    """The MinHash of a text's shingles: PERMUTATIONS numbers of 32 bits, the same each time."""
    made = empty_signature().copy()
    made.update_batch(each.encode("utf-8", "surrogatepass") for each in shingles(text))
    return bytes(made.hashvalues.tobytes())


def pairs(signatures: "array[int]") -> Iterator[tuple[int, int, float]]:
    """(earlier, later, similarity) of near-duplicates, by their places in `signatures` (one after the other).

    Not all of them: enough to reach every member of a group of near-duplicates from every other. None is missed: the
    signatures are cut into more bands than a pair within the threshold has places that differ, so that one band at
    least is the same in both. (datasketch's own index misses some, and takes several times the memory.)
    """
    import numpy as np

    values = np.asarray(signatures, dtype=np.uint32).reshape(-1, PERMUTATIONS)
    bands = PERMUTATIONS - ENOUGH + 1
    width = PERMUTATIONS // bands
    groups = Groups(len(values))
    for start in range(0, bands * width, width):
        for members in places_of_equal_rows(values[:, start : start + width]):
            yield from new_pairs(members, values, groups)


def new_pairs(
    members: "NDArray[np.intp]", values: "NDArray[np.uint32]", groups: "Groups"
) -> Iterator[tuple[int, int, float]]:
    """Near-duplicates among these members (ascending) that are not in one group yet; `groups` gets them.

    Each member is held against those after it that are in another group, all at once.
    """
    import numpy as np

    roots = np.array([groups.root(each) for each in members])
    for place, first in enumerate(members):
        others = place + np.flatnonzero(roots[place:] != roots[place])
        if not len(others):
            return  # All that are left are in one group.
        agreeing = np.count_nonzero(values[members[others]] == values[first], axis=1)
        near = agreeing >= ENOUGH
        for other, count in zip(others[near], agreeing[near], strict=True):
            if groups.join(int(first), int(members[other])):
                yield int(first), int(members[other]), float(count) / PERMUTATIONS
                roots[roots == roots[other]] = roots[place]


def places_of_equal_rows(band: "NDArray[np.uint32]") -> "Iterator[NDArray[np.intp]]":
    """The places (ascending) of each set of rows that are the same, where there are two or more."""
    import numpy as np

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
