import pytest

from onebasis.core.ids import digest_of
from onebasis.engine.block_keys import next_key, root_key

DIGEST = digest_of(b"coefficients")


def test_equal_contents_have_equal_keys():
    root = root_key(base="b", basis="s", coefficients=DIGEST)
    assert root == root_key(base="b", basis="s", coefficients=DIGEST)
    assert next_key(root, [1, 2, 3]) == next_key(root, (1, 2, 3))
    assert len(root) == len(next_key(root, [1])) == 32


def test_every_field_of_the_root_counts():
    fields = {"base": "b", "basis": "s", "coefficients": DIGEST}
    others = [{"base": "B"}, {"basis": None}, {"basis": ""}, {"coefficients": digest_of(b"x")}, {"coefficients": None}]
    keys = {root_key(**fields | change) for change in [{}, *others]}
    assert len(keys) == len(others) + 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(("ab", "c"), ("a", "bc"), id="moved boundary"),
        pytest.param(("a", None), ("a\x00", None), id="none or a zero"),
        pytest.param(("a\x01", ""), ("a", "\x01"), id="marker in a name"),
        pytest.param(("a", "b\x00"), ("a", "b"), id="trailing zero"),
    ],
)
def test_no_choice_of_names_makes_two_identities_one(one, other):
    keys = [root_key(base=base, basis=basis, coefficients=None) for base, basis in (one, other)]
    assert keys[0] != keys[1]


def test_tokens_are_told_apart_wherever_they_stand():
    root = root_key(base="b", basis=None, coefficients=None)
    blocks = [(1, 2), (2, 1), (1,), (1, 2, 0), (12,), (258,), (1, 2 + 2**32)]
    assert len({next_key(root, block) for block in blocks}) == len(blocks)
    assert next_key(next_key(root, (1, 2)), (3, 4)) != next_key(next_key(root, (1, 5)), (3, 4))
    assert next_key(next_key(root, (1, 2)), (3, 4)) != next_key(root, (1, 2, 3, 4))


def test_a_root_is_never_a_block():
    """The same bytes hashed in the two domains."""
    encoded = b"\x01" + (0).to_bytes(8, "little") + b"\x00\x00"
    assert root_key(base="", basis=None, coefficients=None) != next_key(encoded, ())
