"""Evaluation of patch tokens: segmentation and depth on frozen features."""
