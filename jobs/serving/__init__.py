"""What one serving process is made of; `jobs/serve.py` starts it.

A request goes: app (HTTP) -> worker (one thread, batches) -> served (one release, immutable) -> features and rankers.
"""
