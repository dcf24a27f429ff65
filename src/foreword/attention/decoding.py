"""One decoding step on CPU: one query per row, no gradient, and no copy of the kernel's output.

The result equals that of `merge`; parity tests compare both with the reference. α = sigmoid(lse_P − lse_local).
The merged log-sum-exp is not computed, since only a backward pass needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foreword.attention.backends import FLASH_CPU, Flash, sharing_keys
from foreword.attention.call import NEG_INF, AttentionCall
from foreword.attention.segments import Segments, as_batch
from foreword.attention.sharing import Plan


def fits(call: AttentionCall, flash: Flash, plan: Plan) -> bool:
    """Return True if `attend` can compute `call`, whose rows must not be packed.

    It can on `FLASH_CPU` with one query per row, rows sorted by prefix, one mask for all heads, no sink and no causal
    flag.
    """
    same_for_all = call.mask is None or call.mask.shape[1] == 1
    plain = not call.causal and call.sinks is None
    return flash is FLASH_CPU and call.query.shape[2] == 1 and same_for_all and plain and plan.order is None


def attend(call: AttentionCall, segments: Segments, pk: Tensor, pv: Tensor) -> Tensor:
    """Return the output `[B, H, 1, d]`.

    segments: rows and virtual tokens of each prefix. pk, pv: keys and values of the prefixes, `[H_kv, M, d]`.
    Heads that share keys become queries of one head. So do rows that share a prefix.
    """
    batch, heads, _, width = call.query.shape
    query, mask = sharing_keys(call.query, call.mask, call.key.shape[1])
    local, lse = FLASH_CPU.forward(query, call.key, call.value, mask, False, call.scale)
    if call.hidden is not None:  # the kernel returns lse 0 for a query that sees no key
        lse = lse.masked_fill(call.hidden.expand(batch, heads, 1).reshape(query.shape[:3]), NEG_INF)
    output = local.contiguous()  # no copy: the kernel writes contiguous memory
    for count, rows, keys in segments.runs:
        shape = (count, (rows.stop - rows.start) // count, *query.shape[1:3])  # [prefixes, rows, H_kv, heads of each]
        folded = query[rows].view(*shape, width).transpose(1, 2)
        part = FLASH_CPU.forward(
            folded.flatten(2, 3),
            as_batch(pk[None], count, keys),
            as_batch(pv[None], count, keys),
            None,
            False,
            call.scale,
        )
        alpha = torch.sigmoid(part.lse.view(folded.shape[:4]).transpose(1, 2) - lse[rows].view(shape))
        output[rows].view(*shape, width).lerp_(
            part.output.reshape(folded.shape).transpose(1, 2), alpha.unsqueeze(-1).to(output.dtype)
        )
    return output.view(batch, heads, 1, width)
