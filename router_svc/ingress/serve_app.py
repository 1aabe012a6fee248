"""HTTP on Ray Serve: a deployment that runs the ASGI app of `replica_app`."""

from ray import serve

from router_svc.ingress import replica_app
from router_svc.ingress.ingress import IngressOrder, SupervisorVerbs


@serve.deployment(
    name="http", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=4096, graceful_shutdown_timeout_s=3
)
@serve.ingress(replica_app.app)
class HttpReplica:
    """One replica of the HTTP face."""

    def __init__(self, order: IngressOrder, supervisor: SupervisorVerbs) -> None:
        replica_app.APP.configure(order, supervisor)
