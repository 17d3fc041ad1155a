"""What a run records about itself: TensorBoard events, health alarms and metrics."""
