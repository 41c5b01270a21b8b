"""Datasets by their id, fetched through huggingface_hub (an optional extra) into its own cache."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenbench.errors import UsageError
from qwenbench.workload.importing.dataset_files import SUFFIXES

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
    return bool(_ID.match(text)) and not Path(text).exists() and not text.endswith(SUFFIXES)


def choose_files(names: list[str], folder: str = "", split: str = "") -> list[str]:
    """The data files of a split among a repository's files: those that name it, else all below the folder."""
    readable = [name for name in sorted(names) if name.endswith(SUFFIXES) and name.startswith(folder)]
    named = [name for name in readable if split and re.search(rf"(?:^|[/._-]){re.escape(split)}(?:[/._-]|$)", name)]
    chosen = named or readable
    # one dataset is often there in several formats: its rows must not count twice
    for suffix in (".parquet", ".jsonl", ".jsonl.gz", ".ndjson", ".json"):
        of_kind = [name for name in chosen if name.endswith(suffix)]
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
            raise UsageError(f"dataset {dataset_id}: holds no file that ends in {', '.join(SUFFIXES)}.")
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
