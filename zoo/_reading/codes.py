"""Which bits of a mask stand for which site, where a program may have more sites than a mask has bits for them.

Up to 46 sites have a bit each. Of more, each has a code of four bits or more, one in each of as many blocks: site 75 of 100
latents is "3 in the first block, 1 in the second, 1 in the third, 0 in the fourth". Bits of several sites together may be read
as more sites than were there, and never as fewer, so what they say is always safe. `Codes.exact` says whether it is all that
was there; where it is not, a second reading with `Colours` settles it: there, sites that could be mistaken for each other have
bits of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence

BITS = 46  # of a mask that stand for sites
LATENT_BITS, OBSERVED = 30, (4, 4, 4, 4)  # blocks of bits
LATENT = (8, 8, 7, 7), (5,) * 6, (3,) * 10  # which have 3,136 codes, 15,625, 59,049


class Codes:
    """Sites and their bits, counted from 0."""

    def __init__(self, latents: Sequence[str], observed: Sequence[str]) -> None:
        self.kinds = [list(latents), list(observed)]
        self.blocks = next((b for b in LATENT if math.prod(b) >= len(latents)), LATENT[-1]), OBSERVED
        self.single = len(latents) + len(observed) <= BITS
        self.by_name: dict[str, int] = {}
        self.by_code: dict[int, list[str]] = {}
        for kind in (0, 1):
            for place, name in enumerate(self.kinds[kind]):
                self._put(name, kind, place)
        self._known: dict[int, tuple[frozenset[str], bool]] = {}

    def _put(self, name: str, kind: int, place: int) -> None:
        if self.single:
            code = 1 << min(len(self.by_name), BITS - 1)
        else:
            code, first = 0, 0 if kind == 0 else LATENT_BITS
            for size in self.blocks[kind]:
                code |= 1 << (first + place % size)
                place, first = place // size, first + size
        self.by_name[name] = code
        self.by_code.setdefault(code, []).append(name)

    def bits(self, name: str) -> int:
        """The bits of a site; one that was not known before is taken for an observed one."""
        if name not in self.by_name:
            self.kinds[1].append(name)
            self._put(name, 1, len(self.kinds[1]) - 1)
            self._known.clear()
        return self.by_name[name]

    def sites(self, bits: int, of: str = "") -> frozenset[str]:
        """The sites that bits may stand for, all that went in among them; `of`: the site whose density they belong to."""
        return self._read(bits)[0]

    def exact(self, bits: int) -> bool:
        """Whether none but those sites can have made these bits."""
        return self._read(bits)[1]

    def _read(self, bits: int) -> tuple[frozenset[str], bool]:
        if bits not in self._known:
            codes, least = self._single(bits) if self.single else self._combined(bits)
            found = frozenset(n for code in codes for n in self.by_code.get(code, ()))
            self._known[bits] = found, len(found) <= least
        return self._known[bits]

    def _single(self, bits: int) -> tuple[list[int], int]:
        codes = [code for code in self.by_code if code & bits]
        return codes, len(codes)

    def _combined(self, bits: int) -> tuple[list[int], int]:
        """The codes that these bits may be made of, and how many sites it took at least to make them."""
        codes, least, first = list[int](), 0, 0
        for blocks in self.blocks:
            set_ = list[list[int]]()
            for size in blocks:
                set_.append([1 << b for b in range(first, first + size) if bits & 1 << b])
                first += size
            codes += [sum(parts) for parts in itertools.product(*set_)]
            least += max(map(len, set_))
        return codes, least


class Colours(Codes):
    """Bits for a second reading: no two sites that the first one took for parents of one site share a bit, if it can be."""

    def __init__(self, first: Codes, candidates: Mapping[str, frozenset[str]]) -> None:
        self.candidates = candidates
        super().__init__(*first.kinds)
        self.by_name, start = {}, 0
        for names, size in zip(first.kinds, (LATENT_BITS, sum(OBSERVED)), strict=True):
            colours = coloured(names, candidates.values())
            self.by_name |= {n: 1 << (start + colours[n] % size) for n in names}
            start += size

    def sites(self, bits: int, of: str = "") -> frozenset[str]:
        among = self.candidates.get(of)
        return frozenset(n for n in (self.by_name if among is None else among) if self.by_name[n] & bits)


def coloured(names: Sequence[str], groups: Collection[Collection[str]]) -> dict[str, int]:
    """A number for each name, as small as can be one after the other, so that names of one group never share one."""
    known = set(names)
    within: dict[str, list[Collection[str]]] = {n: [] for n in names}
    for group in groups:
        for n in group:
            if n in known:
                within[n].append(group)
    out: dict[str, int] = {}
    taken: dict[int, set[int]] = {}  # group → numbers
    for name in names:
        used = set[int]().union(*(taken.get(id(group), ()) for group in within[name]))
        out[name] = next(_free(used))
        for group in within[name]:
            taken.setdefault(id(group), set()).add(out[name])
    return out


def _free(used: set[int]) -> Iterator[int]:
    return (k for k in itertools.count() if k not in used)
