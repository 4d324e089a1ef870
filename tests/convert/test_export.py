"""The packed graph outside TorchScript: `torch.export` takes it, with dynamic batch and text lengths, but for one part.

What cannot be exported is the planning, which decides by the lengths themselves how often something is done: `parts_of`
and `plan_buckets` make lists whose length depends on the data, and an exported graph has one course for all inputs.
(`round_up` is for oneDNN's cache, whose kernels an exported graph does not call.) Here one part with one bucket takes
its place: the same answers, with more padding inside attention. To leave TorchScript without that padding, planning
would become a separate operator, or move to the caller, which then hands over the buckets' indices.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from build_scripts.convert.families import encoder_parts
from build_scripts.graph import packed_encoder, packed_linear
from build_scripts.graph.packed_encoder import PackedEncoder
from build_scripts.graph.packed_linear import PackedLinear
from build_scripts.graph.packing import Bucket, Packed
from tests.support.token_batches import MAX_LOGIT_ERROR, batch, eager

pytestmark = pytest.mark.usefixtures("one_thread")


class OneBucket:
    """A plan without a loop: all texts are padded to the longest."""

    tokens: int

    def parts_of(self, packed: Packed) -> list[Packed]:
        self.tokens = packed.ids.size(0)
        return [packed]

    def plan_buckets(self, lengths: Tensor, _hidden: Tensor, heads: int, dtype: torch.dtype) -> list[Bucket]:
        texts, longest = lengths.size(0), lengths.max().item()  # int() would ask for a number now
        torch._check(longest >= 1)
        own = lengths.unsqueeze(1)
        column, head, third = torch.arange(longest), torch.arange(heads), torch.arange(3).view(3, 1, 1, 1)
        real = column < own
        tokens_of = (own.cumsum(0) - own) + torch.where(real, column, 0)
        heads_of = (tokens_of.unsqueeze(1) * 3 + third) * heads + head.view(-1, 1)
        places = real.reshape(-1).nonzero()
        torch._check(places.size(0) == self.tokens)
        places_of = (torch.div(places, longest, rounding_mode="floor") * heads + head) * longest + places % longest
        bias = torch.zeros(texts, 1, 1, longest, dtype=dtype).masked_fill(~real.view(texts, 1, 1, longest), -10000.0)
        indices = (tokens_of.reshape(-1), heads_of.reshape(-1), places_of.reshape(-1))
        return [Bucket(0, texts, 0, self.tokens, longest, False, *indices, bias)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_graph_without_planning_is_exported_and_equals_hugging_face(subject, monkeypatch, kind):
    own = subject(kind)
    monkeypatch.setattr(PackedLinear, "kernels", staticmethod(lambda: (False, False)))
    graph = PackedEncoder(encoder_parts(own.model), torch.float32).eval()
    plan = OneBucket()
    monkeypatch.setattr(packed_encoder, "parts_of", plan.parts_of)
    monkeypatch.setattr(packed_encoder, "plan_buckets", plan.plan_buckets)
    monkeypatch.setattr(packed_linear, "round_up", lambda rows: rows)
    texts, width = torch.export.Dim("texts", min=2, max=64), torch.export.Dim("width", min=2, max=128)
    dynamic = {0: texts, 1: width}
    with torch.no_grad():
        exported = torch.export.export(graph, batch(own, [5, 20, 9]), dynamic_shapes=(dynamic, dynamic), strict=False)
        for lengths in ([5, 20, 9], [3, 1], [60] * 7, [1, 128, 64, 32], [17] * 2):
            inputs = batch(own, lengths)
            assert (exported.module()(*inputs) - eager(own, *inputs)).abs().max() < MAX_LOGIT_ERROR


def test_planning_cannot_be_exported(subject, monkeypatch):
    """A failure means that torch can export it now: update the text above and the docs."""
    own = subject("bert")
    monkeypatch.setattr(PackedLinear, "kernels", staticmethod(lambda: (False, False)))
    graph = PackedEncoder(encoder_parts(own.model), torch.float32).eval()
    dynamic = {0: torch.export.Dim("texts", min=2, max=64), 1: torch.export.Dim("width", min=2, max=128)}
    with torch.no_grad(), pytest.raises(Exception, match="data-dependent") as error:
        torch.export.export(graph, batch(own, [5, 20, 9]), dynamic_shapes=(dynamic, dynamic), strict=False)
    assert "packing.py" in str(error.value)
