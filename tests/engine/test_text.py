from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebasis.engine.text import TextStream

SPECIAL = 0


class BytesTokenizer:
    """Byte-level like GPT-2's: a token is any piece of bytes, so characters may be split. Token 0 is special."""

    def __init__(self, pieces):
        self._pieces = [b"<end>", *pieces]
        self.n_decoded = 0

    def decode(self, token_ids, *, skip_special_tokens):
        self.n_decoded += len(token_ids)
        kept = [self._pieces[t] for t in token_ids if t != SPECIAL or not skip_special_tokens]
        return b"".join(kept).decode(errors="replace")


class SpacesTokenizer(BytesTokenizer):
    """Like Llama's: the space before the first word is dropped."""

    def decode(self, token_ids, *, skip_special_tokens):
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens).removeprefix(" ")


def stream(pieces, stop=(), tokenizer=BytesTokenizer, behind=(), min_tokens=0):
    """(joined text, whether a stop string ended it, text after each token) of an answer of these pieces."""
    ids_behind = range(len(pieces) + 1, len(pieces) + len(behind) + 1)
    text = TextStream(tokenizer([*pieces, *behind]), stop, min_tokens=min_tokens, behind=ids_behind)
    emitted = ""
    after = []
    for token_id in range(1, len(pieces) + 1):
        delta = text.push(token_id)
        emitted += delta.text
        after.append(emitted)
        if delta.stopped:
            return emitted, True, after
    delta = text.finish()
    return emitted + delta.text, delta.stopped, after


def test_text_comes_at_once_when_nothing_can_stop_it():
    _, _, after = stream([b"Hello", b" wor", b"ld"])
    assert after == ["Hello", "Hello wor", "Hello world"]


def test_a_character_waits_for_its_last_byte():
    pieces = [b"a", "é".encode()[:1], "é".encode()[1:] + b"b", *[bytes([byte]) for byte in "🙂".encode()], b"c"]
    joined, _, after = stream(pieces)
    assert after == ["a", "a", "aéb", "aéb", "aéb", "aéb", "aéb🙂", "aéb🙂c"]
    assert joined == "aéb🙂c"


def test_bytes_that_never_become_a_character_come_at_the_end():
    joined, _, after = stream([b"a", "🙂".encode()[:3]])
    assert after == ["a", "a"]
    assert joined == "a\ufffd"


def test_bytes_that_are_no_character_do_not_hold_back_what_follows():
    assert stream([b"a", b"\xff", b"b"])[2] == ["a", "a", "a\ufffdb"]


def test_special_tokens_have_no_text():
    text = TextStream(SpacesTokenizer([b"Hello", b" world"]))
    assert [text.push(token_id).text for token_id in (1, SPECIAL, 2, SPECIAL)] == ["Hello", "", " world", ""]
    assert text.finish().text == ""


def test_spaces_between_words_survive_a_tokenizer_that_drops_the_first():
    joined, _, after = stream([b" Hello", b" big", b" world"], tokenizer=SpacesTokenizer)
    assert after == ["Hello", "Hello big", "Hello big world"]
    assert joined == "Hello big world"


@pytest.mark.parametrize("behind", [[b"The capital", b" is"], [b" a", b" b", b" c"]])
def test_an_answer_behind_a_text_keeps_the_space_between_them(behind):
    joined, _, after = stream([b" Paris", b" is"], tokenizer=SpacesTokenizer, behind=behind)
    assert after == [" Paris", " Paris is"]
    assert joined == " Paris is"
    assert stream([b" Paris", b"."], [" Paris"], tokenizer=SpacesTokenizer, behind=behind)[:2] == ("", True)


SMILE = "🙂".encode()


@pytest.mark.parametrize("piece", [SMILE[:2], b"\xff", SMILE[2:] + SMILE[:2], b"a" + SMILE[:1], None])
def test_tokens_that_never_make_a_character_take_linear_time(piece):
    n_tokens = 2000
    tokenizer = BytesTokenizer([piece])
    text = TextStream(tokenizer)
    given_out = [text.push(SPECIAL if piece is None else 1).text for _ in range(n_tokens)]
    whole = "" if piece is None else (piece * n_tokens).decode(errors="replace")
    assert len(whole) - 20 <= len("".join(given_out)), "it comes on the way, not at the end"
    assert "".join(given_out) + text.finish().text == whole
    assert tokenizer.n_decoded < 64 * n_tokens


def test_a_character_may_come_late_after_tokens_without_text():
    text = TextStream(BytesTokenizer([b"a", SMILE[:2], SMILE[2:]]))
    tokens = [1, *[SPECIAL] * 40, 2, *[SPECIAL] * 40, 3]
    assert "".join(text.push(token_id).text for token_id in tokens) == "a🙂"


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        ([b"one", b"\n\n", b"two"], ["\n\n"], "one"),
        ([b"one\n", b"\ntwo"], ["\n\n"], "one"),
        ([b"x", b"S", b"T", b"O", b"P", b"y"], ["STOP"], "x"),
        ([b"STOP"], ["STOP"], ""),
        ([b"ab", b"cd", b"ef"], ["zzz", "de", "f"], "abc"),
        ([b"a then b"], ["b", "then"], "a "),
        ([b"caf", "é".encode()[:1], "é".encode()[1:], b" au lait"], ["é"], "caf"),
        ([b"aab"], ["ab"], "a"),
    ],
)
def test_an_answer_ends_before_its_stop_string(pieces, stop, text):
    joined, stopped, _ = stream(pieces, stop)
    assert (joined, stopped) == (text, True)


def test_the_beginning_of_a_stop_string_is_held_back_and_then_given_out():
    joined, stopped, after = stream([b"ab", b"ST", b"O", b"x", b"ST"], ["STOP"])
    assert (joined, stopped) == ("abSTOxST", False)
    assert not any("S" in text for text in after[:3])


def test_a_stop_string_can_come_with_the_very_last_bytes():
    text = TextStream(BytesTokenizer([b"a\xff"]), ["\ufffd"])
    assert text.push(1).text == ""
    assert text.finish() == type(text.finish())("a", stopped=True)


noise_cuts = st.one_of(st.lists(st.integers(0, 60), max_size=30), st.just(range(400)), st.just(range(0, 400, 3)))
cut_points = st.lists(st.integers(0, 200), max_size=30)
texts = st.text(alphabet=st.sampled_from("ab \nS\té漢🙂\ufffd"), max_size=40)


def cut(data, points):
    """data in pieces, cut at these places; empty pieces stay."""
    places = sorted({0, len(data), *[min(point, len(data)) for point in points]})
    return [data[a:b] for a, b in pairwise(places)] if data else [b""]


@given(texts, cut_points)
def test_joined_pieces_are_the_whole_text(text, points):
    joined, stopped, _ = stream(cut(text.encode(), points))
    assert (joined, stopped) == (text, False)


@given(st.one_of(st.binary(max_size=40), st.text("é🙂", max_size=60).map(lambda text: text.encode()[1:-1])), noise_cuts)
def test_joined_pieces_are_the_whole_text_for_any_bytes(data, points):
    joined, _, after = stream(cut(data, points))
    assert joined == data.decode(errors="replace")
    assert all(joined.startswith(text) for text in after), "what was given out is never taken back"


@given(texts, cut_points, st.lists(st.text(alphabet="ab \nS漢🙂", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_cut_wherever_the_tokens_are_split(text, points, stop):
    joined, stopped, after = stream(cut(text.encode(), points), stop)
    assert stopped == any(word in text for word in stop)
    assert text.startswith(joined)
    assert not any(word in joined for word in stop)
    if stopped:
        assert any(text.startswith(word, len(joined)) for word in stop)
    else:
        assert joined == text
    assert all(joined.startswith(given_out) for given_out in after)


@given(
    st.lists(st.text(alphabet="abS", max_size=3), max_size=12),
    st.lists(st.text(alphabet="abS", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
)
def test_a_stop_string_counts_if_it_ends_behind_min_tokens(pieces, stop, min_tokens):
    text = "".join(pieces)
    n_safe = len("".join(pieces[:min_tokens]))
    ends = [n for n in range(n_safe + 1, len(text) + 1) if any(text[:n].endswith(word) for word in stop)]
    joined, stopped, _ = stream([piece.encode() for piece in pieces], stop, min_tokens=min_tokens)
    assert stopped == bool(ends)
    if not ends:
        assert joined == text
    else:
        assert text.startswith(joined)
        assert any(text.startswith(word, len(joined)) and len(joined) + len(word) > n_safe for word in stop)


@given(texts, cut_points, st.text(alphabet="abS", min_size=1, max_size=3))
def test_one_stop_string_cuts_at_its_first_place(text, points, word):
    joined, _, _ = stream(cut(text.encode(), points), [word])
    assert joined == text.partition(word)[0]


@given(st.text(alphabet="ab \nS", min_size=1, max_size=40), cut_points, st.text(alphabet="xy", min_size=1, max_size=5))
def test_no_more_is_held_back_than_could_begin_a_stop_string(text, points, word):
    pieces = cut(text.encode(), points)
    _, _, after = stream(pieces, [word])
    n_known = 0
    for piece, given_out in zip(pieces, after, strict=True):
        n_known += len(piece)
        assert len(given_out) >= n_known - (len(word) - 1)


noise = st.sampled_from([b"a", b"\xff", b"\xc3", b"\xa9", SMILE[:2], SMILE[2:], SMILE[1:3], b""])


@given(st.lists(noise, max_size=120))
def test_long_noise_is_given_out_as_it_is_decoded_whole(pieces):
    joined, _, after = stream(pieces)
    assert joined == b"".join(pieces).decode(errors="replace")
    assert all(joined.startswith(text) for text in after)
