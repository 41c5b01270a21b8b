"""points.csv: every column once, with its unit and its definition. Reports and docs take their words from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "number", "integer", "boolean"]
"""What a column holds: how it is written, and as what it is read back."""
TEXT: Kind = "text"
NUMBER: Kind = "number"
INTEGER: Kind = "integer"
BOOLEAN: Kind = "boolean"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of points.csv. An unknown value is empty, never 0 and never invented."""

    name: str
    unit: str
    definition: str
    better: str = ""
    """`higher`, `lower` or empty where neither is better in itself."""
    metric: bool = False
    """A measured figure that has a mean and an interval over repeats."""
    kind: Kind = NUMBER
    exact: bool = False
    """Written with every digit: a part of the point's name."""
    words: str = ""
    """Its name for people, where it is more than the name without underscores."""
    digits: int | None = None
    """Decimal places for people; None: four significant digits."""

    @property
    def key(self) -> str:
        """The metric's key in limits, recommend and compare: the column name without `_ms`."""
        return self.name.replace("_ms_", "_").removesuffix("_ms")

    @property
    def label(self) -> str:
        """Its name for people: `TTFT p50`, `KV cache`."""
        return self.words or self.name.replace("_", " ").capitalize()

    @property
    def shown_unit(self) -> str:
        """The unit that people read it in: memory is shown in GiB."""
        return "GiB" if self.unit == "MiB" else self.unit

    def shown(self, value: float) -> float:
        """The value in `shown_unit`."""
        return value / 1024 if self.unit == "MiB" else value


_LATENCIES = {
    "ttft": "Time to first token: first byte of the request written to the first chunk with a generated token, "
    "reasoning included; the role-only chunk never counts. Open loop: from the scheduled time.",
    "ttfo": "Time to the first token of the answer, after any reasoning.",
    "tpot": "(last token - first token) / (output tokens - 1), tokens from usage; empty under 2 tokens.",
    "itl": "Gap between two chunks that carry tokens. Gaps inside one read are left out (merged_share); "
    "above 1 % of them the columns are empty.",
    "e2e": "First byte of the request written to the last token. Open loop: from the scheduled time.",
}

LATENCIES = tuple(_LATENCIES)
"""Those of a request: what a limit on each request (--slo ttft=1000ms) may name."""


_MILLISECOND_DIGITS = {"ttft": 0, "ttfo": 0, "tpot": 1, "itl": 1, "e2e": 0}
LATENCY_COLUMNS = tuple(
    Column(
        f"{name}_ms_{statistic}",
        "ms",
        f"{definition} {statistic}.{' Empty under 100 values.' if statistic == 'p99' else ''}",
        "lower",
        metric=True,
        words=f"{name.upper()} {statistic}",
        digits=_MILLISECOND_DIGITS[name],
    )
    for name, definition in _LATENCIES.items()
    for statistic in ("mean", "p50", "p90", "p99")
)

POINT_COLUMNS: tuple[Column, ...] = (
    Column("config_id", "", "The server configuration.", kind=TEXT),
    Column("capture", "", "--max-cudagraph-capture-size as requested.", kind=INTEGER, words="Captured size"),
    Column("max_num_seqs", "", "--max-num-seqs as requested.", kind=INTEGER, words="max-num-seqs", digits=0),
    Column("gpu_memory_utilization", "", "--gpu-memory-utilization as requested (with --card: of that card).", words="gpu-memory-utilization"),
    Column("gpu_memory_utilization_effective", "", "The fraction of the real card that the server was given."),
    Column("scenario", "", "The prompt set and how it is replayed.", kind=TEXT),
    Column("profile", "", "The sampling profile.", kind=TEXT),
    Column("load_shape", "", "closed, or poisson / gamma / constant / trace for open loops.", kind=TEXT),
    Column("concurrency", "streams", "Client streams of a closed loop.", kind=INTEGER),
    Column("rate", "1/s", "Scheduled sessions per second of an open loop.", exact=True),
    Column("repeat", "", "Number of the repeat within a launch, from 1.", kind=INTEGER),
    Column("launch", "", "Number of the launch of this configuration, from 1.", kind=INTEGER),
    Column("seed", "", "The seed that this point's requests were drawn from.", kind=INTEGER),
    Column("simulated", "", "True: made by the simulator, not measured.", kind=BOOLEAN),
    Column("requests_ok", "", "Requests of the point (warm-up excluded) that succeeded.", kind=INTEGER),
    Column("requests_failed", "", "Requests of the point that did not.", kind=INTEGER),
    Column("window", "", "steady: requests in flight >= 0.95 x concurrency, drain left out; else whole.", kind=TEXT),
    Column("duration_s", "s", "Length of the window."),
    Column("requests_per_s", "1/s", "Requests completed in the window / its length.", "higher", metric=True, words="Requests/s", digits=2),
    Column("input_tokens_per_s", "tok/s", "Prompt tokens of requests started in the window / its length.", "higher", metric=True, words="Input tokens/s", digits=0),
    Column("output_tokens_per_s", "tok/s", "Tokens generated in the window / its length.", "higher", metric=True, words="Output tokens/s", digits=0),
    Column("total_tokens_per_s", "tok/s", "Input and output tokens together.", "higher", metric=True, words="Total tokens/s", digits=0),
    Column("output_tokens_per_s_per_user", "tok/s", "output_tokens_per_s / concurrency.", "higher", metric=True, words="Output tokens/s of one user", digits=1),
    Column("goodput_rps", "1/s", "Requests per second that met every per-request limit of --slo.", "higher", metric=True, words="Requests/s within the limits (goodput)"),
    *LATENCY_COLUMNS,
    Column("length_controlled", "", "True: output lengths were forced to the drawn ones, and came out so; empty: nobody counted the tokens.", kind=BOOLEAN),
    Column("prefix_hit_rate", "", "Prompt tokens found in the prefix cache / looked up, over the point."),
    Column("merged_share", "", "Share of chunk gaps whose time is unknown because one read held several chunks."),
    Column("broken_share", "", "Share of judged answers that were broken output."),
    Column("canary_accuracy", "", "Share of the canary's questions answered right.", "higher"),
    Column("kv_cache_gib", "GiB", "Memory for the KV cache, as the server's log prints it.", "higher", words="KV cache", digits=2),
    Column("kv_cache_blocks", "blocks", "KV blocks of the server (vLLM keeps one of them as a null block).", "higher", kind=INTEGER, words="KV blocks", digits=0),
    Column("kv_cache_tokens", "tokens", "Longest single request that fits: min(max_model_len, block x (blocks - 1 - state blocks)).", "higher", kind=INTEGER, words="Longest request that fits", digits=0),
    Column("requests_that_fit", "requests", "floor(usable blocks / blocks of the scenario's p95 request): the concurrency that the configuration can hold.", "higher", kind=INTEGER, words="Requests that fit", digits=0),
    Column("kv_cache_usage_peak", "", "Largest share of KV blocks in use, 0 to 1.", words="KV cache used, peak"),
    Column("preemptions", "", "Requests that lost their KV blocks and were computed again.", "lower", kind=INTEGER),
    Column("running_peak", "requests", "Largest number of requests in the running batch.", kind=INTEGER),
    Column("waiting_peak", "requests", "Largest number of requests waiting in the server.", kind=INTEGER),
    Column("vram_before_mib", "MiB", "NVML used memory before the launch, largest card.", words="VRAM before the launch", digits=2),
    Column("vram_ready_mib", "MiB", "NVML used memory when the server was ready.", words="VRAM when ready", digits=2),
    Column("vram_peak_mib", "MiB", "Largest NVML used memory under this load.", "lower", words="VRAM peak", digits=2),
    Column("vram_own_peak_mib", "MiB", "Peak memory of the server's own processes as NVML tells it, else of the card less what was used before the launch.", digits=2),
    Column("vram_over_budget_mib", "MiB", "The server's own peak minus the budget: a risk, not proof of an out-of-memory error.", words="VRAM peak over the budget", digits=2),
    Column("power_w_mean", "W", "Mean power over the window, all cards of the configuration.", words="Power, mean"),
    Column("sm_clock_mhz_mean", "MHz", "Mean SM clock over the window, all cards."),
    Column("power_limit_w", "W", "The power limit that NVML enforces, all cards of the configuration."),
    Column("throttled_share", "", "Share of samples in which NVML said that something held the clocks back.", "lower"),
    Column("throttle_reasons", "", "What it was, with the share of samples of each (a power limit that is reached is a card at work).", kind=TEXT),
    Column("drafted_tokens", "tokens", "Tokens that a drafter proposed during the point.", kind=INTEGER),
    Column("accepted_tokens", "tokens", "Of them those that the model accepted.", kind=INTEGER),
    Column("acceptance_rate", "", "Accepted / drafted tokens.", "higher"),
    Column("acceptance_length", "tokens", "Tokens a request gained in a step with a drafter: 1 + accepted tokens / drafts.", "higher"),
    Column("energy_j_per_output_token", "J", "NVML energy over the window / output tokens, prefill included; empty under 10 s.", "lower", metric=True, words="Energy per output token", digits=3),
    Column("startup_s", "s", "Launch to ready.", "lower", words="Start-up", digits=1),
    Column("client_error_ms", "ms", "The client's own mean TTFT error at this concurrency, from its self-check."),
    Column("client_error_p99_ms", "ms", "The same, 99th percentile."),
    Column("bound", "", "Why the point is not faster: the first reason that holds.", kind=TEXT),
    Column("bound_all", "", "Every reason that holds, with its evidence.", kind=TEXT),
    Column("valid", "", "False: not to be used for decisions.", kind=BOOLEAN),
    Column("invalid_reason", "", "Why not.", kind=TEXT),
    Column("error_top", "", "The commonest reasons of failed requests with their counts, in the server's words.", kind=TEXT),
    Column("tokens_from", "", "Who counted output tokens: usage, or tokenize where the server sends no usage and its /tokenize counts the text of the answers; empty: unknown.", kind=TEXT),
    Column("disagreements", "", "Which two of text, chunks, usage and times cannot be true together, with counts: such requests' tokens are unknown.", kind=TEXT),
    Column("in_flight_mean", "streams", "Sessions under way, on average over the window (think time counts): what the load really was."),
    Column("window_note", "", "What keeps the window from being what the load's name says.", kind=TEXT),
    Column("itl_stall_share", "", "Share of the time between chunks that went into stalls: gaps over 2.5 x the point's median gap.", "lower"),
    Column("itl_stall_ms_p50", "ms", "Median stall.", "lower"),
    Column("server_steps", "steps", "Steps of the engine in the window, by its own count.", kind=INTEGER),
    Column("server_tokens_per_step", "tokens", "Tokens of a step on average, prompts included, by the server's count."),
    Column("server_prefill_step_share", "", "Share of steps that carried a prefill: those of more tokens than the largest batch decodes. At least so many.", "lower"),
    Column("server_queue_ms_mean", "ms", "Mean time in the server's queue, of requests that ended in the window, by its own clock.", "lower"),
    Column("server_prefill_ms_mean", "ms", "Mean time from the queue to the first token, by the server's own clock.", "lower"),
    Column("gpu_util_mean", "%", "NVML's GPU utilisation over the window, mean over time and cards: time in which any kernel ran."),
    Column("requests_in_window", "", "Requests that started in the window and succeeded: what latencies are of.", kind=INTEGER),
    Column("interference", "", "With --interfere: ITL of these requests while a long prompt was read, and otherwise.", kind=TEXT),
    Column("window_start_ns", "ns", "Start of the window, CLOCK_REALTIME: requests that start from here on count.", kind=INTEGER),
    Column("window_end_ns", "ns", "End of the window, CLOCK_REALTIME.", kind=INTEGER),
    Column("node", "", "Name of the host that the server ran on; empty for one that is not seen.", kind=TEXT),
    Column("machine", "", "Its cards, processor and cores: figures of unlike ones are never averaged.", kind=TEXT),
)  # fmt: skip
"""In the contract's order. One column vary_FLAG (dashes as underscores) per --vary follows them."""

VARIED = "vary_"
"""What the columns of --vary flags begin with; they are texts."""


def varied_column(flag: str) -> str:
    return VARIED + flag.replace("-", "_")


COLUMN_NAMES: tuple[str, ...] = tuple(column.name for column in POINT_COLUMNS)
METRICS: dict[str, Column] = {column.key: column for column in POINT_COLUMNS if column.metric}
"""Key (ttft_p99, output_tokens_per_s, ...) -> column, for limits, recommend and compare."""

_KNOWN: dict[str, Column] = {
    name: column
    for column in (
        *POINT_COLUMNS,
        # of a launch's ledger (memory.json)
        Column("graphs_actual_gib", "GiB", "Memory of the CUDA graphs, as the server's log prints it.", "lower", words="CUDA graphs", digits=2),
        Column("capture_s", "s", "Capturing graphs, as the server's log prints it.", "lower", words="Capturing graphs", digits=1),
    )
    for name in (column.name, column.key)
}  # fmt: skip


def column_of(key: str) -> Column:
    """The column of that name or key, or key of a ledger; one without unit and definition where it is no such."""
    if key in _KNOWN:
        return _KNOWN[key]
    return Column(key, "", "", words=key.removeprefix(VARIED).replace("_", "-") if key.startswith(VARIED) else "")


def label(key: str) -> str:
    """A metric's or column's name for people: `ttft_p50` -> `TTFT p50`."""
    return column_of(key).label


def in_words(key: str) -> str:
    """The same within a sentence: `output tokens/s`, `TTFT p50`."""
    name = label(key)
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


def figure(value: float, digits: int | None = None, signed: bool = False) -> str:
    """A number for people: thousands separated, four significant digits unless `digits` says how many places."""
    places = digits if digits is not None else 0 if abs(value) >= 1000 else None
    text = f"{value:.4g}" if places is None else f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        return text.lstrip("-")  # no -0.00
    return f"+{text}" if signed and value > 0 else text
