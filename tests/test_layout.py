"""Layouts: slots and tokens that the data describe, and the embeddings learned for them."""

import pytest
import torch

from dlm.backbone import Transformer
from dlm.errors import UserError
from dlm.layout import Columns, Layout, with_extra

GRID = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])


def lively(**options):
    """A network whose residual branches and head do something."""
    torch.manual_seed(0)
    network = Transformer(3, max_len=4, dim=16, depth=2, heads=2, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.double()


def test_columns_sum_one_embedding_per_column_and_start_with_variance_one():
    torch.manual_seed(0)
    columns = Columns(GRID, 4096)
    assert columns.weight.shape == (4, 4096)
    out = columns(torch.arange(4))
    assert torch.equal(out[1], columns.weight[0] + columns.weight[3])
    assert abs(out.var().item() - 1) < 0.05


def test_a_network_that_knows_distances_alone_answers_all_masked_slots_alike():
    x = torch.full((1, 4), 3)
    same = lively()(x)[0]
    torch.testing.assert_close(same, same[:1].expand(4, -1), rtol=0, atol=1e-12)
    for told in (lively(positions="learned"), lively(positions="both"), lively(layout=Layout(slots=GRID))):
        assert (told(x)[0].diff(dim=0).abs().amax(1) > 1e-3).all()


def test_without_rotary_and_layout_positions_do_not_matter():
    """`learned` drops the rotation: with its table zeroed, attention is blind to order."""
    network = lively(positions="learned")
    torch.nn.init.zeros_(network.slots.weight)
    x = torch.tensor([[0, 1, 2, 1]])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(x[:, order]), network(x)[:, order], rtol=0, atol=1e-12)


def test_parts_make_tokens_and_the_extra_symbol_shares_none():
    parts = torch.tensor([[0, 0], [0, 1], [1, 0]])
    assert with_extra(parts).tolist()[-1] == [2, 2]
    network = lively(layout=Layout(tokens=parts))
    torch.nn.init.zeros_(network.embed.weight)
    weight = network.parts.weight
    expected = torch.stack(
        [weight[0] + weight[3], weight[0] + weight[4], weight[1] + weight[3], weight[2] + weight[5]]
    )
    assert torch.equal(network.parts(torch.arange(4)), expected)


@pytest.mark.parametrize("positions", ["learned", "both"])
def test_a_cached_network_reads_its_slots_where_they_are(positions):
    network = lively(causal=True, positions=positions, layout=Layout(slots=GRID))
    x = torch.tensor([[3, 0, 2, 1], [3, 2, 2, 0]])
    cache = network.new_cache(2)
    stepped = torch.cat([network(x[:, i : i + 1], cache=cache) for i in range(4)], 1)
    torch.testing.assert_close(stepped, network(x), rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"4 slots, but backbone\.max_len=5"):
        Transformer(3, max_len=5, dim=16, depth=1, heads=2, layout=Layout(slots=GRID))
    with pytest.raises(UserError, match=r"4 tokens, but backbone\.vocab_size=3"):
        Transformer(3, max_len=4, dim=16, depth=1, heads=2, layout=Layout(tokens=GRID))
    with pytest.raises(UserError, match="positions is one of"):
        Transformer(3, dim=16, depth=1, heads=2, positions="absolute")  # pyright: ignore
    with pytest.raises(UserError, match="positions=rotary"):
        lively(positions="learned")(torch.zeros(1, 4, dtype=torch.long), positions=torch.zeros(1, 4, 2).long())


def test_embeddings_are_read_not_multiplied():
    plain, laid = (
        Transformer(3, max_len=4, dim=16, depth=1, heads=2),
        lively(layout=Layout(slots=GRID), positions="both"),
    )
    deep = Transformer(3, max_len=4, dim=16, depth=2, heads=2)
    assert laid.flops_per_token(4) == deep.flops_per_token(4) > plain.flops_per_token(4)
