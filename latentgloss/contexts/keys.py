"""Packed keys: several fields in one 64-bit integer, which NumPy sorts and searches faster than separate arrays.

What belongs here: the layout of every packed key in this folder, and all shifts and masks of their bits. A key sorts by
its fields in the order of this table. Reads and writes nothing.

| key | dtype | fields, most significant first |
|---|---|---|
| window key (`WindowKeys`) | int64 | row of the latent * number of places + place of the window in `Layout` |
| claim (`Claims`) | int64 | window key (bits 8 to 62), claimant (bits 4 to 7), decile (bits 0 to 3) |
| document key (`document_keys`) | int64 | row of the latent (bits 32 to 62), document (bits 0 to 31) |
| order key (`order_keys`) | uint64 | group (bits 48 to 63), hash (bits 0 to 47) |
| strength (`strengths`) | uint64 | group, maximum (32 or 16 bits), as many high bits of the hash as fit |

A *row* is the index of a latent within its block; a *group* is row * number of splits + split (`Population`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, UInt8, UInt64

HASH_BITS = 48
"""Bits of the hashes that put windows in random order (`machine/sorting.py` expects as many)."""

_DECILE_BITS = 4
_CLAIMANT_BITS = 4
_CLAIMANT_MASK = (1 << _CLAIMANT_BITS) - 1
_DECILE_MASK = (1 << _DECILE_BITS) - 1
_DOCUMENT_BITS = 32
_DOCUMENT_MASK = (1 << _DOCUMENT_BITS) - 1


@dataclass(frozen=True)
class WindowKeys:
    """Keys of (latent, usable window) pairs: row * n_places + place, below 2^55."""

    n_places: int
    """Usable windows of the corpus; places are below it."""

    def pack(self, row: Int64[np.ndarray, "*n"], place: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """Key of each pair."""
        keys: Int64[np.ndarray, "*n"] = row * self.n_places + place
        return keys

    def first(self, row: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """Key of place 0 of each row; adding a place gives the key of that place."""
        return row * self.n_places

    def row(self, key: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """Row of the latent of each key."""
        return key // self.n_places

    def place(self, key: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
        """Place of the window of each key."""
        return key % self.n_places


@dataclass(frozen=True)
class Claims:
    """Claims on (latent, window) pairs, packed so that sorting puts the claim that wins a pair first.

    Claimant 0 is the latent itself, or an earlier stratum that the window belongs to; claimant n, from 1, is the
    latent's n-th nearest neighbour, which fires in the window. The lowest claimant wins.
    """

    packed: Int64[np.ndarray, " n"]
    """Window key << 8 | claimant << 4 | decile."""

    @classmethod
    def of(
        cls,
        key: Int64[np.ndarray, " n"],
        claimant: Int64[np.ndarray, " n"] | int = 0,
        decile: UInt8[np.ndarray, " n"] | int = 0,
    ) -> Claims:
        """One claim per window key. `decile`, 0 to 10: that of the window for the neighbour that claims it."""
        return cls(key << (_CLAIMANT_BITS + _DECILE_BITS) | (claimant << _DECILE_BITS | decile))

    @classmethod
    def joined(cls, *parts: Claims) -> Claims:
        """All claims of the parts, one part after the other."""
        return cls(np.concatenate([np.empty(0, dtype=np.int64), *(part.packed for part in parts)]))

    @property
    def key(self) -> Int64[np.ndarray, " n"]:
        """Window key of each claim."""
        return self.packed >> (_CLAIMANT_BITS + _DECILE_BITS)

    @property
    def decile(self) -> UInt8[np.ndarray, " n"]:
        """Decile of each claim."""
        return (self.packed & _DECILE_MASK).astype(np.uint8)

    @property
    def of_neighbour(self) -> Bool[np.ndarray, " n"]:
        """Whether the claimant is a neighbour, not the latent itself or an earlier stratum."""
        claimant: Int64[np.ndarray, " n"] = self.packed & (_CLAIMANT_MASK << _DECILE_BITS)
        return claimant > 0

    def where(self, chosen: Bool[np.ndarray, " n"]) -> Claims:
        """The chosen claims, in their order."""
        return Claims(self.packed[chosen])

    def winners(self) -> Claims:
        """The winning claim on each window key, ascending. Sorts these claims in place."""
        self.packed.sort()
        return Claims(self.packed[np.flatnonzero(np.diff(self.key, prepend=-1))])


def document_keys(row: Int64[np.ndarray, " n"], document: Integer[np.ndarray, " n"] | int) -> Int64[np.ndarray, " n"]:
    """Keys of (latent, document) pairs."""
    keys: Int64[np.ndarray, " n"] = row << _DOCUMENT_BITS | document
    return keys


def rows_and_documents(keys: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Row and document of each document key."""
    return keys >> _DOCUMENT_BITS, keys & _DOCUMENT_MASK


def hash48(bits: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The upper 48 of 64 random bits."""
    return bits >> np.uint64(64 - HASH_BITS)


def order_keys(group: Int64[np.ndarray, " n"], hashes: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Keys that sort windows by group and, within a group, by 48-bit hash."""
    keys: UInt64[np.ndarray, " n"] = group.astype(np.uint64) << np.uint64(HASH_BITS) | hashes
    return keys


def strengths(
    group: Int64[np.ndarray, " n"], maximum: Float32[np.ndarray, " n"], hashes: UInt64[np.ndarray, " n"], n_groups: int
) -> UInt64[np.ndarray, " n"]:
    """Keys that sort windows by group, then maximum (above 0), then 48-bit hash.

    The maximum takes 16 bits if all maxima are rounded to bfloat16, else 32. The hash loses the low bits that do not
    fit, so two windows of one group and maximum may have equal keys.
    """
    value, width = maximum.view(np.uint32), 32  # positive floats sort as their bits do
    if not np.bitwise_or.reduce(value) & np.uint32(0xFFFF):  # the low half is empty: bfloat16
        value, width = value >> np.uint32(16), 16
    room = 64 - width - n_groups.bit_length()
    lost = max(HASH_BITS - room, 0)
    keys = group.astype(np.uint64)
    keys <<= np.uint64(width)
    keys |= value
    keys <<= np.uint64(HASH_BITS - lost)
    keys |= hashes >> np.uint64(lost)
    return keys
