"""HeadHunter: find the attention heads whose weakening serves an objective best.

Source: Ahn et al., "Where and How to Perturb", NeurIPS 2025, arXiv 2506.10978 (HeadHunter).
"""

from attnctl.headhunter.hunt import HeadHunt, Hunted, search
from attnctl.headhunter.objectives import Objective
from attnctl.headhunter.pool import Candidate
from attnctl.headhunter.prompts import SeededPrompt, read_prompts
from attnctl.headhunter.settings import HuntSettings

__all__ = [
    "Candidate",
    "HeadHunt",
    "HuntSettings",
    "Hunted",
    "Objective",
    "SeededPrompt",
    "read_prompts",
    "search",
]
