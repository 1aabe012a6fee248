"""ServePlan: a checked start, with its seats, placement and memory for keys and values.

Everything that can be known to fail is found here, before any process or weight.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.balance.kernel import check_available
from cluster.balance.policies.registry import load_policy, user_folder
from cluster.config import ServeConfig
from cluster.limits import PROCESS_BYTES, check_fits
from cluster.watch.recorder import check_writable
from experts.address import bare, check_port
from experts.checkpoint.reader import CheckpointReader
from experts.crew import most_threads
from experts.epoch.membership import Member
from experts.errors import UserError
from experts.exchange.registry import exchange_for
from experts.machine import free_memory, own_memory
from experts.placement import ABSENT, Placement
from experts.slots.loader import check_experts
from router_svc.api.calls import ModelInfo
from router_svc.api.limits import ServiceLimits
from router_svc.api.service import TextStack
from router_svc.engine.config import EngineConfig
from router_svc.models.generation import ignored_generation_keys
from router_svc.models.registry import ignored_keys, load_spec
from router_svc.models.spec import ModelSpec, attention_bytes, expert_bytes, kv_bytes_per_token
from router_svc.models.weights import WeightLoader, as_stored

log = logging.getLogger(__name__)
BLOCK_SIZE = 16  # tokens
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FEWER_RANKS = "one for each rank, or --expert-workers 0 for all in one process"
_KV_SHARE = 0.1  # of free memory, where nothing is said


@dataclass(frozen=True, slots=True)
class Balancing:
    """Whether experts are moved live; reason: why not."""

    enabled: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ServePlan:
    """What a rank or an ingress needs to know to start; picklable.

    most_threads: of any process, as the machine and the user allow
    exchange: between ranks, by its name in the registry
    min_copies: ranks that hold each expert, where slots allow
    user_folder: the folder that `serve` was started in, where a policy of the user's own is looked for
    """

    folder: Path
    spec: ModelSpec
    config: ServeConfig
    name: str
    dtype: torch.dtype
    device: str
    exchange: str
    engine: EngineConfig
    placement: Placement
    seats: tuple[Member, ...]
    most_threads: int
    balancing: Balancing = Balancing(False)
    min_copies: int = 1
    user_folder: str = ""

    @property
    def limits(self) -> ServiceLimits:
        """Bounds of requests."""
        queue = self.config.attention_workers * self.engine.max_queue_len
        return ServiceLimits(self.engine.max_model_len, self.spec.vocab_size, max_batch=min(64, queue))

    @property
    def info(self) -> ModelInfo:
        """The served model's description."""
        spec = self.spec
        return ModelInfo(
            name=self.name,
            architecture=spec.architecture,
            max_model_len=self.engine.max_model_len,
            vocab_size=spec.vocab_size,
            dtype=str(self.dtype).removeprefix("torch."),
            layers=spec.layers,
            experts=spec.experts.experts,
            top_k=spec.experts.top_k,
        )


def make_plan(folder: Path, config: ServeConfig, check_ports: bool = True, check_text: bool = True) -> ServePlan:
    """Check model, options, ports, slots and memory. Raises UserError with what was found and expected.

    check_text: tokenizer, chat template and generation_config.json are needed.
    """
    config.check()
    config = replace(config, host=bare(config.host))
    if config.chat_template is not None:
        config = replace(config, chat_template=config.chat_template.absolute())  # doors may run in another folder
    spec = load_spec(folder)
    reader = CheckpointReader(folder)
    spec = as_stored(spec, reader)
    _check_tensors(spec, reader)
    _say_ignored(folder / "config.json", ignored_keys(folder))
    if reader.note:
        log.warning("%s: %s", folder, reader.note)
    if check_text:
        _say_ignored(folder / "generation_config.json", ignored_generation_keys(folder, spec))
        TextStack.load(folder, spec, config.reasoning_parser, config.chat_template)
    device = _device(config)
    dtype = _dtype(config.dtype, spec, device)
    max_len = _max_model_len(config, spec)
    placement = _placement(config, spec)
    kv_bytes = _kv_bytes(config, spec, dtype, max_len)
    block = kv_bytes_per_token(spec, dtype) * BLOCK_SIZE
    engine = EngineConfig(
        max_model_len=max_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_queue_len=config.max_queue_len,
        kv_blocks=kv_bytes // block,
        block_size=BLOCK_SIZE,
    )
    if engine.kv_blocks * BLOCK_SIZE < max_len:
        raise UserError(
            f"{kv_bytes} bytes of KV cache ({engine.kv_blocks * BLOCK_SIZE} tokens)",
            f"at least {-(-max_len // BLOCK_SIZE) * block} for max_model_len {max_len}",
            "--kv-cache-memory-bytes",
        )
    if config.record_loads is not None:
        loads = config.record_loads.absolute()  # the supervisor may run in another folder
        check_writable(loads)
        config = replace(config, record_loads=loads)
    balancing = balancing_of(config)
    if device == "cpu":
        _check_memory(config, spec, dtype, kv_bytes, placement)
    if check_ports:
        check_port(config.listen_grpc, "--grpc-port")
        check_port(config.listen_http, "--http-port")
    name = config.served_model_name or folder.resolve().name
    return ServePlan(
        folder.resolve(),
        spec,
        config,
        name,
        dtype,
        device,
        _exchange(config, device),
        engine,
        placement,
        _seats(config),
        most_threads(),
        balancing,
        _min_copies(config, placement),
        user_folder(),
    )


def _check_tensors(spec: ModelSpec, reader: CheckpointReader) -> None:
    """Every tensor that any rank will read, by name, shape and dtype, from the files' headers."""
    WeightLoader(spec, reader, torch.float32, "meta").check()
    check_experts(spec.experts, reader)


def _say_ignored(path: Path, keys: list[str]) -> None:
    """Name the keys of a file that have no effect, in one line of the log."""
    if keys:
        log.warning("%s: keys without effect: %s", path, ", ".join(keys))


def balancing_of(config: ServeConfig) -> Balancing:
    """Whether experts are moved live. Raises UserError when that was asked for and can't be, or for a wrong policy."""
    if config.expert_seats < 2:
        return Balancing(False, "one rank with experts")
    found = Balancing(True)
    try:
        check_available()
    except UserError as error:
        if config.enable_eplb:
            raise
        found = Balancing(False, f"the planner needs a C compiler ({error.found})")
    policy = load_policy(config.eplb_policy, "--eplb-policy", user_folder(), config.eplb_policy_timeout)
    policy.close()
    if policy.clairvoyant:
        raise UserError(f"policy {policy.name!r}, which looks into the future", "one that does not", "--eplb-policy")
    if config.enable_eplb is False:
        return Balancing(False, "--no-enable-eplb")
    return found


def _seats(config: ServeConfig) -> tuple[Member, ...]:
    if config.one_process or config.colocate:
        return tuple(Member(rank, "both") for rank in range(config.attention_workers))
    experts = [Member(rank, "expert") for rank in range(config.experts)]
    return tuple(experts + [Member(config.experts + a, "attention") for a in range(config.attention_workers)])


def _device(config: ServeConfig) -> str:
    """Where ranks hold tensors: on a GPU of their own each, or all on the CPU."""
    ranks = len(_seats(config))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and config.device != "cpu" else 0
    if gpus >= ranks:
        return "cuda"
    if config.device == "cuda":
        if gpus == 0:
            raise UserError("no CUDA device", "one, or --device cpu", "--device")
        raise UserError(f"{gpus} of the {ranks} GPUs that {ranks} ranks take", _FEWER_RANKS, "--device cuda")
    if gpus > 0:
        log.warning(
            "%d ranks take %d GPUs and here are %d: the CPU is used; expected %s", ranks, ranks, gpus, _FEWER_RANKS
        )
    return "cpu"


def _exchange(config: ServeConfig, device: str) -> str:
    if not config.one_process:
        return exchange_for(device, config.exchange)
    if config.exchange != "auto":
        log.warning("--exchange %s has no effect: all runs in one process", config.exchange)
    return "local"


def _dtype(wanted: str, spec: ModelSpec, device: str) -> torch.dtype:
    if wanted != "auto":
        return _DTYPES[wanted]
    narrow = device == "cuda" or _cpu_has_bf16()
    return torch.bfloat16 if narrow and spec.dtype in (torch.bfloat16, torch.float16) else torch.float32


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _max_model_len(config: ServeConfig, spec: ModelSpec) -> int:
    wanted = config.max_model_len or spec.max_position
    if wanted > spec.longest:
        raise UserError(str(wanted), f"at most {spec.longest}, which the model's rope allows", "--max-model-len")
    return wanted


def _placement(config: ServeConfig, spec: ModelSpec) -> Placement:
    experts, ranks = spec.experts, config.expert_seats
    if config.placement is not None:
        placement = Placement.load(config.placement, ranks)
        placement.check_fits(experts.moe_layers, experts.experts)
        return placement
    slots = -(-(experts.experts + config.num_redundant_experts) // ranks)
    return Placement.first(experts.moe_layers, experts.experts, ranks, slots)


def _min_copies(config: ServeConfig, placement: Placement) -> int:
    """Ranks that are to hold each expert. Raises UserError for more than there are slots or ranks for."""
    slots = int((placement.slot_expert[0] != ABSENT).sum())
    if config.min_copies is None:
        return 2 if placement.ranks >= 2 and slots >= 2 * placement.experts else 1
    wanted = config.min_copies
    if placement.ranks < wanted:
        raise UserError(str(wanted), f"at most {placement.ranks}, the ranks that hold experts", "--min-copies")
    if slots < wanted * placement.experts:
        spare = (wanted - 1) * placement.experts
        raise UserError(
            f"{wanted} with {slots} slots for {placement.experts} experts",
            f"--num-redundant-experts {spare}",
            "--min-copies",
        )
    return wanted


def _kv_bytes(config: ServeConfig, spec: ModelSpec, dtype: torch.dtype, max_len: int) -> int:
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes
    token = kv_bytes_per_token(spec, dtype)
    least = -(-max_len // BLOCK_SIZE) * BLOCK_SIZE * token
    useful = config.max_num_seqs * least  # more would never be filled
    share = int(free_memory().bytes * _KV_SHARE / config.attention_workers)
    return max(min(share, useful), least)


def _check_memory(
    config: ServeConfig, spec: ModelSpec, dtype: torch.dtype, kv_bytes: int, placement: Placement
) -> None:
    """Refuse what this machine can't hold. With a Ray of several nodes their memory is not known here."""
    if config.ray_address is not None:
        return
    attention = config.attention_workers * (attention_bytes(spec, dtype) + kv_bytes)
    parts = {
        "experts": placement.slot_expert.size * expert_bytes(spec, dtype),
        "attention and KV cache": attention,
        "processes": max(0, len(_seats(config)) * PROCESS_BYTES - (own_memory() if config.one_process else 0)),
    }
    check_fits(free_memory(), parts)
