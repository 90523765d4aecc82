"""Agent attention: two small attentions through a few agent tokens in place of one large one."""

from torch import Tensor

from attnctl.ops.masked_attention import attend_masked


def attend_by_agents(
    query: Tensor,
    agents: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    second_scale: float,
    shortcut: float,
) -> Tensor:
    """Let agents attend to the keys, and queries to the agents.

    Args:
        query: ``(B, H, N, D)``.
        agents: ``(B, H, n, D)``, queries of merged tokens.
        key: ``(B, H, N, D)``.
        value: ``(B, H, N, D)``, one row a query token.
        scale: Factor on the agents' scores.
        second_scale: Factor on the queries' scores.
        shortcut: Weight c of the token's own value, added to the result.

    Returns:
        ``(B, H, N, D)``: ``softmax(second_scale Q A^T) softmax(scale A K^T) V + c V``.

    Source: Agent Attention, arXiv 2312.08874, in the form of its Stable Diffusion code.
    """
    gathered, _ = attend_masked(agents, key, value, None, scale)
    out, _ = attend_masked(query, agents, gathered, None, second_scale)
    return out + shortcut * value
