"""Downstream consumers of the embeddings: rankers (CTR, CVR) and retrieval."""
