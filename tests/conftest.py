"""Settings of all tests."""

import os

# Read once, before torch is imported; see jobs/cli.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
