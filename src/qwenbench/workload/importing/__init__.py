"""Prompt sets from datasets: files or the hub's, row formats, token counts, mixes."""
