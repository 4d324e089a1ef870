"""HTTP to the server beside us: never through a proxy, whatever the environment says of proxies."""

from __future__ import annotations

import http.client
import urllib.request

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_url(url: str, body: bytes | None = None, *, timeout_s: float) -> http.client.HTTPResponse:
    """GET, or POST if there is a body. Raises what `urllib.request.urlopen` raises."""
    return _direct.open(url, body, timeout_s)
