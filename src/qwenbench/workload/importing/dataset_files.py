"""Dataset files (by their id fetched through huggingface_hub, an optional extra, into its own cache) and their rows,
one after another: JSON Lines, JSON arrays, CSV and Parquet, alone or in a directory.

Memory stays small whatever the file's size: no file is read whole, and a row above MAX_ROW_BYTES is refused.
"""

from __future__ import annotations

import codecs
import csv
import importlib.util
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from qwenbench.errors import UsageError
from qwenbench.input_files import GIB, PACKED, check_input, open_unpacked, plain_name

MAX_ROW_BYTES = 16 * 1024 * 1024
"""A row above this is no prompt: 16 MiB are about four million tokens."""

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
READABLE = f"{', '.join(_SUFFIXES)} (all but the last also {', '.join(PACKED)})"
"""Endings of the files that can be read, for people."""


def is_readable(name: str) -> bool:
    """Whether a file of this name can be read."""
    return plain_name(name).endswith(_SUFFIXES)


_CHUNK = 1 << 20
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One row, with where it stands for messages (`FILE, line 7` or `FILE, row 7`, from 1)."""

    file: Path
    number: int
    values: Mapping[str, Any]
    delimiter: str = ""
    """What parts the cells of a CSV file, whose values are text."""

    @property
    def where(self) -> str:
        """File and row, as messages begin."""
        return f"{self.file}, row {self.number}"


def dataset_files(source: Path) -> list[Path]:
    """The files of a source, sorted by name. Raises UsageError: no such file, nothing readable in the directory."""
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.is_file() and is_readable(path.name))
        if not found:
            raise UsageError(f"{source}: holds no file that ends in {READABLE}.")
        return found
    if not source.exists():
        raise UsageError(f"{source}: no such file or directory.")
    if not is_readable(source.name):
        raise UsageError(f"{source}: its name must end in {READABLE}.")
    return [source]


Skip = Callable[[UsageError], None]


def _raise(problem: UsageError) -> None:
    raise problem


def read_rows(source: Path, skip: Skip = _raise) -> Iterator[DatasetRow]:
    """Every row of a file, or of all files below a directory.

    A row that cannot be used - bytes that are no UTF-8, no valid JSON, no object, too long - is handed to `skip` as the
    UsageError that names file and row; by default that is raised. Raises UsageError for a file that cannot be read on.
    """
    for path in dataset_files(source):
        check_input(path, "data set", 1024 * GIB)  # read row by row: any size will do, a pipe or a device will not
        yield from rows_of_file(path, skip)


def rows_of_file(path: Path, skip: Skip = _raise) -> Iterator[DatasetRow]:
    """Every row of one file, which is read as JSON Lines unless its name says otherwise; see `read_rows`."""
    name = plain_name(path.name)
    try:
        if name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif name.endswith((".csv", ".tsv")):
            yield from _csv_rows(path)
        elif name.endswith(".json"):
            yield from _json_rows(path, skip)
        else:
            yield from _jsonl_rows(path, skip)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read: {error}.") from error


def _csv_rows(path: Path) -> Iterator[DatasetRow]:
    """Rows of a file with a heading, its cells as text (None: empty); commas, semicolons, tabs or bars between them."""
    csv.field_size_limit(MAX_ROW_BYTES)
    number = 1
    with open_unpacked(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
        try:
            heading = file.readline(MAX_ROW_BYTES)
            delimiter = max(",;\t|", key=heading.count)
            names = [name.strip() for name in next(csv.reader([heading], delimiter=delimiter), [])]
            if any(re.fullmatch(r"[-\d.,:]*", name) for name in names):
                raise UsageError(f"{path}: its first line must name the columns.")
            for cells in csv.reader(_lines(file, path), delimiter=delimiter):
                number += 1
                if any(cell.strip() for cell in cells):
                    values = dict(zip(names, (cell or None for cell in cells), strict=False))
                    yield DatasetRow(path, number, values, delimiter)
        except UnicodeDecodeError as error:
            raise _wrong_encoding(path, number + 1, error) from error


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    for number in itertools.count(2):
        line = file.readline(MAX_ROW_BYTES)
        if not line:
            return
        if len(line) == MAX_ROW_BYTES:
            raise _too_long(path, number)
        yield line


def _object(value: Any, path: Path, number: int, skip: Skip) -> DatasetRow | None:
    if not isinstance(value, dict):
        skip(UsageError(f"{path}, row {number}: a JSON object with named columns was expected."))
        return None
    return DatasetRow(path, number, value)


def _too_long(path: Path, number: int) -> UsageError:
    return UsageError(f"{path}, row {number}: longer than {MAX_ROW_BYTES >> 20} MiB; this is no prompt. Cut it out.")


def _wrong_encoding(path: Path, number: int, error: UnicodeDecodeError) -> UsageError:
    found = f"byte 0x{error.object[error.start]:02x}"
    return UsageError(f"{path}, row {number}: is not UTF-8 ({found}). Convert the file, e.g. with iconv.")


def _jsonl_rows(path: Path, skip: Skip) -> Iterator[DatasetRow]:
    with open_unpacked(path) as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                skip(_too_long(path, number))
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES)
                continue
            if number == 1:
                line = _without_mark(line, path)
            if not line.strip():
                continue
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                skip(_bad_line(line, path, number, error))
                continue
            row = _object(value, path, number, skip)
            if row is not None:
                yield row


def _bad_line(line: bytes, path: Path, number: int, error: orjson.JSONDecodeError) -> UsageError:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as encoding:
        return _wrong_encoding(path, number, encoding)
    if number == 1 and b"{" not in line and any(sign in line for sign in (b",", b";", b"\t")):
        return UsageError(f"{path}, row 1: this reads like CSV: name the file .csv.")
    return UsageError(f"{path}, row {number}: no valid JSON: {error}.")


def _without_mark(start: bytes, path: Path) -> bytes:
    """Without UTF-8's byte order mark; UTF-16 is refused."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{path}: is UTF-16. Convert it to UTF-8, e.g. with iconv.")
    return start.removeprefix(codecs.BOM_UTF8)


class _JsonWindow:
    """A sliding window of decoded text over a JSON file: `text[place:]` is what was not consumed yet."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._first = True
        self._ended = False
        self.text = ""
        self.place = 0
        self.row = 1

    def more(self) -> bool:
        """Reads on; False at the end of the file."""
        if self._ended:
            return False
        data = self._file.read(max(_CHUNK, len(self.text) - self.place)) or b""
        if self._first:
            data, self._first = _without_mark(data, self._path), False
        self._ended = not data
        try:
            self.text = self.text[self.place :] + self._decode.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            raise _wrong_encoding(self._path, self.row, error) from error
        self.place = 0
        return not self._ended

    def next_sign(self) -> str:
        """The next character that is no blank, unconsumed; "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
            except (json.JSONDecodeError, RecursionError) as error:
                # a value cut off by the window looks like a broken one: only the file's end tells them apart
                if len(self.text) - self.place > MAX_ROW_BYTES:
                    raise _too_long(self._path, self.row) from error
                if not self.more():
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                    raise UsageError(f"{self._path}, row {self.row}: no valid JSON: {reason}.") from error
                continue
            if end - self.place > MAX_ROW_BYTES:
                raise _too_long(self._path, self.row)
            self.place = end
            return value


def _json_rows(path: Path, skip: Skip) -> Iterator[DatasetRow]:
    """Elements of a JSON array, read one by one. JSON Lines in a file named .json are read as such."""
    with open_unpacked(path) as file:
        window = _JsonWindow(file, path)
        first = window.next_sign()
        if first == "[":
            yield from _array_rows(window, path, skip)
            return
    if first != "{":
        raise UsageError(f"{path}: a JSON array of objects, or one object a line, was expected.")
    yield from _jsonl_rows(path, skip)


def _array_rows(window: _JsonWindow, path: Path, skip: Skip) -> Iterator[DatasetRow]:
    window.place += 1
    if window.next_sign() == "]":
        return
    while True:
        window.next_sign()
        row = _object(window.value(), path, window.row, skip)
        if row is not None:
            yield row
        sign = window.next_sign()
        if sign == "]":
            return
        if sign != ",":
            raise UsageError(f"{path}, row {window.row}: no valid JSON: a comma or the end of the array was expected.")
        window.place += 1
        window.row += 1


def _parquet_rows(path: Path) -> Iterator[DatasetRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=_CHUNK)
    except pa.ArrowException as error:
        raise UsageError(f"{path}: no readable Parquet file: {str(error).splitlines()[0]}.") from error
    number = 0
    with file:
        try:
            # 128 rows at a time: conversations are a few kB each
            for batch in file.iter_batches(batch_size=128, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    if any(isinstance(value, str | bytes) and len(value) > MAX_ROW_BYTES for value in values.values()):
                        raise _too_long(path, number)
                    yield DatasetRow(path, number, values)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{path}, row {number + 1}: no readable Parquet data: {reason}.") from error


_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")

_REASONS = {
    "GatedRepoError": "is gated: accept its terms on its page, then set HF_TOKEN to a token of your account",
    "RepositoryNotFoundError": "does not exist, or is private: check the id, or set HF_TOKEN",
    "RevisionNotFoundError": "has no such --revision",
    "OfflineModeIsEnabled": "is not in the cache, and HF_HUB_OFFLINE is set",
    "LocalEntryNotFoundError": "is not in the cache, and the hub cannot be reached: is there a network?",
    "HFValidationError": "is no valid dataset id",
}
"""Class of the hub's error -> what to tell."""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Local copies of a dataset's files, with what to record about them."""

    files: tuple[Path, ...]
    label: str
    """Id and revision."""
    licence: str | None


def is_hub_id(text: str) -> bool:
    """Whether a source reads like `owner/name` and is no path that exists."""
    return bool(_ID.match(text)) and not Path(text).exists() and not is_readable(text)


def choose_files(names: list[str], folder: str = "", split: str = "") -> list[str]:
    """The data files of a split among a repository's files: those that name it, else all below the folder."""
    readable = [name for name in sorted(names) if is_readable(name) and name.startswith(folder)]
    named = [name for name in readable if split and re.search(rf"(?:^|[/._-]){re.escape(split)}(?:[/._-]|$)", name)]
    chosen = named or readable
    # one dataset is often there in several formats: its rows must not count twice
    for suffix in (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"):
        of_kind = [name for name in chosen if plain_name(name).endswith(suffix)]
        if of_kind:
            return of_kind
    return []


def fetch_dataset(dataset_id: str, *, folder: str = "", split: str = "", revision: str | None = None) -> HubDataset:
    """Downloads (or finds in the cache) a dataset's files.

    Raises UsageError in one line: the package is not installed, no such dataset, gated without a token, no network.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError(
            f"dataset {dataset_id}: needs the package `huggingface_hub`: pip install 'qwenbench[datasets]', "
            "or download the files and give their path."
        )
    import huggingface_hub  # an optional extra

    try:
        api = huggingface_hub.HfApi()
        info: Any = api.dataset_info(dataset_id, revision=revision)
        names = choose_files([sibling.rfilename for sibling in info.siblings or ()], folder, split)
        if not names:
            raise UsageError(f"dataset {dataset_id}: holds no file that ends in {READABLE}.")
        files = [
            Path(huggingface_hub.hf_hub_download(dataset_id, name, repo_type="dataset", revision=info.sha))
            for name in names
        ]
    except UsageError:
        raise
    except Exception as error:  # the hub's client lets its HTTP library's errors through, which differ by version
        raise UsageError(f"dataset {dataset_id}: {_reason(error)}.") from error
    licence = getattr(info.card_data, "license", None) if getattr(info, "card_data", None) else None
    return HubDataset(tuple(files), f"{dataset_id}@{str(info.sha)[:12]}", str(licence) if licence else None)


def _reason(error: Exception) -> str:
    chain: BaseException | None = error
    while chain is not None:
        for kind in type(chain).__mro__:
            if kind.__name__ in _REASONS:
                return _REASONS[kind.__name__]
        if isinstance(chain, OSError) or "Connect" in type(chain).__name__ or "Timeout" in type(chain).__name__:
            return "cannot be reached: is there a network? (Download the files and give their path instead.)"
        chain = chain.__cause__ or chain.__context__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
