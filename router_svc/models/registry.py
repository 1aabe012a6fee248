"""From a folder to a ModelSpec: the table of families. Adding one is a file and a line here."""

from collections.abc import Callable
from pathlib import Path

from experts.checkpoint.folder import check_folder, read_json
from experts.checkpoint.foreign import refuse_quantised
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


# Keys that every class knows and that change no answer: training, bookkeeping, and what others read.
_INERT = frozenset(
    "_name_or_path architectures attention_dropout auto_map bos_token_id chunk_size_feed_forward eod_token_id id2label "
    "initializer_range is_encoder_decoder label2id model_type output_attentions output_hidden_states output_router_logits "
    "pad_token_id pretraining_tp problem_type return_dict router_aux_loss_coef router_jitter_noise sep_token_id "
    "transformers_version use_cache "
    # Asked for only where others say so.
    "layer_types max_window_layers sliding_window".split()
)


def load_spec(folder: Path) -> ModelSpec:
    """Read config.json of a checkpoint folder. Raises UserError on anything that is missing, wrong or not built."""
    config, family = _open(folder)
    return family(config)


def ignored_keys(folder: Path) -> list[str]:
    """Keys of config.json that the family does not know, as its class in transformers does not: they have no effect."""
    config, family = _open(folder)
    family(config)
    return [key for key in config.unread() if key not in _INERT]


def _open(folder: Path) -> tuple[Config, Callable[[Config], ModelSpec]]:
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
    return config, FAMILIES[model_type]
