"""Transformer layers on packed tokens: (T, hidden) -> (T, hidden). Part of the graph."""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from build_scripts.graph.attention import Relation, attention, related_attention
from build_scripts.graph.feed_forward import FeedForward
from build_scripts.graph.norm import Norm
from build_scripts.graph.packed_linear import PackedLinear
from build_scripts.graph.packing import Bucket, add_rows
from build_scripts.graph.parts import EncoderLayer, EncoderParts


class Context(NamedTuple):
    """What all layers share for one part of a batch.

    cos, sin: (T, 1, head_size / 2) each, one for every Rotary. wide, local: relation without and with a window, and
    their biases, one for every bucket.
    """

    cos: list[Tensor]
    sin: list[Tensor]
    wide: Relation
    local: Relation
    wide_biases: list[Tensor]
    local_biases: list[Tensor]


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the halves of each head in place. x: (T, heads, head_size)."""
    first, second = x.chunk(2, -1)
    turned = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1.0)
    second.mul_(cos).add_(turned)


class PackedLayer(nn.Module):
    """A transformer layer. Query, key and value are one product. The attention scale is folded into it, in fp32.

    repeats: number of times that the layer is applied in a row.
    """

    heads: Final[int]
    key_value_heads: Final[int]
    norm_first: Final[bool]
    head_norms: Final[bool]
    rotary: Final[int]
    related: Final[bool]
    local: Final[bool]
    repeats: Final[int]

    def __init__(self, layer: EncoderLayer, parts: EncoderParts, dtype: torch.dtype, repeats: int = 1):
        super().__init__()
        self.heads, self.key_value_heads = parts.heads, parts.key_value_heads
        self.norm_first = parts.norm_first
        self.head_norms = layer.query_norm is not None
        self.rotary = layer.rotary
        self.local = layer.window > 0
        self.related = self.local or parts.causal or parts.distances is not None
        self.repeats = repeats
        self.input_norm = Norm(layer.attention_norm if parts.norm_first else None, dtype)
        self.query_key_value = PackedLinear(*scaled_query_key_value(layer), dtype=dtype)
        self.query_norm, self.key_norm = Norm(layer.query_norm, dtype), Norm(layer.key_norm, dtype)
        self.keys = table_of(None if layer.distances is None else layer.distances.keys, dtype)
        self.queries = table_of(None if layer.distances is None else layer.distances.queries, dtype)
        self.feed_forward = FeedForward(layer, parts, dtype)

    def forward(self, x: Tensor, buckets: list[Bucket], context: Context, chosen: Tensor) -> Tensor:
        """chosen: rows to compute after attention; an empty tensor means all."""
        query_key_value = self.query_key_value(self.input_norm(x))
        if self.rotary >= 0 or self.head_norms or self.key_value_heads < self.heads:
            query_key_value = self.arrange(query_key_value, context)
        if len(buckets) == 1 and buckets[0].tokens == x.size(0):
            attended = self.attend(query_key_value, buckets[0], context, 0)
        else:
            pieces: list[Tensor] = []
            for index, bucket in enumerate(buckets):
                rows = query_key_value.narrow(0, bucket.first_token, bucket.tokens)
                pieces.append(self.attend(rows, bucket, context, index))
            spare = x.size(0) - sum([bucket.tokens for bucket in buckets])
            if spare > 0:
                pieces.append(x.new_zeros(spare, pieces[0].size(1)))
            attended = torch.cat(pieces)
        if chosen.size(0) > 0:
            attended, x = attended.index_select(0, chosen), x.index_select(0, chosen)
        return self.feed_forward(attended, x)

    def arrange(self, query_key_value: Tensor, context: Context) -> Tensor:
        """Normalise and rotate queries and keys, and repeat keys and values for the queries that share them."""
        tokens = query_key_value.size(0)
        heads, fewer = self.heads, self.key_value_heads
        rows = query_key_value.view(tokens, heads + 2 * fewer, -1)
        if self.head_norms:
            query, key = self.query_norm(rows.narrow(1, 0, heads)), self.key_norm(rows.narrow(1, heads, fewer))
            rows = torch.cat([query, key, rows.narrow(1, heads + fewer, fewer)], 1)
        if self.rotary >= 0:
            rotate_(rows.narrow(1, 0, heads + fewer), context.cos[self.rotary], context.sin[self.rotary])
        if fewer < heads:
            shared = rows.narrow(1, heads, 2 * fewer).unsqueeze(2).expand(-1, -1, heads // fewer, -1)
            rows = torch.cat([rows.narrow(1, 0, heads), shared.reshape(tokens, 2 * heads, -1)], 1)
        return rows.view(tokens, -1)

    def attend(self, rows: Tensor, bucket: Bucket, context: Context, index: int) -> Tensor:
        """rows: (tokens, 3 * width) of one bucket -> (tokens, width)."""
        texts, seqlen, heads = bucket.texts, bucket.max_seqlen, self.heads
        tokens = rows.size(0)
        width = rows.size(1) // 3
        if bucket.uniform:
            split = rows.view(texts, seqlen, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            return self.weigh(split, bucket, context, index).transpose(1, 2).reshape(tokens, width)
        # One gather pads the texts and moves the heads to the front.
        padded = rows.reshape(-1, width // heads).index_select(0, bucket.heads_of)
        out = self.weigh(padded.view(3, texts, heads, seqlen, width // heads), bucket, context, index)
        return out.reshape(-1, width // heads).index_select(0, bucket.places_of).view(tokens, width)

    def weigh(self, query_key_value: Tensor, bucket: Bucket, context: Context, index: int) -> Tensor:
        if not self.related:
            return attention(query_key_value, bucket, False)
        relation = context.local if self.local else context.wide
        bias = context.local_biases[index] if self.local else context.wide_biases[index]
        if relation.window == 0 and not relation.causal and relation.bias.size(0) + relation.rows.size(0) == 0:
            return attention(query_key_value, bucket, bucket.max_seqlen > 512)  # also with gaps in the mask
        return related_attention(query_key_value, bucket, relation, bias, self.keys, self.queries)


class FirstTokenLayer(nn.Module):
    """The last layer, for the first token of each text only: (T, hidden) -> (batch, hidden).

    With one query per text, keys and values need not be computed. The score of a token is
    q . (W_k x + b_k) = (q W_k) . x + a constant that softmax ignores. The weighted sum of the values is W_v applied to
    the weighted sum of x. So attention reads x itself, and W_k and W_v see one row per text. Both are fp32 in every
    precision, because starting such small products in bf16 takes longer than computing them (70 against 25 us).
    Only for layers without relation, rotation, or shared keys, which normalise last.
    """

    heads: Final[int]

    def __init__(self, layer: EncoderLayer, parts: EncoderParts, dtype: torch.dtype):
        super().__init__()
        self.heads = heads = parts.heads
        weight, bias = scaled_query_key_value(layer)
        query, key, value = weight.chunk(3)
        hidden = key.size(1)
        self.query = PackedLinear(query.clone(), bias.chunk(3)[0].clone(), dtype=dtype)
        self.key = nn.Parameter(key.view(heads, -1, hidden).float().clone(), False)
        self.value = nn.Parameter(value.view(heads, -1, hidden).transpose(1, 2).float().contiguous(), False)
        self.value_bias = nn.Parameter(bias.chunk(3)[2].view(heads, 1, -1).float().clone(), False)
        self.feed_forward = FeedForward(layer, parts, dtype)

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
        attended = add_rows(attended.reshape(batch, -1).to(x.dtype), spare)
        return self.feed_forward(attended, first).narrow(0, 0, batch)


def scaled_query_key_value(layer: EncoderLayer) -> tuple[Tensor, Tensor]:
    """Weight and bias of one product for query, key and value. The query's rows are scaled."""
    layers = (layer.query, layer.key, layer.value)
    biases = [torch.zeros(one.out_features) if one.bias is None else one.bias for one in layers]
    weight = torch.cat([layer.query.weight * layer.scale, layer.key.weight, layer.value.weight])
    return weight.detach(), torch.cat([biases[0] * layer.scale, biases[1], biases[2]]).detach()


def table_of(table: Tensor | None, dtype: torch.dtype) -> nn.Parameter:
    """A table of DistanceTables; an empty one for None."""
    return nn.Parameter(torch.empty(0) if table is None else table.detach().to(dtype), False)
