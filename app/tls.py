"""Whom the service trusts where it calls others over TLS."""

import ssl
from functools import cache

import httpx2

from app.domain.errors import ConfigurationError


@cache
def trusted() -> ssl.SSLContext:
    """The system's certificates, or those of SSL_CERT_FILE: the openai SDK's own way.

    Read once in a process: that takes longer than many a call, and every client would do it. All of them speak HTTP/1.1
    only, which each tells this context. Raises `ConfigurationError` where the file cannot be read.
    """
    try:
        return httpx2.create_ssl_context()
    except OSError:
        raise ConfigurationError("The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read.") from None
