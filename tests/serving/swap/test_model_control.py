"""Model control under load: what is refused or starved is asked again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tritonclient.utils import InferenceServerException

from build_scripts.core.errors import ServingError
from build_scripts.serving.swap.model_control import LOAD_ATTEMPTS, Control

NOT_HEALTHY = "load failed for model 'classifier': Internal: Stub process 'classifier_0' is not healthy."


def control(*failures: str) -> Control:
    """Of a server whose loads fail with these messages, one after the other, and then succeed."""
    own, messages = Control.__new__(Control), list(failures)

    def load_model(*_: object, **__: object) -> None:
        own.asked += 1
        if messages:
            raise InferenceServerException(messages.pop(0), status="StatusCode.INVALID_ARGUMENT")

    own.asked, own.headers, own.client = 0, {}, SimpleNamespace(load_model=load_model)
    own.state = SimpleNamespace(grpc_url="127.0.0.1:1")
    return own


def test_a_starved_load_is_repeated():
    starved = control(NOT_HEALTHY, "Failed to obtain the health mutex.")
    starved.load("classifier")
    assert starved.asked == 3


def test_a_load_that_always_starves_ends_with_its_reason():
    starved = control(*LOAD_ATTEMPTS * [NOT_HEALTHY])
    with pytest.raises(ServingError, match="is not healthy"):
        starved.load("classifier")
    assert starved.asked == LOAD_ATTEMPTS


def test_a_model_that_cannot_be_loaded_is_not_repeated():
    broken = control("load failed for model 'classifier': unknown operator")
    with pytest.raises(ServingError, match="unknown operator"):
        broken.load("classifier")
    assert broken.asked == 1
