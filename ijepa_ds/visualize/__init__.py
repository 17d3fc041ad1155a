"""Pictures: masks on images, the summary of a run."""
