"""What owners of RTX 50 cards published about their servers' memory, and what this project's arithmetic says.

None of it was recorded by this project. `python tests/support/published_figures.py` prints docs/published-figures.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from qwenbench.capacity.calibration import Load, activations_gib
from qwenbench.capacity.cards import find_card
from qwenbench.capacity.configuration import ConfigPlan, plan_config
from qwenbench.capacity.kv import (
    Drafter,
    blocks_range_for_printed_gib,
    gib_for_blocks,
    kv_layout,
    printed_tokens,
)
from qwenbench.capacity.model_shape import ModelShape, known_shape
from qwenbench.capacity.weights import Weights
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.flags import parse_flags
from qwenbench.engine.startup_log import StartupLog

CLUB, RECIPES = "club-3090 issue", "vllm-project/recipes pull request"
MTP3 = Drafter("mtp", 3)


@dataclass(frozen=True)
class Row:
    """One published figure beside the computed one."""

    kind: str
    """`layout`: arithmetic of the cache, which must be exact; `plan`: a prediction from the flags alone, which must
    lie inside its interval; `probe`: a prediction from another start of that server; `built in`: the figure is this
    card's calibration, so it is met by construction; `none`: not computed."""
    server: str
    figure: str
    published: float
    computed: float | None
    low: float | None
    high: float | None
    source: str
    note: str = ""

    @property
    def miss(self) -> bool:
        """Whether the computed figure fails its kind's promise."""
        if self.computed is None:
            return True
        if self.low is None or self.high is None:
            return self.computed != self.published
        return not self.low <= self.published <= self.high

    @property
    def error(self) -> float | None:
        """Share by which the computed figure is off."""
        return None if self.computed is None else self.computed / self.published - 1


def shape_of(model: str, weights: Weights | None = None) -> ModelShape:
    found = known_shape(model)
    assert found is not None
    return found if weights is None else replace(found, weights=weights, weights_unknown="")


def cache(
    server: str, model: str, gib: float, tokens: int, length: int, source: str, *, version: str, cards: int,
    drafter: Drafter | None = None, mode: str = "align",
) -> Row:  # fmt: skip
    """Tokens from the printed GiB with an FP8 cache. Of the block counts that the rounded GiB stands for, the one
    nearest to the published tokens counts: a wrong layout meets none."""
    layout = kv_layout(
        shape_of(model), "fp8", mamba_cache_mode=mode, drafter=drafter, tensor_parallel=cards
    )  # fmt: skip
    low, high = blocks_range_for_printed_gib(gib, layout)
    said = [printed_tokens(version, blocks, layout, length) for blocks in range(low, high + 1)]
    best = min(said, key=lambda count: abs(count - tokens))
    return Row("layout", server, f"tokens of {gib:.2f} GiB", tokens, best, None, None, source)


def planned(
    model: str, weights: Weights | None, card: str, version: str, flags: str, platform: str = "linux",
    total: float | None = None,
) -> ConfigPlan:  # fmt: skip
    config = ServerConfig(flags=parse_flags(flags.split()))
    found = find_card(card) if total is None else None
    return plan_config(
        config, shape_of(model, weights), version=version, card=found, platform=platform, cuda_total_gib=total
    )


def plan(
    server: str, gib: float, source: str, model: str, weights: Weights | None, card: str, version: str, flags: str,
    note: str = "",
) -> Row:  # fmt: skip
    """KV GiB from the flags and the weights' published size, without a start-up log."""
    found = planned(model, weights, card, version, flags).prediction
    assert found is not None
    return Row(
        "plan", server, "KV GiB", gib, found.kv_cache_gib, found.kv_cache_gib_low, found.kv_cache_gib_high, source, note
    )


def plan_tokens(
    server: str, tokens: int, source: str, model: str, weights: Weights | None, card: str, version: str, flags: str,
    length: int,
) -> Row:  # fmt: skip
    """Printed tokens from the flags and the weights' published size."""
    found = planned(model, weights, card, version, flags)
    prediction = found.prediction
    assert prediction is not None
    assert prediction.kv_cache_gib is not None
    assert prediction.kv_cache_gib_low is not None
    assert prediction.kv_cache_gib_high is not None
    said = [
        printed_tokens(version, blocks_range_for_printed_gib(gib, found.layout, 9)[0], found.layout, length)
        for gib in (prediction.kv_cache_gib, prediction.kv_cache_gib_low, prediction.kv_cache_gib_high)
    ]
    return Row("plan", server, "tokens", tokens, said[0], said[1], said[2], source)


def blocks_behind(
    server: str, model: str, tokens: int, length: int, source: str, *, cards: int, drafter: Drafter | None, mode: str,
    kv_dtype: str,
) -> Row:  # fmt: skip
    """Whether a printed token count is one that this layout can print at all, and the GiB behind it."""
    layout = kv_layout(
        shape_of(model), kv_dtype, mamba_cache_mode=mode, drafter=drafter, tensor_parallel=cards
    )  # fmt: skip
    near = [printed_tokens("0.26", blocks, layout, length) for blocks in range(1, 4000)]
    best = min(near, key=lambda count: abs(count - tokens))
    gib = gib_for_blocks(near.index(best) + 1, layout)
    return Row("layout", server, "printed tokens", tokens, best, None, None, source, f"{gib:.2f} GiB of blocks")


def not_computed(server: str, figure: str, published: float, source: str, note: str) -> Row:
    return Row("none", server, figure, published, None, None, None, source, note)


Q27, A3B, Q9 = "Qwen3.6-27B", "Qwen3.6-35B-A3B", "ig1/Qwen3.5-9B-NVFP4"
FP8_27B = Weights(28.16, 0.0, 0.4, 0.005, "14.28 GiB on each of two cards, published")
NVFP4_27B = Weights(20.04, 0.0, 0.4, 0.01, "files of 20.44 GiB, published")
NVFP4_A3B = Weights(20.3, 0.0, 1.5, 0.03, "files of 23.4 GB, of which MTP's experts are not loaded")
SPECULATIVE = json.dumps({"method": "mtp", "num_speculative_tokens": 3}, separators=(",", ":"))
PAIR = f"-tp 2 --max-num-seqs 2 --max-num-batched-tokens 8192 --kv-cache-dtype fp8 --speculative-config {SPECULATIVE}"
CACHED, UNCACHED = "--enable-prefix-caching --max-model-len 262144", "--no-enable-prefix-caching --max-model-len 262144"
MOE = "--max-num-seqs 1 --max-num-batched-tokens 8192 --kv-cache-dtype fp8 --enable-prefix-caching"


def batched_rows() -> list[Row]:
    """A 27B on one card at four sizes of max-num-batched-tokens: the first start is the probe of the others."""
    flags = "--max-model-len 65536 --max-num-seqs 4 --kv-cache-dtype fp8 --language-model-only"
    shape = shape_of(Q27, NVFP4_27B)
    probe = StartupLog(
        vllm_version="0.25.1",
        requested={**_log_names(flags), "max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.95},
        weights_gib=19.2,
        kv_cache_gib=8.89,
        max_num_batched_tokens=8192,
    )
    rows = []
    for batched, gib in ((4096, 9.72), (3072, 9.82), (2048, 9.93)):
        config = ServerConfig(
            flags=parse_flags(f"{flags} --max-num-batched-tokens {batched} --gpu-memory-utilization 0.95".split())
        )
        found = plan_config(config, shape, version="0.25.1", card=find_card("rtx-5090"), probe=probe).prediction
        assert found is not None
        rows.append(
            Row(
                "probe", f"27B, {batched:,} batched tokens (8.89 GiB at 8,192 as probe), RTX 5090", "KV GiB", gib,
                found.kv_cache_gib, found.kv_cache_gib_low, found.kv_cache_gib_high, "a 64-layer hybrid's owner",
                "text-only and 0.95 assumed: the source gives the batched tokens alone",
            )
        )  # fmt: skip
    return rows


def _log_names(flags: str) -> dict[str, object]:
    names: dict[str, object] = {}
    for name, value in parse_flags(flags.split()).items():
        names[name.replace("-", "_")] = True if value is None else int(value) if value.isdigit() else value
    return names


def seed_rows() -> list[Row]:
    """The model card's two servers of 0.18, each of which calibrates its own card, and a small card under WSL."""
    rows = []
    for platform, share, tokens in (("linux", 0.95, 110_880), ("wsl", 0.8, 77_088)):
        flags = f"--capture 64 --max-num-seqs 64 --gpu-memory-utilization {share}"
        found = planned(Q9, None, "rtx-5090", "0.18.0", flags, platform).prediction
        assert found is not None
        assert found.kv_cache_tokens_printed is not None
        rows.append(
            Row(
                "built in", f"9B NVFP4, capture 64, 64 sequences, 0.18, RTX 5090 ({platform})", "printed tokens",
                tokens,
                found.kv_cache_tokens_printed, None, None, "model card",
            )
        )  # fmt: skip
    small = planned(
        Q9, None, "rtx-5090", "0.27.1",
        "--language-model-only --enforce-eager --max-num-seqs 1 --max-num-batched-tokens 2048 "
        "--gpu-memory-utilization 0.9 --max-model-len 6400", "wsl", 12_227 / 1024,
    )  # fmt: skip
    found = small.prediction
    assert found is not None
    assert small.cannot_start is None, "this server ran"
    rows.append(
        Row(
            "plan", "9B NVFP4 text-only, eager, 1 sequence, 0.27.1, 12,227 MiB card under WSL", "KV GiB", 0.37,
            found.kv_cache_gib, found.kv_cache_gib_low, found.kv_cache_gib_high, "a laptop's owner",
            "risk `startup`, but not refused; a --max-model-len that fits assumed",
        )
    )  # fmt: skip
    widths = shape_of(Q9).widths
    assert widths is not None
    computed = activations_gib(widths, Load(2048, 1, text_only=True))
    rows.append(
        Row(
            "plan", "the same server", "peak activations GiB", 0.27, round(computed, 3), 0.5 * computed,
            1.5 * computed, "a laptop's owner",
        )
    )  # fmt: skip
    return rows


def rows() -> list[Row]:
    """All rows."""
    bf16 = known_shape("Qwen3.5-27B")
    assert bf16 is not None
    assert bf16.weights is not None
    weights = bf16.weights.total_gib(drafter=True)
    return [
        *seed_rows(),
        *batched_rows(),
        cache("27B FP8, MTP 3, 2 x RTX 5090", Q27, 12.52, 705_884, 262_144, f"{CLUB} 998", version="0.26", cards=2,
              drafter=MTP3),
        cache("27B NVFP4, MTP 3, 2 x RTX 5090", Q27, 15.52, 875_765, 262_144, f"{CLUB} 1026", version="0.27", cards=2,
              drafter=MTP3),
        cache("27B NVFP4, MTP 3, no prefix caching, 2 x RTX 5090", Q27, 14.68, 841_541, 262_144, f"{CLUB} 849",
              version="0.25.1", cards=2, drafter=MTP3, mode="none"),
        cache("35B-A3B NVFP4, RTX 5090", A3B, 5.98, 567_978, 131_072, f"{CLUB} 612", version="0.24", cards=1),
        cache("35B-A3B NVFP4, RTX 5090, another start", A3B, 6.01, 569_878, 131_072, f"{CLUB} 652", version="0.24",
              cards=1),
        cache("35B-A3B INT4, 2 x RTX 5090", A3B, 17.02, 3_382_054, 262_144, f"{CLUB} 851", version="0.25.1", cards=2),
        cache("35B-A3B NVFP4, 2 x RTX 5090", A3B, 16.58, 3_292_687, 262_144, f"{CLUB} 858", version="0.25.1", cards=2),
        cache("35B-A3B NVFP4, KV fixed at 2 GiB, RTX 5090 (WSL)", A3B, 2.00, 172_463, 65_536,
              "club-3090 benchmarks, 2026-07-27", version="0.25.1", cards=1),
        blocks_behind("27B NVFP4, MTP 3, no prefix caching, 2 x RTX 5090", Q27, 968_145, 262_144, f"{CLUB} 838",
                      cards=2, drafter=MTP3, mode="none", kv_dtype="fp8"),
        blocks_behind("27B FP8, BF16 cache, 2 x RTX 5090", Q27, 377_456, 262_144, f"{RECIPES} 810", cards=2,
                      drafter=None, mode="align", kv_dtype="auto"),
        blocks_behind("27B NVFP4, BF16 cache, 2 x RTX 5090", Q27, 445_875, 262_144, f"{RECIPES} 810", cards=2,
                      drafter=None, mode="align", kv_dtype="auto"),
        plan("27B FP8, MTP 3, 0.92, 2 x RTX 5090", 12.52, f"{CLUB} 998", Q27, FP8_27B, "rtx-5090", "0.26.0",
             f"{PAIR} {CACHED} --gpu-memory-utilization 0.92"),
        plan("27B FP8, MTP 3, 0.92, 2 x RTX 5090, another owner", 12.24, f"{CLUB} 1087", Q27, FP8_27B, "rtx-5090",
             "0.27.1", f"{PAIR} {CACHED} --gpu-memory-utilization 0.92"),
        plan("27B NVFP4, MTP 3, 0.90, 2 x RTX 5090", 15.52, f"{CLUB} 1026", Q27, NVFP4_27B, "rtx-5090", "0.27.1",
             f"{PAIR} {CACHED} --gpu-memory-utilization 0.90"),
        plan("27B NVFP4, MTP 3, no prefix caching, 0.85, 2 x RTX 5090", 14.68, f"{CLUB} 849", Q27, NVFP4_27B,
             "rtx-5090", "0.25.1", f"{PAIR} {UNCACHED} --gpu-memory-utilization 0.85"),
        plan("35B-A3B NVFP4, default utilisation, RTX 5090", 5.98, f"{CLUB} 612", A3B, NVFP4_A3B, "rtx-5090",
             "0.24.0", f"{MOE} --max-model-len 131072"),
        plan("35B-A3B NVFP4, 0.92, 2 x RTX 5090", 16.58, f"{CLUB} 858", A3B, NVFP4_A3B, "rtx-5090", "0.25.1",
             f"-tp 2 {MOE} --max-model-len 262144 --gpu-memory-utilization 0.92"),
        plan_tokens("27B FP8, BF16 cache, defaults, 2 x RTX 5090", 377_456, f"{RECIPES} 810", Q27, FP8_27B,
                    "rtx-5090", "0.26.1", "-tp 2 --max-model-len 262144", 262_144),
        plan_tokens("27B NVFP4, BF16 cache, defaults, 2 x RTX 5090", 445_875, f"{RECIPES} 810", Q27,
                    Weights(23.64, 0.0, 0.4, 0.01, "12.02 GiB on each of two cards, published"), "rtx-5090", "0.26.1",
                    "-tp 2 --max-model-len 262144", 262_144),
        Row("plan", "27B BF16", "weights GiB", 51.1, round(weights, 2), 0.95 * weights, 1.05 * weights,
            "a PRO 6000's owner", "counted from config.json"),
        plan("27B FP8, defaults (1,024 sequences), RTX PRO 6000", 939 * 51_380_224 / 2**30, f"{RECIPES} 831", Q27,
             FP8_27B, "rtx-pro-6000-max-q", "0.27.0", "",
             "939 blocks; some 13 GiB beside weights and cache are not explained: the source gives no flags"),
        not_computed("27B INT4, DFlash2 of 7, 2 x RTX 5090", "tokens of 16.01 GiB", 374_847, f"{CLUB} 1084",
                     "the drafter's config.json is not public here"),
        not_computed("27B FP8, DFlash2 of 7, 2 x RTX 5090", "tokens of 11.15 GiB", 451_603, f"{CLUB} 1085",
                     "the same drafter"),
        not_computed("27B NVFP4, NVFP4 cache, RTX 5090", "tokens of 9.39 GiB", 428_168, "club-3090 discussion 765",
                     "an NVFP4 cache on a patched server: its layout is not known"),
        not_computed("35B-A3B NVFP4, NVFP4 cache, 2 GiB, RTX 5090 (WSL)", "tokens", 273_066,
                     "club-3090 benchmarks, 2026-07-27", "the same"),
    ]  # fmt: skip


def document() -> str:
    """docs/published-figures.md."""
    lines = [
        "# Published figures of RTX 50 cards",
        "",
        "What owners published about their servers' memory, and what `ledger` and `plan` compute for them. No figure",
        "here was measured by this project. A *layout* row is arithmetic of the cache and must be exact; a *plan* row",
        "is predicted from the flags and the weights' size alone, without a start-up log, and must hold the published",
        "figure in its interval; a *probe* row is predicted from another start of the same server; a *built in* row is",
        "the calibration of that card and so met by construction. The table is computed by",
        "`tests/support/published_figures.py` and checked by a test; **miss** marks what failed.",
        "",
        "| Server | Figure | Published | Computed | Off by | Kind | Source |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows():
        interval = "" if row.low is None or row.high is None else f" ({_number(row.low)} to {_number(row.high)})"
        computed = "not computed" if row.computed is None else _number(row.computed) + interval
        error = "" if row.error is None else f"{row.error:+.1%}".replace("+0.0%", "0").replace("-0.0%", "0")
        source = f"{row.source}: {row.note}" if row.note else row.source
        kind = ("" if row.kind == "none" else f"{row.kind}, ") + "**miss**" if row.miss else row.kind
        lines.append(
            f"| {row.server} | {row.figure} | {_number(row.published)} | {computed} | {error} | {kind} | {source} |"
        )
    misses = sum(row.miss for row in rows())
    lines += ["", f"{len(rows())} figures, {misses} misses.", ""]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


if __name__ == "__main__":
    print(document(), end="")
