"""/metrics as vLLM prints it: what is there is read, what is not stays unknown."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.bounded_http import Questions, WaitLimit
from qwenbench.observe.metrics import METRICS_SCHEMA, MetricsScraper, parse_metrics, scrape

# as vLLM 0.20.2 prints them, cut down to a few lines of each kind
TEXT = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 9876.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen3.5-9B"} 16.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen3.5-9B"} 48.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen3.5-9B",reason="capacity"} 40.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen3.5-9B"} 0.25
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0",model_name="Qwen3.5-9B"} 0.0
vllm:num_preemptions_created{engine="0",model_name="Qwen3.5-9B"} 1.790000000e+09
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="Qwen3.5-9B"} 1.2345e+04
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0",model_name="Qwen3.5-9B"} 5000.0
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="Qwen3.5-9B"} 3.0
vllm:iteration_tokens_total_count{engine="0",model_name="Qwen3.5-9B"} 100.0
vllm:iteration_tokens_total_sum{engine="0",model_name="Qwen3.5-9B"} 4200.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="1072",gpu_memory_utilization="0.95"} 1.0
"""


def test_known_names_are_read_and_others_left_alone() -> None:
    found = parse_metrics(TEXT)
    assert found.values == {
        "running": 16,
        "waiting": 48,
        "kv_cache_usage": 0.25,
        "preemptions_total": 0,
        "generation_tokens_total": 12345,
        "prefix_queries_total": 5000,
        "iteration_tokens_sum": 4200,
        "iteration_tokens_count": 100,
        "waiting_capacity": 40,
    }
    assert found.step_buckets == {1.0: 3.0}
    assert found.cache_config["num_gpu_blocks"] == "1072"


def test_what_is_not_there_is_missing_and_not_0() -> None:
    found = parse_metrics(TEXT)
    assert "prefix_hits_total" not in found.values
    assert "prompt_tokens_total" not in found.values
    assert parse_metrics("").values == {}
    assert parse_metrics("").cache_config == {}


def test_every_name_that_is_read_has_a_column() -> None:
    from qwenbench.observe import metrics

    assert set(metrics._COLUMN_OF.values()) <= set(METRICS_SCHEMA.names)


def test_engines_are_added_up_and_the_fullest_cache_counts() -> None:
    other = TEXT.replace('engine="0"', 'engine="1"').replace("perc{engine=", "perc{engine=").replace("} 0.25", "} 0.75")
    found = parse_metrics(TEXT + other).values
    assert found["running"] == 32
    assert found["generation_tokens_total"] == 24690
    assert found["kv_cache_usage"] == 0.75


def test_the_older_name_of_kv_usage_is_known() -> None:
    assert parse_metrics("vllm:gpu_cache_usage_perc 0.5\n").values == {"kv_cache_usage": 0.5}


def test_text_that_is_no_metrics_is_an_error_for_the_scraper_to_catch() -> None:
    with pytest.raises(ValueError):
        parse_metrics("vllm:num_requests_running lots\n")


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


class Metrics:
    """A server whose /metrics can be set."""

    def __init__(self) -> None:
        self.text, self.status, self.seen = TEXT, 200, asyncio.Event()
        self.headers: list[str | None] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.headers.append(request.headers.get("Authorization"))
        self.seen.set()
        return web.Response(text=self.text, status=self.status)


def asking(session: aiohttp.ClientSession, url: str) -> Questions:
    return Questions(session, url, {}, WaitLimit(60))


@pytest.fixture
async def metrics() -> AsyncIterator[tuple[Metrics, str]]:
    server = Metrics()
    app = web.Application()
    app.router.add_get("/metrics", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_scrape_sends_the_headers_it_was_given(
    session: aiohttp.ClientSession, metrics: tuple[Metrics, str]
) -> None:
    server, url = metrics
    reading = await scrape(Questions(session, url, {"Authorization": "Bearer x"}, WaitLimit(60)))
    assert reading is not None
    assert reading.values["running"] == 16
    assert server.headers == ["Bearer x"]


@pytest.mark.parametrize(("status", "text"), [(404, ""), (500, TEXT), (200, "vllm:num_requests_running lots\n")])
async def test_a_server_without_usable_metrics_gives_none(
    session: aiohttp.ClientSession, metrics: tuple[Metrics, str], status: int, text: str
) -> None:
    server, url = metrics
    server.status, server.text = status, text
    assert await scrape(asking(session, url)) is None


async def test_no_server_gives_none(session: aiohttp.ClientSession) -> None:
    assert await scrape(asking(session, "http://127.0.0.1:9")) is None


async def test_counters_are_read_before_and_after_the_load(
    session: aiohttp.ClientSession, metrics: tuple[Metrics, str]
) -> None:
    """The difference of the first and the last row is what the load did, however short it was."""
    server, url = metrics
    scraper = await MetricsScraper(asking(session, url), period_s=3600).start()
    assert scraper.latest["generation_tokens_total"] == 12345
    server.text = TEXT.replace("1.2345e+04", "12400")
    table = await scraper.stop()
    assert table.schema.equals(METRICS_SCHEMA)
    assert table["generation_tokens_total"].to_pylist() == [12345, 12400]
    assert table["prefix_hits_total"].to_pylist() == [None, None]
    times = table["t_ns"].to_pylist()
    assert times == sorted(times)


async def test_readings_go_on_in_between(session: aiohttp.ClientSession, metrics: tuple[Metrics, str]) -> None:
    server, url = metrics
    scraper = await MetricsScraper(asking(session, url), period_s=0.01).start()
    for _ in range(3):
        server.seen.clear()
        await server.seen.wait()
    assert (await scraper.stop()).num_rows >= 4


async def test_a_server_without_metrics_leaves_an_empty_table(
    session: aiohttp.ClientSession, metrics: tuple[Metrics, str]
) -> None:
    server, url = metrics
    server.status = 404
    scraper = await MetricsScraper(asking(session, url), period_s=3600).start()
    assert scraper.latest == {}
    table = await scraper.stop()
    assert table.num_rows == 0
    assert table.schema.equals(METRICS_SCHEMA)


@pytest.mark.parametrize("odd", ["99999999999999999999999999", "+Inf", "nan", "-1e300"])
def test_a_label_that_counts_beyond_all_reason_stays_unknown(odd: str) -> None:
    text = f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{odd}",cache_dtype="auto"}} 1.0\n'
    assert parse_metrics(text).cache_config == {"block_size": "16", "cache_dtype": "auto"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["vllm:iteration_tokens_total_bucket", "vllm:num_requests_running", "vllm:cache_config_info"]
            ),
            st.text(alphabet='{}",\\= le#x1\n', max_size=20),
            st.sampled_from(["", " 1", " NaN", " 1e400", " 1 1e400", " x", " -0 # {a="]),
        ),
        max_size=4,
    )
)
def test_whatever_stands_in_metrics_is_a_reading_or_none(lines: list[tuple[str, str, str]]) -> None:
    with contextlib.suppress(ValueError):
        reading = parse_metrics("\n".join(map("".join, lines)))
        assert all(math.isfinite(value) for value in [*reading.values.values(), *reading.step_buckets.values()])
