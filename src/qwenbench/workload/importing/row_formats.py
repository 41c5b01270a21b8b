"""What a row of a dataset says: from its columns to a prompt, one function per dataset."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from qwenbench.errors import UsageError
from qwenbench.workload.importing.dataset_files import DatasetRow
from qwenbench.workload.prompts import Prompt, PromptTurn


@dataclass(frozen=True, slots=True)
class RowFormat:
    name: str
    title: str
    columns: tuple[str, ...]
    """Columns that every row must have; `a|b`: one of them."""
    read: Callable[[DatasetRow], Prompt | None]
    """None: the row holds no text and is passed over."""
    hub_id: str | None = None
    """Where the dataset is published."""
    hub_folder: str = ""
    hub_split: str = "train"
    licence: str | None = None
    """As the dataset's card says."""

    def missing(self, row: DatasetRow) -> str | None:
        """The first of its columns that a row has not got."""
        return next((one for one in self.columns if not any(name in row.values for name in one.split("|"))), None)


def _text(row: DatasetRow, column: str, *, optional: bool = False) -> str:
    value = row.values.get(column)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{type(value).__name__}, not text"
        raise UsageError(f"{row.where}: column {column!r} is {kind}.")
    return value.strip()


def _prompt(turns: tuple[PromptTurn, ...], **more: Any) -> Prompt:
    """What a row holds; its id and its provenance come from the import."""
    return Prompt(id="row", turns=turns, **more)


def _single(user: str, assistant: str = "", **more: Any) -> Prompt | None:
    return _prompt((PromptTurn(user=user, assistant=assistant or None),), **more) if user else None


def _gsm8k(row: DatasetRow) -> Prompt | None:
    solution = _text(row, "answer")
    _, marked, final = solution.rpartition("####")
    return _single(_text(row, "question"), solution, answer=final.strip().replace(",", "") if marked else None)


def _code_alpaca(row: DatasetRow) -> Prompt | None:
    # Dolly names the same columns otherwise
    given = _text(row, "context" if "context" in row.values else "input", optional=True)
    user = _text(row, "instruction")
    answer = _text(row, "response" if "response" in row.values else "output", optional=True)
    return _single(f"{user}\n\n{given}" if user and given else user, answer)


def _aya(row: DatasetRow) -> Prompt | None:
    name = _text(row, "language", optional=True) or _text(row, "language_code", optional=True)
    return _single(_text(row, "inputs"), _text(row, "targets"), language=language_code(name))


def _humaneval(row: DatasetRow) -> Prompt | None:
    code = row.values.get("prompt")
    if not isinstance(code, str):
        raise UsageError(f"{row.where}: column 'prompt' is missing or no text.")
    solution = str(row.values.get("canonical_solution") or "")
    return _single(f"Complete this Python function.\n\n```python\n{code.rstrip()}\n```", (code + solution).rstrip())


def _plain(row: DatasetRow) -> Prompt | None:
    column = next((name for name in (*_PLAIN.split("|"), "question") if name in row.values), "prompt")
    if isinstance(row.values.get(column), Sequence) and not isinstance(row.values[column], str):
        return _talk(row, row.values[column], column)
    system = _text(row, "system_prompt", optional=True) or None
    language = language_code(_text(row, "language", optional=True) or "en")
    return _single(_text(row, column), language=language, system=system)


_PLAIN = "prompt|query|text_input|text"


def _first_question(row: DatasetRow) -> Prompt | None:
    """The first of a row's questions: later ones follow answers that the row has not got."""
    column = "turns" if "turns" in row.values else "question"
    asked = row.values.get(column)
    if isinstance(asked, str) or not isinstance(asked, Sequence) or not asked:
        raise UsageError(f"{row.where}: column {column!r} is no list.")
    first = asked[0]
    if isinstance(first, Sequence) and not isinstance(first, str):  # BFCL: a list of messages
        return _talk(row, first, column)
    return _single(_text_of_parts([first], f"{row.where}: {column}.0").strip())


def _vllm_custom(row: DatasetRow) -> Prompt | None:
    tokens = row.values.get("output_tokens")
    if isinstance(tokens, str) and tokens.strip().isdecimal():
        tokens = int(tokens)  # a cell of a CSV file
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 < tokens < 1_000_000):
        raise UsageError(f"{row.where}: column 'output_tokens' is no number of tokens.")
    return _single(_text(row, "prompt"), output_tokens=tokens)


def _openai_batch(row: DatasetRow) -> Prompt | None:
    body = row.values.get("body", row.values.get("params"))
    if not isinstance(body, Mapping):
        raise UsageError(f"{row.where}: column 'body' is no object.")
    path = row.values.get("url") or ""
    if not re.search(r"/(?:completions|responses|messages)/?$|^$", str(path)):
        raise UsageError(f"{row.where}: its url {str(path)[:60]} gives no text.")
    system = body.get("instructions", body.get("system"))
    for column in ("messages", "input"):
        if isinstance(body.get(column), list):
            content = _talk(row, body[column], column)
            told = isinstance(system, str) and content is not None and content.system is None
            return content.model_copy(update={"system": system}) if content and told else content
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise UsageError(f"{row.where}: the body has neither messages nor a prompt.")
    return _single(prompt.strip())


def _messages(row: DatasetRow) -> Prompt | None:
    return _talk(row, row.values.get("messages"), "messages")


def _conversations(row: DatasetRow) -> Prompt | None:
    column = "conversations" if "conversations" in row.values else "items"
    return _talk(row, row.values.get(column), column)


def _conversation(row: DatasetRow) -> Prompt | None:
    column = "conversation" if "conversation" in row.values else "conversation_a"
    content = _talk(row, row.values.get(column), column)
    name = _text(row, "language", optional=True)
    return content.model_copy(update={"language": language_code(name)}) if content and name else content


def _talk(row: DatasetRow, messages: object, column: str) -> Prompt | None:
    """A conversation as turns of a user and an assistant; raises UsageError for what cannot be replayed as one."""
    if isinstance(messages, str) and messages.lstrip().startswith("["):  # a cell of a CSV file
        with suppress(orjson.JSONDecodeError):
            messages = orjson.loads(messages)
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UsageError(f"{row.where}: column {column!r} is no list.")
    system: str | None = None
    turns: list[PromptTurn] = []
    asked: str | None = None
    for place, message in enumerate(messages):
        role, content = _message(message, f"{row.where}: {column}.{place}")
        if role == "system" and place == 0:
            system = content or None
        elif role == "user" and asked is None:
            asked = content
        elif role == "assistant" and asked is not None:
            if not asked or not content:
                return None
            turns.append(PromptTurn(user=asked, assistant=content))
            asked = None
        else:
            raise UsageError(
                f"{row.where}: {column}.{place}: {role!r} does not follow; users and assistants alternate."
            )
    if asked:
        turns.append(PromptTurn(user=asked))
    return _prompt(tuple(turns), system=system) if turns else None


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where}: is no object with role and content.")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if message.get("tool_calls") or message.get("function_call") or role in _TOOL_ROLES:
        raise UsageError(f"{where}: has tool calls, which a prompt set cannot replay (a trace can: --trace).")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = _text_of_parts(content, where)
    if not isinstance(role, str) or not isinstance(content, str):
        raise UsageError(f"{where}: role and content must be text.")
    return _ROLES.get(role.lower(), role.lower()), content.strip()


_TOOL_ROLES = ("tool", "function", "observation", "function_call", "tool_call", "function_response", "tool_response")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "developer": "system",
}


def _text_of_parts(parts: Sequence[Any], where: str) -> str:
    """The text of content that is a list of parts. Raises UsageError for images, sound and files."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UsageError(f"{where}: has a part that is no text ({kind}).")
    return "\n".join(texts)


def _own(row: DatasetRow) -> Prompt | None:
    try:
        prompt = Prompt.model_validate(row.values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(f"{row.where}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from error
    return prompt


FORMATS: Mapping[str, RowFormat] = {
    one.name: one
    for one in (
        RowFormat("ultrachat", "UltraChat", ("messages",), _messages, "HuggingFaceH4/ultrachat_200k", "data",
                  "train_sft", "MIT"),
        RowFormat("bfcl", "BFCL", ("question", "function|involved_classes"), _first_question,
                  "gorilla-llm/Berkeley-Function-Calling-Leaderboard", licence="Apache-2.0"),
        RowFormat("gsm8k", "GSM8K", ("question", "answer"), _gsm8k, "openai/gsm8k", "main", "train", "MIT"),
        RowFormat("code-alpaca", "CodeAlpaca", ("instruction",), _code_alpaca, "sahil2801/CodeAlpaca-20k", "", "",
                  "CC-BY-4.0"),
        RowFormat("aya", "Aya", ("inputs", "targets"), _aya, "CohereLabs/aya_dataset", "data", "train", "Apache-2.0"),
        RowFormat("humaneval", "HumanEval", ("task_id", "prompt"), _humaneval, "openai/openai_humaneval", "", "test",
                  "MIT"),
        RowFormat("sharegpt", "ShareGPT", ("conversations|items",), _conversations,
                  "anon8231489123/ShareGPT_Vicuna_unfiltered", "", "", "Apache-2.0"),
        RowFormat("wildchat", "WildChat", ("conversation", "toxic"), _conversation, "allenai/WildChat-1M", "data",
                  "train", "ODC-BY"),
        RowFormat("lmsys", "LMSYS-Chat", ("conversation|conversation_a",), _conversation, "lmsys/lmsys-chat-1m",
                  "data", "train", "LMSYS-Chat-1M Dataset License Agreement"),
        RowFormat("openai-batch", "OpenAI batch", ("custom_id", "body|params"), _openai_batch),
        RowFormat("vllm-custom", "vLLM custom", ("prompt", "output_tokens"), _vllm_custom),
        RowFormat("qwenbench", "qwenbench prompt set", ("id", "turns"), _own),
        RowFormat("openorca", "OpenOrca", ("question", "response"), _plain, "Open-Orca/OpenOrca", licence="MIT"),
        RowFormat("mt-bench", "MT-Bench", ("turns",), _first_question),
        RowFormat("prompt", "plain prompts", (_PLAIN,), _plain),
    )
}  # fmt: skip
"""Format name -> format. The order is the one in which a row's columns are tried."""


def find_format(name: str) -> RowFormat:
    """The format of this name. Raises UsageError that lists them."""
    if name not in FORMATS:
        raise UsageError(f"--format {name!r}: unknown. Formats: {', '.join(FORMATS)}, or auto.")
    return FORMATS[name]


def detect_format(row: DatasetRow, before: RowFormat | None = None) -> RowFormat:
    """The first format whose columns the row has, else that of the rows before. Raises UsageError with the columns."""
    for one in FORMATS.values():
        if one.missing(row) is None:
            return one
    if before is not None:
        return before
    wanted = "; ".join(f"{one.name}: {', '.join(one.columns)}" for one in FORMATS.values())
    raise UsageError(f"{row.where}: columns {', '.join(map(str, row.values)) or '(none)'} fit no format ({wanted}).")


def content_of(row: DatasetRow, form: RowFormat) -> Prompt | None:
    """What a row holds. Raises UsageError with file and row when a column is missing or of a wrong kind."""
    if missing := form.missing(row):
        has = ", ".join(map(str, row.values)) or "(none)"
        missing = missing.replace("|", " or ")
        raise UsageError(f"{row.where}: column {missing!r} is missing ({form.title} has it; this row has {has}).")
    try:
        return form.read(row)
    except ValidationError as error:
        raise UsageError(f"{row.where}: {error.errors()[0]['msg']}.") from error


_CODES = """
amharic am; arabic ar; armenian hy; azerbaijani az; basque eu; belarusian be; bemba bem; bengali bn; bulgarian bg;
burmese my; catalan ca; cebuano ceb; chinese zh; croatian hr; czech cs; danish da; dutch nl; english en; esperanto eo;
estonian et; filipino fil; finnish fi; french fr; galician gl; georgian ka; german de; greek el; gujarati gu;
haitian ht; hausa ha; hebrew he; hindi hi; hungarian hu; icelandic is; igbo ig; indonesian id; irish ga; italian it;
japanese ja; javanese jv; kannada kn; kazakh kk; khmer km; korean ko; kurdish ku; kyrgyz ky; lao lo; latvian lv;
lithuanian lt; macedonian mk; malagasy mg; malay ms; malayalam ml; maltese mt; maori mi; marathi mr; mongolian mn;
ndebele nd; nepali ne; norwegian no; nyanja ny; panjabi pa; pashto ps; persian fa; polish pl; portuguese pt;
punjabi pa; romanian ro; russian ru; samoan sm; scottish gd; serbian sr; shona sn; sindhi sd; sinhala si; slovak sk;
slovenian sl; somali so; sotho st; spanish es; sundanese su; swahili sw; swedish sv; tajik tg; tamil ta; telugu te;
thai th; turkish tr; ukrainian uk; urdu ur; uzbek uz; vietnamese vi; welsh cy; wolof wo; xhosa xh; yiddish yi;
yoruba yo; zulu zu
"""
_BY_NAME = dict(entry.split() for entry in _CODES.replace("\n", " ").split(";"))

_THREE_LETTERS = """
amh am; arb ar; ara ar; ben bn; ces cs; cmn zh; dan da; deu de; ell el; eng en; est et; eus eu; fas fa; pes fa; fil fil;
fin fi; fra fr; guj gu; hau ha; heb he; hin hi; hun hu; ibo ig; ind id; ita it; jpn ja; kan kn; kor ko; lit lt; lav lv;
mal ml; mar mr; mlg mg; plt mg; mya my; nld nl; nep ne; npi ne; nor no; nya ny; pan pa; pbt ps; pol pl; por pt; ron ro;
rus ru; sin si; slk sk; slv sl; sna sn; snd sd; som so; spa es; sqi sq; srp sr; swe sv; swh sw; tam ta; tel te; tgl fil;
tha th; tur tr; ukr uk; urd ur; uzn uz; vie vi; wol wo; xho xh; yor yo; yue yue; zho zh; zul zu; zsm ms
"""
_BY_CODE = dict(entry.split() for entry in _THREE_LETTERS.replace("\n", " ").split(";"))

UNKNOWN = "und"
"""BCP 47's code for a language that is not determined."""


def language_code(name: str) -> str:
    """The BCP 47 code of a language given by name (`Standard Arabic`), in ISO 639-3 or as a code; `und` if unknown."""
    words = name.strip().lower().replace("_", "-")
    if words in _BY_CODE:
        return _BY_CODE[words]
    first, _, rest = words.partition("-")
    if first in _BY_NAME.values() and len(rest) <= 4:
        return first
    if "cantonese" in words or "yue" in words.split():
        return "yue"
    return next((_BY_NAME[word] for word in words.replace("(", " ").split() if word in _BY_NAME), UNKNOWN)
