"""Where the bundled models lie."""

from pathlib import Path

MODELS = Path(__file__).parent / "models"


def model_folder(name: str = "shapes") -> Path:
    """Return the folder of a bundled model, in diffusers layout.

    Args:
        name: Name of the model, for example ``shapes``.

    Raises:
        ValueError: No model of this name is bundled.
        FileNotFoundError: The model is known, but its weights are not in this installation.
    """
    if not name.replace("-", "").isalnum():
        raise ValueError(f'"{name}" is not a model name; bundled models: {_listing()}')
    folder = MODELS / name
    if not folder.is_dir():
        raise ValueError(f'no bundled model "{name}"; bundled models: {_listing()}')
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no weights; reinstall the package, or train them with "
            f'"python -m attnctl.shapes.train {name} --out DIR --target {folder}"'
        )
    return folder


def _listing() -> str:
    names = sorted(p.parent.name for p in MODELS.glob("*/model_index.json"))
    return ", ".join(names) or "none in this installation"
