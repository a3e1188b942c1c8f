"""How the two ends of a raw TCP connection prove that they know the token, before any frame.

Sans-IO: byte strings in, byte strings out.  The sender dials and speaks first::

    sender    PREAMBLE
    receiver  PREAMBLE, mode (1 TLS, 0 plaintext)
    -- with TLS: handshake; the *sender* is the TLS server, with a certificate made for the run, so
       that the host needs no openssl and no files --
    receiver  nonce R (32 bytes)
    sender    nonce S (32 bytes), proof("sender")
    receiver  proof("receiver"), or REFUSED when the sender's was wrong

    proof(who) = HMAC-SHA256(token, who | mode | SHA256(certificate) | nonce R | nonce S)

The proof covers the mode as each end saw it, so nobody between them can talk one of them down to
plaintext, and the certificate, so nobody can put his own between them.  A recorded proof is
worthless: both nonces are fresh.  A refusal is said, so that a wrong token and a link that broke at
this point can be told apart: one is final, the other is tried again.
"""

import hashlib
import hmac
import os
import secrets
from typing import Tuple

PREAMBLE = b"p2v-sync-1\r\n"  # the line end makes a text protocol's parser give up at once
TLS, PLAINTEXT = 1, 0
NONCE_SIZE = 32
PROOF_SIZE = 32
REFUSED = bytes(PROOF_SIZE)
TIMEOUT_S = 10.0  # for all of it
DEFAULT_PORT = 7720


class AuthError(Exception):
    """The other end did not prove that it knows the token, or is not p2v-sync at all."""


def new_token() -> str:
    """128 random bits, in letters that survive being read out over a telephone."""
    return secrets.token_hex(16)


def new_nonce() -> bytes:
    return os.urandom(NONCE_SIZE)


def certificate_digest(der: bytes) -> bytes:
    """SHA-256 of a certificate in DER; of nothing for plaintext."""
    return hashlib.sha256(der).digest()


class Challenge:
    """What both proofs of one connection are about."""

    def __init__(self, token: str, mode: int, certificate: bytes, nonces: Tuple[bytes, bytes]):
        self._key = token.encode()
        self._text = bytes([mode]) + certificate_digest(certificate) + nonces[0] + nonces[1]

    def proof(self, who: str) -> bytes:
        """``who`` is "sender" or "receiver"."""
        return hmac.new(self._key, who.encode() + self._text, hashlib.sha256).digest()

    def check(self, who: str, proof: bytes) -> None:
        """Raises AuthError when ``proof`` is not the one ``who`` must give."""
        if not hmac.compare_digest(self.proof(who), proof):
            raise AuthError("the {} does not know the token".format(who))
