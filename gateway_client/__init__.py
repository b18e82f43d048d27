"""A client of Gateways' internal HTTP API: calls, reads and events, honest about what was surely not sent.

It stands alone: anyone may import it, and it imports nothing of the daemon. Import from here; the modules are:

    gateways    Gateways, several as one: each call to the one that holds the agent
    directory   which one that is
    roster      who is online at any of them
    registry    the Gateways' own Redis, read only but for the versions of agents' tokens
    results     the stored RESULTs of many calls at once
    client      GatewayClient, one of them
    invoker     the thin keep-alive pool that carries calls
    turnstile   who may begin a call: bounds per agent and together
    http1       requests and answers as bytes and values
    stream      the event stream
    models      what travels
    errors      the error tree, and what each HTTP answer proves
"""

from gateway_client.client import GatewayClient
from gateway_client.directory import Directory
from gateway_client.errors import GatewayError, MaybeSent, NotSent, ResultsUnsupported, Unavailable
from gateway_client.gateways import Gateways
from gateway_client.models import AgentInfo, Envelope, Invocation, ToolInfo
from gateway_client.registry import GatewayRedis, PublishedEvents
from gateway_client.results import Results
from gateway_client.roster import Roster
from gateway_client.stream import EventStream

__all__ = [
    "AgentInfo",
    "Directory",
    "Envelope",
    "EventStream",
    "GatewayClient",
    "GatewayError",
    "GatewayRedis",
    "Gateways",
    "Invocation",
    "MaybeSent",
    "NotSent",
    "PublishedEvents",
    "Results",
    "ResultsUnsupported",
    "Roster",
    "ToolInfo",
    "Unavailable",
]
