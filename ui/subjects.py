"""Clicks that change the stack of techniques: a word becomes a subject, a technique is added."""

from __future__ import annotations

from typing import Any

from attnctl.errors import AttnctlError
from attnctl.recipes import Recipe

from .controls import HIDDEN, show_parameters
from .form import cards_of, subjects_of
from .presets import suggested

STEERS_WORDS = "attend-and-excite"


def toggle_subject(
    stack: Any, sentence: Any, model: str, presets: dict[str, Recipe]
) -> dict[str, Any]:
    """Make the word that was clicked a subject, or no longer one.

    Without a technique that takes words, Attend-and-Excite joins the stack; when its last word
    goes, so does it.
    """
    word = str((sentence or {}).get("picked") or "")[:200]
    cards = cards_of(stack)
    if not word:
        return _changed(stack, cards)
    card = next((card for card in cards if _subjects_of(card)), None)
    if card is None:
        card = _card(STEERS_WORDS, model, presets)
        cards = [*cards, card]
    name = str(_subjects_of(card))
    chosen = list(card["parameters"].get(name) or [])
    chosen = [one for one in chosen if one != word] if word in chosen else [*chosen, word]
    card["parameters"] = {**card["parameters"], name: chosen}
    if not chosen:
        cards = [one for one in cards if one is not card]
    return _changed(stack, cards)


def add_card(stack: Any, model: str, presets: dict[str, Recipe]) -> dict[str, Any]:
    """Add the technique that was chosen, with the settings that presets use on this model."""
    name = str((stack or {}).get("picked") or "")
    cards = cards_of(stack)
    if name and name not in HIDDEN and all(card.get("name") != name for card in cards):
        cards = [*cards, _card(name, model, presets)]
    return _changed(stack, cards)


def _card(name: str, model: str, presets: dict[str, Recipe]) -> dict[str, Any]:
    parameters = show_parameters(name, suggested(name, model, presets))
    return {"name": name, "on": True, "parameters": parameters}


def _subjects_of(card: dict[str, Any]) -> str | None:
    try:
        return subjects_of(str(card.get("name", "")))
    except AttnctlError:
        return None


def _changed(stack: Any, cards: list[dict[str, Any]]) -> dict[str, Any]:
    steps = stack.get("steps") if isinstance(stack, dict) else None
    return {"techniques": cards, "steps": steps if isinstance(steps, int) else 25}
