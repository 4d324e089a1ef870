"""An encoder without padding: the classifier that is compiled to TorchScript.

The input is `(batch, max_length)` ids and a mask. The graph computes only the `T` real tokens of the whole batch.
Embeddings, linear layers, activations and norms run on `(T, hidden)`. Only attention needs the texts' bounds: `packing`
sorts texts by length, and texts of similar length share one padded product (a `Bucket`). The last layer runs only for
the tokens that the head reads. A CPU computes large batches in parts to bound memory.

`convert.families` describes a checkpoint (`EncoderParts`), and `convert.export` writes files. `torch.jit.script`
compiles this module as a whole: control flow is kept, and no example input can bake a shape or a device into the graph.
"""

import itertools
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from build_scripts.graph.activations import activate
from build_scripts.graph.attention import Relation, plan_biases
from build_scripts.graph.feed_forward import PackedConvolution
from build_scripts.graph.layers import Context, FirstTokenLayer, PackedLayer
from build_scripts.graph.norm import Norm
from build_scripts.graph.packed_linear import PackedLinear
from build_scripts.graph.packing import Bucket, Packed, add_rows, parts_of, plan_buckets, unpad_input
from build_scripts.graph.parts import EncoderParts, NormParts, Rotary


class Angles(nn.Module):
    """Rotary positions: cos and sin of every token's angles, (T, 1, head_size / 2), computed in fp32."""

    scale: Final[float]

    def __init__(self, rotary: Rotary):
        super().__init__()
        self.scale = rotary.scale
        self.frequencies = nn.Parameter(rotary.frequencies.detach().float(), False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = (positions.float().unsqueeze(1) * self.frequencies).unsqueeze(1)
        return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


class PackedEncoder(nn.Module):
    """The classifier: (batch, max_length) ids and mask -> logits (batch, num_labels) fp32.

    The head runs in fp32 in every precision. Only a dense layer over all tokens runs in the encoder's precision.
    """

    heads: Final[int]
    skipped_position_id: Final[int]
    token_types: Final[bool]
    learned: Final[bool]
    placed: Final[bool]
    positions_per_type: Final[int]
    causal: Final[bool]
    window: Final[int]
    related: Final[bool]
    convolved: Final[bool]
    first_only: Final[bool]
    depth: Final[int]
    pooling: Final[str]
    pad_id: Final[int]
    late: Final[bool]
    dense: Final[bool]
    head_activation: Final[str]

    def __init__(self, parts: EncoderParts, dtype: torch.dtype):
        super().__init__()
        self.heads = parts.heads
        self.skipped_position_id = parts.skipped_position_id
        self.words = nn.Parameter(parts.word_embeddings.detach().to(dtype), False)
        table = torch.empty(1, 0, 0) if parts.position_embeddings is None else parts.position_embeddings
        self.placed = parts.position_embeddings is not None
        self.positions_per_type = table.size(1)
        self.token_types, self.learned = table.size(0) > 1, table.size(1) > 1
        self.positions = nn.Parameter(table.detach().flatten(0, 1).to(dtype), False)
        self.embedding_norm = Norm(parts.embedding_norm, dtype)
        projection = parts.embedding_projection
        self.embedding_projection = nn.Identity() if projection is None else PackedLinear.of(projection, dtype)
        self.causal = parts.causal
        self.window = max(layer.window for layer in parts.layers)
        # Whether attention depends on distances between tokens.
        self.related = self.window > 0 or parts.distances is not None
        rows, bias = distance_tables(parts)
        self.distance_rows, self.distance_bias = nn.Parameter(rows, False), nn.Parameter(bias, False)
        self.angles = nn.ModuleList(Angles(rotary) for rotary in parts.rotary)
        self.convolved = parts.convolution is not None
        self.convolution = nn.Identity() if parts.convolution is None else PackedConvolution(parts.convolution, dtype)
        self.depth = len(parts.layers)
        self.first_only = reads_first_tokens_only(parts)
        layers = parts.layers[:-1] if self.first_only else parts.layers
        runs = [list(run) for _, run in itertools.groupby(layers, key=id)]
        self.layers = nn.ModuleList(PackedLayer(run[0], parts, dtype, len(run)) for run in runs)
        self.last_layer = FirstTokenLayer(parts.layers[-1], parts, dtype) if self.first_only else nn.Identity()
        self.final_norm = Norm(parts.final_norm, dtype)
        self.pooling, self.pad_id = parts.pooling, parts.pad_id
        self.late, self.dense = parts.token_dense is not None, parts.head_dense is not None
        self.token_dense = nn.Identity() if parts.token_dense is None else PackedLinear.of(parts.token_dense, dtype)
        self.head_dense = nn.Identity() if parts.head_dense is None else parts.head_dense
        self.head_activation = parts.head_activation
        self.head_norm = nn.Identity() if parts.head_norm is None else layer_norm(parts.head_norm)
        self.classifier = parts.classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        packed = unpad_input(input_ids, attention_mask, self.skipped_position_id, self.token_types, self.related)
        if input_ids.size(0) == 1:
            return self.logits(packed)
        logits = torch.cat([self.logits(part) for part in parts_of(packed)])
        return torch.empty_like(logits).index_copy_(0, packed.order, logits)

    def logits(self, packed: Packed) -> Tensor:
        """Logits of a part's texts, in its order: (texts, num_labels) fp32."""
        dtype = self.final_norm.weight.dtype
        buckets = plan_buckets(packed.lengths, packed.hidden, self.heads, dtype)
        context = self.context(packed, buckets, dtype)
        x = embedded = self.embed(packed)
        everything = packed.ids[:0]
        if self.first_only:
            for layer in self.layers:
                x = layer(x, buckets, context, everything)
            return self.head(self.last_layer(x, packed.lengths, buckets))
        chosen = everything if self.pooling == "mean" else self.pooled(packed)
        turn = 0
        for layer in self.layers:
            for _ in range(layer.repeats):  # type: ignore[arg-type]
                turn += 1
                x = layer(x, buckets, context, chosen if turn == self.depth else everything)
                if self.convolved and turn == 1:
                    x = self.convolution(embedded, x, packed.lengths, packed.hidden)
        x = self.final_norm(x)
        if self.late:
            x = activate(self.token_dense(x), self.head_activation)
        return self.head(mean(x, buckets) if self.pooling == "mean" else x.narrow(0, 0, packed.lengths.size(0)))

    def embed(self, packed: Packed) -> Tensor:
        """(T, hidden), and rows of spare zeros for oneDNN."""
        dtype = self.final_norm.weight.dtype
        spare = self.spare_rows(packed.ids.size(0))
        x = F.embedding(add_rows(packed.ids, spare), self.words).to(dtype)
        if self.placed:
            rows = packed.positions if self.learned else packed.types
            if self.learned and self.token_types:
                rows = rows + packed.types * self.positions_per_type
            if self.learned or self.token_types:
                x = x + F.embedding(add_rows(rows, spare), self.positions)
            else:
                x = x + self.positions
        return self.embedding_projection(self.embedding_norm(x))

    def spare_rows(self, rows: int) -> int:
        """Number of rows of zeros to append, see round_up."""
        if self.first_only:
            return self.last_layer.query.spare_rows(rows)  # type: ignore
        return self.layers[0].query_key_value.spare_rows(rows)  # type: ignore

    def context(self, packed: Packed, buckets: list[Bucket], dtype: torch.dtype) -> Context:
        cos: list[Tensor] = []
        sin: list[Tensor] = []
        spare = self.spare_rows(packed.ids.size(0))
        for angles in self.angles:
            own_cos, own_sin = angles(add_rows(packed.positions, spare), dtype)
            cos.append(own_cos)
            sin.append(own_sin)
        wide = Relation(0, self.causal, self.distance_bias, self.distance_rows)
        local = Relation(self.window, self.causal, self.distance_bias, self.distance_rows)
        wide_biases: list[Tensor] = []
        local_biases: list[Tensor] = []
        if self.related or self.causal:
            wide_biases = plan_biases(buckets, wide, dtype)
            local_biases = plan_biases(buckets, local, dtype)
        return Context(cos, sin, wide, local, wide_biases, local_biases)

    def pooled(self, packed: Packed) -> Tensor:
        """Index of the token of each text that the head reads; spare zeros at the end."""
        ends = packed.lengths.cumsum(0)
        index = ends - packed.lengths
        if self.pooling == "last" and self.pad_id >= 0:
            # The last token that is not padding, as a literal padding token may end a text.
            token = torch.arange(packed.ids.size(0), device=packed.ids.device)
            index = torch.maximum(index, token.masked_fill(packed.ids == self.pad_id, 0).cummax(0)[0][ends - 1])
        elif self.pooling == "last":
            index = ends - 1
        return add_rows(index, self.spare_rows(index.size(0)))

    def head(self, pooled: Tensor) -> Tensor:
        """pooled: (texts, hidden) -> logits (texts, num_labels) fp32."""
        x = pooled.float()
        if self.dense:
            x = activate(self.head_dense(x), self.head_activation)
        return self.classifier(self.head_norm(x))


def mean(x: Tensor, buckets: list[Bucket]) -> Tensor:
    """Mean of each text's tokens: (T, hidden) -> (texts, hidden) fp32."""
    means: list[Tensor] = []
    for bucket in buckets:
        tokens = x.narrow(0, bucket.first_token, bucket.tokens)
        if bucket.uniform:
            means.append(tokens.view(bucket.texts, bucket.max_seqlen, -1).mean(1, dtype=torch.float32))
        else:
            padded = tokens.index_select(0, bucket.tokens_of).view(bucket.texts, bucket.max_seqlen, -1).float()
            real = (bucket.bias.squeeze(1) == 0).float()
            means.append(torch.bmm(real / real.sum(2, keepdim=True), padded).squeeze(1))
    return means[0] if len(means) == 1 else torch.cat(means)


def layer_norm(parts: NormParts) -> nn.LayerNorm:
    norm = nn.LayerNorm(parts.weight.shape, parts.eps)
    norm.weight, norm.bias = nn.Parameter(parts.weight.detach(), False), nn.Parameter(parts.bias.detach(), False)
    return norm


def reads_first_tokens_only(parts: EncoderParts) -> bool:
    """Whether the last layer can be a FirstTokenLayer."""
    plain = parts.pooling == "first" and parts.final_norm is None and not parts.norm_first and not parts.causal
    shared = len(parts.layers) > 1 and parts.layers[-1] is parts.layers[-2]
    placed = parts.rotary or parts.distances is not None or parts.convolution is not None
    return plain and not shared and not placed and parts.key_value_heads == parts.heads


def distance_tables(parts: EncoderParts) -> tuple[Tensor, Tensor]:
    """The `rows` and `bias` of a Relation."""
    if parts.distances is None:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, 0)
    rows = parts.distances.rows
    # Padded places reach up to 16 positions further, see attention_width. What they get is hidden.
    rows = torch.cat([rows[:1].expand(16), rows, rows[-1:].expand(17)])
    if parts.distances.bias is None:
        return rows, torch.empty(0, 0)
    return torch.empty(0, dtype=torch.int64), parts.distances.bias.detach().float()[rows].t().contiguous()
