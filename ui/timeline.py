"""Who acts when: asked by the page while a stack is edited; nothing is loaded for it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from attnctl import registry
from attnctl.editing.features import FeatureStore
from attnctl.errors import AttnctlError

from .failures import explain
from .form import cards_of, read_card
from .intake import check_entries
from .settings import Limits

SHOWN_STEPS = 200


def check_stack(stack: Any) -> list[dict[str, Any]]:
    """Build each technique of a stack, and say when it acts or what is wrong with it.

    Args:
        stack: ``{"techniques": cards, "steps": number, "offered": kind}`` from a browser; in edits
            of clips, techniques are given what they take over from the clip.

    Returns:
        For each card ``name``, ``on``, and either ``strengths`` at each step or ``error``.
    """
    try:
        cards = cards_of(stack)[: Limits().techniques]
    except AttnctlError:
        return []
    steps = stack.get("steps") if isinstance(stack, dict) else None
    total = steps if isinstance(steps, int) and 1 <= steps <= SHOWN_STEPS else 25
    has_features = isinstance(stack, dict) and stack.get("offered") == "for_clips"
    return [_row(card, total, has_features) for card in cards]


def _row(card: dict[str, Any], total: int, has_features: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"name": str(card.get("name", ""))[:80], "on": bool(card.get("on", True))}
    try:
        name, parameters = read_card(card)
        check_entries([{name: parameters}], Limits())
        technique: Any = registry.build(name, parameters)
        if has_features and any(field.name == "features" for field in fields(technique)):
            technique = replace(technique, features=FeatureStore())
        strengths = [technique.strength_at(step, total) for step in range(total)]
    except (AttnctlError, TypeError, ValueError, RecursionError) as error:
        return {**row, "error": explain(error)}
    return {**row, "strengths": strengths}
