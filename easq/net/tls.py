"""The TLS settings of a connection."""

from __future__ import annotations

import contextlib
import os
import ssl

from easq.errors import ConfigError


def tls_context(*, cacert: str = "", insecure: bool = False) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later.

    Raises ConfigError for a CA file that cannot be read, and for a key log (SSLKEYLOGFILE) that cannot be written.

    Args:
        cacert: a file of CA certificates; by default the system's, or SSL_CERT_FILE, and certifi's.
        insecure: accept any certificate.
    """
    try:
        context = ssl.create_default_context(cafile=cacert or None)
    except (OSError, ssl.SSLError) as error:
        if error.filename is not None:  # the key log: Python names no other file
            raise ConfigError(
                f"SSLKEYLOGFILE {error.filename} cannot be written: {error.strerror}", hint="unset it"
            ) from error
        raise ConfigError(
            f"the CA file {cacert!r} cannot be used: {error}", hint="it holds PEM certificates"
        ) from error
    if not cacert and not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
        # some builds of Python find no CAs of the system; certifi comes with httpx
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(cafile=certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 sets this flag, and then refuses private CAs without key usage or key identifiers. RFC 5280 requires
    # these fields, but `openssl req -x509` omitted them for years. curl, requests and older Pythons accept such CAs
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
