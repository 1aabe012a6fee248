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


def load_generation_defaults(folder: Path, spec: ModelSpec) -> GenerationDefaults:
    """Read generation_config.json; without the file, temperature 1 and the eos ids of config.json.

    The eos ids are those of both files. Raises UserError for values of the wrong type.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults(eos_token_ids=spec.eos_token_ids)
    config = Config(read_json(path), str(path))
    ids = tuple(dict.fromkeys((*config.integers("eos_token_id"), *spec.eos_token_ids)))
    penalty = config.number("repetition_penalty", 1.0)
    # transformers writes no do_sample when it is false, its own default, but a file with sampling fields means them.
    sampled = config.flag("do_sample", any(config.raw(k) is not None for k in ("temperature", "top_p", "top_k")))
    if config.raw("do_sample") is None and not sampled:
        return GenerationDefaults(eos_token_ids=ids, repetition_penalty=penalty)
    if not sampled:
        return GenerationDefaults(eos_token_ids=ids, temperature=0.0, repetition_penalty=penalty)
    return GenerationDefaults(
        eos_token_ids=ids,
        temperature=config.number("temperature", 1.0),
        top_p=config.number("top_p", 1.0),
        top_k=config.integer("top_k", 0),
        min_p=config.number("min_p", 0.0),
        repetition_penalty=penalty,
    )
