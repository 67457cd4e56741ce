"""Settings of all tests."""

import os

# Waiting threads sleep, as in jobs/cli.py on a busy machine; read once, before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
