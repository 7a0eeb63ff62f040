from easq.protocol.signatures import authorization, is_signed, sign

DATE = "Mon, 02 Jan 2006 15:04:05 GMT"
TYPE = "application/octet-stream"
PATH = "/api/predict/echo"


def test_signs_as_the_official_sdks_do() -> None:
    assert sign("dG9rZW4=", b"[{}]", content_type=TYPE, date=DATE, path=PATH) == {
        "Authorization": "EAS oC48a4WAlPoO37s53SSrbpI3u6A=",
        "Content-MD5": "a21cafb4c405e6997671a02e578b9b1e",
        "Content-Type": TYPE,
        "Date": DATE,
    }


def test_signed_header_values_are_not_normalized() -> None:
    """The Java SDK drops leading zeros of the MD5, and signs the value that it sends."""
    full = authorization("t", "02e74f10", TYPE, DATE, PATH)
    assert full != authorization("t", "2e74f10", TYPE, DATE, PATH)
    assert full.startswith("EAS ")


def test_is_signed_checks_the_headers_as_received() -> None:
    """A signature may cover the query or not, and the path before or after encoding, on any day; nothing else is
    accepted.
    """
    for signed in (PATH + "/ü", PATH + "/%C3%BC", PATH + "/ü?a=b", PATH + "/%C3%BC?a=b"):
        headers = sign("t", b"x", content_type=TYPE, date=DATE, path=signed)
        assert is_signed("t", headers, PATH + "/%C3%BC?a=b")
        assert not is_signed("u", headers, PATH + "/%C3%BC?a=b")
        assert not is_signed("t", headers, PATH + "?a=b")
        assert not is_signed("t", headers | {"Date": "x"}, PATH + "/%C3%BC?a=b")
    assert not is_signed("t", {}, PATH)
