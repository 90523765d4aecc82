"""Errors that say what arrived, what is allowed and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class AttnctlError(Exception):
    """Base of every error that attnctl raises on purpose."""


class SettingError(AttnctlError, ValueError):
    """A technique, a schedule or a recipe was given a value that it cannot use."""


class ScheduleError(SettingError):
    """A step window is malformed or lies outside the run."""


class WhereError(SettingError):
    """A site selector is malformed."""


class RecipeError(SettingError):
    """A recipe file or its metadata cannot be used."""


class UnknownTechniqueError(SettingError):
    """No technique has that name."""


class UnknownParameterError(SettingError):
    """A technique has no parameter of that name."""


class UnknownModelError(SettingError):
    """A model is neither bundled, nor a folder, nor a hub id that can be loaded."""


class WordNotFoundError(SettingError):
    """A word is not among the tokens that the model sees."""


class FlowError(SettingError):
    """A flow, or what is asked of it, does not fit the clip."""


class VideoError(SettingError):
    """A video file cannot be read or written as asked."""


class KernelError(SettingError):
    """No attention kernel can serve the request on this machine."""


class LayerNotFoundError(AttnctlError, LookupError):
    """A layer path is not in the model."""


class NoSiteError(AttnctlError, LookupError):
    """A selector matches no attention site of the model."""


class UnsupportedModelError(AttnctlError):
    """A technique needs something that the model family does not offer."""


class ConflictError(AttnctlError):
    """Two techniques claim the same thing at the same site and step."""


class AlreadyAttachedError(AttnctlError):
    """A technique of that name, or another pipeline's session, already holds the model."""


class ForeignProcessorError(AttnctlError):
    """A processor was replaced from outside while techniques were attached."""


class PipelineBusyError(AttnctlError):
    """The pipeline is already running in another thread."""


class BranchError(AttnctlError):
    """It is not known, or was guessed wrong, which rows of a batch are conditional."""


class SchedulerError(AttnctlError):
    """The scheduler that runs is not the one that the session watches."""


class CompiledModelError(AttnctlError):
    """A technique needs module hooks, which a compiled model ignores."""


class GradientError(AttnctlError):
    """A gradient is needed where none can be computed."""


class NotANumberError(AttnctlError):
    """A technique produced values that are not finite."""


class FeatureError(AttnctlError, LookupError):
    """Recorded features or latents are missing, or belong to another kind of run."""


def nearest(name: str, names: Iterable[str], *, most: int = 5) -> str:
    """Say which of ``names`` are closest to ``name``; all of them if nothing is close."""
    known = sorted(set(names))
    close = get_close_matches(name, known, n=most, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(n) for n in close)}?"
    shown = ", ".join(repr(n) for n in known[:20])
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"allowed: {shown}{more}"
