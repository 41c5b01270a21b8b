"""What the broken-output checks say of a real model's own answers, and how much two servers answer alike.

    .venv/bin/python bench/natural_answers.py ask http://127.0.0.1:8000 /tmp/bf16.jsonl --data ../shared/data
    .venv/bin/python bench/natural_answers.py table /tmp/bf16.jsonl [--against /tmp/nvfp4.jsonl] [--show]

Asks the shipped prompts' first turns, and rows of GSM8K and HumanEval where they are at hand, greedily and under
sampling profiles; answers end by themselves or at a limit. The file holds texts: it is no part of the repository.
A second `ask` of the same file goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from qwenbench.workload.profiles import find_profile
from qwenbench.workload.prompts import load_prompt_set
from qwenbench.workload.quality import judge
from qwenbench.workload.scenario import load_scenario

SETS = ("conversation", "math", "code", "multilingual")
DATA = {"gsm8k_test_first256.jsonl": "question", "humaneval_first82.jsonl": "prompt"}
_NUMBERS = re.compile(r"\d+")
Answer = dict[str, Any]


def questions(data: Path | None) -> Iterator[tuple[str, str, str, str]]:
    """Group, identity, language and text of each prompt."""
    for name in SETS:
        path = load_scenario(name).prompts_path
        assert path is not None
        for prompt in load_prompt_set(path).prompts:
            yield name, prompt.id, prompt.language, prompt.turns[0].user
    for file, column in DATA.items() if data else ():
        for number, line in enumerate((Path(data or ".") / file).read_text(encoding="utf-8").splitlines()):
            yield file.split("_")[0], f"{file}-{number}", "en", json.loads(line)[column]


async def ask(options: argparse.Namespace) -> None:
    """Ask until all are answered or the time is up, and append each answer to the file."""
    known = {(row["id"], row["profile"]) for row in _read(options.file)} if options.file.exists() else set()
    todo = [
        (profile, question)
        for question in questions(options.data)
        for profile in options.profiles.split(",")
        if (question[1], profile) not in known
    ]
    todo.reverse()
    ends = time.monotonic() + options.seconds
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        async with session.get(f"{options.url}/v1/models") as reply:
            model = (await reply.json())["data"][0]["id"]
        with options.file.open("a", encoding="utf-8") as out:

            async def stream() -> None:
                while todo and time.monotonic() < ends:
                    row = await _answer(session, options, model, *todo.pop())
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")

            await asyncio.gather(*(stream() for _ in range(options.streams)))
    print(f"{len(list(_read(options.file)))} answers, {len(todo)} not asked yet")


async def _answer(
    session: aiohttp.ClientSession, options: argparse.Namespace, model: str, profile: str, question: tuple[str, ...]
) -> Answer:
    group, identity, language, text = question
    sampling = {"temperature": 0} if profile == "greedy" else find_profile(profile).sampling()
    message = {"role": "user", "content": text[: options.characters]}
    body = {"model": model, "messages": [message], "max_tokens": options.tokens, "seed": 0, **sampling}
    async with session.post(f"{options.url}/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        choice = (await reply.json())["choices"][0]
    return {
        "group": group, "id": identity, "language": language, "profile": profile,
        "text": choice["message"]["content"], "finish_reason": choice["finish_reason"],
    }  # fmt: skip


def _read(file: Path) -> Iterator[Answer]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def ends_in_one_piece(text: str) -> bool:
    """Whether the text ends in one piece, said three times or more, numbers aside.

    Another way to tell a loop than `judge` has: exact, so that what it confirms needs no reading.
    """
    plain = _NUMBERS.sub("0", text.rstrip())
    for period in range(1, len(plain) // 3 + 1):
        run = 0
        while run < len(plain) - period and plain[-1 - run] == plain[-1 - run - period]:
            run += 1
        if run + period >= max(24, 3 * period):
            return True
    return False


def table(options: argparse.Namespace) -> None:
    """Print how many answers are flagged and as what, by profile and kind of prompt."""
    rows = list(_read(options.file))
    print(f"{'profile':<18}{'prompts':<14}{'answers':>8}{'ended':>7}{'flagged':>9}  kinds")
    flagged: list[tuple[Answer, list[str]]] = []
    for profile in dict.fromkeys(row["profile"] for row in rows):
        for group in [*dict.fromkeys(row["group"] for row in rows), None]:
            some = [row for row in rows if row["profile"] == profile and group in (row["group"], None)]
            judged = [(row, judge(row["text"], "", row["language"], row["finish_reason"])) for row in some]
            kinds = Counter(kind for _, found in judged for kind in found)
            ended = sum(row["finish_reason"] == "stop" for row in some)
            told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            hits = [(row, found) for row, found in judged if found]
            print(f"{profile:<18}{group or 'all':<14}{len(some):>8}{ended:>7}{len(hits):>9}  {told}")
            flagged += hits if group is None else []
    loops = [row for row, found in flagged if found == ["loop"]]
    sure = sum(ends_in_one_piece(row["text"]) for row in loops)
    print(f"{len(rows)} answers, {len(flagged)} flagged; of {len(loops)} loops {sure} end in one piece repeated")
    if options.against:
        _compare(rows, list(_read(options.against)))
    if options.show:
        for row, found in flagged:
            if found != ["loop"] or not ends_in_one_piece(row["text"]):
                named = " ".join(str(row[key]) for key in ("id", "language", "profile", "finish_reason"))
                print(f"\n--- {named} {found}\n{row['text']}")


def _compare(rows: list[Answer], others: list[Answer]) -> None:
    """Print what share of the answers is the same to the last character, and how long they are the same."""
    by_key = {(row["id"], row["profile"]): row["text"] for row in others}
    for profile in dict.fromkeys(row["profile"] for row in rows):
        pairs = [
            (row["text"], by_key[row["id"], profile])
            for row in rows
            if row["profile"] == profile and (row["id"], profile) in by_key
        ]
        if pairs:
            same = sum(one == other for one, other in pairs)
            words = sum(_same_words(one, other) for one, other in pairs) / sum(len(one.split()) for one, _ in pairs)
            print(f"{profile}: {same} of {len(pairs)} the same, {words:.0%} of the words before the first other one")


def _same_words(one: str, other: str) -> int:
    for place, (word, another) in enumerate(zip(one.split(), other.split(), strict=False)):
        if word != another:
            return place
    return min(len(one.split()), len(other.split()))


def main() -> None:
    """The command line: ask or table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    asking = commands.add_parser("ask", help="ask a server, and keep what it answers")
    asking.add_argument("url")
    asking.add_argument("file", type=Path)
    asking.add_argument("--data", type=Path, help="folder with rows of GSM8K and HumanEval")
    asking.add_argument("--profiles", default="greedy,instruct-general,thinking-coding")
    asking.add_argument("--tokens", type=int, default=128, help="longest answer")
    asking.add_argument("--characters", type=int, default=3000, help="longer prompts are cut there")
    asking.add_argument("--streams", type=int, default=32)
    asking.add_argument("--seconds", type=float, default=1e9, help="stop asking after this time")
    telling = commands.add_parser("table", help="judge the answers of a file")
    telling.add_argument("file", type=Path)
    telling.add_argument("--against", type=Path, help="answers of another server to the same prompts")
    telling.add_argument("--show", action="store_true", help="print what is flagged and no plain loop")
    options = parser.parse_args()
    if options.command == "ask":
        asyncio.run(ask(options))
    else:
        table(options)


if __name__ == "__main__":
    main()
