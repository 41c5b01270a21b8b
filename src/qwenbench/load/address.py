"""Where a target's requests go: base URL to scheme, host, port and path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from qwenbench.errors import UsageError
from qwenbench.load.spec import ENDPOINT_PATHS, Target


@dataclass(frozen=True, slots=True)
class Address:
    """A target, taken apart. `path` is the whole request path; `proxied` says that the environment names a
    proxy for it."""

    scheme: str
    host: str
    port: int
    path: str
    proxied: bool

    @property
    def host_header(self) -> str:
        """Host header value; the port is left out where it is the scheme's own."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return name if self.port == default else f"{name}:{self.port}"

    @property
    def url(self) -> str:
        """The whole URL, without user name."""
        return f"{self.scheme}://{self.host_header}{self.path}"


def address_of(target: Target) -> Address:
    """Take a target's URL apart; `http://host:8000` and `http://host:8000/v1` mean the same.

    Raises UsageError for anything that is no http(s) URL of a host, or an endpoint that is not known.
    """
    try:
        parts = urlsplit(target.base_url)
        port = parts.port
    except ValueError:
        raise UsageError("the server's URL cannot be read; give one like http://127.0.0.1:8000") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError("the server's URL must begin with http:// or https:// and name a host")
    if target.endpoint not in ENDPOINT_PATHS:
        known = " or ".join(ENDPOINT_PATHS)
        raise UsageError(f"endpoint {target.endpoint!r} is not known; use {known}")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    if port is None:
        port = 443 if parts.scheme == "https" else 80
    proxied = _has_proxy(parts.scheme, parts.hostname)
    return Address(parts.scheme, parts.hostname, port, prefix + ENDPOINT_PATHS[target.endpoint], proxied)


def _has_proxy(scheme: str, host: str) -> bool:
    if scheme not in getproxies():
        return False
    local = host in ("localhost", "::1") or host.startswith("127.")
    return not local and not proxy_bypass(host) and os.environ.get("no_proxy") != "*"
