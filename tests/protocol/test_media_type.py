import pytest

from easq.protocol.media_type import sniff

TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"", TEXT),
        (b"[{}]", TEXT),
        ("naïve ü".encode(), TEXT),
        (b"\n\t <!DOCTYPE html><p>", "text/html; charset=utf-8"),
        (b"<html >", "text/html; charset=utf-8"),
        (b"<HtMl>", "text/html; charset=utf-8"),
        (b"<script>alert(1)</script>", "text/html; charset=utf-8"),
        (b"<htmlx>", TEXT),
        (b"  <?xml version='1.0'?>", "text/xml; charset=utf-8"),
        (b"%PDF-1.7", "application/pdf"),
        (b"\xfe\xff\x00a", "text/plain; charset=utf-16be"),
        (b"\xff\xfea\x00", "text/plain; charset=utf-16le"),
        (b"\xef\xbb\xbfa", TEXT),
        (b"GIF89a..", "image/gif"),
        (b"\x89PNG\r\n\x1a\n\x00", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF....WEBPVP8 ", "image/webp"),
        (b"RIFF....WAVEfmt ", "audio/wave"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom", "video/mp4"),
        (b"\x1a\x45\xdf\xa3", "video/webm"),
        (b"\x1f\x8b\x08\x00", "application/x-gzip"),
        (b"PK\x03\x04", "application/zip"),
        (b"\x00asm", "application/wasm"),
        (b"\x00\x01\x02\x03", BYTES),
        (b"text\x00", BYTES),
        (b"text\x1b[0m", TEXT),
        (b"a" * 512 + b"\x00", TEXT),
    ],
)
def test_guesses_as_go_does(data: bytes, media_type: str) -> None:
    assert sniff(data) == media_type


@pytest.mark.parametrize("head", [bytes([first]) for first in range(256)])
def test_the_short_cut_for_plain_payloads_changes_nothing(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every first byte, the result is the same as without the shortcut."""
    payloads = [
        head,
        head + b" text",
        b" " + head,
        b"123" + head,
        b"1234ftyp" + head,
        b"1" * 34 + b"LP" + head,
    ]
    quick = [sniff(payload) for payload in payloads]
    monkeypatch.setattr("easq.protocol.media_type._FIRST", {bytes([first]) for first in range(256)} | {b""})
    assert quick == [sniff(payload) for payload in payloads]
