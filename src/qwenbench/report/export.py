"""A run's points, ledgers, figures or a Markdown summary as files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal, get_args

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qwenbench.analysis.run import Run
from qwenbench.errors import UsageError
from qwenbench.report.images import figure_images
from qwenbench.report.points import known
from qwenbench.report.summary import run_summary
from qwenbench.report.text_writers import to_markdown
from qwenbench.runfolder.files import write_bytes

Format = Literal["csv", "parquet", "json", "png", "svg", "markdown"]
FORMATS: tuple[str, ...] = get_args(Format)


def export_run(run: Run, format: Format, out: Path) -> tuple[list[Path], str | None]:
    """Writes the run in this format into the folder `out`; returns the files, and what is missing where some are.

    csv, parquet, json: points and ledgers. png, svg: one file per figure. markdown: summary.md.
    Files of a simulated run carry the word in their content (a column, a key, a watermark, a line).
    Raises UsageError when the folder cannot be written or PNG finds no font, RunError when drawing fails.
    """
    files, missing = _contents(run, format)
    written = []
    try:
        for name, data in files.items():
            write_bytes(out / name, data)
            written.append(out / name)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror or error}.") from error
    return written, missing


def _contents(run: Run, format: Format) -> tuple[dict[str, bytes], str | None]:
    if format in ("png", "svg"):
        images, missing = figure_images(run, format)
        return {f"{name}.{format}": image for name, image in images.items()}, missing
    return _data(run, format), None


def _data(run: Run, format: Format) -> dict[str, bytes]:
    match format:
        case "markdown":
            return {"summary.md": to_markdown(run_summary(run)).encode()}
        case "json":
            head = {"run_id": run.run_id, "simulated": run.simulated}
            ledgers = {name: dict(ledger) for name, ledger in run.ledgers.items()}
            return {
                "points.json": _json({**head, "points": records(run.points)}),
                "ledgers.json": _json({**head, "ledgers": ledgers}),
            }
        case "parquet":
            return {"points.parquet": _parquet(run.points), "ledgers.parquet": _parquet(ledger_table(run))}
        case _:
            return {"points.csv": _csv(run.points), "ledgers.csv": _csv(ledger_table(run))}


def ledger_table(run: Run) -> pd.DataFrame:
    """One row per configuration: config_id, simulated, then memory.json's keys; lists are joined by line ends."""

    def cell(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return "\n".join(item if isinstance(item, str) else orjson.dumps(item).decode() for item in value)

    return pd.DataFrame(
        [
            {"config_id": name, "simulated": run.simulated, **{key: cell(value) for key, value in ledger.items()}}
            for name, ledger in run.ledgers.items()
        ]
    )


def records(points: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of points.csv with null for what is not known."""
    return [{str(name): known(value) for name, value in row.items()} for row in points.to_dict("records")]


def _json(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n"


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


def _parquet(table: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), sink, compression="zstd")
    return sink.getvalue()
