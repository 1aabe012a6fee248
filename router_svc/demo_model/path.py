"""Where the shipped checkpoint lies."""

from pathlib import Path


def checkpoint_path() -> Path:
    """The folder of the shipped checkpoint, in Hugging Face layout."""
    return Path(__file__).resolve().parent / "checkpoint"
