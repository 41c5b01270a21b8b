"""What a drafter gave (MTP, EAGLE, ngram): from the engine's own counters over a point."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from qwenbench.analysis.server_samples import growth


def drafting_columns(metrics: pa.Table | None) -> dict[str, Any]:
    """Columns of a point: tokens drafted and accepted, the share accepted, and tokens a request gained in a step.

    `acceptance_length` is 1 + accepted / drafts, as vLLM logs it: the drafter's tokens that held, and the one that the
    model itself gives in the same step. Empty without a drafter.
    """
    if metrics is None or metrics.num_rows == 0:
        return {}
    drafts, drafted, accepted = (
        growth(metrics, name) for name in ("drafts_total", "drafted_tokens_total", "accepted_tokens_total")
    )
    if drafted is None or accepted is None:
        return {}
    return {
        "drafted_tokens": round(drafted),
        "accepted_tokens": round(accepted),
        "acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_length": 1.0 + accepted / drafts if drafts else None,
    }
