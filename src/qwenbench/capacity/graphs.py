"""Memory of CUDA graphs, by capture size: which sizes vLLM captures and what its profiler reckons for them.

vLLM's estimate is, for each of the two kinds of graph (PIECEWISE and FULL decode), the first capture plus an
equal share for each further one, so it is linear in the number of graphs. The two constants below are fitted to
the recorded servers of the seed's model (5, 7 and 11 graphs of each kind: 0.08, 0.09 and 0.11 GiB).
"""

from __future__ import annotations

SHARED_GIB = 0.055
"""Both first captures, seed's model."""
PER_GRAPH_GIB = 0.0025
"""Each graph of either kind."""


def capture_sizes(largest: int) -> tuple[int, ...]:
    """Batch sizes that --max-cudagraph-capture-size makes vLLM capture: 1, 2, 4, 8 to 256 by 8, then by 16."""
    sizes = {1, 2, 4, *range(8, 257, 8), *range(272, largest + 1, 16)}
    return tuple(sorted(size for size in sizes if size <= largest))


def graph_count(capture: int, max_num_seqs: int | None) -> int:
    """PIECEWISE and FULL graphs together; FULL decode graphs go no further than max-num-seqs."""
    sizes = capture_sizes(capture)
    return len(sizes) + sum(1 for size in sizes if max_num_seqs is None or size <= max_num_seqs)


def graphs_gib(capture: int, max_num_seqs: int | None, scale: float = 1.0) -> float:
    """What vLLM's profiler would reckon for this capture size, GiB; `scale` fits it to another model."""
    count = graph_count(capture, max_num_seqs)
    return scale * (SHARED_GIB + PER_GRAPH_GIB * count) if count else 0.0


def graphs_scale(estimated_gib: float, capture: int, max_num_seqs: int | None) -> float:
    """The scale that makes `graphs_gib` give a probe's estimate."""
    expected = graphs_gib(capture, max_num_seqs)
    return estimated_gib / expected if expected else 1.0
