"""A client of the Gateway's internal HTTP API: calls, reads and events, honest about what was surely not sent.

It stands alone: anyone may import it, and it imports nothing of the daemon. Import from here; the modules are:

    client    GatewayClient, the one door
    invoker   the thin keep-alive pool that carries calls
    http1     requests and answers as bytes and values
    stream    the event stream
    models    what travels
    errors    the error tree, and what each HTTP answer proves
"""

from gateway_client.client import GatewayClient
from gateway_client.errors import GatewayError, MaybeSent, NotSent, ResultsUnsupported, Unavailable
from gateway_client.models import AgentInfo, Envelope, Invocation, ToolInfo
from gateway_client.stream import EventStream

__all__ = [
    "AgentInfo",
    "Envelope",
    "EventStream",
    "GatewayClient",
    "GatewayError",
    "Invocation",
    "MaybeSent",
    "NotSent",
    "ResultsUnsupported",
    "ToolInfo",
    "Unavailable",
]
