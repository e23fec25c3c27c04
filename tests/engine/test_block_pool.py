import pytest

from onebasis.engine.block_pool import BlockPool


def test_blocks_are_handed_out_once_and_come_back():
    pool = BlockPool(5, block_size=4)
    first, second = pool.take(2), pool.take(3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert pool.n_free == 0
    pool.give_back(first)
    assert pool.n_free == 2
    assert sorted(pool.take(2)) == sorted(first)


def test_too_many_are_refused_and_none_is_taken():
    pool = BlockPool(3, block_size=4)
    taken = pool.take(2)
    with pytest.raises(ValueError, match="needed 2 blocks, 1 are free"):
        pool.take(2)
    assert pool.n_free == 1
    pool.check_integrity(taken)


@pytest.mark.parametrize(("n_tokens", "n_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_block_holds_block_size_tokens(n_tokens, n_blocks):
    assert BlockPool(9, block_size=4).n_needed(n_tokens) == n_blocks


def test_usage_is_the_share_in_use():
    pool = BlockPool(8, block_size=2)
    assert pool.usage == 0.0
    blocks = pool.take(6)
    assert pool.usage == 0.75
    pool.give_back(blocks)
    assert pool.usage == 0.0


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _, owned: owned.pop(), id="lost"),
        pytest.param(lambda _, owned: owned.append(owned[0]), id="owned twice"),
        pytest.param(lambda pool, owned: pool.give_back(owned[:1]), id="owned and free"),
        pytest.param(lambda _, owned: owned.append(4), id="of another pool"),
    ],
)
def test_broken_books_are_noticed(damage):
    pool = BlockPool(4, block_size=2)
    owned = pool.take(3)
    pool.check_integrity(owned)
    damage(pool, owned)
    with pytest.raises(AssertionError, match="lost or doubled"):
        pool.check_integrity(owned)
