"""Guesses the media type of data, as Go's `http.DetectContentType` does.

Source: the WHATWG MIME Sniffing standard, in the subset of Go's net/http. EAS's queue service uses it for items without
a Content-Type.
"""

from __future__ import annotations

#: most bytes that are examined
_SNIFF_BYTES = 512
_BLANK = b"\t\n\x0c\r "
_TEXT = "text/plain; charset=utf-8"
_HTML_TAGS = (
    *(b"<!DOCTYPE HTML", b"<HTML", b"<HEAD", b"<SCRIPT", b"<IFRAME", b"<H1", b"<DIV", b"<FONT", b"<TABLE"),
    *(b"<A", b"<STYLE", b"<TITLE", b"<B", b"<BODY", b"<BR", b"<P", b"<!--"),
)
#: pairs of an offset and the bytes at it, all of which must match, and the type; in Go's order
_MAGIC: tuple[tuple[tuple[tuple[int, bytes], ...], str], ...] = (
    (((0, b"%PDF-"),), "application/pdf"),
    (((0, b"%!PS-Adobe-"),), "application/postscript"),
    (((0, b"\x00\x00\x01\x00"),), "image/x-icon"),
    (((0, b"\x00\x00\x02\x00"),), "image/x-icon"),
    (((0, b"BM"),), "image/bmp"),
    (((0, b"GIF87a"),), "image/gif"),
    (((0, b"GIF89a"),), "image/gif"),
    (((0, b"RIFF"), (8, b"WEBPVP")), "image/webp"),
    (((0, b"\x89PNG\r\n\x1a\n"),), "image/png"),
    (((0, b"\xff\xd8\xff"),), "image/jpeg"),
    (((0, b"FORM"), (8, b"AIFF")), "audio/aiff"),
    (((0, b"ID3"),), "audio/mpeg"),
    (((0, b"OggS\x00"),), "application/ogg"),
    (((0, b"MThd\x00\x00\x00\x06"),), "audio/midi"),
    (((0, b"RIFF"), (8, b"AVI ")), "video/avi"),
    (((0, b"RIFF"), (8, b"WAVE")), "audio/wave"),
    (((0, b"\x1a\x45\xdf\xa3"),), "video/webm"),
    (((34, b"LP"),), "application/vnd.ms-fontobject"),
    (((0, b"\x00\x01\x00\x00"),), "font/ttf"),
    (((0, b"OTTO"),), "font/otf"),
    (((0, b"ttcf"),), "font/collection"),
    (((0, b"wOFF"),), "font/woff"),
    (((0, b"wOF2"),), "font/woff2"),
    (((0, b"\x1f\x8b\x08"),), "application/x-gzip"),
    (((0, b"PK\x03\x04"),), "application/zip"),
    (((0, b"Rar!\x1a\x07\x00"),), "application/x-rar-compressed"),
    (((0, b"Rar!\x1a\x07\x01\x00"),), "application/x-rar-compressed"),
    (((0, b"\x00asm"),), "application/wasm"),
)
#: bytes that text does not contain
_BINARY = bytes([*range(0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)])
#: first bytes of all types but plain text; empty data is among them
_FIRST = frozenset({b"", b"<", b"\xfe", b"\xff", b"\xef", *(needles[0][1][:1] for needles, _ in _MAGIC)})


def sniff(data: bytes) -> str:
    """Return a media type for `data` by its first bytes; `text/plain; charset=utf-8` if it may be text."""
    head = bytes(data[:_SNIFF_BYTES])
    text = head.lstrip(_BLANK)
    if text[:1] not in _FIRST and head[:1] not in _FIRST and head[4:8] != b"ftyp" and head[34:36] != b"LP":
        # most payloads: no type begins with these bytes
        return _TEXT if text.translate(None, _BINARY) == text else "application/octet-stream"
    if _is_html(text):
        return "text/html; charset=utf-8"
    if text.startswith(b"<?xml"):
        return "text/xml; charset=utf-8"
    if len(head) >= 4:
        if head.startswith(b"\xfe\xff"):
            return "text/plain; charset=utf-16be"
        if head.startswith(b"\xff\xfe"):
            return "text/plain; charset=utf-16le"
        if head.startswith(b"\xef\xbb\xbf"):
            return _TEXT
    if _is_mp4(head):
        return "video/mp4"
    for needles, media_type in _MAGIC:
        if all(head.startswith(needle, offset) for offset, needle in needles):
            return media_type
    if text.translate(None, _BINARY) == text:
        return _TEXT
    return "application/octet-stream"


def _is_html(text: bytes) -> bool:
    upper = text[:16].upper()
    return any(upper.startswith(tag) and upper[len(tag) : len(tag) + 1] in (b" ", b">") for tag in _HTML_TAGS)


def _is_mp4(head: bytes) -> bool:
    size = int.from_bytes(head[:4], "big")
    if len(head) < 12 or len(head) < size or size % 4 or (head[4:8] != b"ftyp" and head[34:36] != b"LP"):
        return False
    return any(head.startswith(b"mp4", at) for at in range(8, size, 4) if at != 12)
