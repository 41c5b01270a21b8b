"""What the broken-output checks cost: microseconds an answer and a token, on the project's own reference answers.

.venv/bin/python bench/quality.py [--client-us-per-token 16]
"""

from __future__ import annotations

import argparse
import time

from qwenbench.workload.characters import class_table
from qwenbench.workload.importing.importer import estimated
from qwenbench.workload.prompts import load_prompt_set
from qwenbench.workload.quality import judge
from qwenbench.workload.scenario import load_scenario

PASSES = 20


def main() -> None:
    """Prints one row per scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client-us-per-token", type=float, default=16.0, help="CPU of the load client")
    client = parser.parse_args().client_us_per_token
    begun = time.process_time()
    class_table()
    print(f"character table, once a process: {1000 * (time.process_time() - begun):.0f} ms")
    print(f"{'scenario':<14}{'answers':>8}{'tokens':>8}{'us/answer':>11}{'us/token':>10}{'of client CPU':>15}")
    count = estimated().count
    for name in ("conversation", "math", "code", "multilingual"):
        path = load_scenario(name).prompts_path
        assert path is not None
        prompts = load_prompt_set(path).prompts
        answers = [(turn.assistant, one.language) for one in prompts for turn in one.turns if turn.assistant]
        tokens = sum(count(text) for text, _ in answers)
        best = float("inf")
        for _ in range(PASSES):
            begun = time.process_time()
            for text, language in answers:
                judge(text, "", language, "stop")
            best = min(best, time.process_time() - begun)
        each, per_token = 1e6 * best / len(answers), 1e6 * best / tokens
        share = 100 * per_token / client
        print(
            f"{name:<14}{len(answers):>8}{tokens / len(answers):>8.0f}{each:>11.1f}{per_token:>10.3f}{share:>14.1f} %"
        )


if __name__ == "__main__":
    main()
