"""Pictures: figures, `ltpa.show` and the explorer."""
