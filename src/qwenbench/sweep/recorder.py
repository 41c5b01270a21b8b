"""Puts finished cells on disk: their files first, then the journal's line, then points.csv anew."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from qwenbench.analysis.run import point_frame, points_csv
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.files import write_bytes, write_json, write_table
from qwenbench.runfolder.journal import Entry, Journal
from qwenbench.runfolder.names import RunPaths


class Recorder:
    """The only one that writes points of a run."""

    def __init__(self, paths: RunPaths, vary: Sequence[str]) -> None:
        self._paths = paths
        self._vary = tuple(vary)
        self._journal = Journal(paths.journal)
        self._entries = {entry.cell: entry for entry in self._journal.entries()}

    def is_done(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return cell.cell_id in self._entries

    @property
    def points(self) -> list[Mapping[str, Any]]:
        """All finished points, oldest first."""
        return [entry.point for entry in self._entries.values()]

    def record(
        self,
        cell: Cell,
        point: Mapping[str, Any],
        requests: pa.Table,
        metrics: pa.Table,
        nvml: pa.Table,
        texts: Mapping[str, str],
    ) -> None:
        """Makes a cell finished. When this returns it survives a power cut; before, it never was."""
        write_table(self._paths.cell_requests(cell.cell_id), requests)
        write_table(self._paths.metrics_samples(cell.config_id, cell.cell_id), metrics)
        write_table(self._paths.nvml_samples(cell.config_id, cell.cell_id), nvml)
        if texts:
            write_json(self._paths.requests / f"{cell.cell_id}.texts.json", texts)
        entry = Entry(cell.cell_id, cell.config_id, cell.launch, dict(point), time.time_ns())
        self._journal.append(entry)
        self._entries[cell.cell_id] = entry
        self.write_points()

    def write_points(self) -> None:
        """Derives points.csv from the journal."""
        write_bytes(self._paths.points, points_csv(self.points, self._vary))

    def write_summary(self) -> None:
        """Derives points_summary.csv from the points."""
        from qwenbench.analysis.statistics import requests_under, summary_rows

        if self._entries:
            summary = summary_rows(point_frame(self.points), requests_under(self._paths.root))
            write_bytes(self._paths.summary, summary.to_csv(index=False).encode())
