"""CPU seconds for decoding 100 MB of SSE into request records: `python bench/client/sse_speed.py`."""

from __future__ import annotations

import time
from array import array

from qwenbench.load.exchange import RawExchange
from qwenbench.load.http1 import parse_head
from qwenbench.load.records import Sending, digest
from qwenbench.load.truth.server import last_chunks, token_chunk
from qwenbench.workload.sessions import SessionPlan, TurnPlan

MEGABYTES = 100
TOKENS = 500
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def answer() -> RawExchange:
    """One ended answer of 500 tokens, one read per token."""
    reads = [HEAD, *(token_chunk(token) for token in range(TOKENS)), last_chunks(TOKENS)]
    one = RawExchange(sent_ns=0, reads=reads, status=200, head=parse_head(HEAD))
    one.stamps = array("q", range(0, 10_000_000 * len(reads), 10_000_000))
    one.ended_ns = one.stamps[-1]
    return one


def main() -> None:
    """Decode and print."""
    turn = TurnPlan("r", 0, "p", "en", {"messages": []}, TOKENS)
    sending = Sending(SessionPlan("s", "bench", (turn,)), turn, 0, 0, None, 0)
    size = sum(map(len, answer().reads))
    answers = [answer() for _ in range(MEGABYTES * 1_000_000 // size + 1)]
    began = time.process_time()
    for one in answers:
        assert digest(sending, one).row["error"] is None
    spent = time.process_time() - began
    print(f"{size * len(answers) / 1e6:.0f} MB of SSE, {TOKENS * len(answers)} tokens: {spent:.2f} s of CPU")


if __name__ == "__main__":
    main()
