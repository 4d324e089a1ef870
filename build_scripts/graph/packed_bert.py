"""BERT without padding: the classifier that is compiled to TorchScript.

The input is `(batch, max_length)` ids and a mask. The graph computes only the `T` real tokens of the whole batch.
Embeddings, linear layers, GELU and LayerNorm run on `(T, hidden)`. Only attention needs the texts' bounds: `packing`
sorts texts by length, and texts of similar length share one padded product (a `Bucket`). The last layer runs for the
first token of each text, because the head reads nothing else. A CPU computes large batches in parts to bound memory.

`architectures` reads checkpoints and `export` writes files. `torch.jit.script` compiles this module as a whole: control
flow is kept, and no example input can bake a shape or a device into the graph.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from build_scripts.graph.activations import FUSED, activate
from build_scripts.graph.packed_linear import Norm, PackedLinear
from build_scripts.graph.packing import Bucket, Packed, parts_of, plan_buckets, unpad_input
from build_scripts.graph.parts import BertParts, EncoderLayer


def add_rows(x: Tensor, spare: int) -> Tensor:
    """Append rows of zeros, see round_up: (rows, …) -> (rows + spare, …)."""
    if spare == 0:
        return x
    return F.pad(x, [0, spare] if x.dim() == 1 else [0, 0, 0, spare])


def attention(query_key_value: Tensor, bucket: Bucket) -> Tensor:
    """(3, texts, heads, max_seqlen, head_size), the query already scaled -> (texts, heads, max_seqlen, head_size).

    The fastest method on a CPU was measured. bf16: the fused kernel for few short texts, else products, which run in
    fp32 below 64 tokens. fp32: products, but the fused kernel for long texts without padding. A GPU uses the fused
    kernel.
    """
    _, texts, heads, seqlen, head_size = query_key_value.shape
    dtype = query_key_value.dtype
    if query_key_value.device.type != "cpu":
        fused = True
    elif dtype == torch.float32:
        fused = bucket.uniform and seqlen >= 256
    else:
        fused = texts * seqlen < 80
    if dtype != torch.float32 and not fused and seqlen < 64:
        query_key_value = query_key_value.float()
    query, key, value = query_key_value.unbind(0)
    if fused:
        return F.scaled_dot_product_attention(query, key, value, None if bucket.uniform else bucket.bias, scale=1.0)
    flat = (texts * heads, seqlen, head_size)
    scores = torch.bmm(query.reshape(flat), key.reshape(flat).transpose(1, 2))
    if not bucket.uniform:
        scores.view(texts, heads, seqlen, seqlen).add_(bucket.bias)
    return torch.bmm(torch.softmax(scores, -1), value.reshape(flat)).view(query.shape).to(dtype)


class PackedLayer(nn.Module):
    """A transformer layer on packed tokens: (T, hidden) -> (T, hidden).

    Query, key and value are one product. The attention scale is folded into the query's weights, in fp32.
    """

    heads: Final[int]

    def __init__(self, layer: EncoderLayer, heads: int, activation: str, dtype: torch.dtype):
        super().__init__()
        self.heads = heads
        self.query_key_value = PackedLinear(*scaled_query_key_value(layer, heads), dtype=dtype)
        self.feed_forward = FeedForward(layer, activation, dtype)

    def forward(self, x: Tensor, buckets: list[Bucket]) -> Tensor:
        query_key_value = self.query_key_value(x)
        if len(buckets) == 1 and buckets[0].tokens == x.size(0):
            return self.feed_forward(self.attend(query_key_value, buckets[0]), x)
        attended: list[Tensor] = []
        for bucket in buckets:
            rows = query_key_value.narrow(0, bucket.first_token, bucket.tokens)
            attended.append(self.attend(rows, bucket))
        spare = x.size(0) - sum([bucket.tokens for bucket in buckets])
        if spare > 0:
            attended.append(x.new_zeros(spare, x.size(1)))
        return self.feed_forward(torch.cat(attended), x)

    def attend(self, rows: Tensor, bucket: Bucket) -> Tensor:
        """rows: (tokens, 3 * hidden) of one bucket -> (tokens, hidden)."""
        texts, seqlen, heads = bucket.texts, bucket.max_seqlen, self.heads
        tokens, width = rows.shape
        hidden = width // 3
        if bucket.uniform:
            split = rows.view(texts, seqlen, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
            return attention(split, bucket).transpose(1, 2).reshape(tokens, hidden)
        # One gather pads the texts and moves the heads to the front.
        padded = rows.reshape(-1, hidden // heads).index_select(0, bucket.heads_of)
        out = attention(padded.view(3, texts, heads, seqlen, hidden // heads), bucket)
        return out.reshape(-1, hidden // heads).index_select(0, bucket.places_of).view(tokens, hidden)


class FirstTokenLayer(nn.Module):
    """The last layer, for the first token of each text only: (T, hidden) -> (batch, hidden).

    With one query per text, keys and values need not be computed. The score of a token is
    q . (W_k x + b_k) = (q W_k) . x + a constant that softmax ignores. The weighted sum of the values is W_v applied to
    the weighted sum of x. So attention reads x itself, and W_k and W_v see one row per text. Both are fp32 in every
    precision, because starting such small products in bf16 takes longer than computing them (70 against 25 us).
    """

    heads: Final[int]

    def __init__(self, layer: EncoderLayer, heads: int, activation: str, dtype: torch.dtype):
        super().__init__()
        self.heads = heads
        weight, bias = scaled_query_key_value(layer, heads)
        query, key, value = weight.chunk(3)
        hidden = key.size(1)
        self.query = PackedLinear(query.clone(), bias.chunk(3)[0].clone(), dtype=dtype)
        self.key = nn.Parameter(key.view(heads, -1, hidden).float().clone(), False)
        self.value = nn.Parameter(value.view(heads, -1, hidden).transpose(1, 2).float().contiguous(), False)
        self.value_bias = nn.Parameter(bias.chunk(3)[2].view(heads, 1, -1).float().clone(), False)
        self.feed_forward = FeedForward(layer, activation, dtype)

    def forward(self, x: Tensor, lengths: Tensor, buckets: list[Bucket]) -> Tensor:
        batch, hidden = lengths.size(0), x.size(1)
        spare = self.query.spare_rows(batch)
        first = x.narrow(0, 0, 1) if batch == 1 else add_rows(x[lengths.cumsum(0) - lengths], spare)
        query = self.query(first).narrow(0, 0, batch).float().view(batch, self.heads, -1).transpose(0, 1)
        exact = x.float()
        # (heads, batch, head_size) x (heads, head_size, hidden) -> (batch, heads, hidden)
        query = torch.bmm(query, self.key).transpose(0, 1)
        summed: list[Tensor] = []
        for bucket in buckets:
            tokens = exact.narrow(0, bucket.first_token, bucket.tokens)
            if not bucket.uniform:
                tokens = tokens.index_select(0, bucket.tokens_of)
            tokens = tokens.view(bucket.texts, bucket.max_seqlen, hidden)
            scores = torch.bmm(query.narrow(0, bucket.first_text, bucket.texts), tokens.transpose(1, 2))
            if not bucket.uniform:
                scores.add_(bucket.bias.squeeze(1))
            summed.append(torch.bmm(torch.softmax(scores, -1), tokens))
        context = summed[0] if len(summed) == 1 else torch.cat(summed)
        # (heads, batch, hidden) x (heads, hidden, head_size) -> (batch, heads * head_size)
        attended = torch.baddbmm(self.value_bias, context.transpose(0, 1), self.value).transpose(0, 1)
        attended = add_rows(attended.reshape(batch, hidden).to(x.dtype), spare)
        return self.feed_forward(attended, first).narrow(0, 0, batch)


class FeedForward(nn.Module):
    """The rest of a layer after attention, with both residuals: (rows, hidden) -> (rows, hidden)."""

    activation: Final[str]

    def __init__(self, layer: EncoderLayer, activation: str, dtype: torch.dtype):
        super().__init__()
        self.attention_output = PackedLinear.of(layer.attention_output, dtype)
        self.attention_norm = Norm(layer.attention_norm, dtype)
        # oneDNN fuses some activations into the product. The others run after it.
        self.activation = "none" if activation in FUSED else activation
        self.intermediate = PackedLinear.of(layer.intermediate, dtype, activation if activation in FUSED else "none")
        self.output = PackedLinear.of(layer.output, dtype)
        self.output_norm = Norm(layer.output_norm, dtype)

    def forward(self, attended: Tensor, x: Tensor) -> Tensor:
        x = self.attention_norm(self.attention_output.add(attended, x))
        return self.output_norm(self.output.add(activate(self.intermediate(x), self.activation), x))


class PackedBert(nn.Module):
    """The classifier: (batch, max_length) ids and mask -> logits (batch, num_labels) fp32.

    The head always runs in fp32.
    """

    heads: Final[int]
    skipped_position_id: Final[int]
    second_from: Final[int]
    head_activation: Final[str]

    def __init__(self, parts: BertParts, dtype: torch.dtype):
        super().__init__()
        heads, *_, last = parts.num_attention_heads, *parts.layers
        self.heads = heads
        self.skipped_position_id = parts.skipped_position_id
        self.head_activation = parts.head_activation
        self.words = nn.Parameter(parts.word_embeddings.to(dtype), False)
        token_types, positions, _ = parts.position_embeddings.shape
        self.second_from = positions if token_types > 1 else 0
        self.positions = nn.Parameter(parts.position_embeddings.flatten(0, 1).to(dtype), False)
        self.embedding_norm = Norm(parts.embedding_norm, dtype)
        projection = parts.embedding_projection
        self.embedding_projection = nn.Identity() if projection is None else PackedLinear.of(projection, dtype)
        self.layers = nn.ModuleList(PackedLayer(layer, heads, parts.activation, dtype) for layer in parts.layers[:-1])
        self.last_layer = FirstTokenLayer(last, heads, parts.activation, dtype)
        self.head_dense = parts.head_dense
        self.classifier = parts.classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        packed = unpad_input(input_ids, attention_mask, self.skipped_position_id, self.second_from)
        if input_ids.size(0) == 1:
            return self.logits(packed)
        logits = torch.cat([self.logits(part) for part in parts_of(packed)])
        return torch.empty_like(logits).index_copy_(0, packed.order, logits)

    def logits(self, packed: Packed) -> Tensor:
        """Logits of a part's texts, in its order: (texts, num_labels) fp32."""
        dtype = self.embedding_norm.weight.dtype
        buckets = plan_buckets(packed.lengths, self.heads, dtype)
        spare = self.last_layer.query.spare_rows(packed.ids.size(0))
        words = F.embedding(add_rows(packed.ids, spare), self.words).to(dtype)
        x = self.embedding_norm(words + F.embedding(add_rows(packed.positions, spare), self.positions))
        x = self.embedding_projection(x)
        for layer in self.layers:
            x = layer(x, buckets)
        return self.head(self.last_layer(x, packed.lengths, buckets))

    def head(self, first: Tensor) -> Tensor:
        """first: (batch, hidden) -> logits (batch, num_labels) fp32."""
        return self.classifier(activate(self.head_dense(first.float()), self.head_activation))


def scaled_query_key_value(layer: EncoderLayer, heads: int) -> tuple[Tensor, Tensor]:
    """Weight (3 * hidden, hidden) and bias (3 * hidden,) of one product, the query's rows scaled for attention."""
    scale = (layer.query.out_features // heads) ** -0.5
    weight = torch.cat([layer.query.weight * scale, layer.key.weight, layer.value.weight])
    return weight.detach(), torch.cat([layer.query.bias * scale, layer.key.bias, layer.value.bias]).detach()
