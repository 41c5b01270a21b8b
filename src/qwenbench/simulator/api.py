"""What a client may send to the generation endpoints, and the errors that vLLM gives for what it may not.

Types are pydantic's to judge, as in vLLM; limits that depend on the served model have vLLM's words (0.20.2, 0.32).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.types import StrictBool, StrictFloat, StrictInt, StrictStr

from qwenbench.simulator import text

IMAGE_TOKENS = 256
"""A picture's share of a prompt, whatever its size."""

Number = StrictInt | StrictFloat


class ApiError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        """vLLM's JSON for it."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return json.dumps({"error": error}, separators=(",", ":")).encode()


class GenerationBody(BaseModel):
    """The fields that matter here; others are let pass, as vLLM lets them."""

    model_config = ConfigDict(extra="allow")

    model: StrictStr | None = None
    max_tokens: StrictInt | None = None
    min_tokens: StrictInt | None = None
    n: StrictInt | None = None
    seed: StrictInt | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    ignore_eos: StrictBool | None = None
    stream: StrictBool | None = None
    stream_options: dict[str, Any] | None = None
    cache_salt: Any = None
    return_token_ids: StrictBool | None = None


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field()]
    max_completion_tokens: StrictInt | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: Any = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A generation request that will be served."""

    chat: bool
    model: str
    tokens: list[str]
    """The prompt, template included."""
    stream: bool
    include_usage: bool
    continuous_usage: bool
    max_tokens: int
    output_tokens: int
    finish_reason: str
    thinking: bool
    salt: str
    return_token_ids: bool
    text_seed: int
    vocabulary: tuple[str, ...]
    """Words to answer with where the prompt is not in Latin script."""
    filtered: bool
    """Whether its tokens are drawn with top-k, top-p or min-p."""
    penalised: bool
    """Whether presence, frequency or repetition penalties apply."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What requests are checked against."""

    names: tuple[str, ...]
    max_model_len: int
    reasoning: bool
    seed: int


def load_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises ApiError as vLLM does."""
    try:
        value = json.loads(body)
    except ValueError as error:
        at, reason = getattr(error, "pos", 0), str(getattr(error, "msg", "Invalid JSON"))
        found = {"type": "json_invalid", "loc": f"body.{at}", "msg": "JSON decode error", "ctx": {"error": reason}}
        raise _invalid([found]) from None
    except RecursionError:
        raise ApiError(400, "SIMULATED: the JSON is nested too deeply.") from None
    if not isinstance(value, dict):
        raise _invalid([{"type": "model_attributes_type", "loc": "body", "msg": "Input should be a valid dictionary"}])
    return value


def parse_generation(body: dict[str, Any], served: ServedModel, *, chat: bool) -> GenerationRequest:
    """Checks a request body and settles how many tokens it will get. Raises ApiError."""
    try:
        fields = ChatBody(**body) if chat else CompletionBody(**body)
    except ValidationError as error:
        raise _invalid([_told(found) for found in error.errors(include_url=False)]) from None
    if isinstance(fields, ChatBody) and not fields.messages:
        raise ApiError(400, "SIMULATED: messages must hold at least one message.", param="messages")
    check_model(fields.model, served)
    limit = fields.max_completion_tokens if isinstance(fields, ChatBody) else None
    if limit is None:
        limit = fields.max_tokens if chat or "max_tokens" in body else 16
    least = fields.min_tokens or 0
    _check_sampling(body, limit, least)
    tokens = chat_tokens(body, thinking=_thinking(body)) if chat else prompt_tokens(body.get("prompt"))
    maximum = _output_limit(len(tokens), limit, served.max_model_len)
    seed = text.request_seed(served.seed, "".join(tokens) + str(fields.seed))
    length, reason = maximum, "length"
    if not fields.ignore_eos:
        natural = max(text.natural_length(seed), least)
        if natural < maximum:
            length, reason = natural, "stop"
    stream_options = fields.stream_options or {}
    return GenerationRequest(
        chat=chat,
        model=fields.model or served.names[0],
        tokens=tokens,
        stream=bool(fields.stream),
        include_usage=bool(stream_options.get("include_usage")),
        continuous_usage=bool(stream_options.get("continuous_usage_stats")),
        max_tokens=maximum,
        output_tokens=length,
        finish_reason=reason,
        thinking=chat and served.reasoning and _thinking(body),
        salt=fields.cache_salt or "",
        return_token_ids=bool(fields.return_token_ids),
        text_seed=seed,
        vocabulary=text.borrowed_words(_spoken(body)),
        filtered=_filtered(fields),
        penalised=bool(fields.presence_penalty or fields.frequency_penalty)
        or fields.repetition_penalty not in (None, 1, 1.0),
    )


def _filtered(fields: GenerationBody) -> bool:
    top_p = 1 if fields.top_p is None else fields.top_p
    return fields.temperature != 0 and bool(top_p < 1 or (fields.top_k or 0) > 0 or fields.min_p)


def _told(found: Any) -> dict[str, Any]:
    """pydantic's finding as vLLM shows it."""
    loc = ".".join(["body", *(str(part) for part in found["loc"] if not str(part).startswith(("int", "float")))])
    return {"type": found["type"], "loc": loc, "msg": found["msg"]}


def check_model(name: object, served: ServedModel) -> None:
    """Raises ApiError 404 for a model that is not served (none named: the served one)."""
    if name and name not in served.names:
        aliases = ", ".join(served.names)
        raise ApiError(404, f"The model `{name}` does not exist. Valid aliases: {aliases}.", "NotFoundError", "model")


def chat_tokens(body: dict[str, Any], *, thinking: bool = True) -> list[str]:
    """The tokens of a conversation with its chat template."""
    tokens: list[str] = []
    for message in body["messages"]:
        tokens += ["<|im_start|>", str(message.get("role", "user")), "\n"]
        tokens += _content_tokens(message.get("content"))
        tokens += ["<|im_end|>", "\n"]
    tokens += ["<|im_start|>", "assistant", "\n", "<think>", "\n"]
    return tokens if thinking else [*tokens, "\n", "</think>", "\n\n"]


def prompt_tokens(prompt: object) -> list[str]:
    """The tokens of a plain prompt: a text, or a list of token ids."""
    if isinstance(prompt, str):
        tokens = text.pieces(prompt)
    elif isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
        tokens = [str(item) for item in prompt]
    elif isinstance(prompt, list) and len(prompt) == 1:
        return prompt_tokens(prompt[0])
    else:
        raise ApiError(400, "SIMULATED: exactly one prompt, a text or a list of token ids, is simulated.")
    if not tokens:
        raise ApiError(400, "The decoder prompt cannot be empty", param="prompt")
    return tokens


def _content_tokens(content: object) -> list[str]:
    if isinstance(content, str):
        return text.pieces(content)
    tokens: list[str] = []
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                tokens += text.pieces(str(part.get("text", "")))
            elif kind is not None:
                tokens += ["<|image_pad|>"] * IMAGE_TOKENS
    return tokens


def _spoken(body: dict[str, Any]) -> str:
    """The text of the whole conversation, or of the prompt."""
    messages = body.get("messages")
    contents = [message.get("content") for message in messages] if messages else [body.get("prompt")]
    return " ".join(content for content in contents if isinstance(content, str))


def _thinking(body: dict[str, Any]) -> bool:
    kwargs = body.get("chat_template_kwargs") or {}
    return kwargs.get("enable_thinking", True) is not False


def _refusal(param: str, text: str, value: object = None) -> ApiError:
    """A 400 in the form of vLLM's own checks."""
    told = f"parameter={param}" + ("" if value is None else f", value={value}")
    return ApiError(400, f"{text} ({told})", param=param)


def _output_limit(prompt: int, limit: int | None, longest: int) -> int:
    if limit is not None and limit > longest:
        text = f"max_tokens={limit} cannot be greater than max_model_len={longest}. Please request fewer output tokens."
        raise _refusal("max_tokens", text, limit)
    context = f"This model's maximum context length is {longest} tokens. However,"
    reduce = "Please reduce the length of the input prompt"
    if prompt >= longest:
        text = (
            f"{context} your prompt contains at least {longest + 1} input tokens, which exceeds this limit even "
            f"without any output tokens. {reduce}."
        )
        raise _refusal("input_tokens", text, longest + 1)
    if limit is None:
        return longest - prompt
    if prompt + limit > longest:
        least = longest - limit + 1
        text = (
            f"{context} you requested {limit} output tokens and your prompt contains at least {least} input tokens, "
            f"for a total of at least {least + limit} tokens. {reduce} or the number of requested output tokens."
        )
        raise _refusal("input_tokens", text, least)
    return limit


def _check_sampling(body: dict[str, Any], limit: int | None, least: int) -> None:
    temperature, top_p, salt = body.get("temperature"), body.get("top_p"), body.get("cache_salt")
    if limit is not None and limit < 1:
        raise _refusal("max_tokens", f"max_tokens must be at least 1, got {limit}.", limit)
    if limit is not None and least > limit:
        raise ApiError(400, f"min_tokens must be less than or equal to max_tokens={limit}, got {least}.")
    if temperature is not None and temperature < 0:
        value = float(temperature)
        raise _refusal("temperature", f"temperature must be non-negative, got {value}.", value)
    if top_p is not None and not 0 < top_p <= 1:
        raise _refusal("top_p", f"top_p must be in (0, 1], got {top_p}.", top_p)
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise _refusal("cache_salt", "Parameter 'cache_salt' must be a non-empty string if provided.")
    if (body.get("n") or 1) != 1:
        raise ApiError(400, "SIMULATED: n other than 1 is not simulated.", param="n")
    if body.get("stream_options") and not body.get("stream"):
        raise _refusal("stream_options", "Stream options can only be defined when `stream=True`.")


def _invalid(errors: list[dict[str, Any]]) -> ApiError:
    label = "error" if len(errors) == 1 else "errors"
    lines = "\n".join(f"  {error}" for error in errors)
    message = f"{len(errors)} validation {label}:\n{lines}"
    return ApiError(400, message, "Bad Request", str(errors[0]["loc"]))
