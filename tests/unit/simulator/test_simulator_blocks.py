"""KV blocks: arithmetic against recorded servers, and that none is lost or given out twice."""

from hypothesis import given
from hypothesis import strategies as st

from qwenbench.simulator.blocks import BlockPool, BlockTable, blocks_of


def test_recorded_request_sizes() -> None:
    assert blocks_of(522) == 4
    assert blocks_of(522 + 128) == 5
    assert blocks_of(262_144) == 500


def test_null_block_is_never_given_out() -> None:
    pool = BlockPool(5)
    assert pool.usable == 4
    assert not pool.take(BlockTable(), (), 2 * 528)  # 2 + 3 state blocks
    assert pool.take(BlockTable(), (), 528)
    assert pool.free == 0 and pool.usage == 1.0


def test_grow_is_all_or_nothing() -> None:
    pool, table = BlockPool(6), BlockTable()
    assert pool.take(table, (), 528)
    assert pool.grow(table, 529)
    assert not pool.grow(table, 1057)
    assert table.capacity == 1056 and pool.free == 0
    pool.release(table)
    assert pool.free == pool.usable


def test_released_prefix_is_found_until_its_block_is_needed() -> None:
    pool = BlockPool(1 + 8, state_blocks=0, block_tokens=10, caching=True)
    first, hashes = BlockTable(), (b"a", b"b")
    assert pool.take(first, (), 20)
    for value in hashes:
        pool.publish(first, value)
    pool.release(first)
    assert pool.free == 8 and pool.lookup(hashes) == 2
    second = BlockTable()
    assert pool.take(second, hashes, 30)
    assert second.private == 1 and pool.free == 5
    pool.release(second)
    # The deepest block goes first: without its head it could never be found.
    assert pool.take(BlockTable(), (), 70)
    assert pool.lookup(hashes) == 1


def test_two_holders_of_one_prefix_count_once() -> None:
    pool = BlockPool(1 + 4, state_blocks=0, block_tokens=10, caching=True)
    one, two = BlockTable(), BlockTable()
    assert pool.take(one, (), 10)
    pool.publish(one, b"a")
    assert pool.take(two, (b"a",), 20)
    assert pool.free == 2
    pool.release(one)
    assert pool.free == 2
    pool.release(two)
    assert pool.free == 4


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3000), st.integers(0, 2)), max_size=60),
)
def test_no_block_is_lost_or_invented(blocks: int, actions: list[tuple[int, int, int]]) -> None:
    pool = BlockPool(blocks, caching=True)
    tables: dict[int, BlockTable] = {}
    for who, tokens, action in actions:
        table = tables.get(who)
        if table is None:
            table = BlockTable()
            hashes = (b"p0", b"p1")[: tokens // 528]
            if pool.take(table, hashes[: pool.lookup(hashes)], tokens):
                tables[who] = table
        elif action == 0:
            pool.release(tables.pop(who))
        elif action == 1:
            pool.grow(table, tokens)
        elif table.private > pool.state_blocks and len(table.shared) < 2:
            pool.publish(table, (b"p0", b"p1")[len(table.shared)])
        shared = {value for table in tables.values() for value in table.shared}
        held = sum(table.private for table in tables.values()) + len(shared)
        assert held + pool.free == pool.usable
        assert all(table.private >= 0 for table in tables.values())
    for table in tables.values():
        pool.release(table)
    assert pool.free == pool.usable
