"""The pages: what the record says, for people."""
