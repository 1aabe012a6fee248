"""RaySession: the Ray that a cluster runs on: a private one, one that is there, or the embedding program's."""

import contextlib
import logging
import secrets
import shutil
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster.serve.folders import session_folder
from cluster.serve.ray_address import RayAddress, nobody, wanted
from experts import env, ray_private
from experts.errors import UserError

log = logging.getLogger(__name__)
_ATTEMPTS = 2  # of starting a private Ray; its processes wait for each other with limits that can't all be set
_ANSWER = 8.0  # s for a Ray that is there to say what it is
_ENDED = 10.0  # s for processes of a private Ray to be gone once they were killed
_OBJECT_STORE = 80 << 20  # bytes; tokens and weights never go through it


class StartFailed(RuntimeError):
    """What was waited for did not come up; the text names it, and where the logs are."""


class RaySession:
    """namespace: of the cluster's actors
    private: whether nobody else is on this Ray
    """

    def __init__(self, ray_flag: str | None, namespace: str) -> None:
        self._address = None if ray.is_initialized() else wanted(ray_flag)
        self._namespace = namespace
        self._embedded = ray.is_initialized()  # by the program that embeds this; its Ray outlives us
        self.private = not self._embedded and self._address is None
        self._folder: Path | None = None
        self._connected = False  # whether this object called ray.init

    def start(self) -> None:
        """Start or join. Raises UserError for an address where there is no Ray to join, StartFailed."""
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if self._embedded:
            return
        if self._address is not None:
            self._join(self._address)
        else:
            self._start_private()
        self._connected = True

    @property
    def log_folder(self) -> str:
        """Where Ray's processes and ours log."""
        if ray.is_initialized():
            return ray_private.log_folder()
        return str(self._folder or "")

    def check_gpus(self, wanted: int) -> None:
        """Refuse to wait for GPUs that this Ray does not have. Raises UserError."""
        found = (ray.cluster_resources() if self.private else ray.available_resources()).get("GPU", 0.0)
        if found < wanted:
            raise UserError(
                f"{found:g} free GPUs in Ray", f"{wanted}, one for each rank, or --device cpu", "--device cuda"
            )

    def end(self, clean: bool) -> None:
        """Leave a Ray that is there, end a private one. clean: its folder with the logs goes too."""
        if self._connected:
            ray.shutdown(wait_for_processes=self.private)
            ray_private.forget_token()
            ray_private.forget_serve()
            self._connected = False
        if self._folder is not None and clean:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start_private(self) -> None:
        ray_private.keep_to_loopback()
        self._folder = session_folder()
        with env.environment(env.of_private_ray(secrets.token_hex(32))):
            ray_private.forget_token()
            for left in reversed(range(_ATTEMPTS)):
                before = set(psutil.Process().children(recursive=True))
                try:
                    with ray_private.agent_ports():
                        self._init(
                            address="local", num_cpus=2, include_dashboard=False, object_store_memory=_OBJECT_STORE,
                            _temp_dir=str(self._folder),
                        )  # fmt: skip
                    return
                except Exception as error:  # Ray raises plain ones
                    log.info("starting Ray failed: %s", error)
                    ray.shutdown()
                    _kill(set(psutil.Process().children(recursive=True)) - before)
                    if not left:
                        raise StartFailed(
                            f"waited for Ray, which did not start in {_ATTEMPTS} attempts; logs are in {self._folder}"
                        ) from error

    def _join(self, address: RayAddress) -> None:
        text = address.text
        if text == "auto":
            text = ray_private.named_address() or ""
            if not text:
                raise nobody(address, "`ray start` has left no address on this machine")
        token = self._check(address, text)
        with env.environment(env.of_joined_ray(token)):
            try:
                self._init(address=text)
            except Exception as error:  # Ray raises plain ones
                raise nobody(address, str(error).partition("\n")[0]) from error
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if len(nodes) > 1:
            ray.shutdown()
            raise UserError(f"a Ray of {len(nodes)} nodes at {text}", "one of a single node", address.source)

    def _check(self, address: RayAddress, text: str) -> bool:
        """Whether a token is shown to the Ray at `text`, which is of our versions."""
        token = ray_private.shows_token()
        try:
            try:
                found = ray_private.versions(text, _ANSWER)
            except ray_private.WantsToken:
                if token or env.auth_mode() is not None or not ray_private.token_is_there():
                    raise
                token = True
                with env.environment(env.of_joined_ray(token)):
                    ray_private.forget_token()
                found = ray_private.versions(text, _ANSWER)
        except ray_private.WantsToken:
            missing = "another token" if token else "no token"
            raise UserError(
                f"{missing} for the Ray at {text}", "its own in RAY_AUTH_TOKEN or ~/.ray/auth_token", address.source
            ) from None
        except OSError as error:
            raise nobody(address, str(error)) from None
        ours = ray_private.own_versions()
        if found != ours:
            raise UserError(
                f"Ray {found[0]} with Python {found[1]} at {text}",
                f"Ray {ours[0]} with Python {ours[1]}",
                address.source,
            )
        return token

    def _init(self, **options: Any) -> None:
        ray_private.log_what_it_prints()
        with ray_private.without_uv():
            ray.init(
                namespace=self._namespace, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True,
                job_config=ray_private.our_path(), **options,
            )  # fmt: skip


def _kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, _ENDED)
