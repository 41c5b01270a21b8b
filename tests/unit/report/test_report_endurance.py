"""What was asked of a server beside its load points: shown where the files are, silent where they are not."""

from __future__ import annotations

from collections.abc import Callable

from qwenbench.analysis.endurance import growth_of, prefill_cost
from qwenbench.analysis.run import Run
from qwenbench.report.page import build_report
from qwenbench.report.page_data import page_data
from qwenbench.report.text_writers import to_markdown
from qwenbench.report.time_use import endurance, prompt_price
from qwenbench.runfolder.files import write_json

Planted = Callable[..., Run]


def test_the_price_of_a_prompt_is_a_sentence_and_a_figure(planted: Planted) -> None:
    run = planted(captures=(16, 32))
    cost = prefill_cost([(64, 75.0), (256, 76.0), (1024, 74.0), (2048, 84.0), (4096, 160.0)])
    assert cost is not None
    for config in ("cap16-seq16", "cap32-seq32"):
        write_json(run.path / "servers" / config / "prefill.json", cost.to_json())
    blocks = list(prompt_price(run, page_data(run, samples=False), "cap32-seq32"))
    assert "however short the prompt is: the host's time" in to_markdown(blocks)
    assert len(blocks) == 2, "one sentence for both, and one figure"
    page = build_report(run)
    assert "TTFT at one stream, ms (cap32-seq32)" in page or "TTFT at one stream, ms (cap16-seq16)" in page


def test_a_soak_and_a_ladder_are_told(planted: Planted) -> None:
    run = planted(captures=(16,))
    growth = growth_of("VRAM", [float(t) for t in range(600)], [1000.0 + t for t in range(600)], 500.0)
    assert growth is not None
    soak = {"minutes": 10.0, "load": "64 streams", "requests_failed": 3, "growth": [growth.to_json()]}
    write_json(run.path / "servers" / "cap16-seq16" / "soak.json", soak)
    rung = {"prompt_tokens": 6000, "together": 2, "ok": False, "error": "CUDA out of memory", "vram_peak_mib": 2048.0}
    write_json(run.path / "servers" / "cap16-seq16" / "ladder.json", {"rungs": [rung]})
    text = to_markdown(endurance(run))
    assert "64 streams held for 10 min: VRAM: GROWS by +3,600 MiB an hour" in text and "3 requests failed" in text
    assert "| 6,000 | 2 | – | 2.00 | no: CUDA out of memory |" in text


def test_a_run_without_them_says_nothing_and_a_damaged_file_costs_only_itself(planted: Planted) -> None:
    run = planted(captures=(16,))
    assert list(endurance(run)) == [] and list(prompt_price(run, page_data(run, samples=False), None)) == []
    (run.path / "servers" / "cap16-seq16" / "soak.json").write_text("{")
    assert list(endurance(run)) == []
