"""From the event log to tensors: labels, histories as of a moment, encodings, batches."""
