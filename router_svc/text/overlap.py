"""Where a text's end may become something that is looked for."""


def overlap(text: str, wanted: str) -> int:
    """Length of the longest proper beginning of `wanted` that `text` ends with."""
    for length in range(min(len(wanted) - 1, len(text)), 0, -1):
        if text.endswith(wanted[:length]):
            return length
    return 0
