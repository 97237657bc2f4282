"""Who has the cluster's key may talk: TLS 1.3 with it as pre-shared secret, no certificates."""

from __future__ import annotations

import dataclasses
import ssl  # asyncio has loaded it already
import sys

KEY_BYTES = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Security:
    """How connections are protected, those that come and those we open; None: not at all."""

    come: ssl.SSLContext | None = None
    open: ssl.SSLContext | None = None


def make_security(key: bytes, name: str) -> Security:
    """Return what protects connections by `key`, for a node called `name`. Needs Python 3.13."""
    if sys.version_info >= (3, 13):
        come = _make_context(ssl.PROTOCOL_TLS_SERVER)
        come.set_psk_server_callback(lambda _: key, None)
        come.num_tickets = 0  # each connection proves the key anew
        opening = _make_context(ssl.PROTOCOL_TLS_CLIENT)
        opening.set_psk_client_callback(lambda _: (name, key))
        # Nobody's certificate is trusted: whoever shows one instead of the key is refused.
        opening.check_hostname = False
        opening.verify_mode = ssl.CERT_REQUIRED
        return Security(come, opening)
    raise NotImplementedError("TLS with a pre-shared key needs Python 3.13")


def _make_context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    # A key from outside goes with SHA-256, so the suite is TLS_CHACHA20_POLY1305_SHA256 or
    # TLS_AES_128_GCM_SHA256; the exchange is (EC)DHE with the key: old traffic stays secret even
    # if the key gets out.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
