"""ServeConfig: every option of `serve`, declared once; flags, YAML keys, help and errors derive from it."""

from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from cluster.origins import read_origins
from experts.address import Listen
from experts.errors import UserError
from router_svc.text.parser_names import PARSERS


def option(
    default: Any, help_text: str, low: int | None = None, high: int | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A field with what flags and errors need: help, the allowed range, the allowed words."""
    return field(default=default, metadata={"help": help_text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A field is the flag --its-name and the YAML key its-name. None = decided at start."""

    attention_workers: int = option(1, "Ranks that run attention, routers and the KV cache.", 1, 4096)
    expert_workers: int | None = option(
        None, "Ranks that hold experts; 0 with one attention worker runs all in one process. Default 2.", 0, 4096
    )
    colocate: bool = option(False, "Every attention worker holds experts too.")
    num_redundant_experts: int = option(
        0, "Spare slots per layer over all expert ranks, filled with replicas.", 0, 1 << 20
    )
    min_copies: int | None = option(
        None,
        "Ranks (nodes, where there are several) that hold each expert, where slots allow. "
        "Default: 2 with as many spare slots as experts, else 1.",
        1,
        1024,
    )
    device: str = option("auto", "Where tensors live.", choices=("auto", "cpu", "cuda"))
    exchange: str = option(
        "auto",
        "How tokens travel between ranks. auto: links (sockets of our own) on CPUs, nccl on GPUs.",
        choices=("auto", "links", "gloo", "nccl"),
    )
    dtype: str = option(
        "auto",
        "auto: the checkpoint's on GPUs and on CPUs with bf16 instructions, else float32.",
        choices=("auto", "float32", "bfloat16"),
    )
    max_model_len: int | None = option(None, "Prompt and output together, in tokens. Default: the model's.", 2, 1 << 24)
    max_num_seqs: int = option(64, "Sequences that run at once in an attention worker.", 1, 65536)
    max_num_batched_tokens: int = option(2048, "Tokens of a step over all attention workers.", 1, 1 << 20)
    kv_cache_memory_bytes: int | None = option(
        None, "KV cache of an attention worker. Default: 10 % of free memory.", 1, 1 << 46
    )
    max_queue_len: int = option(1024, "Requests that may wait in an attention worker.", 1, 1 << 20)
    served_model_name: str | None = option(None, "The model's name in answers. Default: the folder's.")
    placement: Path | None = option(None, "Expert placement (.npz) to start with.")
    enable_eplb: bool | None = option(
        None, "Live balancing: experts move to where the load is. Default: on with two or more ranks that hold experts."
    )
    eplb_policy: str = option("tokenyard", "What decides placements: a name, or module:Class.")
    eplb_policy_timeout: int = option(30, "Seconds that a policy module:Class may take to answer.", 1, 86400)
    eplb_interval: int = option(20, "Samples of the load between two plans.", 1, 1 << 20)
    record_loads: Path | None = option(None, "Write the experts' loads, step by step, to this file (.npz) at the end.")
    record_interval: int = option(300, "Seconds between parts of --record-loads, which a crash leaves.", 1, 86400)
    reasoning_parser: str = option("auto", "How reasoning and content are kept apart.", choices=PARSERS)
    chat_template: Path | None = option(None, "A chat template (jinja2) to use in place of the checkpoint's.")
    grace_period: float = option(5.0, "Seconds that running requests have to end after SIGTERM or Ctrl-C.", 0, 86400)
    host: str = option("127.0.0.1", "Address to listen on.")
    grpc_port: int = option(50051, "Port of the gRPC server, 0 = any free one.", 0, 65535)
    http_port: int = option(8000, "Port of the HTTP server, 0 = any free one.", 0, 65535)
    allowed_origins: str | None = option(
        None, "Origins whose web pages may call (CORS), with commas between them; * = any. Default: none."
    )
    strict_fields: bool = option(False, "Refuse HTTP requests with fields that nobody knows, instead of a warning.")
    ray_address: str | None = option(None, "Join this running Ray instead of starting a private one.")

    @property
    def listen_grpc(self) -> Listen:
        """Where gRPC listens."""
        return Listen(self.host, self.grpc_port)

    @property
    def listen_http(self) -> Listen:
        """Where HTTP listens."""
        return Listen(self.host, self.http_port)

    @property
    def one_process(self) -> bool:
        """Whether everything runs in this process, without Ray."""
        return self.attention_workers == 1 and self.experts == 0 and not self.colocate

    @property
    def experts(self) -> int:
        """Ranks that hold experts and run no attention."""
        if self.expert_workers is not None:
            return self.expert_workers
        return 0 if self.colocate else 2

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins whose web pages may call over HTTP. Raises UserError for what is none."""
        return read_origins(self.allowed_origins or "", "--allowed-origins")

    @property
    def expert_seats(self) -> int:
        """Ranks that hold experts."""
        return self.attention_workers if self.colocate or self.one_process else self.experts

    def check(self) -> None:
        """Raise UserError for values out of range and for combinations that can't be."""
        for f in fields(self):
            check_value(f.name, getattr(self, f.name), f"--{flag_name(f.name)}")
        if self.colocate and self.expert_workers:
            raise UserError(
                f"{self.expert_workers} with --colocate", "0 or absent (every worker holds experts)", "--expert-workers"
            )
        if not self.colocate and self.attention_workers > 1 and self.experts == 0:
            raise UserError("0 with several attention workers", "at least 1, or --colocate", "--expert-workers")
        if self.enable_eplb and self.expert_seats < 2:
            raise UserError(
                f"{self.expert_seats} rank with experts", "at least 2, between which experts can move", "--enable-eplb"
            )
        _ = self.origins
        if self.grpc_port == self.http_port and self.grpc_port:
            raise UserError(f"{self.http_port}, the gRPC port", "another port", "--http-port")


def flag_name(name: str) -> str:
    """max_model_len → max-model-len."""
    return name.replace("_", "-")


def field_of(name: str) -> Any:
    """The dataclass field of an option."""
    return next(f for f in fields(ServeConfig) if f.name == name)


def check_value(name: str, value: Any, where: str) -> None:
    """Raise UserError unless `value` has the option's type, range and words."""
    f = field_of(name)
    kind = str(f.type)
    if value is None and "None" in kind:
        return
    wanted, expected = _kind(kind)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise UserError(f"{value!r}", expected, where)
    low, high, choices = (f.metadata[k] for k in ("low", "high", "choices"))
    if choices and value not in choices:
        close = get_close_matches(str(value), choices, 1)
        raise UserError(f"{value!r}", " or ".join(choices) + (f" (did you mean {close[0]}?)" if close else ""), where)
    if low is not None and not low <= value <= high:
        raise UserError(str(value), f"{low} to {high}", where)


_PATHS = frozenset(f.name for f in fields(ServeConfig) if "Path" in str(f.type))


class _UniqueKeys(yaml.SafeLoader):
    """YAML's own rule: a key stands once in a mapping. PyYAML takes the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.YAMLError(f"key {twice!r} twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The options that a flat YAML file sets, by field name, and "model". Raises UserError, with the nearest right key."""
    try:
        values = yaml.load(path.read_text(), _UniqueKeys)
    except OSError as error:
        raise UserError(error.strerror or "an unreadable file", "a YAML file", str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"broken YAML ({str(error).splitlines()[0]})", "flat YAML of options", str(path)) from None
    if values is None:  # an empty file, or comments alone
        return {}
    if not isinstance(values, dict):
        raise UserError(f"YAML {type(values).__name__}", "a mapping of options", str(path))
    names = {flag_name(f.name): f.name for f in fields(ServeConfig)} | {"model": "model"}
    out: dict[str, Any] = {}
    for key, value in values.items():
        spelled = str(key).replace("_", "-")
        if spelled not in names:
            close = get_close_matches(spelled, names, 1)
            raise UserError(f"unknown key {key!r}", f"{close[0]!r}?" if close else "an option of serve", str(path))
        name = names[spelled]
        if name in out:
            raise UserError(f"{spelled!r} twice", "each option once", str(path))
        if name in _PATHS and isinstance(value, str):
            value = Path(value)
        if name != "model":
            check_value(name, value, f"{path} {key}")
        elif not isinstance(value, str):
            raise UserError(f"{value!r}", "a folder", f"{path} model")
        out[name] = value
    return out


def merge(flags: dict[str, Any], file: dict[str, Any]) -> ServeConfig:
    """Options of the command line over those of the file over the defaults. flags: None = not given."""
    given = {**file, **{k: v for k, v in flags.items() if v is not None}}
    given.pop("model", None)
    config = replace(ServeConfig(), **given)
    config.check()
    return config


def default_of(name: str) -> Any:
    """An option's default."""
    value = field_of(name).default
    assert value is not MISSING, f"option {name} has no default"
    return value


def _kind(kind: str) -> tuple[type | tuple[type, ...], str]:
    if "float" in kind:
        return (int, float), "a number"
    if "int" in kind:
        return int, "a whole number"
    if "bool" in kind:
        return bool, "true or false"
    if "Path" in kind:
        return Path, "a file"
    return str, "text"
