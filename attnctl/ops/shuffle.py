"""Token permutations that depend on nothing but their key.

Source: Rajabi et al., "Token Perturbation Guidance", arXiv 2506.10036, section 4.
"""

import hashlib

import torch
from torch import Tensor


def keyed_permutation(count: int, *key: int | str) -> Tensor:
    """A random order of ``count`` tokens, ``(count,)`` on the CPU; equal keys give equal orders.

    Drawn from a generator of its own: neither torch's global state nor the user's is touched.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randperm(count, generator=generator)
