"""Wire formats: one module per dialect, bytes and types, without I/O."""
