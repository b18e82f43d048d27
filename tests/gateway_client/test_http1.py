"""HTTP/1.1 as values: the same answer however its bytes were split, and no answer from bytes that cannot be trusted."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_client.http1 import MAX_BODY_BYTES, MAX_HEAD_BYTES, Answer, AnswerReader, Endpoint, Malformed

SMALL = MAX_HEAD_BYTES // 2


def pieces(data, cuts):
    """The bytes, cut at these places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


def read(parts):
    """The first answer in these parts, as a connection would read them."""
    reader = AnswerReader()
    for part in parts:
        if (answer := reader.feed(part)) is not None:
            return answer
    return reader.end()


def chunked(parts):
    return b"".join(b"%x;name=value\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\nA: b\r\n\r\n"


BODIES = st.lists(st.binary(max_size=40), max_size=5)
CUTS = st.lists(st.integers(min_value=0), max_size=12)
INTERIM = st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])


@given(BODIES, CUTS, INTERIM)
def test_an_answer_of_known_length_is_the_same_however_its_bytes_were_split(body, cuts, interim):
    whole = b"".join(body)
    data = interim + b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n%b" % (len(whole), whole)
    assert read(pieces(data, cuts)) == Answer(status=202, body=whole, keep_alive=True)


@given(BODIES, CUTS, INTERIM)
def test_a_chunked_answer_is_the_same_however_its_bytes_were_split(body, cuts, interim):
    data = interim + b"HTTP/1.1 404 Not Found\r\ntransfer-encoding:  Chunked \r\n\r\n" + chunked(body)
    assert read(pieces(data, cuts)) == Answer(status=404, body=b"".join(body), keep_alive=True)


@given(BODIES, CUTS)
def test_an_answer_without_a_length_ends_with_the_connection_and_not_before(body, cuts):
    data = b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(body)
    reader = AnswerReader()
    assert all(reader.feed(part) is None for part in pieces(data, cuts))
    assert reader.end() == Answer(status=200, body=b"".join(body), keep_alive=False)


@given(BODIES, CUTS, st.integers(min_value=1), st.booleans())
def test_an_answer_cut_short_is_no_answer(body, cuts, missing, in_chunks):
    whole = b"".join(body)
    framing = b"Transfer-Encoding: chunked" if in_chunks else b"Content-Length: %d" % len(whole)
    data = b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (framing, chunked(body) if in_chunks else whole)
    assert read(pieces(data[: -1 - missing % len(data)], cuts)) is None


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Keep, Close",
        b"HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 1\r\nconnection: close",
    ],
)
def test_a_connection_that_is_to_close_is_not_kept(head):
    assert read([head + b"\r\n\r\nx"]) == Answer(status=200, body=b"x", keep_alive=False)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"]
)
def test_bytes_after_an_answer_make_its_connection_worthless(framing):
    assert read([b"HTTP/1.1 200 OK\r\n" + framing + b"HTTP"]) == Answer(status=200, body=b"x", keep_alive=False)


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body_whatever_they_say(status):
    answer = read([b"HTTP/1.1 %d Whatever\r\nContent-Length: 7\r\n\r\n" % status])
    assert answer == Answer(status=status, body=b"", keep_alive=True)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n",
    ],
)
def test_what_is_not_certainly_an_answer_is_malformed(data):
    with pytest.raises(Malformed):
        read([data])


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * SMALL),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", b"x" * SMALL),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"8000\r\n" + b"x" * 0x8000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 1000),
    ],
)
def test_no_answer_may_grow_without_bound(start, more):
    with pytest.raises(Malformed):
        read([start, *[more] * (2 * (MAX_BODY_BYTES + MAX_HEAD_BYTES) // len(more))])


@pytest.mark.parametrize(
    ("url", "host", "port", "again"),
    [
        ("http://gateway", "gateway", 80, "http://gateway"),
        ("https://gateway/", "gateway", 443, "https://gateway"),
        ("HTTP://Gate.Way:8080/a/b//", "gate.way", 8080, "http://gate.way:8080/a/b"),
        ("http://127.0.0.1:1/x y%20z", "127.0.0.1", 1, "http://127.0.0.1:1/x%20y%20z"),
        ("http://[::1]:9000", "::1", 9000, "http://[::1]:9000"),
        ("http://[fe80::1%eth0]/p", "fe80::1%eth0", 80, "http://[fe80::1]/p"),
        ("http://bücher.example", "xn--bcher-kva.example", 80, "http://xn--bcher-kva.example"),
        ("http://a_service:81", "a_service", 81, "http://a_service:81"),
    ],
)
def test_a_base_url_says_where_to_connect_and_what_to_call_it(url, host, port, again):
    endpoint = Endpoint.parse(url)
    assert (endpoint.host, endpoint.port, endpoint.url) == (host, port, again)
    assert endpoint.secure == url.lower().startswith("https")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway:8080",
        "ftp://gateway",
        "http://",
        "http://:80",
        "http://gateway:port",
        "http://gateway:99999",
        "http://user:secret@gateway",
        "http://gateway?x=y",
        "http://gateway#x",
        "http://gate way",
        "http://[::1",
        "http://a..b",
    ],
)
def test_what_is_no_base_url_is_refused_without_repeating_a_secret(url):
    with pytest.raises(ValueError) as caught:
        Endpoint.parse(url)
    assert "secret" not in str(caught.value)
