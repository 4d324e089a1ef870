"""Run a function beside a test, and have it end with the test."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor


@contextlib.contextmanager
def in_background(function: Callable, *arguments, stop: threading.Event) -> Iterator[Future]:
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(function, *arguments)
        finally:
            stop.set()
