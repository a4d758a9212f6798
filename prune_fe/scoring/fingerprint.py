"""Hashes that identify a network and tensors, so that saved scores are used for nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

PART_ELEMENTS = 1 << 22
"""Elements that are hashed at a time: a copy of them, from a GPU, reuses the memory of the copy before."""


def hash_weights(model: nn.Module) -> str:
    """Return the SHA-256 of the state dict of `model`, in hexadecimal."""
    return hash_tensors(model.state_dict())


def hash_architecture(model: nn.Module) -> str:
    """Return the SHA-256 of what `model` prints of itself: its modules and their settings, not its weights."""
    return hashlib.sha256(repr(model).encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bits of tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        for part in value.detach().contiguous().flatten().split(PART_ELEMENTS):
            digest.update(part.cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
