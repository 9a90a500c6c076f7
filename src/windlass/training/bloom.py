"""The bloom filter of a WDBX file: which ids are surely not in it.

Bits and hashes are reference E's, so that either side's filter answers for the other: `h1 + i * h2` for i = 0, 1, ...
where h1 and h2 are XXH3 (64 bits) of the id's eight little-endian bytes with the seeds 0 and 1; sizes are the usual
optimum. XXH3 for inputs of 4 to 8 bytes: xxHash's doc/xxhash_spec.md, section XXH3, "Small inputs".
"""

from __future__ import annotations

import math
from typing import Final

from windlass.core.errors import ConfigError

__all__ = ["MOST_IDS", "BloomFilter"]

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_PRIME: Final = 0x9FB2_1C65_1E98_DF25
#: Bytes 8-15 and 16-23 of XXH3's default secret, exclusive-ored.
_SECRET: Final = 0x1CAD_21F7_2C81_017C ^ 0xDB97_9083_E96D_D4DE
_MOST_HASHES: Final = 16
#: Ids that a filter is made for at most: some 320 MB of bits.
MOST_IDS: Final = 1 << 28


class BloomFilter:
    """`hashes` bits of `bits` (bytes, lowest bit first) are set for each id that was added."""

    def __init__(self, hashes: int, bits: bytearray) -> None:
        if not 1 <= hashes <= _MOST_HASHES or not bits:
            raise ConfigError(f"A bloom filter has 1 to {_MOST_HASHES} hashes and at least 8 bits.")
        self.hashes, self.bits = hashes, bits

    @classmethod
    def sized(cls, expected: int, wrong: float = 0.01) -> BloomFilter:
        """Return an empty filter for `expected` ids of which a share of `wrong` is falsely said to be there."""
        if not 0 < expected <= MOST_IDS or not 0 < wrong < 1:
            raise ConfigError(f"A bloom filter is for 1 to {MOST_IDS} ids and a share between 0 and 1.")
        bits = int(-expected * math.log(wrong) / (math.log(2) * math.log(2)))
        hashes = int(bits / expected * math.log(2))
        return cls(max(1, min(hashes, _MOST_HASHES)), bytearray(max(1, (bits + 7) // 8)))

    def add(self, id: int) -> None:
        """Add an id (0 to 2^64 - 1)."""
        for place in self._places(id):
            self.bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, id: int) -> bool:
        """Tell whether an id may be there; False is certain."""
        return all(self.bits[place >> 3] >> (place & 7) & 1 for place in self._places(id))

    def _places(self, id: int) -> list[int]:
        first, second = xxh3_u64(id, 0), xxh3_u64(id, 1)
        size = len(self.bits) * 8
        # The reference takes the sum modulo 2^64 - 1 first.
        return [((first + i * second & _MASK) % _MASK) % size for i in range(self.hashes)]


def xxh3_u64(value: int, seed: int) -> int:
    """Return XXH3-64 of the eight little-endian bytes of `value`."""
    low = seed & 0xFFFF_FFFF
    seed ^= int.from_bytes(low.to_bytes(4, "little"), "big") << 32
    flip = (_SECRET - seed) & _MASK
    # The second half of the input, plus the first half as the upper 32 bits.
    keyed = ((value >> 32) + ((value & 0xFFFF_FFFF) << 32)) ^ flip
    keyed ^= _rotated(keyed, 49) ^ _rotated(keyed, 24)
    keyed = keyed * _PRIME & _MASK
    keyed ^= (keyed >> 35) + 8
    keyed = keyed * _PRIME & _MASK
    return keyed ^ keyed >> 28


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _MASK
