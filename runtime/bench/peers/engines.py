"""The engine of each kind; only the one that is asked for is imported."""

from __future__ import annotations

from moorage.runtime.bench.peers.peer import Peer, PeerSpec


def make_peer(spec: PeerSpec) -> Peer:
    """Loads the model. Only the engine that is asked for is imported."""
    if spec.kind == "llama.cpp":
        from moorage.runtime.bench.peers.llama_cpp_peer import LlamaCppPeer

        return LlamaCppPeer(spec)
    if spec.kind == "transformers":
        from moorage.runtime.bench.peers.transformers_peer import TransformersPeer

        return TransformersPeer(spec)
    from moorage.runtime.bench.peers.moorage_peer import MooragePeer

    return MooragePeer(spec)
