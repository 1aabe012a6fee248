"""From a checkpoint's folder to its tokenizer, by transformers, which reads every file that counts. Never remote code.

transformers takes a second of CPU to load: only processes that handle text do so, when they read a tokenizer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experts.checkpoint.folder import read_json
from experts.errors import UserError
from router_svc.text import hunyuan
from router_svc.text.tokenizer import LibraryTokenizer, Tokenizer

SETTINGS = "tokenizer_config.json"
_SIDE_FILES = (SETTINGS, "special_tokens_map.json", "added_tokens.json")  # of JSON objects, beside any vocabulary
_OTHERS = {
    "tekken.json": "Mistral's own tokenizer",
    "*.tiktoken": "a tiktoken vocabulary of a family that is not Hunyuan's",
    "vocab.txt": "a WordPiece vocabulary",
}


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises UserError when there is none that is read here."""
    for name in _SIDE_FILES:
        if (folder / name).is_file():
            read_json(folder / name)  # an error that names the file; transformers' own does not
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
    _check_ids(folder, backend.token_to_id)
    eos = found.eos_token_id
    texts = {name: str(text) for name, text in found.special_tokens_map.items() if isinstance(text, str)}
    return LibraryTokenizer(backend, () if eos is None else (int(eos),), texts)


def _check_ids(folder: Path, id_of: Callable[[str], int | None]) -> None:
    """Raise UserError where an added token got another id than its files say: the library numbers them by its own count."""
    decoder = tokenizer_settings(folder).get("added_tokens_decoder")
    said = {}
    if isinstance(decoder, dict):
        said = {
            str(one.get("content")): (int(number), SETTINGS) for number, one in decoder.items() if number.isdecimal()
        }
    added = folder / "added_tokens.json"
    if added.is_file():
        said |= {name: (number, added.name) for name, number in read_json(added).items()}
    for name, (number, file) in said.items():
        if id_of(name) != number:
            raise UserError(f"token {name!r} read with id {id_of(name)}", f"id {number}", str(folder / file))


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
