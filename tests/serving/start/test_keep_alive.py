"""gRPC clients that ping an idle connection keep it."""

from __future__ import annotations

import threading

import grpc
import pytest

from tests.support.waiting import HANG_S

PING_S, PINGS = 2.0, 4


@pytest.mark.server
def test_an_idle_client_that_pings_keeps_its_connection(default_server):
    """gRPC's own limit ends a connection after the third ping that comes too soon."""
    lost = threading.Event()
    connected = threading.Event()

    def follow(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            connected.set()
        elif connected.is_set():
            lost.set()

    options = [
        ("grpc.keepalive_time_ms", int(PING_S * 1000)),
        ("grpc.keepalive_timeout_ms", 60_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(default_server.grpc, options=options) as channel:
        channel.subscribe(follow, try_to_connect=True)
        assert connected.wait(HANG_S)
        assert not lost.wait(PING_S * (PINGS + 1))
