"""The shapes world: a small world of coloured shapes, its bundled models and its verifier."""

from attnctl.shapes.bundled import model_folder
from attnctl.shapes.captions import (
    Caption,
    CaptionSettings,
    ObjectKind,
    Prompt,
    parse_caption,
    prompts,
    write_captions,
)
from attnctl.shapes.verifier import Seen, Verdict, VerifierSettings, look, verify
from attnctl.shapes.vocabulary import LARGE_VOCABULARY, SMALL_VOCABULARY, Vocabulary
from attnctl.shapes.world import (
    Scene,
    SceneBatch,
    SceneObject,
    WorldSettings,
    draw_scenes,
    render,
)

__all__ = [
    "LARGE_VOCABULARY",
    "SMALL_VOCABULARY",
    "Caption",
    "CaptionSettings",
    "ObjectKind",
    "Prompt",
    "Scene",
    "SceneBatch",
    "SceneObject",
    "Seen",
    "Verdict",
    "VerifierSettings",
    "Vocabulary",
    "WorldSettings",
    "draw_scenes",
    "look",
    "model_folder",
    "parse_caption",
    "prompts",
    "render",
    "verify",
    "write_captions",
]
