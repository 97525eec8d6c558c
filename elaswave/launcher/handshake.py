"""Two agents prove to each other that they know the job's secret, before either says anything else.

    connecting -> accepting   {"nonce": a}
    accepting -> connecting   {"nonce": b, "proof": HMAC("accepting", a, b)}
    connecting -> accepting   {"proof": HMAC("connecting", a, b)}

HMAC-SHA256; fresh nonces on both sides, so that nothing overheard can be used again. What follows on the connection is
neither encrypted nor signed: a network whose packets strangers can change is not assumed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from elaswave.launcher.channel import Channel


async def connecting(channel: Channel, secret: str) -> None:
    """The side that connected.

    Raises:
        ValueError: the other side is a stranger, or something else altogether.
        ConnectionError: it hung up, which says nothing about it: it may be just ending.
    """
    mine = secrets.token_hex(16)
    channel.send({"nonce": mine})
    answer = await channel.receive()
    if answer is None:
        raise ConnectionError("it hung up")
    theirs = str(answer.get("nonce", ""))
    _check(answer.get("proof"), _proof(secret, "accepting", mine, theirs))
    channel.send({"proof": _proof(secret, "connecting", mine, theirs)})


async def accepting(channel: Channel, secret: str) -> None:
    """The side that was connected to.

    Raises:
        ValueError: as above.
    """
    theirs = str((await channel.receive() or {}).get("nonce", ""))
    mine = secrets.token_hex(16)
    channel.send({"nonce": mine, "proof": _proof(secret, "accepting", theirs, mine)})
    answer = await channel.receive() or {}
    _check(answer.get("proof"), _proof(secret, "connecting", theirs, mine))


def _proof(secret: str, side: str, connecting_nonce: str, accepting_nonce: str) -> str:
    text = f"elastates agent {side} {connecting_nonce} {accepting_nonce}"
    return hmac.new(bytes.fromhex(secret), text.encode(), hashlib.sha256).hexdigest()


def _check(got: object, expected: str) -> None:
    if not hmac.compare_digest(str(got).encode(), expected.encode()):
        raise ValueError("the other side does not know this job's secret (ELASWAVE_SECRET)")
