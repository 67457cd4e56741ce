"""What exists, where it lies and how it is read: contracts, ledger, lake, Feast views and store plug-ins."""
