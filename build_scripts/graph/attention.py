"""Attention over padded buckets: full, windowed, causal, or with scores that depend on distance.

Part of the graph. The scores of a long text are never all in memory.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from build_scripts.graph.packing import Bucket


class Relation(NamedTuple):
    """How the distance of two tokens changes their attention.

    window: largest distance, 0 for no limit. causal: a query sees no later key.
    bias: (heads, 2 * positions), added to the score; by distance query - key, descending from positions - 1; or empty.
    rows: (2 * positions,) int64, the row of each distance in the layers' tables, in the same order; or empty.
    """

    window: int
    causal: bool
    bias: Tensor
    rows: Tensor


def attention(query_key_value: Tensor, bucket: Bucket, fused: bool) -> Tensor:
    """(3, texts, heads, max_seqlen, head_size), the query already scaled -> (texts, heads, max_seqlen, head_size).

    The fused kernel runs on a GPU, and on any device if `fused`. Otherwise the CPU runs the method measured as fastest:
    - bf16: the fused kernel for few short texts and for long texts, else products (in fp32 below 64 tokens);
    - fp32: the fused kernel for long texts without padding, else products.
    """
    _, texts, heads, seqlen, head_size = query_key_value.shape
    dtype = query_key_value.dtype
    if query_key_value.device.type != "cpu":
        fused = True
    elif dtype == torch.float32:
        fused = fused or (bucket.uniform and seqlen >= 256)
    else:
        fused = fused or texts * seqlen < 80 or seqlen > 512
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


def block_rows(seqlen: int, window: int) -> int:
    """Queries per product: a whole text up to 512 tokens, else 128, which bounds the memory of the scores.

    With a window, a block of 2 * window queries sees at most 4 * window keys.
    """
    if window > 0 and seqlen > 4 * window:
        return min(2 * window, 128)
    return 128 if seqlen > 512 else seqlen


def relation_bias(relation: Relation, first_row: int, rows: int, first_column: int, columns: int) -> Tensor:
    """A relation's bias on the scores of queries (rows) and keys (columns): (1 or heads, rows, columns) fp32."""
    if relation.bias.size(0) > 0:
        start = relation.bias.size(1) // 2 - rows - first_row + first_column
        return relation.bias.narrow(1, start, rows + columns - 1).unfold(1, columns, 1).flip(1).float()
    device = relation.bias.device
    row = torch.arange(first_row, first_row + rows, device=device).unsqueeze(1)
    distance = row - torch.arange(first_column, first_column + columns, device=device)
    unseen = distance < 0 if relation.causal else distance < -relation.window
    if relation.window > 0:
        unseen = unseen | (distance > relation.window)
    return torch.zeros(unseen.shape, device=device).masked_fill_(unseen, -10000.0).unsqueeze(0)


def plan_biases(buckets: list[Bucket], relation: Relation, dtype: torch.dtype) -> list[Tensor]:
    """The bias of each bucket: padding's, plus the relation's where one block covers a text; empty without both."""
    biases: list[Tensor] = []
    related = relation.window > 0 or relation.bias.size(0) > 0
    for bucket in buckets:
        seqlen = bucket.max_seqlen
        bias = bucket.bias
        if bucket.uniform:
            bias = relation.bias.flatten()[:0]
        if related and block_rows(seqlen, relation.window) == seqlen:
            own = relation_bias(relation, 0, seqlen, 0, seqlen).to(dtype).unsqueeze(0)
            bias = own if bucket.uniform else own + bucket.bias
        biases.append(bias)
    return biases


def related_attention(
    query_key_value: Tensor, bucket: Bucket, relation: Relation, bias: Tensor, keys: Tensor, queries: Tensor
) -> Tensor:
    """`attention` with a relation. bias: from plan_biases. keys, queries: as in DistanceTables, or empty."""
    seqlen = query_key_value.size(3)
    window = relation.window
    dtype = query_key_value.dtype
    if window > 0 and seqlen <= window + 1 and not relation.causal:
        return attention(query_key_value, bucket, False)
    if query_key_value.device.type == "cpu" and dtype != torch.float32 and seqlen < 64:
        query_key_value = query_key_value.float()
    query, key, value = query_key_value.unbind(0)
    if relation.causal and window == 0:  # padding comes last, and no token sees it
        return F.scaled_dot_product_attention(query, key, value, None, 0.0, True, scale=1.0).to(dtype)
    step = block_rows(seqlen, window)
    if step == seqlen:
        scores = products(query, key)
        if keys.size(0) > 0:
            rows = relation.rows.narrow(0, relation.rows.size(0) // 2 - seqlen, 2 * seqlen)
            scores.add_(skewed(by_distance(query, keys, rows), seqlen - 1, seqlen))
        if queries.size(0) > 0:
            rows = relation.rows.narrow(0, relation.rows.size(0) // 2 - seqlen, 2 * seqlen).flip(0)
            scores.add_(skewed(by_distance(key, queries, rows), seqlen, seqlen).transpose(2, 3))
        return weighted(scores, bias, value).to(dtype)
    return blocks(query, key, value, bucket, relation, keys, queries, step).to(dtype)


def blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bucket: Bucket,
    relation: Relation,
    keys: Tensor,
    queries: Tensor,
    step: int,
) -> Tensor:
    """`related_attention` in blocks of `step` queries; a window limits the keys of a block."""
    seqlen = query.size(2)
    nothing = torch.empty(0, device=query.device)
    by_row = nothing if queries.size(0) == 0 else torch.matmul(queries.to(key.dtype), key.transpose(2, 3))
    results: list[Tensor] = []
    for first in range(0, seqlen, step):
        rows = min(step, seqlen - first)
        start, end = 0, seqlen
        if relation.window > 0:
            start, end = max(0, first - relation.window), min(seqlen, first + rows + relation.window)
        if relation.causal:
            end = first + rows
        columns = end - start
        own = query.narrow(2, first, rows)
        scores = products(own, key.narrow(2, start, columns))
        if relation.rows.size(0) > 0:
            distances = relation.rows.narrow(0, relation.rows.size(0) // 2 - rows - first, rows + columns)
            if keys.size(0) > 0:
                scores.add_(skewed(by_distance(own, keys, distances), rows - 1, columns))
            if queries.size(0) > 0:
                index = distances.narrow(0, 0, rows + columns - 1).unfold(0, columns, 1).flip(0)
                scores.add_(by_row.gather(2, index.expand(scores.shape)))
        else:
            scores.add_(relation_bias(relation, first, rows, start, columns))
        if not bucket.uniform:
            scores.add_(bucket.bias.narrow(3, start, columns))
        results.append(weighted(scores, nothing, value.narrow(2, start, columns)))
    return torch.cat(results, 2)


def products(query: Tensor, key: Tensor) -> Tensor:
    """(texts, heads, rows, size) and (texts, heads, columns, size) -> scores (texts, heads, rows, columns)."""
    texts, heads, rows, size = query.shape
    flat = torch.bmm(query.reshape(-1, rows, size), key.reshape(texts * heads, -1, size).transpose(1, 2))
    return flat.view(texts, heads, rows, -1)


def weighted(scores: Tensor, bias: Tensor, value: Tensor) -> Tensor:
    """The values, weighted by softmax(scores + bias). Overwrites the scores. An empty bias adds nothing."""
    texts, heads, rows, columns = scores.shape
    if bias.numel() > 0:
        scores.add_(bias)
    weights = torch.softmax(scores, -1).view(-1, rows, columns)
    return torch.bmm(weights, value.reshape(texts * heads, columns, -1)).view(texts, heads, rows, -1)


def by_distance(x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """(texts, heads, tokens, head_size) and (heads, …, head_size) -> (texts, heads, tokens, len(rows))."""
    texts, heads, tokens, size = x.shape
    grouped = x.transpose(0, 1).reshape(heads, texts * tokens, size)
    chosen = table.index_select(1, rows).to(x.dtype)
    return torch.bmm(grouped, chosen.transpose(1, 2)).view(heads, texts, tokens, -1).transpose(0, 1)


def skewed(x: Tensor, first: int, columns: int) -> Tensor:
    """Shift row r left by first - r: result[…, r, c] = x[…, r, first - r + c], c < columns. A view."""
    texts, heads, rows, width = x.shape
    flat = x.transpose(0, 1).reshape(heads, texts, rows * width).narrow(2, first, rows * (width - 1))
    return flat.view(heads, texts, rows, width - 1).narrow(3, 0, columns).transpose(0, 1)
