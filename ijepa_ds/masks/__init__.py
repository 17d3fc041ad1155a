"""Multi-block masks: which patches the context encoder sees and which patches the predictor predicts."""
