"""From a folder to a ModelSpec: the table of families. Adding one is a file and a line here."""

from collections.abc import Callable
from pathlib import Path

from experts.checkpoint.folder import check_folder, read_json, refuse_quantised
from experts.errors import UserError
from router_svc.models import hunyuan_v1_moe, mixtral, qwen2_moe, qwen3_moe
from router_svc.models.config_json import Config
from router_svc.models.spec import ModelSpec

FAMILIES: dict[str, Callable[[Config], ModelSpec]] = {
    "hunyuan": hunyuan_v1_moe.read,
    "hunyuan_v1_moe": hunyuan_v1_moe.read,
    "mixtral": mixtral.read,
    "qwen2_moe": qwen2_moe.read,
    "qwen3_moe": qwen3_moe.read,
}


def load_spec(folder: Path) -> ModelSpec:
    """Read config.json of a checkpoint folder. Raises UserError on anything that is missing, wrong or not built."""
    check_folder(folder)
    values = read_json(folder / "config.json")
    config = Config.of(values, folder)
    model_type = config.raw("model_type")
    if model_type is None:
        raise config.wrong("model_type", None, f"one of {', '.join(sorted(FAMILIES))}")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        architectures = values.get("architectures")
        named = f"architecture {model_type!r}" + (
            f" ({architectures[0]})" if isinstance(architectures, list) and architectures else ""
        )
        raise UserError(named, f"a supported one: {', '.join(sorted(FAMILIES))}", config.where)
    refuse_quantised(values, folder)
    return FAMILIES[model_type](config)
