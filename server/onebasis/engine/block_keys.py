"""Names of KV cache blocks by what is in them: equal keys mean equal keys and values.

The key of a block covers everything that its contents follow from: base, basis, the coefficients' digest, and all token
ids from the first of the sequence to the last of the block. A replaced task has another digest, so it can't meet a
block of its predecessor (vLLM names blocks by the adapter's name: vllm-project/vllm#42125).

Every field is encoded with its length, every token id in 8 bytes, and roots and blocks are hashed in domains of their
own: two different inputs never give the same bytes to the hash.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NewType

from onebasis.core.ids import Digest

BlockKey = NewType("BlockKey", bytes)
"""32 bytes."""


def root_key(*, base: str, basis: str | None, coefficients: Digest | None) -> BlockKey:
    """Where the chain of a sequence's blocks begins.

    Args:
        base, basis: fingerprint of the base weights and digest of the basis; None without a basis.
        coefficients: digest of the sequence's task, None for the base model alone.
    """
    fields = b"".join(map(_encoded, (base, basis, coefficients)))
    return BlockKey(blake2b(fields, digest_size=32, person=b"onebasis.root").digest())


def next_key(parent: BlockKey, token_ids: Sequence[int]) -> BlockKey:
    """Key of the block that holds `token_ids` and comes after `parent`."""
    packed = struct.pack(f"<{len(token_ids)}q", *token_ids)
    return BlockKey(blake2b(parent + packed, digest_size=32, person=b"onebasis.block").digest())


def _encoded(field: str | None) -> bytes:
    if field is None:
        return b"\x00"
    data = field.encode()
    return b"\x01" + struct.pack("<q", len(data)) + data
