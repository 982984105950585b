"""Files of checkpoints as bytes: folders, checksums, links, metadata."""
