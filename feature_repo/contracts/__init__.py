"""The words of the platform as types, names and errors. Pure: no I/O, imports nothing of ours but itself."""
