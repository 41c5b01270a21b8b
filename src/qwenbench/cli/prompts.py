"""`qwenbench prompts`: list, show and import prompt sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenbench.cli.runs import JsonOption, print_json
from qwenbench.errors import UsageError

if TYPE_CHECKING:
    from qwenbench.workload.importing.importer import Source, Tally, TokenCounter
    from qwenbench.workload.prompts import Prompt

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="List, show and import prompt sets.",
)

_MOST_REASONS = 5


@app.command("list")
def list_sets(json: JsonOption = False) -> None:
    """The prompt sets that come with qwenbench, with their scenarios."""
    from qwenbench.workload.prompts import load_prompt_set
    from qwenbench.workload.scenario import load_scenario, shipped_scenarios

    rows = []
    for name in shipped_scenarios():
        file = load_scenario(name)
        if file.prompts_path is None or not file.prompts_path.exists():
            continue
        prompts = load_prompt_set(file.prompts_path).prompts
        rows.append(
            {
                "name": name,
                "prompts": len(prompts),
                "turns": sum(len(prompt.turns) for prompt in prompts),
                "languages": sorted({prompt.language for prompt in prompts}),
                "profile": file.scenario.profile,
                "description": file.scenario.description,
            }
        )
    if json:
        print_json({"prompt_sets": rows})
        return
    for row in rows:
        print(f"{row['name']:<14} {row['prompts']:>4} prompts {row['turns']:>4} turns  {row['description']}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A scenario's name, or a prompt set's path.", metavar="NAME")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="So many prompts.")] = 3,
    json: JsonOption = False,
) -> None:
    """The first prompts of a set, in full."""
    prompts = _load(name)[:count]
    if json:
        print_json({"name": name, "prompts": [prompt.model_dump(exclude_none=True) for prompt in prompts]})
        return
    for prompt in prompts:
        print(f"--- {prompt.id}  {prompt.language}  {' '.join(prompt.tags)}  {prompt.source or ''}".rstrip())
        for turn in prompt.turns:
            print(f"user: {turn.user}")
            if turn.assistant:
                print(f"assistant: {turn.assistant}")


def _load(name: str) -> tuple[Prompt, ...]:
    from qwenbench.workload.prompts import load_prompt_set
    from qwenbench.workload.scenario import load_scenario

    if name.endswith(".jsonl"):
        return load_prompt_set(Path(name)).prompts
    path = load_scenario(name).prompts_path
    if path is None:
        raise UsageError(f"scenario {name!r} has no prompt set: its prompts are synthetic.")
    return load_prompt_set(path).prompts


@app.command("import")
def import_set(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="A .jsonl, .jsonl.gz, .json or .parquet file, a directory of them, or a dataset's id (owner/name). "
            "With --mix: FORMAT=SOURCE for each dataset that is not to be fetched by its id.",
            metavar="[SOURCE]...",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The prompt set to write (.jsonl).")] = None,
    form: Annotated[
        str, typer.Option("--format", help="A format of docs/workload.md, e.g. sharegpt, or auto.")
    ] = "auto",
    mix: Annotated[
        str | None, typer.Option("--mix", help="seed: 256 rows each of UltraChat, GSM8K, CodeAlpaca and Aya.")
    ] = None,
    each: Annotated[int | None, typer.Option("--each", min=1, help="With --mix: so many rows of each.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Without --mix: the first so many rows.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Leave out longer conversations.")] = 8192,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the mix's draw.")] = 0,
    split: Annotated[str | None, typer.Option("--split", help="Split of a dataset given by id.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Revision of a dataset given by id.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence to record, if the known one is wrong.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Count tokens with a tokenizer.json.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Count tokens with a server's /tokenize.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model's name for --url.")] = None,
    api_key_env: Annotated[str | None, typer.Option("--api-key-env", help="Variable with the key for --url.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a prompt set from dataset files or from a dataset's id."""
    from qwenbench.workload.importing.importer import Tally, write_prompts

    if out is None:
        raise UsageError("prompts import: --out FILE is missing, e.g. --out my-prompts.jsonl.")
    counter = _counter(tokenizer, url, model, api_key_env)
    tally = Tally()
    given = sources or []
    if mix is not None:
        if limit is not None or form != "auto":
            raise UsageError("--mix: --limit and --format do not go with it; --each sets the rows of each dataset.")
        prompts = _mixed(mix, given, each, seed, revision, licence, counter, max_tokens, tally)
    elif given:
        prompts = _listed(given, form, split, revision, licence, limit, counter, max_tokens, tally)
    else:
        raise UsageError("prompts import: give a file, a directory or a dataset's id, or --mix seed.")
    written = write_prompts(prompts, out, overwrite=overwrite)
    _report(out, written, tally, counter, max_tokens, seed if mix else None, json)


def _counter(tokenizer: Path | None, url: str | None, model: str | None, api_key_env: str | None) -> TokenCounter:
    from qwenbench.workload.importing.importer import estimated, from_server, from_tokenizer_file

    if tokenizer is not None:
        return from_tokenizer_file(tokenizer)
    if url is None:
        return estimated()
    headers = {}
    if api_key_env is not None:
        if api_key_env not in os.environ:
            raise UsageError(f"--api-key-env {api_key_env}: that variable is not set.")
        headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"
    return from_server(url, model, headers)


def _source(text: str, form: str, split: str | None, revision: str | None, licence: str | None) -> Source:
    from qwenbench.workload.importing.dataset_files import fetch_dataset, is_hub_id
    from qwenbench.workload.importing.importer import Source
    from qwenbench.workload.importing.row_formats import FORMATS, find_format

    known = None if form == "auto" else find_format(form)
    if not is_hub_id(text):
        path = Path(text)
        return Source((path,), path.name or text, known, licence)
    published = known or next((one for one in FORMATS.values() if one.hub_id == text), None)
    folder, own_split = (
        (published.hub_folder, published.hub_split) if published and published.hub_id == text else ("", "")
    )
    dataset = fetch_dataset(text, folder=folder, split=split or own_split, revision=revision)
    return Source(dataset.files, dataset.label, published, licence or dataset.licence)


def _listed(
    given: list[str],
    form: str,
    split: str | None,
    revision: str | None,
    licence: str | None,
    limit: int | None,
    counter: TokenCounter,
    max_tokens: int,
    tally: Tally,
) -> Iterator[Prompt]:
    from qwenbench.workload.importing.importer import prompts_of

    every = (
        prompt
        for source in [_source(text, form, split, revision, licence) for text in given]
        for prompt in prompts_of(source, counter, max_tokens, tally)
    )
    yield from islice(every, limit)


def _mixed(
    name: str,
    given: list[str],
    each: int | None,
    seed: int,
    revision: str | None,
    licence: str | None,
    counter: TokenCounter,
    max_tokens: int,
    tally: Tally,
) -> Iterator[Prompt]:
    from qwenbench.workload.importing.importer import draw, find_mix, prompts_of
    from qwenbench.workload.importing.row_formats import FORMATS

    counts = find_mix(name)
    own: dict[str, str] = {}
    for item in given:
        form, equals, text = item.partition("=")
        if not equals or form not in counts or form in own:
            raise UsageError(f"--mix {name}: {item!r}: give FORMAT=SOURCE once for each of {', '.join(counts)}.")
        own[form] = text
    sources = {
        form: _source(own.get(form) or str(FORMATS[form].hub_id), form, None, revision if not own else None, licence)
        for form in counts
    }
    for form, count in counts.items():
        yield from draw(prompts_of(sources[form], counter, max_tokens, tally), each or count, seed, form)


def _report(
    out: Path, written: int, tally: Tally, counter: TokenCounter, max_tokens: int, seed: int | None, json: bool
) -> None:
    if json:
        print_json(
            {
                "out": str(out),
                "written": written,
                "rows_read": tally.read,
                "without_text": tally.without_text,
                "too_long": tally.too_long,
                "unusable": {reason: count for reason, (count, _) in tally.unusable.items()},
                "max_tokens": max_tokens,
                "tokens_counted_by": counter.how,
                "formats": sorted(tally.formats),
                "seed": seed,
            }
        )
        return
    print(f"{out}: {written} prompts from {tally.read} rows ({', '.join(sorted(tally.formats))}).")
    unusable = sum(count for count, _ in tally.unusable.values())
    print(
        f"Left out: {tally.too_long} above {max_tokens} tokens, {tally.without_text} without text, {unusable} that "
        f"cannot be used. Tokens: {counter.how}.",
        file=sys.stderr,
    )
    for count, first in sorted(tally.unusable.values(), reverse=True)[:_MOST_REASONS]:
        print(f"  {count} x {first}" if count == 1 else f"  {count}, the first: {first}", file=sys.stderr)
