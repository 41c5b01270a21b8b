"""`qwenbench prompts`: list, show and import prompt sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenbench.cli.runs import JsonOption, option, print_json
from qwenbench.errors import UsageError
from qwenbench.workload.prompts import Prompt, load_prompt_set
from qwenbench.workload.scenario import load_scenario, shipped_scenarios

if TYPE_CHECKING:
    from qwenbench.workload.importing.importer import Source, TokenCounter

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
    count: Annotated[int, option("So many prompts.", "--count", "-n", min=1)] = 3,
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
            help="A .jsonl, .json, .csv or .parquet file (packed too), a directory of them, or a dataset's id "
            "(owner/name). With --mix: FORMAT=SOURCE for each dataset that is not to be fetched by its id.",
            metavar="[SOURCE]...",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, option("The prompt set to write (.jsonl).", "--out", "-o")] = None,
    form: Annotated[str, option("A format of docs/workload.md, e.g. sharegpt, or auto.", "--format")] = "auto",
    mix: Annotated[str | None, option("seed: 256 rows each of UltraChat, GSM8K, CodeAlpaca and Aya.", "--mix")] = None,
    each: Annotated[int | None, option("With --mix: so many rows of each.", "--each", min=1)] = None,
    limit: Annotated[int | None, option("Without --mix: the first so many rows.", "--limit", min=1)] = None,
    max_tokens: Annotated[int, option("Leave out longer conversations.", "--max-tokens", min=1)] = 8192,
    seed: Annotated[int, option("Seed of the mix's draw.", "--seed", min=0)] = 0,
    split: Annotated[str | None, option("Split of a dataset given by id.", "--split")] = None,
    revision: Annotated[str | None, option("Revision of a dataset given by id.", "--revision")] = None,
    licence: Annotated[str | None, option("Licence to record, if the known one is wrong.", "--licence")] = None,
    tokenizer: Annotated[Path | None, option("Count tokens with a tokenizer.json.", "--tokenizer")] = None,
    url: Annotated[str | None, option("Count tokens with a server's /tokenize.", "--url")] = None,
    model: Annotated[str | None, option("The model's name for --url.", "--model")] = None,
    api_key_env: Annotated[str | None, option("Variable with the key for --url.", "--api-key-env")] = None,
    overwrite: Annotated[bool, option("Replace --out.", "--overwrite")] = False,
    json: JsonOption = False,
) -> None:
    """Make a prompt set from dataset files or from a dataset's id."""
    from qwenbench.workload.importing.importer import Tally, prompts_of, write_prompts

    if out is None:
        raise UsageError("prompts import: --out FILE is missing, e.g. --out my-prompts.jsonl.")
    counter, tally, given = _counter(tokenizer, url, model, api_key_env), Tally(), sources or []

    def read(source: Source) -> Iterator[Prompt]:
        return prompts_of(source, counter, max_tokens, tally)

    prompts: Iterable[Prompt]
    if mix is not None:
        if limit is not None or form != "auto":
            raise UsageError("--mix: --limit and --format do not go with it; --each sets the rows of each dataset.")
        prompts = _mixed(mix, given, None if given else revision, licence, read, each, seed)
    elif given:
        listed = [_source(text, form, split, revision, licence) for text in given]
        prompts = islice(chain.from_iterable(map(read, listed)), limit)
    else:
        raise UsageError("prompts import: give a file, a directory or a dataset's id, or --mix seed.")
    written = write_prompts(prompts, out, overwrite=overwrite)
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
                "seed": seed if mix else None,
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
    own = published if published is not None and published.hub_id == text else None
    folder, own_split = (own.hub_folder, own.hub_split) if own else ("", "")
    dataset = fetch_dataset(text, folder=folder, split=split or own_split, revision=revision)
    return Source(dataset.files, dataset.label, published, licence or dataset.licence)


def _mixed(
    name: str, given: list[str], revision: str | None, licence: str | None,
    read: Callable[[Source], Iterator[Prompt]], each: int | None, seed: int,
) -> Iterator[Prompt]:  # fmt: skip
    """A mix's rows, drawn from each of its datasets; `given` are FORMAT=SOURCE for those not to be fetched."""
    from qwenbench.workload.importing.importer import draw, find_mix
    from qwenbench.workload.importing.row_formats import FORMATS

    counts = find_mix(name)
    own: dict[str, str] = {}
    for item in given:
        form, equals, text = item.partition("=")
        if not equals or form not in counts or form in own:
            raise UsageError(f"--mix {name}: {item!r}: give FORMAT=SOURCE once for each of {', '.join(counts)}.")
        own[form] = text
    texts = {form: own.get(form) or str(FORMATS[form].hub_id) for form in counts}
    sources = {form: _source(text, form, None, revision, licence) for form, text in texts.items()}
    for form, count in counts.items():
        yield from draw(read(sources[form]), each or count, seed, form)
