"""Training-free attention control for diffusers pipelines.

Attach techniques to a stock pipeline, call it as always, detach without a trace::

    with attnctl.attach(pipe, [AttendAndExcite(subjects=["cat", "frog"])]) as session:
        image = pipe("a cat and a frog").images[0]
        print(session.report())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "APG": "attnctl.techniques.apg",
    "AgentAttention": "attnctl.techniques.agent_attention",
    "AttendAndExcite": "attnctl.techniques.attend_and_excite",
    "AttnctlError": "attnctl.errors",
    "AttentionCall": "attnctl.calls",
    "AttentionModulation": "attnctl.techniques.attention_modulation",
    "BoundedAttention": "attnctl.techniques.bounded_attention",
    "BroadWay": "attnctl.techniques.broadway",
    "CFGZeroStar": "attnctl.techniques.cfg_zero_star",
    "CrossFrameAttention": "attnctl.techniques.cross_frame_attention",
    "DiTCtrl": "attnctl.techniques.ditctrl",
    "DiTFlow": "attnctl.techniques.dit_flow",
    "Flatten": "attnctl.techniques.flatten",
    "FloAt": "attnctl.techniques.flo_at",
    "FluxSpace": "attnctl.techniques.flux_space",
    "FocusOnInstruction": "attnctl.techniques.focus_on_instruction",
    "GradSAM": "attnctl.techniques.grad_sam",
    "HeadRouter": "attnctl.techniques.head_router",
    "HeadSet": "attnctl.heads",
    "HeatMaps": "attnctl.techniques.heat_maps",
    "IRDiffusion": "attnctl.techniques.ir_diffusion",
    "ItemGuidance": "attnctl.techniques.item_guidance",
    "MasaCtrl": "attnctl.techniques.masa_ctrl",
    "MotionFlow": "attnctl.techniques.motion_flow",
    "Move": "attnctl.calls",
    "NAG": "attnctl.techniques.nag",
    "Needs": "attnctl.calls",
    "PAG": "attnctl.techniques.soft_pag",
    "PrimeComposer": "attnctl.techniques.prime_composer",
    "PromptToPrompt": "attnctl.techniques.prompt_to_prompt",
    "RFControl": "attnctl.techniques.rf_control",
    "Read": "attnctl.calls",
    "RealCraft": "attnctl.techniques.real_craft",
    "Recipe": "attnctl.recipes",
    "RegionWords": "attnctl.techniques.region_words",
    "Report": "attnctl.report",
    "Rettention": "attnctl.techniques.rettention",
    "SEG": "attnctl.techniques.seg",
    "SLG": "attnctl.techniques.slg",
    "Schedule": "attnctl.schedule",
    "Session": "attnctl.session",
    "SoftPAG": "attnctl.techniques.soft_pag",
    "SparseAttention": "attnctl.techniques.sparse_attention",
    "StableFlow": "attnctl.techniques.stable_flow",
    "TPG": "attnctl.techniques.tpg",
    "Technique": "attnctl.technique",
    "TokenDownsampling": "attnctl.techniques.token_downsampling",
    "TokenFlow": "attnctl.techniques.token_flow",
    "TokenMerging": "attnctl.techniques.token_merging",
    "TokenSpan": "attnctl.tokens",
    "TrajectoryReplay": "attnctl.techniques.trajectory_replay",
    "VSTAR": "attnctl.techniques.vstar",
    "Vico": "attnctl.techniques.vico",
    "Where": "attnctl.where",
    "WordSwap": "attnctl.techniques.word_swap",
    "after": "attnctl.schedule",
    "attach": "attnctl.session",
    "attn_processors": "attnctl.processors",
    "between": "attnctl.schedule",
    "every": "attnctl.schedule",
    "list_families": "attnctl.families",
    "list_kernels": "attnctl.kernels",
    "list_techniques": "attnctl.registry",
    "load_pipeline": "attnctl.loading",
    "locate_tokens": "attnctl.tokens",
    "ramp": "attnctl.schedule",
    "register": "attnctl.registry",
    "steps": "attnctl.schedule",
    "until": "attnctl.schedule",
}

_SUBMODULES = frozenset(
    {"errors", "families", "headhunter", "inversion", "kernels", "ops", "shapes", "techniques"}
)

if TYPE_CHECKING:
    from attnctl.calls import AttentionCall, Move, Needs, Read
    from attnctl.errors import AttnctlError
    from attnctl.families import list_families
    from attnctl.heads import HeadSet
    from attnctl.kernels import list_kernels
    from attnctl.loading import load_pipeline
    from attnctl.processors import attn_processors
    from attnctl.recipes import Recipe
    from attnctl.registry import list_techniques, register
    from attnctl.report import Report
    from attnctl.schedule import Schedule, after, between, every, ramp, steps, until
    from attnctl.session import Session, attach
    from attnctl.technique import Technique
    from attnctl.techniques.agent_attention import AgentAttention
    from attnctl.techniques.apg import APG
    from attnctl.techniques.attend_and_excite import AttendAndExcite
    from attnctl.techniques.attention_modulation import AttentionModulation
    from attnctl.techniques.bounded_attention import BoundedAttention
    from attnctl.techniques.broadway import BroadWay
    from attnctl.techniques.cfg_zero_star import CFGZeroStar
    from attnctl.techniques.cross_frame_attention import CrossFrameAttention
    from attnctl.techniques.dit_flow import DiTFlow
    from attnctl.techniques.ditctrl import DiTCtrl
    from attnctl.techniques.flatten import Flatten
    from attnctl.techniques.flo_at import FloAt
    from attnctl.techniques.flux_space import FluxSpace
    from attnctl.techniques.focus_on_instruction import FocusOnInstruction
    from attnctl.techniques.grad_sam import GradSAM
    from attnctl.techniques.head_router import HeadRouter
    from attnctl.techniques.heat_maps import HeatMaps
    from attnctl.techniques.ir_diffusion import IRDiffusion
    from attnctl.techniques.item_guidance import ItemGuidance
    from attnctl.techniques.masa_ctrl import MasaCtrl
    from attnctl.techniques.motion_flow import MotionFlow
    from attnctl.techniques.nag import NAG
    from attnctl.techniques.prime_composer import PrimeComposer
    from attnctl.techniques.prompt_to_prompt import PromptToPrompt
    from attnctl.techniques.real_craft import RealCraft
    from attnctl.techniques.region_words import RegionWords
    from attnctl.techniques.rettention import Rettention
    from attnctl.techniques.rf_control import RFControl
    from attnctl.techniques.seg import SEG
    from attnctl.techniques.slg import SLG
    from attnctl.techniques.soft_pag import PAG, SoftPAG
    from attnctl.techniques.sparse_attention import SparseAttention
    from attnctl.techniques.stable_flow import StableFlow
    from attnctl.techniques.token_downsampling import TokenDownsampling
    from attnctl.techniques.token_flow import TokenFlow
    from attnctl.techniques.token_merging import TokenMerging
    from attnctl.techniques.tpg import TPG
    from attnctl.techniques.trajectory_replay import TrajectoryReplay
    from attnctl.techniques.vico import Vico
    from attnctl.techniques.vstar import VSTAR
    from attnctl.techniques.word_swap import WordSwap
    from attnctl.tokens import TokenSpan, locate_tokens
    from attnctl.where import Where

__all__ = [
    "APG",
    "NAG",
    "PAG",
    "SEG",
    "SLG",
    "TPG",
    "VSTAR",
    "AgentAttention",
    "AttendAndExcite",
    "AttentionCall",
    "AttentionModulation",
    "AttnctlError",
    "BoundedAttention",
    "BroadWay",
    "CFGZeroStar",
    "CrossFrameAttention",
    "DiTCtrl",
    "DiTFlow",
    "Flatten",
    "FloAt",
    "FluxSpace",
    "FocusOnInstruction",
    "GradSAM",
    "HeadRouter",
    "HeadSet",
    "HeatMaps",
    "IRDiffusion",
    "ItemGuidance",
    "MasaCtrl",
    "MotionFlow",
    "Move",
    "Needs",
    "PrimeComposer",
    "PromptToPrompt",
    "RFControl",
    "Read",
    "RealCraft",
    "Recipe",
    "RegionWords",
    "Report",
    "Rettention",
    "Schedule",
    "Session",
    "SoftPAG",
    "SparseAttention",
    "StableFlow",
    "Technique",
    "TokenDownsampling",
    "TokenFlow",
    "TokenMerging",
    "TokenSpan",
    "TrajectoryReplay",
    "Vico",
    "Where",
    "WordSwap",
    "__version__",
    "after",
    "attach",
    "attn_processors",
    "between",
    "every",
    "list_families",
    "list_kernels",
    "list_techniques",
    "load_pipeline",
    "locate_tokens",
    "ramp",
    "register",
    "steps",
    "until",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts at once."""
    if name in _SUBMODULES:
        return import_module(f"attnctl.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'attnctl' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
