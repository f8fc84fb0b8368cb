"""Which documents are kept from training: a pure function of their text and a seed.

Document x is held out where h(x) < threshold, h(x) being 64 bits of BLAKE2b keyed with the seed. The threshold
is fraction * 2^64; a corpus so small that no document falls below it takes that of its lowest hash instead,
which holds out one document. Equal documents always stand on the same side.
"""

from hashlib import blake2b
from typing import NamedTuple

from largebatch.text.documents import Document


class HeldOut(NamedTuple):
    """The rule of one corpus."""

    seed: int
    threshold: int

    @classmethod
    def of_fraction(cls, seed: int, fraction: float) -> "HeldOut":
        """Return the rule that holds out `fraction` of many documents."""
        return cls(seed, int(fraction * 2**64))

    def hash(self, document: Document) -> int:
        """Return h(x), an integer in [0, 2^64)."""
        state = blake2b("\n".join(document).encode(), digest_size=8, key=self.seed.to_bytes(8, "little"))
        return int.from_bytes(state.digest(), "little")

    def holds_out(self, document: Document) -> bool:
        """Return whether a document is kept from training."""
        return self.hash(document) < self.threshold

    def with_lowest(self, lowest_hash: int) -> "HeldOut":
        """Return the rule that holds out the documents of the lowest hash."""
        return self._replace(threshold=lowest_hash + 1)
