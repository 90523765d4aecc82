"""Who acts when: asked by the page while a stack is edited; nothing is loaded for it."""

from __future__ import annotations

from typing import Any

from attnctl import registry
from attnctl.errors import AttnctlError

from .failures import explain
from .form import cards_of, read_card
from .intake import check_entries
from .settings import Limits

SHOWN_STEPS = 200


def check_stack(stack: Any) -> list[dict[str, Any]]:
    """Build each technique of a stack, and say when it acts or what is wrong with it.

    Args:
        stack: ``{"techniques": cards, "steps": number}`` from a browser.

    Returns:
        For each card ``name``, ``on``, and either ``strengths`` at each step or ``error``.
    """
    try:
        cards = cards_of(stack)[: Limits().techniques]
    except AttnctlError:
        return []
    steps = stack.get("steps") if isinstance(stack, dict) else None
    total = steps if isinstance(steps, int) and 1 <= steps <= SHOWN_STEPS else 25
    return [_row(card, total) for card in cards]


def _row(card: dict[str, Any], total: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": str(card.get("name", ""))[:80], "on": bool(card.get("on", True))}
    try:
        name, parameters = read_card(card)
        check_entries([{name: parameters}], Limits())
        technique = registry.build(name, parameters)
        strengths = [technique.strength_at(step, total) for step in range(total)]
    except (AttnctlError, TypeError, ValueError, RecursionError) as error:
        return {**row, "error": explain(error)}
    return {**row, "strengths": strengths}
