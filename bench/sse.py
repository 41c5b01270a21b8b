"""Reading 100 MB of server-sent events: CPU seconds from the bytes as they were read to times, tokens and usage.

    .venv/bin/python bench/sse.py [--megabytes 100] [--tokens 400]

Streams look like vLLM's: chunked HTTP, one token an event, three reads in four bring one event. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time

import numpy as np

from qwenbench.load.exchange import RawExchange, cut_body
from qwenbench.load.sse import decode_stream, token_times

EVENT = (
    'data: {"id":"chatcmpl-%032x","object":"chat.completion.chunk","created":1790000000,"model":"Qwen3.5-9B",'
    '"choices":[{"index":0,"delta":{"content":%s},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
)
WORDS = [" the", " a", "\n", ' "quoted"', " größer", " 你好", " value", "():", "\n\n    return", " 42", "ing", "."]


def stream(tokens: int, seed: int) -> tuple[RawExchange, np.ndarray]:
    """One finished exchange, and the time stamps of its reads."""
    draw = random.Random(seed)
    events = [EVENT % (seed, '""')]
    events += [EVENT % (seed, json.dumps(draw.choice(WORDS), ensure_ascii=False)) for _ in range(tokens)]
    events.append(
        f'data: {{"id":"x","object":"chat.completion.chunk","choices":[],"usage":{{"prompt_tokens":9,'
        f'"completion_tokens":{tokens},"total_tokens":{tokens + 9}}}}}\n\n'
    )
    events.append("data: [DONE]\n\n")
    reads = [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"]
    for event in events:
        data = event.encode()
        chunk = b"%x\r\n%b\r\n" % (len(data), data)
        if draw.random() < 0.25:
            reads[-1] += chunk
        else:
            reads.append(chunk)
    reads[-1] += b"0\r\n\r\n"
    exchange = RawExchange()
    exchange.reads = reads
    return exchange, np.arange(len(reads), dtype=np.int64) * 10_000_000


def main() -> None:
    """Decodes the same few streams over and over, as many as make up the size that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--tokens", type=int, default=400)
    options = parser.parse_args()
    streams = [stream(options.tokens, seed) for seed in range(32)]
    read = tokens = number = 0
    cpu = time.process_time()
    while read < options.megabytes * 1e6:
        exchange, stamps = streams[number % len(streams)]
        number += 1
        body = cut_body(exchange)
        facts = decode_stream(body.data)
        times = token_times(body, facts, stamps)
        assert facts.error is None
        assert times is not None
        assert facts.usage is not None
        tokens += len(facts.token_ends)
        read += sum(map(len, exchange.reads))
    seconds = time.process_time() - cpu
    print(
        json.dumps(
            {
                "megabytes": round(read / 1e6),
                "streams": number,
                "tokens": tokens,
                "cpu_s": round(seconds, 2),
                "us_per_token": round(1e6 * seconds / tokens, 2),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
