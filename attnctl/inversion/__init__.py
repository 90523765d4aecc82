"""Inversion: from a given picture to the noise that a pipeline makes it from."""

from attnctl.editing.trajectories import Trajectory
from attnctl.inversion.hosts import PICTURE_FAMILIES, refuse_unsupported, sampler_of
from attnctl.inversion.noising import noised_trajectory
from attnctl.inversion.pictures import decode, encode
from attnctl.inversion.running import METHODS, Inversion, invert, reconstruct

__all__ = [
    "METHODS",
    "PICTURE_FAMILIES",
    "Inversion",
    "Trajectory",
    "decode",
    "encode",
    "invert",
    "noised_trajectory",
    "reconstruct",
    "refuse_unsupported",
    "sampler_of",
]
