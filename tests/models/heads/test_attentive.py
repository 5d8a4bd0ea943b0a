"""The attentive probe against PyTorch's own attention, and what it must not see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from har_pipeline.models.heads import HeadConfig, build_head
from har_pipeline.models.heads.attentive import AttentionBlock, AttentiveEncoder, num_attention_heads

LENGTHS = torch.tensor([9, 1, 5])


def tokens(dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 9, dim, generator=torch.Generator().manual_seed(seed))


def as_pytorch(block: AttentionBlock) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(block.q.in_features, block.heads, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([block.q.weight, block.kv.weight]))
        attention.in_proj_bias.copy_(torch.cat([block.q.bias, block.kv.bias]))
    attention.out_proj.load_state_dict(block.proj.state_dict())
    return attention


@pytest.mark.parametrize(("dim", "depth"), [(5, 1), (192, 1), (192, 4)])
def test_it_is_what_pytorch_s_attention_computes(dim: int, depth: int) -> None:
    torch.manual_seed(0)
    encoder = AttentiveEncoder(dim, depth)
    for parameter in encoder.parameters():  # biases too
        nn.init.normal_(parameter, std=0.2)
    found, x = encoder(tokens(dim), LENGTHS), tokens(dim)
    padding = torch.arange(9) >= LENGTHS[:, None]
    *among, cross = encoder.blocks
    for block in among:
        seen = block.norm1(x)
        x = x + as_pytorch(block)(seen, seen, seen, key_padding_mask=padding)[0]
        x = x + block.mlp(block.norm2(x))
    query, seen = encoder.query.expand(3, 1, dim), cross.norm1(x)
    query = query + as_pytorch(cross)(query, seen, seen, key_padding_mask=padding)[0]
    torch.testing.assert_close(found, (query + cross.mlp(cross.norm2(query)))[:, 0])


@pytest.mark.parametrize("depth", [1, 3])
def test_the_order_of_features_does_not_matter(depth: int) -> None:
    torch.manual_seed(0)
    head = build_head(HeadConfig(name="attentive", num_layers=depth, input_projection=6), 7, 3).eval()
    features = tokens(7)
    shuffled = features.clone()
    for number, length in enumerate(LENGTHS.tolist()):
        shuffled[number, :length] = features[number, torch.randperm(length)]
    assert not torch.equal(shuffled, features)
    torch.testing.assert_close(head(shuffled, LENGTHS), head(features, LENGTHS), rtol=0, atol=1e-5)


def test_it_has_the_heads_of_a_vision_transformer_of_its_width() -> None:
    assert [num_attention_heads(width) for width in (1, 63, 65, 192, 768, 1024, 1408)] == [1, 1, 1, 3, 12, 16, 22]
    assert num_attention_heads(64 * 7 + 1) == 1  # 449 is prime


def test_a_query_on_thousands_of_tokens_keeps_no_weights_of_them() -> None:
    """What autograd keeps grows with the tokens, not with their square."""
    torch.manual_seed(0)
    kept = []
    for count in (500, 1000):
        encoder, total = AttentiveEncoder(16, 2), [0]

        def pack(value: torch.Tensor, total: list[int] = total) -> torch.Tensor:
            total[0] += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            encoder(torch.randn(1, count, 16), torch.tensor([count])).sum().backward()
        kept.append(total[0])
    assert kept[1] < 2.2 * kept[0]
