"""The networks of I-JEPA: encoder, predictor, attention, and their FLOPs."""
