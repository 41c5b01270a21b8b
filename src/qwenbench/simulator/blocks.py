"""KV blocks of a hybrid model: who holds how many, which hold a cached prefix, and when there are none left."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

BLOCK_TOKENS = 528
"""Tokens of an attention block of Qwen3.5-9B: vLLM raises the block until its page holds a Mamba state."""
STATE_BLOCKS = 3
"""Blocks per request that hold gated-delta-net state: one for each of the 3 Mamba groups (mode none)."""


def blocks_of(tokens: int, state_blocks: int = STATE_BLOCKS, block_tokens: int = BLOCK_TOKENS) -> int:
    """Blocks that a request of so many tokens holds: ceil(tokens / block) + state blocks (field notes, 3)."""
    return -(-tokens // block_tokens) + state_blocks


@dataclass(slots=True)
class BlockTable:
    private: int = 0
    """Blocks that only this request uses, state blocks included."""
    shared: list[bytes] = field(default_factory=list)
    """Hashes of the cached blocks at its head, in order."""
    capacity: int = 0
    """Tokens for which there is room."""


class BlockPool:
    """The KV cache as a number of equal blocks; one (the null block) is never given out.

    A block with a hash stays after its request has gone and is given out again, least recently used first,
    when no empty one is left. With `caching` off no block is ever kept.
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        block_tokens: int = BLOCK_TOKENS,
        state_blocks: int = STATE_BLOCKS,
        caching: bool = False,
    ) -> None:
        self.num_blocks = num_blocks
        self.usable = max(num_blocks - 1, 0)
        self.block_tokens = block_tokens
        self.state_blocks = state_blocks
        self.caching = caching
        self._free = self.usable
        self._holders: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Blocks that can be given out, cached ones that nobody holds included."""
        return self._free + len(self._idle)

    @property
    def usage(self) -> float:
        """Share of the usable blocks that requests hold, 0..1 (vllm:kv_cache_usage_perc)."""
        return 1.0 - self.free / self.usable if self.usable else 0.0

    def lookup(self, hashes: tuple[bytes, ...]) -> int:
        """How many of these blocks, from the first on without a gap, are cached."""
        found = 0
        for value in hashes:
            if value not in self._holders and value not in self._idle:
                break
            found += 1
        return found

    def take(self, table: BlockTable, hashes: tuple[bytes, ...], tokens: int) -> bool:
        """First allocation of a request: the cached blocks `hashes` and room for `tokens` in all.

        All or nothing; False when there are not enough blocks.
        """
        own = blocks_of(tokens, self.state_blocks, self.block_tokens) - len(hashes)
        idle = sum(1 for value in hashes if value in self._idle)
        if own > self.free - idle:
            return False
        for value in hashes:
            self._idle.pop(value, None)
            self._holders[value] = self._holders.get(value, 0) + 1
        table.shared.extend(hashes)
        self._draw(own)
        table.private = own
        table.capacity = -(-tokens // self.block_tokens) * self.block_tokens
        return True

    def grow(self, table: BlockTable, tokens: int) -> bool:
        """Room for `tokens` in all; False (and nothing changed) when there are not enough blocks."""
        more = -(-(tokens - table.capacity) // self.block_tokens)
        if more <= 0:
            return True
        if more > self.free:
            return False
        self._draw(more)
        table.private += more
        table.capacity += more * self.block_tokens
        return True

    def publish(self, table: BlockTable, value: bytes) -> None:
        """A private block of this request is full and known by its hash from now on."""
        if not self.caching or value in self._holders or value in self._idle:
            return
        table.private -= 1
        table.shared.append(value)
        self._holders[value] = 1

    def release(self, table: BlockTable) -> None:
        """Gives everything back; blocks with a hash stay cached, the deepest to be dropped first."""
        self._free += table.private
        for value in reversed(table.shared):
            left = self._holders[value] - 1
            if left:
                self._holders[value] = left
            else:
                del self._holders[value]
                self._idle[value] = None
        table.private = 0
        table.shared = []
        table.capacity = 0

    def forget_cached(self) -> None:
        """Drops every cached block that nobody holds (POST /reset_prefix_cache)."""
        self._free += len(self._idle)
        self._idle.clear()

    def _draw(self, count: int) -> None:
        while self._free < count:
            self._idle.popitem(last=False)
            self._free += 1
        self._free -= count
