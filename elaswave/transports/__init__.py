"""Other ways to move tensors between ranks that may die, behind one interface.

    interface   ElasticTransport, what it can do (Capabilities), the agreed View, the errors
    checked     what all of them share: arguments, element types, operations on scratch memory
    quorum      who may go on; pure
    mpi         mpi4py over MPI's fault tolerance (ULFM)
    gloo        plain gloo, rebuilt after a loss
    elastic     backend "elastic" as one of them
    ballot, deaths, sockets    what gloo lacks: agreement, proofs of death, an abort

``docs/transports.md`` says what each of them promises. Nothing here is imported by ``import elaswave``.
"""

from __future__ import annotations

from elaswave.transports.interface import (
    Capabilities,
    ElasticTransport,
    PeerLostError,
    TransportError,
    UndeclaredError,
    View,
)

__all__ = [
    "Capabilities",
    "ElasticTransport",
    "PeerLostError",
    "TransportError",
    "UndeclaredError",
    "View",
]
