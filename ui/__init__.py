"""The studio, a web page; import as ``attnctl.ui``. ``import attnctl`` loads nothing of it."""

from .serving import Running, serve
from .settings import BUNDLED_MODELS, Limits, StudioSettings

__all__ = ["BUNDLED_MODELS", "Limits", "Running", "StudioSettings", "serve"]
