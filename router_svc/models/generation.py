"""generation_config.json: what a model's makers want where a request says nothing."""

from dataclasses import dataclass
from pathlib import Path

from experts.checkpoint.folder import read_json
from router_svc.models.config_json import Config
from router_svc.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Defaults of the sampling fields; temperature 0 = greedy (do_sample false), top_k 0 = off."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


# Keys that change no answer here: bookkeeping, and what is the model's or the caller's.
_INERT = frozenset(
    "transformers_version _from_model_config bos_token_id pad_token_id use_cache max_length max_new_tokens "
    "return_dict_in_generate output_attentions output_hidden_states output_scores output_logits".split()
)


def load_generation_defaults(folder: Path, spec: ModelSpec) -> GenerationDefaults:
    """Read generation_config.json; without the file, temperature 1 and the eos ids of config.json.

    The eos ids are those of both files. do_sample false means greedy; transformers leaves it out when it is false, so
    where it is absent the file's own temperature, or 1, holds. Raises UserError for a value that is none of its field.
    """
    return _read(folder, spec)[0]


def ignored_generation_keys(folder: Path, spec: ModelSpec) -> list[str]:
    """Keys of generation_config.json that would change answers elsewhere and have no effect here."""
    return [key for key in _read(folder, spec)[1] if key not in _INERT]


def _read(folder: Path, spec: ModelSpec) -> tuple[GenerationDefaults, list[str]]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults(eos_token_ids=spec.eos_token_ids), []
    config = Config(read_json(path), str(path))
    top_k = config.integer("top_k", 0)
    if top_k < -1:
        raise config.wrong("top_k", top_k, "a whole number, 0 or -1 for off")
    found = GenerationDefaults(
        eos_token_ids=tuple(dict.fromkeys((*config.integers("eos_token_id"), *spec.eos_token_ids))),
        temperature=_within(config, "temperature", 1.0, 0.0, 1000.0),
        top_p=_within(config, "top_p", 1.0, 0.0001, 1.0),
        top_k=max(top_k, 0),
        min_p=_within(config, "min_p", 0.0, 0.0, 1.0),
        repetition_penalty=_within(config, "repetition_penalty", 1.0, 0.001, 1000.0),
    )
    if not config.flag("do_sample", True):
        found = GenerationDefaults(found.eos_token_ids, 0.0, repetition_penalty=found.repetition_penalty)
    return found, config.unread()


def _within(config: Config, key: str, default: float, least: float, most: float) -> float:
    value = config.number(key, default)
    if not least <= value <= most:
        raise config.wrong(key, config.raw(key), f"a number from {least} to {most}")
    return value
