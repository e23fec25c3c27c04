"""One request while the engine works on it."""

from onebasis.core.ids import BASE_SLOT
from onebasis.core.request import ConstraintState, FinishReason, GenerateRequest, TokenLogprobs
from onebasis.engine.block_keys import BlockKey
from onebasis.engine.seen_tokens import SeenTokens


class EngineSequence:
    """Tokens so far, and how many of them are in the KV cache. Made by the caller's thread, then the engine thread's.

    Invariant: n_computed <= n_tokens, and `blocks` hold at least n_computed tokens. The scheduler owns `n_computed`,
    `n_cached_tokens`, `blocks`, `block_keys` and `ticket`, the loop owns `slot` and the times, the runner
    `prompt_logprobs`.

    Attributes:
        seen: its distinct tokens; None where no penalty asks for them.
        n_cached_tokens: prompt tokens that were in the prefix cache when it was first admitted.
        block_keys: what its first blocks are called in the prefix cache, as far as somebody asked.
        ticket: its place in the order of first admission, from 1; 0 before that. The lower, the older.
    """

    def __init__(self, request: GenerateRequest, *, arrived_s: float) -> None:
        self.request = request
        self.output_ids: list[int] = []
        self.prompt_logprobs: list[TokenLogprobs] = []  # of prompt tokens 1, 2 and so on, as far as they are known
        self.constraint: ConstraintState | None = None if request.constraint is None else request.constraint.start()
        self.seen = SeenTokens(request.prompt_ids) if request.sampling.has_penalty else None
        self.n_computed = 0
        self.n_cached_tokens = 0
        self.blocks: list[int] = []
        self.block_keys: list[BlockKey] = []
        self.ticket = 0
        self.slot = BASE_SLOT
        self.arrived_s = arrived_s
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def tenant(self) -> str | None:
        return self.request.tenant

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def task_name(self) -> str | None:
        return None if self.request.task is None else self.request.task.name

    @property
    def n_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.request.prompt_ids) + len(self.output_ids)

    @property
    def banned_ids(self) -> frozenset[int]:
        """Tokens that would end it before it has as many as it was asked for."""
        return self.request.stop_token_ids if len(self.output_ids) < self.request.min_tokens else frozenset()

    def tokens(self, start: int, end: int) -> list[int]:
        """Tokens `start` to `end` of prompt and output."""
        n_prompt = len(self.request.prompt_ids)
        if start >= n_prompt:
            return self.output_ids[start - n_prompt : end - n_prompt]
        return [*self.request.prompt_ids[start:end], *self.output_ids[: max(0, end - n_prompt)]]

    def append(self, token_id: int) -> FinishReason | None:
        """Add a sampled token; the reason to end, if it is the last.

        Raises:
            InvalidGrammar: the request's grammar can't be followed any further.
        """
        self.output_ids.append(token_id)
        if self.seen is not None:
            self.seen.add(token_id)
        if token_id in self.request.stop_token_ids:
            return FinishReason.STOP
        if self.constraint is not None:
            self.constraint.advance(token_id)
            if self.constraint.is_complete:
                return FinishReason.STOP
        if len(self.output_ids) == self.request.max_tokens:
            return FinishReason.LENGTH
        return None
