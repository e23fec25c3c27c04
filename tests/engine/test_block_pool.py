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


def key(i):
    return bytes([i]) * 32


def named(pool, n):
    """Blocks in use that are called 0, 1, 2 and so on."""
    blocks = pool.take(n)
    for i, block in enumerate(blocks):
        pool.name(block, key(i))
    return blocks


def test_an_idle_block_is_free_and_can_be_found():
    pool = BlockPool(4, block_size=2)
    blocks = named(pool, 2)
    pool.give_back(blocks)
    assert (pool.n_free, pool.usage) == (4, 0.0)
    assert pool.find([key(0), key(1), key(2)]) == blocks
    assert pool.find([key(2), key(0)]) == [], "a beginning, or nothing"
    pool.check_integrity([])


def test_a_shared_block_is_free_when_its_last_user_has_gone():
    pool = BlockPool(4, block_size=2)
    blocks = named(pool, 1)
    pool.share(blocks)
    pool.share(blocks)
    pool.check_integrity(blocks * 3)
    for n_left in (2, 1):
        pool.give_back(blocks)
        assert pool.n_free == 3
        pool.check_integrity(blocks * n_left)
    pool.give_back(blocks)
    assert pool.n_free == 4
    pool.share(blocks)
    assert pool.n_free == 3
    pool.check_integrity(blocks)


def test_blocks_without_a_name_go_first_then_the_longest_idle_from_the_end_of_a_prefix():
    pool = BlockPool(5, block_size=2)
    blocks = named(pool, 4)
    pool.give_back(blocks[2:])
    pool.give_back(blocks[:2])
    found = []
    for _ in range(5):
        pool.take(1)
        found.append(len(pool.find([key(i) for i in range(4)])))
    assert found == [4, 3, 2, 1, 0]


def test_use_keeps_a_block_from_being_the_longest_idle():
    pool = BlockPool(2, block_size=2)
    first, second = named(pool, 2)
    pool.give_back([first])
    pool.give_back([second])
    pool.share([first])
    pool.give_back([first])
    pool.take(1)
    assert pool.find([key(0)]) == [first]
    assert pool.find([key(1)]) == []


def test_blocks_to_be_shared_are_not_counted_as_free_for_the_rest():
    pool = BlockPool(4, block_size=2)
    idle, used = named(pool, 2)
    pool.give_back([idle])
    assert pool.n_free == 3
    assert pool.n_free_beside([idle, used]) == 2


def test_of_two_blocks_with_equal_contents_the_first_is_found():
    pool = BlockPool(4, block_size=2)
    first, second = pool.take(2)
    pool.name(first, key(0))
    pool.name(second, key(0))
    pool.check_integrity([first, second])
    assert pool.find([key(0)]) == [first]
    pool.give_back([first, second])
    pool.check_integrity([])


def test_a_block_that_is_handed_out_anew_has_lost_its_name():
    pool = BlockPool(1, block_size=2)
    pool.give_back(named(pool, 1))
    (block,) = pool.take(1)
    pool.name(block, key(9))
    assert (pool.find([key(0)]), pool.find([key(9)])) == ([], [block])
    pool.check_integrity([block])


def test_blocks_that_leaving_users_share_are_freed_once_and_only_without_others():
    pool = BlockPool(8, block_size=2)
    shared, also_mine = named(pool, 2)
    first, second = pool.take(2)
    for _ in range(2):
        pool.share([shared])
    pool.share([also_mine])
    users = [[shared, also_mine, first], [shared, second], [shared]]
    assert pool.n_freed(users, beside=()) == 4 - 1, "also_mine has a user who stays"
    assert pool.n_freed(users[:2], beside=()) == 2
    assert pool.n_freed(users, beside=[shared, 99]) == 2
    assert pool.n_freed([], beside=()) == 0
