"""Pictures: masks over images, scores, a run on one page. Needs neither DeepSpeed nor a display."""
