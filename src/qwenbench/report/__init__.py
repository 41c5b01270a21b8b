"""Terminal tables, figures, HTML."""
