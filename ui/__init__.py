"""The web interface; import as ``attnctl.ui``."""
