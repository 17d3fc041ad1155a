"""Monitoring of a run: TensorBoard events, health alarms and metrics."""
