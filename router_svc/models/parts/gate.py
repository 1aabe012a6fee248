"""The router: from activations to a Route. Shape letters: T tokens, H hidden, E logical experts, K top-k."""

import torch
from torch.nn import functional

from experts.exchange.wire import Route


def softmax_top_k(x: torch.Tensor, weight: torch.Tensor, top_k: int, renormalise: bool) -> Route:
    """Softmax over all experts in float32, then the K likeliest; weights optionally divided by their sum.

    x: [T, H]
    weight: [E, H]

    The logits are computed in weight's dtype: float32 where the family wants it.
    """
    logits = functional.linear(x.to(weight.dtype), weight).float()
    if renormalise:  # probabilities over their own sum are the softmax over the chosen alone
        chosen, ids = logits.topk(top_k, dim=-1)
        return Route(ids.to(torch.int32), chosen.softmax(-1))
    weights, ids = logits.softmax(-1).topk(top_k, dim=-1)
    return Route(ids.to(torch.int32), weights)


def padded(route: Route, width: int) -> Route:
    """The route with `width` columns: beyond its own, no expert (-1) with weight 0."""
    missing = width - route.ids.shape[1]
    if not missing:
        return route
    return Route(functional.pad(route.ids, (0, missing), value=-1), functional.pad(route.weights, (0, missing)))
