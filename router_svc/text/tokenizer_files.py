"""From a checkpoint's folder to its tokenizer, by transformers, which reads every file that counts. Never remote code.

transformers takes a second of CPU to load: only processes that handle text do so, when they read a tokenizer.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experts.checkpoint.folder import read_json
from experts.checkpoint.foreign import refuse_pointer
from experts.errors import UserError
from router_svc.text import hunyuan
from router_svc.text.tokenizer import LibraryTokenizer, Tokenizer

SETTINGS = "tokenizer_config.json"
_SIDE_FILES = (SETTINGS, "special_tokens_map.json", "added_tokens.json")  # of JSON objects, beside any vocabulary
_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "*.tiktoken")
_OTHERS = {
    "tekken.json": "Mistral's own tokenizer",
    "*.tiktoken": "a tiktoken vocabulary of a family that is not Hunyuan's",
    "vocab.txt": "a WordPiece vocabulary",
}


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises UserError when there is none that is read here."""
    _check_files(folder)
    if (folder / "tokenizer.json").is_file():
        return _by_transformers(folder, "PreTrainedTokenizerFast", "tokenizer.json", "of the tokenizers library")
    settings = tokenizer_settings(folder)
    if (folder / hunyuan.FILE).is_file() and _is_hunyuan(folder, settings):
        return hunyuan.HunyuanTokenizer(folder / hunyuan.FILE, _texts(settings))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _by_transformers(folder, "AutoTokenizer", "vocab.json", "and merges.txt of a byte-level BPE")
    if (folder / "tokenizer.model").is_file():
        return _by_transformers(folder, "LlamaTokenizer", "tokenizer.model", "of sentencepiece")
    expected = "tokenizer.json, vocab.json with merges.txt, tokenizer.model, or Hunyuan's hy.tiktoken"
    for pattern, what in _OTHERS.items():
        for path in sorted(folder.glob(pattern)):
            raise UserError(f"only {path.name}, {what}", expected, str(folder))
    raise UserError("no tokenizer", expected, str(folder))


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty when there is none."""
    path = folder / SETTINGS
    return read_json(path) if path.is_file() else {}


def _by_transformers(folder: Path, kind: str, file: str, form: str) -> Tokenizer:
    import transformers  # loads only where text is handled

    make: Callable[..., Any] = getattr(transformers, kind).from_pretrained
    try:
        found = make(str(folder), local_files_only=True, trust_remote_code=False)
        backend = found.backend_tokenizer
    except Exception as error:  # the library raises anything for files that it can't read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"an unreadable tokenizer ({reason[:200]})", f"{file} {form}", str(folder / file)) from None
    backend = _with_ids(folder, backend)
    eos = backend.token_to_id(str(found.eos_token))
    texts = {name: str(text) for name, text in found.special_tokens_map.items() if isinstance(text, str)}
    return LibraryTokenizer(backend, () if eos is None else (eos,), texts)


def _check_files(folder: Path) -> None:
    """Raise UserError, with the file's name, for one that transformers would only stumble over."""
    for name in _SIDE_FILES:
        if (folder / name).is_file():
            read_json(folder / name)
    for pattern in _FILES:
        for path in folder.glob(pattern):
            with path.open("rb") as file:
                refuse_pointer(path, file.read(64), "a tokenizer's file")


def _said_ids(folder: Path) -> dict[str, tuple[int, str]]:
    """Added tokens, their ids and the file that says so."""
    decoder = tokenizer_settings(folder).get("added_tokens_decoder")
    said = {}
    if isinstance(decoder, dict):
        said = {
            str(one.get("content")): (int(number), SETTINGS) for number, one in decoder.items() if number.isdecimal()
        }
    added = folder / "added_tokens.json"
    if added.is_file():
        said |= {name: (number, added.name) for name, number in read_json(added).items()}
    return said


def _with_ids(folder: Path, backend: Any) -> Any:
    """The tokenizer with the ids that the folder's files give to added tokens. Raises UserError where it can't be.

    The library numbers added tokens behind the vocabulary, one after the other; models were trained with the ids of
    the files, which may leave some out. What stands in the vocabulary keeps its id, so that is where they are put.
    """
    said = _said_ids(folder)
    moved = {name: number for name, (number, _) in said.items() if backend.token_to_id(name) != number}
    taken = {number for number in moved.values() if (name := backend.id_to_token(number)) and name not in moved}
    plain = json.loads(backend.to_str())
    if moved and not taken and isinstance(plain["model"].get("vocab"), dict):
        plain["added_tokens"] = [{**one, "id": moved.get(one["content"], one["id"])} for one in plain["added_tokens"]]
        plain["model"]["vocab"] |= {one["content"]: one["id"] for one in plain["added_tokens"]}
        for entry in _template_tokens(plain.get("post_processor")):
            entry["ids"] = [
                moved.get(token, number) for token, number in zip(entry["tokens"], entry["ids"], strict=True)
            ]
        backend = type(backend).from_str(json.dumps(plain))
    for name, (number, file) in said.items():
        if backend.token_to_id(name) != number:
            raise UserError(
                f"token {name!r} read with id {backend.token_to_id(name)}", f"id {number}", str(folder / file)
            )
    return backend


def _template_tokens(processor: Any) -> list[dict[str, Any]]:
    """The entries of a post-processor, or of those in a sequence of them, that say the ids of the tokens it adds."""
    if not isinstance(processor, dict):
        return []
    inner = [entry for one in processor.get("processors", ()) for entry in _template_tokens(one)]
    return [*inner, *processor.get("special_tokens", {}).values()]


def _is_hunyuan(folder: Path, settings: dict[str, Any]) -> bool:
    if "tokenizer_class" in settings:
        return bool(settings["tokenizer_class"] == hunyuan.CLASS)
    config = folder / "config.json"
    return config.is_file() and str(read_json(config).get("model_type", "")).startswith("hunyuan")


def _texts(settings: dict[str, Any]) -> dict[str, str]:
    """bos_token and the like."""
    return {
        key: value if isinstance(value, str) else str(value.get("content", ""))
        for key, value in settings.items()
        if key.endswith("_token") and isinstance(value, str | dict)
    }
