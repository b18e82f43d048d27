"""The error tree: one base, a stable code, a sentence for people."""

import pickle

import pytest

from gateway_client import GatewayError, MaybeSent, NotSent, ResultsUnsupported, Unavailable


@pytest.mark.parametrize("kind", [NotSent, MaybeSent, Unavailable, ResultsUnsupported])
def test_every_error_is_a_gateway_error_with_a_code_and_a_sentence(kind):
    error = kind("a_code", "some detail")
    assert isinstance(error, GatewayError)
    assert error.code == "a_code"
    assert str(error) == f"{kind.__doc__.splitlines()[0]} a_code: some detail"
    assert str(kind("a_code")) == f"{kind.__doc__.splitlines()[0]} a_code"


def test_the_kinds_of_error_do_not_overlap():
    kinds = [NotSent, MaybeSent, Unavailable, ResultsUnsupported]
    assert not [(one, other) for one in kinds for other in kinds if one is not other and issubclass(one, other)]


def test_an_error_survives_pickling():
    again = pickle.loads(pickle.dumps(NotSent("agent_offline", "HTTP 404")))
    assert (type(again), again.code, again.detail) == (NotSent, "agent_offline", "HTTP 404")
