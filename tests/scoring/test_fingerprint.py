"""Hashes of networks: what changes them and what does not."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from prune_fe.scoring import fingerprint
from prune_fe.scoring.fingerprint import hash_architecture, hash_tensors, hash_weights


def network(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), activation)


def test_weights_are_told_apart_to_the_bit() -> None:
    one = network(nn.ReLU())
    twin = copy.deepcopy(one)
    assert hash_weights(one) == hash_weights(twin)
    twin.get_buffer("1.running_mean")[0] += 2.0**-40
    assert hash_weights(one) != hash_weights(twin)
    assert hash_weights(one) == hash_weights(network(nn.SiLU()))


def test_the_architecture_is_what_is_printed_and_has_no_weights() -> None:
    one = network(nn.ReLU())
    other = copy.deepcopy(one)
    nn.init.zeros_(other.get_parameter("0.weight"))
    assert hash_architecture(one) == hash_architecture(other)
    assert hash_architecture(one) != hash_architecture(network(nn.SiLU()))


def test_names_dtypes_shapes_and_values_count() -> None:
    zero = torch.zeros(2, 2)
    tensors = [{"a": zero}, {"b": zero}, {"a": zero.int()}, {"a": zero.view(4)}, {"a": zero + 1}, {}]
    assert len({hash_tensors(named) for named in tensors}) == len(tensors)
    assert hash_tensors({"a": torch.eye(3).T[::2]}) == hash_tensors({"a": torch.eye(3)[::2].clone()})


def test_large_tensors_are_hashed_in_parts_with_the_digest_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.arange(24.0).view(1, 4, 2, 3).to(memory_format=torch.channels_last), "b": torch.tensor(True)}
    content = b"a torch.float32 (1, 4, 2, 3)" + np.arange(24, dtype=np.float32).tobytes() + b"b torch.bool ()\1"
    for elements in (1, 5, 24, 1 << 22):
        monkeypatch.setattr(fingerprint, "PART_ELEMENTS", elements)
        assert hash_tensors(tensors) == hashlib.sha256(content).hexdigest()
