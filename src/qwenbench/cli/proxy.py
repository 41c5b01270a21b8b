"""`qwenbench proxy`: the four Qwen3.5 profiles as virtual model names."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from qwenbench.errors import UsageError

if TYPE_CHECKING:
    from qwenbench.proxy.relay import ProxyOptions
    from qwenbench.proxy.target import TargetAddress


def command(
    target: Annotated[str | None, typer.Option("--target", help="The server, e.g. http://127.0.0.1:8000.")] = None,
    served_model: Annotated[
        str | None, typer.Option("--served-model", help="The name under which it serves its model.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: a free one.")] = 9000,
    prefix: Annotated[str, typer.Option("--prefix", help="Virtual names are this and the profile's.")] = "qwen3.5-",
    enforce: Annotated[
        bool, typer.Option("--enforce", help="Replace sampling parameters that a request brings along.")
    ] = False,
) -> None:
    """Serve the four sampling profiles as virtual model names in front of one server. Ctrl-C ends it."""
    import asyncio

    from qwenbench.proxy.relay import ProxyOptions
    from qwenbench.proxy.rewriting import virtual_models
    from qwenbench.proxy.target import parse_target

    if target is None or served_model is None:
        raise UsageError(
            "--target and --served-model are needed, e.g. --target http://127.0.0.1:8000 --served-model Qwen3.5-9B."
        )
    address = parse_target(target)
    options = ProxyOptions(served_model, virtual_models(prefix), enforce)
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(address, options, host, port))
    else:
        uvloop.run(_serve(address, options, host, port))


async def _serve(address: TargetAddress, options: ProxyOptions, host: str, port: int) -> None:
    import asyncio
    import signal

    from qwenbench.proxy.relay import serving

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with serving(address, options, host, port) as bound:
        print(f"qwenbench proxy: http://{host}:{bound}/v1 serves {', '.join(options.models)}", file=sys.stderr)
        await ended.wait()
