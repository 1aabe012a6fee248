"""Names of one tensor in different saves of a model."""

from collections.abc import Iterator

_BODY, _HEAD = "model.", "lm_head."


def spellings(name: str) -> Iterator[str]:
    """`name` as checkpoints on the hub have it, then as other saves do: Mixtral's block as transformers 5 calls it in
    memory, and the names of a model that was saved without its head."""
    yield name
    for one in dict.fromkeys((name, name.replace(".block_sparse_moe.", ".mlp."))):
        if one != name:
            yield one
        if not one.startswith(_HEAD):
            yield one.removeprefix(_BODY)
