"""Select the real tokens of a padded batch, and plan which texts share an attention product. Part of the graph.

Dropping the padding is the technique of flash-attention's `unpad_input`. Buckets make it efficient on a CPU.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Packed(NamedTuple):
    """The real tokens of a batch or of a part of a batch, texts sorted from long to short.

    ids, positions: (T,) int64. lengths: (texts,) int64. order: (texts,) int64, the batch row of each text.
    types: (T,) int64, token types; empty if there is one type only.
    hidden: (T,) bool, tokens that no other token sees; empty if there are none, see unpad_input.
    """

    ids: Tensor
    positions: Tensor
    types: Tensor
    hidden: Tensor
    lengths: Tensor
    order: Tensor


class Bucket(NamedTuple):
    """Neighbouring texts of similar length, padded to the longest of them for attention only.

    If all lengths are equal (`uniform`), padding and unpadding are views, and the tensors are unused.
    tokens_of: (texts * max_seqlen,) int64, for each padded place the token's index within the bucket.
    heads_of: (3 * texts * heads * max_seqlen,) int64, the same index into rows of (tokens * 3 * heads, head_size).
    places_of: (tokens * heads,) int64, the inverse: for each token's head its row in (texts * heads * max_seqlen).
    bias: (texts, 1, 1, max_seqlen), 0 for a token and a large negative number for padding.
    """

    first_text: int
    texts: int
    first_token: int
    tokens: int
    max_seqlen: int
    uniform: bool
    tokens_of: Tensor
    heads_of: Tensor
    places_of: Tensor
    bias: Tensor


def unpad_input(
    input_ids: Tensor, attention_mask: Tensor, skipped_position_id: int, token_types: bool, distances: bool
) -> Packed:
    """Gather the real tokens: (batch, max_length) -> (T,). Every text has at least one token, its first.

    token_types: a mask value of 2 means type 1, the second text of a pair.
    distances: the graph depends on distances between tokens. A gap in a row's mask then stays, as hidden tokens.
    """
    real = attention_mask != 0
    real[:, 0] = True
    shown = real
    if distances:
        column = torch.arange(real.size(1), device=real.device)
        real = column <= (column * real).amax(1, keepdim=True)
    lengths = real.sum(1)
    order = lengths  # unused for a batch of one
    if input_ids.size(0) > 1:
        lengths, order = lengths.sort(0, descending=True)
        input_ids, attention_mask, real, shown = input_ids[order], attention_mask[order], real[order], shown[order]
    flat = real.reshape(-1).nonzero().squeeze(1)
    ids = input_ids.reshape(-1)[flat]
    positions = flat if input_ids.size(0) == 1 else flat % input_ids.size(1)
    if skipped_position_id >= 0:
        # fairseq numbering: a literal padding token gets the padding position and does not advance the count.
        counted = input_ids != skipped_position_id
        positions = (counted.cumsum(1) * counted).reshape(-1)[flat] + skipped_position_id
    nothing = flat[:0]
    types = (attention_mask.reshape(-1)[flat] == 2).long() if token_types else nothing
    hidden = nothing.to(torch.bool)
    if distances:
        gaps = shown.reshape(-1)[flat].logical_not()
        if bool(gaps.any()):
            hidden = gaps
    return Packed(ids, positions, types, hidden, lengths, order)


def parts_of(packed: Packed) -> list[Packed]:
    """Split a batch into units of work for a CPU: at most 2048 tokens, or one longer text. A GPU computes all at once.

    Larger parts gain 1 % and cost memory: 64 texts of 512 tokens in bf16 took 1050 MiB in one part, 28 MiB in parts.
    """
    most = 2048
    if packed.ids.size(0) <= most or packed.ids.device.type != "cpu":
        return [packed]
    seqlens: list[int] = packed.lengths.tolist()
    texts = [0]
    tokens = [0]
    for length in seqlens:
        if texts[-1] > 0 and tokens[-1] + length > most:
            texts.append(0)
            tokens.append(0)
        texts[-1] += 1
        tokens[-1] += length
    parts: list[Packed] = []
    text = token = 0
    for some, size in zip(texts, tokens):
        ids, positions = packed.ids.narrow(0, token, size), packed.positions.narrow(0, token, size)
        types, hidden = cut(packed.types, token, size), cut(packed.hidden, token, size)
        lengths, order = packed.lengths.narrow(0, text, some), packed.order.narrow(0, text, some)
        parts.append(Packed(ids, positions, types, hidden, lengths, order))
        text, token = text + some, token + size
    return parts


def cut(x: Tensor, start: int, size: int) -> Tensor:
    """A range of rows; an empty tensor stays empty."""
    return x if x.size(0) == 0 else x.narrow(0, start, size)


def round_up(rows: int) -> int:
    """Round the number of rows for a oneDNN product up to one of few values.

    oneDNN builds primitives for each row count that is not in its cache: 2 ms and 2 MiB per batch. Mixed batches have a
    new row count almost every time. Hence the steps: 2 from 8 rows, 4 from 16, 8 from 32, 16 from 256, 32 from 512,
    64 from 1024. These 92 values up to the 2048 of parts_of fit into the cache. A finer grid with a smaller cache made
    single texts of lognormal length 1.2 times and mixed batches 1.15 times slower. The spare rows cost 2 to 3 %.
    """
    step = 1
    while step < 64 and (rows >= 32 * step or (rows >= 8 * step and step < 8)):
        step *= 2
    return (rows + step - 1) // step * step


def add_rows(x: Tensor, spare: int) -> Tensor:
    """Append rows of zeros, see round_up: (rows, …) -> (rows + spare, …)."""
    if spare == 0:
        return x
    return F.pad(x, [0, spare] if x.dim() == 1 else [0, 0, 0, spare])


def attention_width(longest: int) -> int:
    """Padded length of a bucket's texts in attention, if their lengths differ.

    Small products run at half speed below a width of 16 and on widths that are not a multiple of 8 (measured). That
    costs more than the padding. From 64 on the step is 16, for the same reason as in round_up.
    """
    step = 8 if longest < 64 else 16
    return max(16, (longest + step - 1) // step * step)


def plan_buckets(lengths: Tensor, hidden: Tensor, heads: int, dtype: torch.dtype) -> list[Bucket]:
    """Group texts of similar length, sorted from long to short.

    lengths, hidden: as in Packed. A text joins a bucket if it has 70 % of the longest length, or at most 8 tokens less.
    On a CPU a bucket has at most the attention scores of one text of 512 tokens. glibc maps larger blocks afresh on
    every call, which made 16 texts of 512 tokens 1.4 times slower in bf16.
    """
    seqlens: list[int] = lengths.tolist()
    device = lengths.device
    unused = lengths
    buckets: list[Bucket] = []
    first_text = 0
    first_token = 0
    while first_text < len(seqlens):
        longest = seqlens[first_text]
        limit = len(seqlens)
        if device.type == "cpu":
            limit = min(limit, first_text + max(1, 512 * 512 // (longest * longest)))
        end = first_text
        tokens = 0
        while end < limit and (seqlens[end] >= 0.7 * longest or seqlens[end] + 8 >= longest):
            tokens += seqlens[end]
            end += 1
        texts = end - first_text
        if tokens == texts * longest and hidden.size(0) == 0:
            bucket = Bucket(first_text, texts, first_token, tokens, longest, True, unused, unused, unused, unused)
        else:
            longest = attention_width(longest)
            own = lengths[first_text:end].unsqueeze(1)
            column = torch.arange(longest, device=device)
            head = torch.arange(heads, device=device)
            real = column < own
            # A padded place repeats its text's first token. The bias hides it, so any finite value will do.
            tokens_of = (own.cumsum(0) - own) + torch.where(real, column, 0)
            third = torch.arange(3, device=device).view(3, 1, 1, 1)
            heads_of = (tokens_of.unsqueeze(1) * 3 + third) * heads + head.view(-1, 1)
            places = real.reshape(-1).nonzero()
            places_of = (torch.div(places, longest, rounding_mode="floor") * heads + head) * longest + places % longest
            unseen = real.logical_not()
            if hidden.size(0) > 0:
                unseen = unseen | hidden.narrow(0, first_token, tokens)[tokens_of]
            bias = torch.zeros(texts, 1, 1, longest, dtype=dtype, device=device).masked_fill_(
                unseen.view(texts, 1, 1, longest), -10000.0
            )
            bucket = Bucket(
                first_text, texts, first_token, tokens, longest, False,
                tokens_of.reshape(-1), heads_of.reshape(-1), places_of.reshape(-1), bias,
            )  # fmt: skip
        buckets.append(bucket)
        first_text = end
        first_token += tokens
    return buckets
