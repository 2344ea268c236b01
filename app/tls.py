"""Whom the service trusts where it calls others over TLS."""

import ssl
from functools import cache

import httpx2


@cache
def trusted() -> ssl.SSLContext:
    """The system's certificates, or those of SSL_CERT_FILE: the openai SDK's own way.

    Read once in a process: that takes longer than many a call, and every client would do it.
    """
    return httpx2.create_ssl_context()
