"""Grammars that answers have to follow: compiled by llguidance, once for each text, then shared by requests."""

from functools import lru_cache
from typing import Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from onebasis.core.errors import InvalidGrammar

MAX_GRAMMAR_CHARACTERS: Final = 256 * 1024
_N_KEPT: Final = 256
_LIMITS: Final = LLParserLimits(max_grammar_size=100_000, verbose_errors=False)  # fuel limits are llguidance's own
_SILENT: Final = 0


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps the latest. Any thread; compiling takes milliseconds.

    Args:
        n_vocab: of the model, which may have more rows than the tokenizer has tokens.
        eos_token_ids: allowed wherever an answer may end.

    Raises:
        ValueError: the tokenizer has no fast implementation to take the bytes of tokens from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, n_vocab: int, eos_token_ids: frozenset[int]) -> None:
        self._n_vocab = n_vocab
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=n_vocab, eos_token=sorted(eos_token_ids))
        self._compiled = lru_cache(maxsize=_N_KEPT)(self._compile)

    def compile(self, grammar: str, *, param: str) -> "Grammar":
        """A grammar in llguidance's dialect of Lark, ready to constrain.

        Args:
            param: the field it came from, for the message.

        Raises:
            InvalidGrammar: it can't be parsed, uses what is not supported, is too large, or allows no text at all.
        """
        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise InvalidGrammar(param, f"has {len(grammar)} characters, allowed are {MAX_GRAMMAR_CHARACTERS}")
        try:
            return self._compiled(grammar)
        except InvalidGrammar as error:
            raise InvalidGrammar(param, error.reason) from error

    def _compile(self, grammar: str) -> "Grammar":
        return Grammar(grammar, _matcher(self._tokenizer, grammar), self._n_vocab)


class Grammar:
    """Implements `TokenConstraint`. Its matcher stays at the start; every answer gets a copy."""

    def __init__(self, lark: str, matcher: LLMatcher, n_vocab: int) -> None:
        self.lark = lark
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._first = _allowed(matcher, n_vocab)

    def start(self) -> "GrammarState":
        return GrammarState(self._matcher.deep_copy(), self._first)


class GrammarState:
    """Implements `ConstraintState`."""

    def __init__(self, matcher: LLMatcher, first: NDArray[np.bool_]) -> None:
        self._matcher = matcher
        self.allowed = first

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def advance(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        _check(self._matcher)
        if not self.is_complete:
            self.allowed = _allowed(self._matcher, len(self.allowed))


def _matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    matcher = LLMatcher(tokenizer, grammar, log_level=_SILENT, limits=_LIMITS)
    _check(matcher)
    return matcher


def _allowed(matcher: LLMatcher, n_vocab: int) -> NDArray[np.bool_]:
    """[n_vocab] what may come next; llguidance's bits come in whole words."""
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    _check(matcher)
    return np.unpackbits(bits, count=n_vocab, bitorder="little").view(np.bool_)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise InvalidGrammar(None, matcher.get_error().strip() or "can't be followed")
