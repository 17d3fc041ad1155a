"""`ijepa-ds init`: a first configuration for one's own images."""
